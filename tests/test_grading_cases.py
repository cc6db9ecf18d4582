"""Answers of the kinds that users of graders report: no wrong one is rewarded, and hardly any right one refused."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from benchmarks.grading.__main__ import OWN_CASES
from verl_v05.grading import GradingPool, Verdict, grade
from verl_v05.grading.number import quickly

CASES: list[dict[str, Any]] = [json.loads(line) for line in OWN_CASES.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    with GradingPool() as pool:
        return pool.grade_many([(case["response"], case["ground_truth"]) for case in CASES])


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in CASES}))
def test_no_wrong_answer_of_a_kind_is_rewarded(kind: str, verdicts: list[Verdict]) -> None:
    graded = [(case, verdict.correct) for case, verdict in zip(CASES, verdicts, strict=True) if case["kind"] == kind]
    assert [case for case, correct in graded if correct and not case["expected"]] == []


def test_few_right_answers_are_refused(verdicts: list[Verdict]) -> None:
    right = [verdict.correct for case, verdict in zip(CASES, verdicts, strict=True) if case["expected"]]
    assert sum(right) >= 0.85 * len(right)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\ln |n|", r"\ln n"),
        (r"2\text{ Mg}", r"2\text{ mg}"),
        (r"\lceil x\rceil", r"\lfloor x\rfloor+1"),
        (r"\ln x+\ln y", r"\ln(xy)"),
        ("E", "e"),
        ("0", "e^{-1000}"),
        (r"\angle ACB", r"\angle ABC"),
        ("[2, 1]", "(2, 1)"),
        ("a_{12}", "A_{12}"),
    ],
)
def test_what_agrees_only_in_part_is_refused(answer: str, gold: str) -> None:
    assert not grade(rf"\boxed{{{answer}}}", gold).correct


@pytest.mark.parametrize("answer", ["1 " * 490, " " * 990, "0." + "3" * 990, r"5\text{ cm }^2 / " * 50, "√(" * 450])
def test_notation_is_read_in_time_by_the_training_process_itself(answer: str) -> None:
    started = time.perf_counter()
    quickly(answer, "34")
    assert time.perf_counter() - started < 5
