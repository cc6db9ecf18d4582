"""mean@k of a checkpoint on the mathematics benchmarks: `python -m benchmarks.bench MODEL`."""


class BenchError(Exception):
    """What the command line prints as one readable message."""
