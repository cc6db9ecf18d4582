"""What each test of a fault states, and the table of ``docs/failures.md`` that is made of it and of what was measured.

A statement's arguments are literals: the table is checked against them without importing the tests.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "failures.md"
HEADER = "| fault | what happens | seconds | what to do |\n|---|---|---|---|\n"
TABLE = re.compile(r"^\| fault \|.*\n(?:\|.*\n)*", re.MULTILINE)
UNMEASURED = "not yet"


@dataclass(frozen=True)
class Statement:
    """A row of the table.

    Args:
        fault: what breaks; no two statements have the same.
        happens: what the test asserts.
        do: what whoever runs the training does then.
        within_s: seconds that it may take from the fault on.
    """

    fault: str
    happens: str = "the run ends; its last words name the process and the step"
    do: str = "start it again: it resumes from its last checkpoint"
    within_s: float = 60


def fault(fault: str, **stated: str | float) -> pytest.MarkDecorator:
    """Mark a test, or a case of one, with the :class:`Statement` that it proves.

    Its seconds are those in its fixture ``limit``, or of the whole test if it has none.
    """
    return pytest.mark.stated(Statement(fault, **stated))  # type: ignore[arg-type]


class Limit:
    """A context of a test from a fault to its outcome, which ends within the stated time; of several, the longest."""

    def __init__(self, within_s: float):
        self.within_s, self.seconds = within_s, 0.0

    def __enter__(self) -> Limit:
        self._began = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.seconds = max(self.seconds, time.monotonic() - self._began)
            assert self.seconds <= self.within_s, f"took {self.seconds:.0f} s of {self.within_s:.0f}"


def stated() -> list[Statement]:
    """All statements of the tests, in the order of files and lines."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "fault(" not in (text := path.read_text()):
            continue
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        for call in sorted(calls, key=lambda call: call.lineno):
            if isinstance(call.func, ast.Name) and call.func.id == "fault":
                values = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None}
                found.append(Statement(*map(ast.literal_eval, call.args), **values))
    return found


def rows(page: str) -> dict[str, str]:
    """The table's rows by their fault."""
    table = TABLE.search(page)
    assert table is not None, f"no table begins with {HEADER}"
    return {line.split(" | ")[0].removeprefix("| "): line for line in table[0].splitlines()[2:]}


def seconds_of(row: str) -> str:
    """Of a row of the table: as written there, without the limit."""
    return row.split(" | ")[2].split(" of ")[0]


def row(statement: Statement, seconds: str) -> str:
    s = statement
    return f"| {s.fault} | {s.happens} | {seconds} of {s.within_s:g} | {s.do} |"


def rounded(seconds: float) -> str:
    return "< 0.1" if seconds < 0.1 else f"{seconds:.1f}" if seconds < 9.95 else f"{seconds:.0f}"


def updated(page: str, statements: Iterable[Statement], measured: Mapping[str, float]) -> str:
    """The page with a row for each statement; seconds that are not among ``measured`` stay what they were."""
    before = rows(page)
    table = HEADER
    for statement in statements:
        kept = seconds_of(before[statement.fault]) if statement.fault in before else UNMEASURED
        now = measured.get(statement.fault)
        table += row(statement, kept if now is None else rounded(now)) + "\n"
    return TABLE.sub(lambda _: table, page)
