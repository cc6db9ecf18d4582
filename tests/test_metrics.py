"""The step's metrics: which keys there are, and the values of a case worked out by hand."""

from __future__ import annotations

import math

import pytest

from verl_v05.estimators.v05 import StepInputs
from verl_v05.method import Method
from verl_v05.prior import Query
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.rows import match_rows
from verl_v05.settings import V05Settings
from verl_v05.trainer.metrics import step_metrics

NAN = float("nan")


def group(uid: str, rewards: list[float], prior: float, **counts: int) -> Group:
    """A group whose failed sessions come after the scored ones."""
    spent = len(rewards) + counts.get("failed", 0)
    beliefs = {"prior": prior, "fitted_prior": prior, "probability": (prior + 1) / 2}
    return Group(uid, Query(uid, "", "s"), spent, rewards=dict(enumerate(rewards)), first=4, **beliefs, **counts)


def metrics_of(record: StepRecord, settings: V05Settings | None = None, tokens: int = 0) -> dict[str, float]:
    settings = settings or V05Settings()
    keys = [f"{g.uid}_{session}_0" for g in record.groups for session in g.rewards]
    rows = match_rows(keys, [False] * len(keys), record)
    inputs = StepInputs(rows, 0.0, settings, Method.from_settings(settings).fusion)
    inputs.compute()
    return step_metrics(record, inputs, tokens)


def hand_made() -> StepRecord:
    """Five groups: accepted, rejected and grown, missing, dead with a prior, certain and accepted."""
    groups = [
        group("accepted", [1, 1, 1, -1], 0.6),
        group("rejected", [1] * 6, -1.0, failed=2, dispatches=3, asked=6, padded=1, cut=3),
        group("missing", [-1, 1, -1, 1], NAN),
        group("dead", [], 0.2, failed=4),
        group("certain", [1, 1, 1, 1], 1.0),
    ]
    return StepRecord(3, groups, prior_latency_s=1.5, prior_wait_s=0.25, prior_failures=2)


def test_values_of_a_case_worked_out_by_hand() -> None:
    found = metrics_of(hand_made(), tokens=1234)
    rejected = 1 - 1 / 6 / 2  # mean 1, gap 2
    want = {
        "k/mean": 18 / 5,
        "k/min": 0,
        "k/max": 6,
        "k/prompts_with_0": 1,
        "k/prompts_with_4": 3,
        "k/prompts_with_6": 1,
        "k/prompts_with_16": 0,
        "rounds/mean": 7 / 5,
        "rounds/max": 3,
        "extra/asked": 6,
        "extra/dispatched": 4,
        "extra/padded": 1,
        "extra/cut": 3,
        "rollouts/spent": 24,
        "rollouts/failed": 6,
        "rollouts/response_tokens": 1234,
        "prior/accepted": 2 / 5,
        "prior/rejected": 1 / 5,
        "prior/missing": 1 / 5,
        "prior/unanswered": 1 / 5,
        "prior/mean": (0.6 - 1 + 1) / 3,
        "prior/gap": (0.1 + 2 + 0) / 3,
        "prior/latency_s": 1.5,
        "prior/wait_s": 0.25,
        "prior/failures": 2,
        "fusion/weight": (0 + (4 - 1 / 6) / 4 + 1 + 0) / 4,
        "fusion/baseline": (0.6 + rejected + 0 + 1) / 4,
        "fusion/mean_reward": (0.5 + 1 + 0 + 1) / 4,
        "fusion/sigma": (0.8 + math.sqrt(1 - rejected**2) + 1 + 0.1) / 4,
        "fusion/sigma_at_floor": 1 / 4,
    }
    for name, value in want.items():
        assert found[f"v05/{name}"] == pytest.approx(value, abs=1e-12), name


def test_baseline_errors_of_a_case_worked_out_by_hand() -> None:
    """One group of 1, -1 with V = 0: the rollout left is a gap of 1 = 1/sqrt(1) away, so V is accepted."""
    found = metrics_of(StepRecord(1, [group("a", [1, -1], 0.0)]))
    assert found["v05/baseline_mse/fused"] == pytest.approx(1 - 2)  # (r - 0)^2 less the group's variance
    assert found["v05/baseline_mse/group_mean"] == pytest.approx(4 - 2)


def test_counts_of_prompts_by_k_add_up() -> None:
    found = metrics_of(hand_made())
    counts = {n: found[f"v05/k/prompts_with_{n}"] for n in range(17)}
    assert sum(counts.values()) == 5 and sum(n * c for n, c in counts.items()) == 18
    assert "v05/k/prompts_with_17" not in found


