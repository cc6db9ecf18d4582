"""The demo's arithmetic task: levels, problems, the train/validation split, the warm-up's data and verl's parquet rows.

The warmed-up policy shall know some problems and not others. Each problem has a competence, the
probability it is warmed up to answer rightly; otherwise it makes the problem's slip, one fixed
wrong answer. The competence depends on the level (an operation with its operands' ranges) and on
the last digit of the second operand: over the ten digits, a level's competences are evenly spaced
in [0, 1] (unless more digits shall be known never or always) and raised to the level's exponent. So
the success probability differs from prompt to prompt by design, and covers the range from near 0 to
near 1 whatever the seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
import pandas as pd

DATA_SOURCE = "verl_v05/demo_arithmetic"
DIGITS = 10

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
# Of the policy, as transformers' Qwen3 names them: about 0.3 million parameters.
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TRAINING: tuple[str, ...] = ()  # overrides of the setting `cpu`, which is this task's


class TaskProblem(Protocol):
    """What is asked of either task's problems."""

    data_source: ClassVar[str]

    @property
    def level(self) -> str:
        """Name of its level."""

    @property
    def prompt(self) -> str:
        """What the policy is given."""

    @property
    def answer(self) -> int:
        """What the reward compares with."""

    @property
    def response(self) -> str:
        """What the policy should write."""

    @property
    def features(self) -> dict[str, Any]:
        """For `extra_info`: what the success probability depends on."""


P = TypeVar("P", bound=TaskProblem)


class Batch(NamedTuple):
    """Rows of one step of the warm-up."""

    prompts: list[str]
    responses: list[str]
    weights: list[float]  # positive; a problem's add up to 1


@dataclass(frozen=True)
class Level:
    """One kind of problem, `left operation right`; answers below 0 are left out.

    The mean of its competences u**exponent, u even in [0, 1], is about 1 / (1 + exponent).
    """

    name: str
    operation: str
    left: range
    right: range
    exponent: float


LEVELS = (
    Level("add_1_1", "+", range(10), range(10), 0.8),
    Level("mul_1_1", "*", range(10), range(10), 1.2),
    Level("add_2_1", "+", range(10, 60), range(10), 1.2),
    Level("sub_2_1", "-", range(10, 60), range(10), 1.6),
)


@dataclass(frozen=True)
class Problem:
    """One prompt, at most 5 characters, with the true answer, at most 2 characters.

    `skill_digit` is the last digit of the second operand, in [0, DIGITS), which sets the competence.
    """

    data_source: ClassVar[str] = DATA_SOURCE

    level: str
    prompt: str
    answer: int
    skill_digit: int

    @property
    def response(self) -> str:
        """The answer alone."""
        return str(self.answer)

    @property
    def slip(self) -> int:
        """The wrong answer that the warm-up teaches."""
        return slip(self.answer)

    @property
    def features(self) -> dict[str, Any]:
        """Level and skill digit."""
        return {"level": self.level, "skill_digit": self.skill_digit}


def slip(result: int) -> int:
    """The wrong result in the place of a right one: the units digit one too high, not carried."""
    units = result % DIGITS
    return result - units + (units + 1) % DIGITS


def problems_of(level: Level) -> Iterator[Problem]:
    """Yield every distinct problem of a level whose answer is not negative."""
    apply = OPERATIONS[level.operation]
    for left in level.left:
        for right in level.right:
            answer = apply(left, right)
            if answer >= 0:
                prompt = f"{left}{level.operation}{right}="
                yield Problem(level.name, prompt, answer, right % DIGITS)


def draw_digits(rng: np.random.Generator, never: int = 1, always: int = 1) -> np.ndarray:
    """Draw how well each last digit is known, of shape (DIGITS,): `never` of them 0, `always` 1, the others between.

    The others are evenly spaced. `never` and `always` are at least 1, and at most DIGITS together.
    """
    inner = DIGITS - never - always + 2
    values = np.concatenate([np.zeros(never - 1), np.arange(inner) / (inner - 1), np.ones(always - 1)])
    return values[rng.permutation(DIGITS)]


