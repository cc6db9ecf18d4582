"""Trainers for verl's ``trainer.v1.trainer_mode``, and what they log and keep."""
