"""What the schedules cost in time: a discrete-event simulation of the rollout phase of one training step."""


class ScheduleError(ValueError):
    """An input of the simulation is missing or impossible; the message says what to do."""