SOMETIMES = {
    "v05/baseline_mse/fused",
    "v05/baseline_mse/group_mean",
    "v05/prior/mean",
    "v05/prior/gap",
}


def test_keys_are_the_same_for_every_kind_of_step_but_where_a_value_does_not_exist() -> None:
    steps = {
        "mixed": hand_made(),
        "no prior at all": StepRecord(1, [group("a", [1, -1, 1, 1], NAN), group("b", [1, 1, 1, 1], NAN)]),
        "all accepted": StepRecord(2, [group("a", [1, 1, 1, 1], 0.9), group("b", [-1, -1, -1, -1], -0.9)]),
        "all rejected": StepRecord(2, [group("a", [1] * 16, -0.9, asked=12, dispatches=7)]),
        "most failed": StepRecord(3, [group("a", [], 0.5, failed=4), group("b", [1], 0.5, failed=3)]),
        "single rollouts": StepRecord(4, [group(u, [1], 0.5) for u in "abc"]),
    }
    found = {name: metrics_of(record) for name, record in steps.items()}
    for name, values in found.items():
        assert set(values) | SOMETIMES == set(found["mixed"]), name
        assert all(type(v) is float and math.isfinite(v) for v in values.values()), name


def test_shares_of_accepted_rejected_missing_and_dead_prompts_add_up() -> None:
    found = metrics_of(hand_made())
    dead_with_a_prior = 1 / 5
    shares = sum(found[f"v05/prior/{name}"] for name in ("accepted", "rejected", "missing"))
    assert shares + dead_with_a_prior == pytest.approx(1)


def test_what_does_not_apply_has_no_key() -> None:
    found = metrics_of(StepRecord(1, [group("a", [1, -1, 1, 1], NAN)]))
    assert found["v05/prior/missing"] == 1
    assert not {"v05/prior/mean", "v05/prior/gap", "v05/fusion/strength"} & set(found)
    assert not [name for name in found if name.startswith("v05/calibration/")]
    single = metrics_of(StepRecord(4, [group(u, [1], 0.5) for u in "abc"]))
    assert not [name for name in single if name.startswith("v05/baseline_mse/")]
    assert found["v05/fusion/weight"] == 1 and found["v05/prior/accepted"] == found["v05/prior/rejected"] == 0


@pytest.mark.parametrize("floor", [0.1, 0.3, 0.07, 1.0])
def test_sigma_at_its_floor_is_counted_for_any_floor(floor: float) -> None:
    record = StepRecord(1, [group("a", [1, 1, 1, 1], 1.0), group("b", [1, -1, 1, -1], 0.0)])
    found = metrics_of(record, V05Settings(sigma_floor=floor))
    assert found["v05/fusion/sigma_at_floor"] == (1.0 if floor == 1.0 else 0.5)


def test_the_beta_fusion_reports_its_strength_and_its_own_error() -> None:
    groups = [group("a", [1, -1], NAN), group("b", [1, 1, -1, -1], 0.5)]
    for g, prior, strength in zip(groups, (0.5, 0.5), (1.0, 3.0), strict=True):
        g.fitted_prior, g.fitted_strength = prior, strength
    found = metrics_of(
        StepRecord(1, groups, fusion_metrics={"log_strength": 0.7}), V05Settings(fusion="empirical_bayes")
    )
    assert found["v05/fusion/strength"] == 2 and found["v05/calibration/log_strength"] == 0.7
    assert (found["v05/prior/missing"], found["v05/prior/unanswered"]) == (0, 0.5)
    # Left out of a: (+-1 + .5) / 2; of b: a third of +-1 over 3 + 1.5 over 3, halved. Group variances 2 and 4/3.
    a = [(1 + 0.25) ** 2 - 2, (-1 - 0.75) ** 2 - 2]
    left = {1: (-1 + 1.5) / 6, -1: (1 + 1.5) / 6}
    b = [(r - left[r]) ** 2 - 4 / 3 for r in (1, 1, -1, -1)]
    assert found["v05/baseline_mse/fused"] == pytest.approx(sum(a + b) / 6, abs=1e-12)


def test_with_leave_one_out_baselines_the_belief_is_the_one_from_before_the_step() -> None:
    member = group("a", [1, -1], 0.0)
    member.prior, member.strength, member.fitted_prior, member.fitted_strength = 0.5, 2.0, -0.5, 8.0
    strengths = [
        metrics_of(StepRecord(1, [member]), V05Settings(fusion="empirical_bayes", baseline=baseline))[
            "v05/fusion/strength"
        ]
        for baseline in ("plain", "leave_one_out")
    ]
    assert strengths == [8.0, 2.0]
