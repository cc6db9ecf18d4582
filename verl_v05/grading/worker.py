"""A process that compares answers: one JSON request a line on stdin, one verdict a line on stdout.

The kernel's timers kill it when a comparison overruns, whatever sympy is doing and even if its
parent is gone.
"""

import json
import os
import resource
import signal
import sys
from dataclasses import astuple

from verl_v05.grading import symbolic, units  # noqa: F401  Loaded before "ready", so that no answer pays for it.
from verl_v05.grading.verdict import compare

# Address space: sympy takes 0.4 GB of it, a power tower would take all there is.
MEMORY_BYTES = 4 << 30
# Wall-clock limit over CPU limit: CPU time makes a verdict independent of how busy the machine is.
PATIENCE = 10
LIMITS = {signal.SIGPROF: (signal.ITIMER_PROF, 1), signal.SIGALRM: (signal.ITIMER_REAL, PATIENCE)}


def main(timeout_s: float) -> None:
    """Serve until stdin ends.

    Args:
        timeout_s: longest CPU time of one comparison; the process dies by SIGPROF after it, or by SIGALRM after ten
            times as long by the clock. A comparison that needs more than `MEMORY_BYTES` fails with "error".
    """
    for number in LIMITS:
        # The parent may have ignored or blocked them, which a child inherits.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LIMITS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # What a library prints must not be taken for a verdict.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        _set_timers(timeout_s)
        verdict = compare(*json.loads(line))
        _set_timers(0)
        print(json.dumps(astuple(verdict)), file=replies, flush=True)


def _set_timers(seconds: float) -> None:
    for timer, factor in LIMITS.values():
        signal.setitimer(timer, factor * seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]))
