"""What a run has spent: counted, logged, and carried over a resume."""

from pathlib import Path

import pytest

from verl_v05.trainer.cost import FILE, Cost, discarded_rollouts, load_cost, save_cost


def test_totals_add_up_and_are_logged_under_our_prefix() -> None:
    cost = Cost().spend(128, 400.0).wait(2.5).spend(140, 500.0).wait(3.0)
    assert cost.metrics() == {
        "v05/total/rollouts": 268.0,
        "v05/total/response_tokens": 900.0,
        "v05/total/seconds": 5.5,
    }


def test_groups_that_dynamic_sampling_threw_away_count_with_all_their_rollouts() -> None:
    metrics = {
        "training/filter_groups/evicted_samples": 3,
        "training/filter_groups/discarded_surplus_samples": 1.0,
        "actor/grad_norm": 2.0,
    }
    assert discarded_rollouts(metrics, group_size=16) == 64
    assert discarded_rollouts({}, group_size=16) == 0


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    cost = Cost(rollouts=384, response_tokens=1000.5, seconds=12.25)
    save_cost(tmp_path / "global_step_3", cost)
    assert load_cost(tmp_path / "global_step_3") == cost
    assert [p.name for p in (tmp_path / "global_step_3").iterdir()] == [FILE]


def test_a_checkpoint_without_totals_starts_at_zero_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_cost(tmp_path) == Cost()
    assert "count from the resumed step" in caplog.text


@pytest.mark.parametrize("text", ["", "[1]", '{"rollouts": 1, "gpu": 2}'])
def test_damaged_totals_are_refused_with_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match="damaged .* delete it"):
        load_cost(tmp_path)
