"""What a run has spent: counted and logged."""

from verl_v05.trainer.cost import Cost, discarded_rollouts


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
