"""The value model as a router of prompts to policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from value_model.route import Policy, Router, choose, compare, main
from value_model.trajectories import write_trajectories

CONTEXT = (["odd 1", "even 2"], [1.0, -1.0])


class Specialists:
    """Stands in for a value model: success is as often as in the context's prompts of the same first word."""

    def predict(self, context: Sequence[str], scores: Sequence[float], prompts: Sequence[str]) -> np.ndarray:
        known = pd.Series(scores).groupby([text.split()[0] for text in context]).mean()
        return np.array([(known[prompt.split()[0]] + 1) / 2 for prompt in prompts])


def pool(cost: float = 0.0) -> list[Policy]:
    return [
        Policy("odds", ["odd 1", "even 2"], [0.8, -0.6]),
        Policy("evens", ["odd 1", "even 2"], [-0.6, 0.8], cost=cost),
    ]


def test_each_prompt_goes_to_the_policy_that_is_likely_to_solve_it() -> None:
    routes = Router(Specialists(), pool()).route(["odd 7", "even 8"])
    assert routes.policy == ["odds", "evens"] and routes.success == pytest.approx([0.9, 0.9])


def test_a_policy_is_left_out_where_it_costs_more_than_its_success_is_worth() -> None:
    routes = Router(Specialists(), pool(cost=10.0), price=0.1).route(["odd 7", "even 8"])
    assert routes.policy == ["odds", "odds"] and routes.success == pytest.approx([0.9, 0.2])
    cheap = Router(Specialists(), pool(cost=10.0), price=0.05).route(["even 8"])
    assert cheap.policy == ["evens"] and cheap.cost.tolist() == [10.0]


def test_choice_maximises_value_among_those_allowed() -> None:
    success = np.array([[0.5, 0.9, 0.4], [0.6, np.nan, 0.6]])
    assert choose(success, np.array([0.0, 0.2]), 1.0).tolist() == [0, 0, 0]
    assert choose(success, np.array([0.0, 0.2]), 0.1).tolist() == [1, 0, 1]


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_pools_without_a_policy_or_with_one_twice_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="policies"):
        Router(Specialists(), [Policy(name, *CONTEXT) for name in names])
    with pytest.raises(ValueError, match="price"):
        Router(Specialists(), pool(), price=-1.0)


def recorded() -> pd.DataFrame:
    """Two specialists and an allrounder on the same prompts, each measured twice: badly at first."""
    rng = np.random.default_rng(0)
    rates = {"odds": {"odd": 0.9, "even": 0.1}, "evens": {"odd": 0.1, "even": 0.9}, "both": {"odd": 0.55, "even": 0.55}}
    rows = []
    for model, rate in rates.items():
        for i in range(400):
            prompt = f"{'even' if i % 2 == 0 else 'odd'} {i}"
            for step, p in ((1, 0.0), (2, rate[prompt.split()[0]])):
                score = 2 * rng.binomial(8, p) / 8 - 1
                rows.append((model, step, f"id{i}", prompt, "parity", score, 8))
    return pd.DataFrame(rows, columns=["model", "step", "prompt_id", "prompt", "data_source", "score", "n"])


def test_the_comparison_routes_held_out_prompts_by_the_latest_measurements() -> None:
    result, prompts = compare(recorded(), Specialists(), {}, 0.0, context=64, seed=0)
    success = result.set_index("choice")["success"].astype(float)
    assert 60 < prompts < 100
    assert success["best on average"] == pytest.approx(0.55, abs=0.06)
    # Of two specialists one knows each prompt, so the oracle has little to add.
    assert 0.8 < success["value model"] <= success["oracle"]
    assert success["random"] == pytest.approx((0.9 + 0.1 + 0.55) / 3, abs=0.05)
    assert result.set_index("choice")["difference to best on average"]["value model"].startswith("+0.3")


def test_costs_are_reported_and_weighed() -> None:
    result, _ = compare(recorded(), Specialists(), {"odds": 1.0, "evens": 1.0}, 1.0, context=64, seed=0)
    by_choice = result.set_index("choice")
    assert float(by_choice["cost"]["value model"]) == 0.0 and float(by_choice["cost"]["random"]) > 0.6


def test_the_command_refuses_policies_without_a_prompt_in_common(tmp_path: Path) -> None:
    write_trajectories(recorded().query("model == 'odds'"), tmp_path / "rows.parquet")
    with pytest.raises(SystemExit, match="no held-out prompt was measured on two policies"):
        main([str(tmp_path / "rows.parquet")])


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recipes.value_model.simulate import SimulationSettings, simulate

    write_trajectories(simulate(SimulationSettings(policies=2, steps=2), seed=3), tmp_path / "rows.parquet")
    main([str(tmp_path / "rows.parquet"), "--context-size", "32"])
    assert "| value model" in capsys.readouterr().out
