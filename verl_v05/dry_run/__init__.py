"""What a launch would do, from its config alone: no GPU, no Ray, no weights. ``python -m verl_v05.dry_run``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """An ``error`` stops the launch, a ``warning`` does not."""

    level: Literal["error", "warning"]
    message: str


error, warn = partial(Problem, "error"), partial(Problem, "warning")


def refuse(key: str, value: object, allowed: str) -> Problem:
    """An error that names the key, its value and what is allowed."""
    return error(f"{key}={value!r} is not allowed: it must be {allowed}")


def failed(problems: Iterable[Problem]) -> bool:
    return any(problem.level == "error" for problem in problems)
