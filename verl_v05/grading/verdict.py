"""Verdicts: whether a response is right, its answer, and why no comparison could be made."""

from typing import Literal, NamedTuple

from verl_v05.grading.answer import final_answer, gold_text
from verl_v05.grading.latex import UnparsedError
from verl_v05.grading.number import quickly


class Verdict(NamedTuple):
    """A graded response.

    Attributes:
        correct: whether its final answer is the gold.
        answer: the final answer as written, None without one.
        failure: why no comparison could be made (`correct` is False then), None if one was.
    """

    correct: bool
    answer: str | None
    failure: Literal["no_answer", "unparsed", "timeout", "error"] | None = None


def grade(response: str, ground_truth: str) -> Verdict:
    """Grade a response in this process, without a time limit (`GradingPool` has one). It never raises.

    Args:
        response: the model's text; only its final answer counts.
        ground_truth: the gold as published, a bare string without delimiters.
    """
    found = quick_verdict(response, ground_truth)
    return found if isinstance(found, Verdict) else compare(*found)


def quick_verdict(response: object, ground_truth: object) -> Verdict | tuple[str, str]:
    """The verdict where it costs microseconds (no answer or gold, one spelling, two numbers), else (answer, gold)."""
    if (answer := final_answer(response)) is None:
        return Verdict(False, None, "no_answer")
    try:
        gold = gold_text(ground_truth)
    except ValueError:
        return Verdict(False, answer, "unparsed")
    correct = quickly(answer, gold)
    return (answer, gold) if correct is None else Verdict(correct, answer)


def compare(answer: str, gold: str) -> Verdict:
    """The verdict on an extracted answer; may take long."""
    from verl_v05.grading.equivalence import equivalent  # Here, so that training on integers never loads sympy.

    try:
        return Verdict(equivalent(answer, gold), answer)
    except UnparsedError:
        return Verdict(False, answer, "unparsed")
    except Exception:
        # sympy raises every class of exception on odd input, and a grade must not stop a training run.
        return Verdict(False, answer, "error")
