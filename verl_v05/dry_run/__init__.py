"""What a launch would do, from its config alone: no GPU, no Ray, no weights. ``python -m verl_v05.dry_run``."""
