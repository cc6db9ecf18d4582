"""CPU platform for verl: the same configs on a machine without an accelerator. Out of the way elsewhere."""
