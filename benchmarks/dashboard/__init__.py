"""Training runs compared: figures, tables and one HTML page from their local logs, and the same panels for wandb."""
