"""The task for a language model: the demo's arithmetic behind examples."""

from __future__ import annotations

import numpy as np

from benchmarks.training.compare_on_lm import EXAMPLES, SIZES, continued
from recipes.demo.reward import compute_score
from recipes.demo.task import LEVELS, problems_of, split_problems


def test_the_answers_of_no_problem_are_among_its_examples() -> None:
    problems = [problem for level in LEVELS for problem in problems_of(level)]
    asked = [problem.prompt.removeprefix(EXAMPLES) for problem in continued(problems)]
    shown = {problem.prompt for problem in problems} - {*asked}
    assert shown == {"2+3=", "14-6=", "3*4=", "27+5="}
    assert all(f"{problem.prompt}{problem.answer}\n" in EXAMPLES for problem in problems if problem.prompt in shown)


def test_a_continued_line_is_graded_as_the_demos_response() -> None:
    train, val = split_problems(np.random.default_rng(0), *SIZES)
    first = continued(train)[0]
    assert compute_score(first.data_source, f"{first.answer}\n\n", str(first.answer))["score"] == 1.0
    assert compute_score(first.data_source, f"{first.answer + 1}\n", str(first.answer))["score"] == 0.0
    assert not {p.prompt for p in continued(train)} & {p.prompt for p in continued(val)}
