"""``schedule=sparse``: a hard budget divided among a step's prompts from the first rollout on.

A step looks at ``data.train_batch_size`` prompts, the pool, and starts ``max_rollouts_per_step`` rollouts exactly. What
a prompt can expect of them is in proportion to the gain of its first rollout under the run's allocation rule
(:func:`verl_v05.selection.expected_counts`); its number is drawn with that expectation. What is held back
(``sparse.reserve``) is handed out when the first outcomes are in, by the gain of the next rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from value_model.checks import require
from verl_v05.allocation import AllocationRule, hand_out
from verl_v05.registry import SettingsError
from verl_v05.rollout.group import Group
from verl_v05.rollout.schedule import Schedule
from verl_v05.selection import draw_counts, expected_counts
from verl_v05.settings import KEY, V05Settings


class Sparse(Schedule):
    """Invariants: the step's rollouts are ``max_rollouts_per_step``; every prompt could expect more than none."""

    @classmethod
    def check(cls, settings: V05Settings, allocation: AllocationRule) -> None:
        sparse, cap, name = settings.sparse, settings.max_rollouts_per_step, settings.allocation
        rules = (
            ("k_init", settings.k_init, settings.k_init == 0, "0 with schedule=sparse"),
            ("max_rollouts_per_step", cap, cap is not None, "the number of rollouts a step with schedule=sparse"),
            (
                "allocation",
                name,
                allocation.plans_budget,
                "one that compares prompts (headroom, outcome_variance, posterior, product) with schedule=sparse",
            ),
            (
                "sparse.importance_weights",
                sparse.importance_weights,
                not (sparse.importance_weights and sparse.reserve),
                "false with sparse.reserve > 0, whose rollouts depend on outcomes",
            ),
            (
                "sparse.importance_weights",
                sparse.importance_weights,
                not (sparse.importance_weights and settings.group_weighting == "per_prompt"),
                "false with group_weighting=per_prompt, which weighs prompts by itself",
            ),
        )
        for key, value, ok, allowed in rules:
            require(f"{KEY}.{key}", value, ok, allowed, SettingsError)

    def __init__(self, groups: Sequence[Group], *args: Any, **kwargs: Any):
        super().__init__(groups, *args, **kwargs)
        self._running: set[str] = set()
        self._reserve_left = self.settings.sparse.reserve > 0

    def open(self) -> dict[str, int]:
        groups, sparse = list(self.groups.values()), self.settings.sparse
        budget = min(self.left(), self.settings.k_max * len(groups))
        utility, held_back = self._utility(groups), int(sparse.reserve * budget)
        # Neighbours in this order exclude each other, so sources and difficulties get their share in every step.
        order = sorted(range(len(groups)), key=lambda i: (groups[i].query.data_source, groups[i].prior, i))
        counts = np.empty(len(groups), dtype=np.int64)
        while True:
            expected = expected_counts(utility, budget - held_back, explore=sparse.explore, most=self.settings.k_max)
            counts[order] = draw_counts(expected[order], np.random.default_rng([sparse.seed, self.step]))
            # Only prompts with a first rollout can take the reserve; where they have no room for it, less is held back.
            if self.settings.k_max * np.count_nonzero(counts) >= budget:
                break
            held_back //= 2
        for group, count, chance in zip(groups, counts.tolist(), expected.tolist(), strict=True):
            group.spent = group.first = count
            group.dispatches, group.expected = int(count > 0), chance
        self._running = {g.uid for g in groups if g.spent}
        return {g.uid: g.spent for g in groups}

    def settled(self, uid: str) -> dict[str, int]:
        if not self._reserve_left:
            return {uid: 0}
        self._running.discard(uid)
        return {} if self._running else self._hand_out_reserve()

    def _hand_out_reserve(self) -> dict[str, int]:
        self._reserve_left = False
        groups = [g for g in self.groups.values() if g.spent]
        demand = self.demand(groups)
        room = np.clip(self.settings.k_max - demand.spent, 0, None)
        extra = hand_out(self.left(), room, lambda prompt, nth: _known(demand.gain(prompt, nth)))
        return {group.uid: group.grant(count) for group, count in zip(groups, extra.tolist(), strict=True)}

    def _utility(self, groups: Sequence[Group]) -> np.ndarray:
        """Gain of each prompt's first rollout; the mean of the others' where nothing is believed."""
        gain = self.demand(groups).gain(np.arange(len(groups)), np.zeros(len(groups)))
        known = ~np.isnan(gain)
        return np.where(known, gain, gain[known].mean() if known.any() else 1.0)


def _known(gain: np.ndarray) -> np.ndarray:
    """With no belief a rollout is worth nothing that could be compared; it still counts before none at all."""
    return np.where(np.isnan(gain), 0.0, gain)