def draw_competences(rng: np.random.Generator, never: int = 1, always: int = 1) -> dict[str, np.ndarray]:
    """Draw which last digits the policy shall be good at (`draw_digits`), one order shared by all levels.

    Returns, by level name, the competence in [0, 1] for each digit, of shape (DIGITS,).
    """
    even = draw_digits(rng, never, always)
    return {level.name: even**level.exponent for level in LEVELS}


def aimed_success(problem: Problem, competences: Mapping[str, np.ndarray]) -> float:
    """Success probability, in [0, 1], that the warm-up aims at."""
    return float(competences[problem.level][problem.skill_digit])


def split_problems(rng: np.random.Generator, train_size: int, val_size: int) -> tuple[list[Problem], list[Problem]]:
    """Draw disjoint train and validation problems, each shuffled.

    The levels share `train_size + val_size` as evenly as their number of distinct problems allows,
    and every level is divided between the two splits in the same proportion.
    """
    pools = {level.name: list(problems_of(level)) for level in LEVELS}
    shares = _even_shares({name: len(pool) for name, pool in pools.items()}, train_size + val_size)
    by_level = []
    for name, pool in pools.items():
        chosen = rng.permutation(len(pool))[: shares[name]]
        by_level.append([pool[index] for index in chosen])
    # Walking the levels' problems by relative rank puts the same proportion of each in a prefix.
    ranked = sorted(
        ((rank + 0.5) / len(chosen), problem.prompt, problem)
        for chosen in by_level
        for rank, problem in enumerate(chosen)
    )
    ordered = [problem for _, _, problem in ranked]
    train, val = ordered[:train_size], ordered[train_size:]
    return shuffled(train, rng), shuffled(val, rng)


def _even_shares(capacities: dict[str, int], total: int) -> dict[str, int]:
    """Share out `total` evenly, giving what a small capacity cannot take to the larger ones."""
    if total > sum(capacities.values()):
        raise ValueError(f"{total} problems asked for, {sum(capacities.values())} exist")
    shares = {}
    by_capacity = sorted(capacities, key=capacities.__getitem__)
    for position, name in enumerate(by_capacity):
        fair = total // (len(by_capacity) - position)
        shares[name] = min(capacities[name], fair)
        total -= shares[name]
    return shares


def shuffled(problems: Sequence[P], rng: np.random.Generator) -> list[P]:
    """The problems in an order drawn with `rng`."""
    return [problems[index] for index in rng.permutation(len(problems))]


def warm_up_batches(
    competences: Mapping[str, np.ndarray], rng: np.random.Generator, problems_per_step: int
) -> Iterator[Batch]:
    """Yield batches for the warm-up, endlessly.

    Problems are drawn from the whole problem space, evenly over levels and then evenly within the level: the validation
    prompts are held out from reinforcement learning, not from the warm-up. Each problem appears with its true answer,
    weighted by its competence, and with its slip, weighted by the rest; weighing both teaches the mixture faster than
    sampling one label. An answer that would weigh nothing is left out, so competences of one give the truth alone.
    """
    pools = [list(problems_of(level)) for level in LEVELS]
    while True:
        drawn = [pools[index] for index in rng.integers(len(pools), size=problems_per_step)]
        problems = [pool[rng.integers(len(pool))] for pool in drawn]
        batch = Batch([], [], [])
        for problem in problems:
            competence = aimed_success(problem, competences)
            for answer, weight in ((problem.answer, competence), (problem.slip, 1.0 - competence)):
                if weight > 0.0:
                    batch.prompts.append(problem.prompt)
                    batch.responses.append(str(answer))
                    batch.weights.append(weight)
        yield batch


def _row(problem: TaskProblem, split: str, index: int) -> dict[str, Any]:
    """Return one row in verl's format."""
    return {
        "data_source": problem.data_source,
        "prompt": [{"role": "user", "content": problem.prompt}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
        "extra_info": {"split": split, "index": index, **problem.features},
    }


def write_parquet(problems: Sequence[TaskProblem], split: str, path: Path) -> None:
    """Write one split; `extra_info.index` is the row number, unique within the split."""
    rows = [_row(problem, split, index) for index, problem in enumerate(problems)]
    pd.DataFrame(rows).to_parquet(path, index=False)
