"""Time that the schedules take: a discrete-event simulation of the rollout phase of one training step."""


class ScheduleError(ValueError):
    """An input of the simulation is missing or impossible; the message names the remedy."""
