"""Meta-tasks: a context and queries of one policy at one step, drawn from a trajectory table.

A task is a function of (seed, epoch, index) alone, so that a run resumes at any index without saved random state, and
each of n processes takes every n-th index.

Sizes: C context prompts, Q queries, M pairs of queries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from value_model.checks import field_check
from value_model.conversions import hard_label

Array = np.ndarray


class MetaTaskError(ValueError):
    """Invalid settings, or a table that no task can be drawn from."""


@dataclass(frozen=True)
class MetaTaskSettings:
    """Composition of a task; the defaults are the paper's.

    The context holds the newest outcome per prompt in a window of the model's measured steps: the ``window`` steps
    before the queries' own, and their own if ``own_step``. (0, true) is the paper's; in use, the support buffer
    holds earlier steps only, which corresponds to (n, false). No query's prompt is in the context, not even with an
    older outcome.

    ``balanced`` draws ``pairs`` positive and as many negative queries; else ``2 * pairs`` queries are drawn at
    random, so that they have the base rate of the context and the predictions are calibrated.

    ``repeats`` is the number of tasks of each (model, step) in an epoch, their queries drawn independently. None is as
    many as pass over all of its queries once, and over the rarer class again while the other lasts: an epoch of the
    authors' loader.
    """

    context_min: int = 256
    context_max: int = 256
    pairs: int = 4
    window: int = 0
    own_step: bool = True
    balanced: bool = True
    repeats: int | None = 1

    def __post_init__(self) -> None:
        check = field_check(self, "tasks.", MetaTaskError)
        check("context_min", self.context_min >= 2, "at least 2, to hold both classes")
        check("context_max", self.context_max >= self.context_min, f"at least context_min ({self.context_min})")
        check("pairs", self.pairs >= 1, "at least 1")
        check("window", self.window >= 0, "at least 0")
        check("own_step", self.own_step or self.window >= 1, "true where window is 0")
        check("repeats", self.repeats is None or self.repeats >= 1, "null or at least 1")


@dataclass(frozen=True)
class MetaTask:
    """Context and queries; ``pairs`` (M, 2) holds the index of a query with score >= 0 and of one with score < 0."""

    model: str
    step: int
    context_prompts: list[str]
    context_scores: Array  # (C,), of both classes
    prompts: list[str]
    scores: Array  # (Q,)
    counts: Array  # (Q,), rollouts behind each score
    pairs: Array

    @property
    def labels(self) -> Array:
        """Hard label of each context prompt, (C,) bool."""
        return hard_label(self.context_scores)


class MetaTasks:
    """All tasks of a table.

    Attributes:
        table: the trajectories that tasks are drawn from.
        skipped: (model, step) groups that no task can be drawn from: too few prompts, or only one class.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        settings: MetaTaskSettings,
        seed: int = 0,
        query_prompts: Collection[str] | None = None,
    ):
        """Find the groups that tasks can be drawn from.

        Args:
            table: see :mod:`value_model.trajectories`.
            settings: composition of a task.
            seed: of the draws.
            query_prompts: texts that may be queries; None is all. The context may hold any text.

        Raises:
            MetaTaskError: no group gives a task.
        """
        self.settings = settings
        self.seed = seed
        self.table = table.reset_index(drop=True)
        self._text = pd.factorize(self.table["prompt"])[0]  # equal texts have equal numbers
        self._positive = hard_label(self.table["score"])
        is_query = self.table["prompt"].isin(query_prompts).to_numpy() if query_prompts is not None else None
        windows = list(_windows(self.table, self._text, settings))
        found = [self._group(own if is_query is None else own[is_query[own]], pool) for own, pool in windows]
        self._groups = [group for group in found if group is not None]
        self._visits = _visits(self._groups, settings.repeats)
        self.skipped = len(found) - len(self._groups)
        if not self._groups:
            raise MetaTaskError(
                f"none of the {len(found)} (model, step) groups gives a task: each needs at least tasks.context_min="
                f"{settings.context_min} context prompts of both classes besides the queries; lower it, or raise "
                f"tasks.window={settings.window}"
            )

    def __len__(self) -> int:
        """Tasks in an epoch."""
        return len(self._visits)

    def draw(self, epoch: int, index: int) -> MetaTask:
        """One task; equal arguments give equal tasks, and an epoch visits every (model, step) as ``repeats`` says."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self))
        number, visit = self._visits[order[index]]
        group, size = self._groups[number], self._groups[number].queries_per_stratum
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.settings.repeats is None:
            # All visits of a group share one order of its rows, so that each can take the next part of it.
            shared = np.random.default_rng([self.seed, epoch, number, len(self)])
            parts = [np.resize(shared.permutation(rows), (visit + 1) * size)[-size:] for rows in group.strata]
        else:
            parts = [rng.choice(rows, size, replace=False) for rows in group.strata]
        queries = np.concatenate(parts)
        pool = group.pool[~np.isin(self._text[group.pool], self._text[queries])]
        size = int(rng.integers(self.settings.context_min, min(self.settings.context_max, len(pool)) + 1))
        return self._task(self._draw_context(rng, pool, size), queries)

    def _draw_context(self, rng: np.random.Generator, pool: Array, size: int) -> Array:
        """Random rows, at least one of each class."""
        shuffled = rng.permutation(pool)
        positive = self._positive[shuffled]
        first = np.array([positive.argmax(), (~positive).argmax()])
        rest = np.delete(shuffled, first)
        return rng.permutation(np.concatenate([shuffled[first], rest[: size - 2]]))

    def _task(self, context: Array, queries: Array) -> MetaTask:
        context_rows, query_rows = self.table.iloc[context], self.table.iloc[queries]
        return MetaTask(
            model=str(query_rows["model"].iloc[0]),
            step=int(query_rows["step"].iloc[0]),
            context_prompts=context_rows["prompt"].tolist(),
            context_scores=context_rows["score"].to_numpy(copy=True),
            prompts=query_rows["prompt"].tolist(),
            scores=query_rows["score"].to_numpy(copy=True),
            counts=query_rows["n"].to_numpy(copy=True),
            pairs=_success_failure_pairs(self._positive[queries]),
        )

    def _group(self, own: Array, pool: Array) -> _Group | None:
        """The group with the most queries that leave a valid context for every draw; None if no number does."""
        positive = self._positive[own]
        strata = (own[positive], own[~positive]) if self.settings.balanced else (own,)
        wanted = self.settings.pairs if self.settings.balanced else 2 * self.settings.pairs
        left_at_least = np.array([1, 1, self.settings.context_min])
        # The queries' prompts are removed from the pool. Which ones are drawn is not known here, so each count is
        # reduced by the maximum over all draws.
        overlaps = [self._class_counts(pool[np.isin(self._text[pool], self._text[rows])]) for rows in strata]
        for most in range(min(wanted, *map(len, strata)), 0, -1):
            if (self._class_counts(pool) - sum(np.minimum(most, o) for o in overlaps) >= left_at_least).all():
                return _Group(strata, pool, most)
        return None

    def _class_counts(self, rows: Array) -> Array:
        """Number of failures, of successes, and of both."""
        positive = int(self._positive[rows].sum())
        return np.array([len(rows) - positive, positive, len(rows)])


@dataclass(frozen=True)
class _Group:
    """Row numbers of a (model, step): queries are drawn from each of ``strata``, the context from ``pool``."""

    strata: tuple[Array, ...]
    pool: Array
    queries_per_stratum: int


def _visits(groups: Sequence[_Group], repeats: int | None) -> Array:
    """Number of the group and of the visit to it, of each task of an epoch, (T, 2)."""
    if repeats is not None:
        visit, group = np.divmod(np.arange(len(groups) * repeats), max(len(groups), 1))
        return np.stack([group, visit], axis=1)
    counts = [-(-max(map(len, group.strata)) // group.queries_per_stratum) for group in groups]
    return np.array([(number, visit) for number, count in enumerate(counts) for visit in range(count)], dtype=int)


def _windows(table: pd.DataFrame, text: Array, settings: MetaTaskSettings) -> Iterator[tuple[Array, Array]]:
    """Rows of each (model, step), and the newest row per prompt in its window, ordered by model and step."""
    for _, rows in sorted(table.groupby("model").indices.items()):
        steps = table["step"].to_numpy()[rows]
        by_step = [rows[steps == step] for step in np.unique(steps)]
        for i, own in enumerate(by_step):
            window = by_step[max(0, i - settings.window) : i + settings.own_step]
            pool = np.concatenate(window) if window else own[:0]
            # np.unique keeps the first of equals, and the first of the reversed rows is the newest.
            yield own, pool[::-1][np.unique(text[pool][::-1], return_index=True)[1]]


def _success_failure_pairs(positive: Array) -> Array:
    """Positive and negative queries side by side, each in one pair at most, (M, 2)."""
    good, bad = np.flatnonzero(positive), np.flatnonzero(~positive)
    size = min(len(good), len(bad))
    return np.stack([good[:size], bad[:size]], axis=1)
