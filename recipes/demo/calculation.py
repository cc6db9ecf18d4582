"""The demo's second task: sums of several terms, whose calculation the response writes out step by step.

`37+48-15=` is to be answered with `37+48=85,85-15=70,70`: one step after the other from left to right, each followed by
a comma, then the answer. Only what follows the last comma is rewarded.

As in the arithmetic task, the policy is warmed up to know some things and not others, here a step's: its competence
depends on the operation and on the last digit of the right operand. Where the policy does not know it, the step's
result is one fixed wrong number, and the calculation goes on from there, so its answer is wrong. A prompt's success
probability is the product of its steps' competences, and falls with their number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from recipes.demo.reward import CALCULATION, SEPARATOR
from recipes.demo.task import DIGITS, OPERATIONS, Batch, draw_digits, shuffled, slip

DATA_SOURCE = CALCULATION
RESULTS = range(10, 100)  # of every step, so that a response's length depends on its level alone

# Of the policy, as transformers' Qwen3 names them: about 1 million parameters.
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
# Overrides of the setting `cpu`.
TRAINING = ("data.max_prompt_length=24", "data.max_response_length=64")

# A competence u**exponent with u even in [_LEAST, 1]: what the policy never does, reinforcement learning cannot find.
_LEAST = 0.02
_STRONG, _WEAK, _PRODUCT = 0.1, 0.4, 0.25


@dataclass(frozen=True)
class Level:
    """One kind of prompt: how many steps, and the range of the operands that are added and subtracted."""

    name: str
    steps: int
    right: range
    product: bool = False  # whether the first step multiplies two digits


LEVELS = (
    Level("two_steps", 2, range(10, 90)),
    Level("product", 3, range(10, 90), product=True),
    Level("small_numbers", 4, range(10)),
    Level("four_steps", 4, range(10, 90)),
    Level("six_steps", 6, range(10, 90)),
)


@dataclass(frozen=True)
class Problem:
    """One prompt of at most 21 characters, with the true calculation of at most 56."""

    data_source: ClassVar[str] = DATA_SOURCE

    level: str
    start: int
    steps: tuple[tuple[str, int], ...]  # operation, right operand

    @property
    def prompt(self) -> str:
        """`37+48-15=`."""
        return f"{self.start}{''.join(f'{operation}{right}' for operation, right in self.steps)}="

    @property
    def answer(self) -> int:
        """What the last step gives."""
        return self._results([False] * len(self.steps))[-1]

    @property
    def response(self) -> str:
        """The calculation without a slip."""
        return self.response_with([False] * len(self.steps))

    @property
    def features(self) -> dict[str, Any]:
        """Level, and the steps' operations and right operands' last digits, such as "+8 -5"."""
        skills = (f"{operation}{right % DIGITS}" for operation, right in self.steps)
        return {"level": self.level, "skills": " ".join(skills)}

    def response_with(self, slips: Sequence[bool]) -> str:
        """The calculation with a slip in the marked steps."""
        results = self._results(slips)
        lefts = [self.start, *results[:-1]]
        written = (
            f"{left}{operation}{right}={result}{SEPARATOR}"
            for left, (operation, right), result in zip(lefts, self.steps, results, strict=True)
        )
        return f"{''.join(written)}{results[-1]}"

    def _results(self, slips: Sequence[bool]) -> list[int]:
        results, value = [], self.start
        for (operation, right), slipped in zip(self.steps, slips, strict=True):
            value = OPERATIONS[operation](value, right)
            value = slip(value) if slipped else value
            results.append(value)
        return results


def draw_competences(rng: np.random.Generator, never: int = 1, always: int = 1) -> dict[str, np.ndarray]:
    """Draw what the policy shall be good at: addition or subtraction, and which last digits, in one order for all.

    Returns, by operation, the competence in (0, 1] for each digit, of shape (DIGITS,).
    """
    even = _LEAST + (1 - _LEAST) * draw_digits(rng, never, always)
    add, subtract = rng.permutation((_STRONG, _WEAK))
    return {"+": even**add, "-": even**subtract, "*": even**_PRODUCT}


def step_competences(problem: Problem, competences: Mapping[str, np.ndarray]) -> np.ndarray:
    """The competence of each step, in (0, 1], of shape (steps,)."""
    return np.array([competences[operation][right % DIGITS] for operation, right in problem.steps])


def aimed_success(problem: Problem, competences: Mapping[str, np.ndarray]) -> float:
    """Success probability, in (0, 1], that the warm-up aims at: that no step slips."""
    return float(step_competences(problem, competences).prod())


def draw_problem(level: Level, rng: np.random.Generator) -> Problem:
    """Draw one problem. Every step's result is in `RESULTS`."""
    steps: list[tuple[str, int]] = []
    if level.product:
        start = int(rng.integers(2, DIGITS))
        right = int(rng.integers(-(-RESULTS.start // start), DIGITS))
        steps.append(("*", right))
        value = start * right
    else:
        value = start = int(rng.integers(RESULTS.start, RESULTS.stop))
    while len(steps) < level.steps:
        allowed = _allowed(value, level.right)
        operation = "+-"[rng.integers(2)]
        if not allowed[operation]:
            operation = "-" if operation == "+" else "+"
        right = int(rng.choice(allowed[operation]))
        steps.append((operation, right))
        value = OPERATIONS[operation](value, right)
    return Problem(level.name, start, tuple(steps))


def _allowed(value: int, right: range) -> dict[str, range]:
    """By operation, the right operands that keep the result in `RESULTS`; one of them is not empty."""
    return {
        "+": range(right.start, min(right.stop, RESULTS.stop - value)),
        "-": range(right.start, min(right.stop, value - RESULTS.start + 1)),
    }


def split_problems(rng: np.random.Generator, train_size: int, val_size: int) -> tuple[list[Problem], list[Problem]]:
    """Draw distinct train and validation problems, each shuffled and with as many of every level, give or take one."""
    splits, seen = [], set()
    for size in (train_size, val_size):
        problems = []
        while len(problems) < size:
            problem = draw_problem(LEVELS[len(problems) % len(LEVELS)], rng)
            if problem.prompt not in seen:
                seen.add(problem.prompt)
                problems.append(problem)
        splits.append(shuffled(problems, rng))
    return splits[0], splits[1]


def warm_up_batches(
    competences: Mapping[str, np.ndarray], rng: np.random.Generator, problems_per_step: int
) -> Iterator[Batch]:
    """Yield batches for the warm-up, endlessly: each problem once, its steps with as many slips as `competences` ask.

    The validation prompts are held out from reinforcement learning, not from the warm-up.
    """
    while True:
        levels = [LEVELS[index] for index in rng.integers(len(LEVELS), size=problems_per_step)]
        problems = [draw_problem(level, rng) for level in levels]
        responses = []
        for problem in problems:
            known = step_competences(problem, competences)
            responses.append(problem.response_with(rng.random(len(known)) >= known))
        yield Batch([problem.prompt for problem in problems], responses, [1.0] * problems_per_step)
