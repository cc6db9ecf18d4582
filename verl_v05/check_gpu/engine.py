"""sglang alone, as verl starts it on one GPU: ``python -m verl_v05.check_gpu.engine FOLDER``.

Generates, sleeps, wakes with other weights, twice; after each the log-probabilities must be those that transformers
computes with the same weights. Without a GPU a tiny policy on sglang's CPU engine, which does not sleep.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from verl_v05.check_gpu.policy import SHAPE, write_policy
from verl_v05.check_gpu.stages import tell

# As setting=gpu1: nothing that is compiled at the first start.
ON_GPU = {
    "dtype": "bfloat16",
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "cuda_graph_backend_prefill": "disabled",
    "enable_memory_saver": True,
    "enable_weights_cpu_backup": True,
    "mem_fraction_static": 0.4,
}
ON_CPU = {
    "dtype": "float32",
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_overlap_schedule": True,
    "max_total_tokens": 20000,
}
TINY = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512}
PROMPTS = [[3 + i % 7, 4, 5, 6 + i % 3] for i in range(128)]
TOLERANCE = 0.02  # mean difference of log-probabilities in bfloat16, of two implementations


def answer(engine: Any, prompts: Sequence[Sequence[int]], tokens: int) -> list[tuple[list[int], list[float]]]:
    """Token ids and their log-probabilities of a response of exactly ``tokens`` to each prompt, sampled at 1."""
    sampling = {"temperature": 1.0, "max_new_tokens": tokens, "ignore_eos": True}
    found = engine.generate(input_ids=[list(p) for p in prompts], sampling_params=sampling, return_logprob=True)
    rows = [row["meta_info"]["output_token_logprobs"] for row in found]
    return [([token for _, token, _ in row], [value for value, _, _ in row]) for row in rows]


@torch.no_grad()
def log_prob_difference(model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[tuple]) -> float:
    """Mean absolute difference of the engine's log-probabilities from the model's."""
    device = next(model.parameters()).device
    ids = torch.tensor([[*p, *tokens] for p, (tokens, _) in zip(prompts, answers, strict=True)], device=device)
    start = len(prompts[0])
    logits = model(input_ids=ids, use_cache=False).logits[:, start - 1 : -1].float()
    ours = logits.log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]
    theirs = torch.tensor([values for _, values in answers], device=device)
    return (ours - theirs).abs().mean().item()


def perturb(model: Any, seed: int) -> None:
    """Other weights, in place: every matrix moves by as much as it is wide."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.add_(torch.randn_like(parameter) * parameter.std())


def update(engine: Any, model: Any) -> None:
    """Hand a model's weights to the engine, as tensors of this process."""
    weights = [(name, value.detach().clone()) for name, value in model.named_parameters()]
    if not torch.cuda.is_available():
        from verl_v05.platform.cpu_engine import ShmTensor

        torch.multiprocessing.set_sharing_strategy("file_system")
        weights = [(name, value.as_subclass(ShmTensor)) for name, value in weights]
    engine.update_weights_from_tensor(weights)


@contextmanager
def _seconds(what: str) -> Iterator[None]:
    before = time.monotonic()
    yield
    tell(**{f"{what}_s": round(time.monotonic() - before, 2)})
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        tell(**{f"used_gib_after_{what}": round((total - free) / 2**30, 1)})


def main() -> None:
    gpu, folder = torch.cuda.is_available(), Path(sys.argv[1])
    if not gpu:
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"  # read when sglang is imported
    import sglang

    arguments, prompts = (ON_GPU, PROMPTS) if gpu else (ON_CPU, PROMPTS[:8])
    write_policy(folder, shape=SHAPE if gpu else TINY)
    with _seconds("start"):
        engine = sglang.Engine(model_path=str(folder), skip_tokenizer_init=True, **arguments)
    dtype = getattr(torch, str(arguments["dtype"]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    model.to("cuda" if gpu else "cpu")
    answer(engine, prompts, 16)
    before = time.monotonic()
    answer(engine, prompts, 256)
    tell(tokens_per_s=round(len(prompts) * 256 / (time.monotonic() - before)))
    failed, answers = [], answer(engine, prompts, 32)
    tell(log_prob_difference_0=log_prob_difference(model, prompts, answers))
    # The last time twice in a row, without a rollout between: the newest weights count.
    for number, updates in enumerate((1, 1, 2), 1):
        for update_number in range(updates):
            _change(engine, model, seed=10 * number + update_number, sleeps=gpu and updates == 1)
        stale = log_prob_difference(model, prompts, answers)  # what is found if the weights have not arrived
        answers = answer(engine, prompts, 32)
        difference = log_prob_difference(model, prompts, answers)
        tell(**{f"log_prob_difference_{number}": difference, f"of_the_weights_before_{number}": round(stale, 3)})
        if not difference < min(TOLERANCE, stale / 4):
            failed.append(f"error: after change {number} sglang's log-probabilities differ by {difference:.3f}")
    engine.shutdown()
    print(*failed, sep="\n")
    sys.exit(bool(failed))


def _change(engine: Any, model: Any, seed: int, sleeps: bool) -> None:
    """Other weights in the model and then in the engine, which with ``sleeps`` gives its memory back in between."""
    if sleeps:
        with _seconds("sleep"):
            engine.release_memory_occupation(tags=["kv_cache", "weights"])
    perturb(model, seed)
    with _seconds("update"):
        if sleeps:
            engine.resume_memory_occupation(tags=["weights"])
        update(engine, model)
        if sleeps:
            engine.resume_memory_occupation(tags=["kv_cache"])


if __name__ == "__main__":
    main()
