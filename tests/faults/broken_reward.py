"""The demo's reward function with a fault, for one prompt; loaded by verl by file path."""

import re
import sys
import time
from pathlib import Path
from typing import Any

FIRST = 40  # call that breaks; the first step of the tests' runs takes 32
calls = 0
broken: str | None = None


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, *, fault: str, mark: str, **_: Any
) -> float:
    """Score as the demo does, but for the prompt of the call FIRST; the file ``mark`` says when that broke, and which.

    Args:
        fault: "waits" and "loops" never return, "exits" ends the process, "keeps" never returns nor lets others run.
    """
    global calls, broken
    calls += 1
    if calls == FIRST:
        broken = f"{data_source} {ground_truth} {(extra_info or {}).get('index')}"
        Path(mark).write_text(ground_truth)
    if broken == f"{data_source} {ground_truth} {(extra_info or {}).get('index')}":
        if fault == "exits":
            sys.exit(3)
        if fault == "keeps":
            re.match(r"(a+)+$", "a" * 64 + "b")
        while fault == "loops":
            pass
        while fault == "waits":
            time.sleep(1000)
    return float(solution_str.strip() == ground_truth.strip())
