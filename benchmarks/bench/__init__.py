"""mean@k of a checkpoint on the mathematics benchmarks: `python -m benchmarks.bench MODEL`."""


class BenchError(Exception):
    """An error of the user's input; the command line prints its message without a traceback."""
