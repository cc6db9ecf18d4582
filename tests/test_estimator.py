"""verl's estimator interface around the pure advantage."""

import numpy as np
import pytest
import torch
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import agg_loss
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from verl_v05 import advantages
from verl_v05.estimators.v05 import StepInputs, compute_v05_outcome_advantage, step_inputs
from verl_v05.fusion import ShrinkageFusion
from verl_v05.prior import Query
from verl_v05.rollout.group import Group
from verl_v05.rollout.record import StepRecord
from verl_v05.rollout.rows import match_rows
from verl_v05.settings import V05Settings


def step(sizes: list[int], priors: list[float], seed: int = 0) -> tuple[list[str], StepRecord]:
    """Keys and record of groups of the given sizes with random +-1 rewards."""
    rng = np.random.default_rng(seed)
    groups = []
    for i, (k, prior) in enumerate(zip(sizes, priors, strict=True)):
        rewards = {s: float(r) for s, r in enumerate(rng.choice([-1.0, 1.0], k))}
        groups.append(
            Group(f"u{i}", Query(f"p{i}", "text", "src"), spent=k, prior=prior, fitted_prior=prior, rewards=rewards)
        )
    keys = [f"{g.uid}_{s}_0" for g in groups for s in g.rewards]
    return keys, StepRecord(1, groups)


def batch(keys: list[str], tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    mask = torch.ones(len(keys), tokens)
    mask[:, -1] = 0
    return torch.zeros(len(keys), tokens), mask, np.array([k.split("_")[0] for k in keys], dtype=object)


def test_every_response_token_gets_the_pure_advantage_of_its_rollout() -> None:
    keys, record = step([4, 6, 5], [0.5, np.nan, -1.0])
    order = np.random.default_rng(1).permutation(len(keys))
    keys = [keys[i] for i in order]
    rows = match_rows(keys, [False] * len(keys), record)
    rewards, mask, index = batch(keys)
    with step_inputs(StepInputs(rows, 0.0, V05Settings(), ShrinkageFusion())):
        token_advantages, returns = compute_v05_outcome_advantage(rewards, mask, index)

    uids = sorted(set(index))
    group = np.array([uids.index(u) for u in index])
    outcome = np.array([record.groups[g].rewards[int(k.split("_")[1])] for g, k in zip(group, keys, strict=True)])
    expected = advantages(outcome, group, np.array([g.prior for g in record.groups])).advantage
    np.testing.assert_allclose(token_advantages[:, 0].numpy(), expected, rtol=1e-6)
    assert (token_advantages[:, -1] == 0).all()
    assert torch.equal(token_advantages, returns)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_in_a_bf16_batch_advantages_are_those_of_a_float32_one_rounded_once(device: str) -> None:
    keys, record = step([4, 16, 5, 1], [0.5, np.nan, -1.0, 0.875])
    rows = match_rows(keys, [False] * len(keys), record)
    rewards, mask, index = batch(keys)

    def computed(dtype: torch.dtype) -> torch.Tensor:
        with step_inputs(StepInputs(rows, 0.0, V05Settings(), ShrinkageFusion())):
            given = rewards.to(device, dtype), mask.to(device, dtype), index
            return compute_v05_outcome_advantage(*given)[0]

    half, single = computed(torch.bfloat16), computed(torch.float32)
    assert half.dtype == torch.bfloat16 and half.device.type == device
    assert torch.equal(half, single.to(torch.bfloat16))
    assert single.abs().max() > 1 and (half[:, -1] == 0).all()


def test_verls_dispatch_reaches_the_estimator_by_name() -> None:
    keys, record = step([4, 4], [0.5, 0.0])
    rows = match_rows(keys, [False] * len(keys), record)
    rewards, mask, index = batch(keys)
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "response_mask": mask}, non_tensors={"uid": index}
    )
    with step_inputs(StepInputs(rows, 0.0, V05Settings(), ShrinkageFusion())) as inputs:
        data = compute_advantage_for_multi_trajectories(data, keys, "v05", config={})
    assert inputs.result is not None
    assert data.batch["advantages"].abs().sum() > 0


