"""Pre-training of a small in-context head on synthetic tasks."""
