"""Every published gold is right for itself, and hardly ever for another problem."""

from __future__ import annotations

import json
import random
from pathlib import Path

import psutil
import pytest

from verl_v05.grading import GradingPool, grade

DATA = Path(__file__).parents[2] / "shared" / "data"
SOURCES = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva_math": 272, "olympiadbench": 675}


def golds(source: str) -> list[str]:
    path = DATA / f"{source}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("source", "count"), SOURCES.items())
def test_every_gold_is_right_for_itself(source: str, count: int) -> None:
    answers = golds(source)
    assert len(answers) == count
    assert [gold for gold in answers if not grade(rf"Thus $\boxed{{{gold}}}$.", gold).correct] == []


@pytest.mark.parametrize("source", SOURCES)
def test_a_gold_of_another_value_is_wrong(source: str) -> None:
    answers = golds(source)
    generator = random.Random(0)
    pairs = [(generator.choice(answers), gold) for gold in answers for _ in range(2)]
    pairs = [(answer, gold) for answer, gold in pairs if answer != gold]
    with GradingPool() as pool:
        verdicts = pool.grade_many([(rf"\boxed{{{answer}}}", gold) for answer, gold in pairs])
    # Some golds have the same value in another spelling: 0.2 and 0.20, f(n)=n and N=n.
    right = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.correct]
    assert len(right) <= 0.005 * len(pairs), right
    assert not any(verdict.failure in ("timeout", "error") for verdict in verdicts)


def test_training_golds_are_compared_without_a_process() -> None:
    answers = golds("dapo_math_17k")
    with GradingPool() as pool:
        assert all(verdict.correct for verdict in pool.grade_many([(rf"\boxed{{{a}}}", a) for a in answers]))
        assert not any(v.correct for v in pool.grade_many([(rf"\boxed{{{a}1}}", a) for a in answers]))
        assert not psutil.Process().children()
