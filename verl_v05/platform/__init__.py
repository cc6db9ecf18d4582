"""CPU platform for verl: the same configs on a machine without an accelerator. Not used elsewhere."""
