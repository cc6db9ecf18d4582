"""What counts as the final answer of a response, and what does not."""

from __future__ import annotations

import time

import numpy as np
import pytest

from verl_v05.grading.answer import final_answer, gold_text


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"First $\boxed{12}$, corrected: $\boxed{34}$.", "34"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {34}", "34"),
        (r"\fbox{34}", "34"),
        (r"\boxed{34} is what we get, since 17 + 17 = 34 and not 35.", "34"),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{1} \text{ or } \boxed{2}", "1, 2"),
        (r"x is \boxed{1}. Then y is \boxed{2}", "2"),
        (r"\boxed{x = \boxed{5}}", "5"),
        ("We add.\n\nAnswer: 34", "34"),
        ("We add.\n**Answer:** $34$", "$34$"),
        ("We add.\n**Answer: 34**", "34"),
        ("So the final answer is $34$.", "$34$."),
        ("We add.\n\n**34**\n", "34"),
    ],
)
def test_the_committed_answer_is_found(response: str, answer: str) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    "response",
    [
        "",
        "  \n",
        "34",
        "The sum of 17 and 17 is 34",
        r"Earlier \boxed{34}, but now it is \boxed{3",
        r"\boxed{",
        r"\boxed{}",
        "Answer: 34\n\nWait, let me check this again.",
        "**Step 2**: now 34",
        None,
        float("nan"),
        34,
        [r"\boxed{34}"],
    ],
)
def test_a_mention_a_truncated_box_and_no_text_are_no_answer(response: object) -> None:
    assert final_answer(response) is None


@pytest.mark.parametrize(
    "response",
    [
        "x" * 1_000_000,
        "{" * 1_000_000,
        r"\boxed{" * 150_000,
        r"\boxed{1}, " * 100_000,
        r"\boxed{1}" + " " * 1_000_000 + r"\boxed{2}",
        "answer " * 140_000,
        "answer" + " " * 1_000_000 + "?",
        "**" * 500_000,
    ],
)
def test_a_megabyte_costs_no_more_than_a_second_or_two(response: str) -> None:
    started = time.perf_counter()
    final_answer(response)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        (np.float64(2.5), "2.5"),
        (np.float32(0.1), "0.1"),
        (np.float64(4.0), "4"),
        (np.int64(7), "7"),
        (np.array(["7"], dtype=object), "7"),
        (np.array([1.0, 2.5]), "1, 2.5"),
        (0.1 + 0.2, "0.3"),
        (True, "True"),
        ({"value": "5"}, "5"),
        ("{'value': '5'}", "5"),
        ("3+4=7\n#### 7", "7"),
        (r"We get $\boxed{\frac12}$.", r"\frac12"),
        (r"\(x^2\)", "x^2"),
    ],
)
def test_a_gold_of_any_type_is_the_text_of_its_answer(gold: object, text: str) -> None:
    assert gold_text(gold) == text


@pytest.mark.parametrize(
    "gold", [None, float("inf"), np.float64("nan"), {}, {"a": 1, "b": 2}, (), "None", "['", object()]
)
def test_a_gold_without_an_answer_is_an_error(gold: object) -> None:
    with pytest.raises(ValueError, match="answer"):
        gold_text(gold)
