"""Attention and log-probabilities without flash-attn: what a launch on GPUs then runs, computed here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from verl.models.transformers.dense_common import forward_with_torch_backend
from verl.models.transformers.monkey_patch import patch_forward_with_backends
from verl.utils.tensordict_utils import get_tensordict
from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits_v2
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

ON_DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
LENGTHS = (7, 12, 5)
VOCABULARY = 512


def policy(device: str, dtype: torch.dtype = torch.float32) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").to(device, dtype).eval()


def sequences(device: str) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randint(0, VOCABULARY, (length,)).to(device) for length in LENGTHS]


def packed(device: str) -> dict[str, torch.Tensor | bool | None]:
    """What verl gives a model with use_remove_padding: one row, told apart by its position ids."""
    rows = sequences(device)
    positions = torch.cat([torch.arange(len(row), device=device) for row in rows])
    return {"input_ids": torch.cat(rows)[None], "position_ids": positions[None], "use_cache": False}


@ON_DEVICES
@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(device: str) -> None:
    model = policy(device)
    together = model(**packed(device), attention_mask=None).logits[0]
    apart = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in sequences(device)])
    assert (together - apart).abs().max() < (1e-5 if device == "cpu" else 1e-4)


@ON_DEVICES
@torch.no_grad()
def test_the_fused_kernel_computes_log_probs_in_float32_where_verl_rounds_them(device: str) -> None:
    model, inputs = policy(device, torch.bfloat16), packed(device)
    labels = torch.roll(inputs["input_ids"], -1, 1)  # type: ignore[arg-type]
    logits = model(**inputs, attention_mask=None).logits[0]
    exact = logits.double().log_softmax(-1).gather(1, labels[0][:, None])[:, 0]
    by_row = logprobs_from_logits_v2(logits, labels[0])
    fused = forward_with_torch_backend(model, **inputs, return_dict=True, shift_labels=labels).log_probs[0]
    assert by_row.dtype == torch.bfloat16 and (by_row - exact).abs().max() > 1e-3
    assert fused.dtype == torch.float32
    assert (fused - exact).abs().max() < (1e-5 if device == "cpu" else 0.02)


@dataclass
class Computed:
    """What verl's engine makes of one micro-batch; the last label of a sequence is another's, and is never used."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    head_gradient: torch.Tensor
    attention_gradient: torch.Tensor


def by_verls_engine(fused: bool, packed: bool, monkeypatch: pytest.MonkeyPatch) -> Computed:
    """Forward and backward pass by the methods of verl's FSDP engine, without a process group."""
    model, rows = policy("cpu"), sequences("cpu")
    monkeypatch.setattr(Qwen3ForCausalLM, "forward", Qwen3ForCausalLM.forward)  # restored, verl replaces the class's
    patch_forward_with_backends(model, use_fused_kernels=fused, fused_kernels_backend="torch")
    engine: Any = object.__new__(FSDPEngineWithLMHead)
    engine.module, engine.use_ulysses_sp, engine.pad_to_length = model, False, 0
    engine.ulysses_sequence_parallel_size, engine.compute_entropy_from_logits = 1, entropy_from_logits
    engine.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
    positions = [torch.arange(len(row)) for row in rows]
    tensors = {"input_ids": rows, "position_ids": positions}
    nested = {name: torch.nested.as_nested_tensor(parts, layout=torch.jagged) for name, parts in tensors.items()}
    flags = {"use_remove_padding": packed, "use_fused_kernels": fused, "temperature": 0.7, "calculate_entropy": True}
    batch = get_tensordict(nested, flags)
    inputs, arguments = engine.prepare_model_inputs(batch)
    found = engine.prepare_model_outputs(model(**inputs, use_cache=False), arguments, batch, None)
    used = torch.cat([position < len(row) - 1 for position, row in zip(positions, rows, strict=True)])
    log_probs, entropy = (found[name].values() for name in ("log_probs", "entropy"))
    log_probs[used].sum().backward()
    gradients = model.lm_head.weight.grad, model.model.layers[0].self_attn.q_proj.weight.grad
    return Computed(log_probs[used].detach(), entropy.detach(), *gradients)


@pytest.mark.parametrize("packed", [True, False])
def test_verls_engine_computes_the_same_with_the_fused_kernel(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = by_verls_engine(False, packed, monkeypatch)
    fused = by_verls_engine(True, packed, monkeypatch)
    for name, value in vars(usual).items():
        torch.testing.assert_close(getattr(fused, name), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_weights_reach_sglang_also_twice_in_a_row(device: str, tmp_path: Path) -> None:
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}
    command = [sys.executable, "-m", "verl_v05.check_gpu.engine", str(tmp_path / "policy")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "of_the_weights_before_3" in done.stdout