def test_padding_rows_get_zero() -> None:
    keys, record = step([4], [0.9])
    keys += ["pad0_0_0", "pad0_1_0"]
    rows = match_rows(keys, [False] * 4 + [True] * 2, record)
    rewards, mask, index = batch(keys)
    with step_inputs(StepInputs(rows, 0.0, V05Settings(), ShrinkageFusion())):
        token_advantages, _ = compute_v05_outcome_advantage(rewards, mask, index)
    assert (token_advantages[4:] == 0).all()
    assert (token_advantages[:4, 0] != 0).all()


def test_outside_the_trainer_it_refuses_to_guess_a_prior() -> None:
    keys, _ = step([4], [0.9])
    with pytest.raises(RuntimeError, match="trainer.v1.trainer_mode=v05"):
        compute_v05_outcome_advantage(*batch(keys))


def test_rows_of_another_batch_are_refused() -> None:
    keys, record = step([4, 4], [0.9, 0.9])
    rows = match_rows(keys, [False] * 8, record)
    rewards, mask, index = batch(keys)
    with step_inputs(StepInputs(rows, 0.0, V05Settings(), ShrinkageFusion())):
        with pytest.raises(RuntimeError, match="other rows"):
            compute_v05_outcome_advantage(rewards, mask, index[::-1])
        with pytest.raises(RuntimeError, match="other rows"):
            compute_v05_outcome_advantage(rewards[:4], mask[:4], index[:4])


# Sessions of 1, 2 and 7 rows, and padding: the gradient is that of sessions, however their tokens are cut into rows.
CUTS = [[9], [4, 3], [1, 2, 3, 1, 2, 3, 4]]  # tokens of each row


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "seq-mean-token-sum", "token-mean"])
def test_a_session_of_several_rows_weighs_as_one_of_a_single_row(mode: str, padding: int) -> None:
    rewards = {0: 1.0, 1: -1.0, 2: 1.0}
    groups = [Group("u", Query("p", "text", "src"), spent=3, prior=0.2, fitted_prior=0.2, rewards=rewards)]
    keys = [f"u_{s}_{i}" for s, cuts in enumerate(CUTS) for i in range(len(cuts))]
    keys += [f"pad_{i}_0" for i in range(padding)]
    tokens = np.array([n for cuts in CUTS for n in cuts] + [0] * padding)
    mask = torch.tensor(np.arange(10) < tokens[:, None], dtype=torch.float64)
    rows = match_rows(keys, tokens == 0, StepRecord(1, groups))
    inputs = StepInputs(rows, 0.0, V05Settings(), ShrinkageFusion(), loss_agg_mode=mode)
    index = np.array([key.split("_")[0] for key in keys], dtype=object)
    with step_inputs(inputs):
        advantage, _ = compute_v05_outcome_advantage(torch.zeros(mask.shape, dtype=torch.float64), mask, index)

    log_prob = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    real = len(keys) - padding
    agg_loss(-advantage * log_prob, mask, mode, global_batch_size=real, batch_num_tokens=int(mask.sum())).backward()
    by_hand = torch.zeros_like(mask)
    for session, of_session in enumerate(inputs.result.advantage):
        own = torch.as_tensor(rows.row_session == session)[:, None] * mask
        share = {"seq-mean-token-mean": 3 * own.sum(), "seq-mean-token-sum": 3, "token-mean": mask.sum()}[mode]
        by_hand -= of_session * own / share
    assert torch.allclose(log_prob.grad, by_hand, rtol=1e-6)


def test_sessions_of_one_row_keep_their_advantages_bit_for_bit() -> None:
    keys, record = step([4, 6], [0.5, np.nan])
    rows = match_rows(keys, [False] * len(keys), record)
    tokens = np.random.default_rng(0).integers(0, 9, len(keys))
    for mode in ("seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-mean", "token-sum"):
        assert (rows.loss_weight(tokens, mode) == 1.0).all()
