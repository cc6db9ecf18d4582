"""sglang alone, as verl starts it on one GPU: ``python -m verl_v05.check_gpu.engine FOLDER``.

Generates, sleeps, wakes with other weights, twice; after each the log-probabilities must be those that transformers
computes with the same weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from verl_v05.check_gpu.policy import write_policy
from verl_v05.check_gpu.stages import tell

# As setting=gpu1: nothing that is compiled at the first start.
ON_GPU = {
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "cuda_graph_backend_prefill": "disabled",
    "enable_memory_saver": True,
    "enable_weights_cpu_backup": True,
    "mem_fraction_static": 0.4,
}
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
    """Other weights: every matrix a tenth of its deviation away, in place."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.add_(torch.randn_like(parameter) * parameter.std() / 10)


def update(engine: Any, model: Any) -> None:
    """Hand a model's weights to the engine, as tensors of this process."""
    engine.update_weights_from_tensor([(name, value.detach().clone()) for name, value in model.named_parameters()])


@contextmanager
def _seconds(what: str) -> Iterator[None]:
    before = time.monotonic()
    yield
    free, total = torch.cuda.mem_get_info()
    tell(
        **{f"{what}_s": round(time.monotonic() - before, 2), f"used_gib_after_{what}": round((total - free) / 2**30, 1)}
    )


def main() -> None:
    import sglang

    folder = Path(sys.argv[1])
    write_policy(folder)
    with _seconds("start"):
        engine = sglang.Engine(model_path=str(folder), dtype="bfloat16", skip_tokenizer_init=True, **ON_GPU)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").cuda().eval()
    answer(engine, PROMPTS, 16)
    before = time.monotonic()
    answer(engine, PROMPTS, 256)
    tell(tokens_per_s=round(len(PROMPTS) * 256 / (time.monotonic() - before)))
    for number in (0, 1, 2):
        if number:
            with _seconds("sleep"):
                engine.release_memory_occupation(tags=["kv_cache", "weights"])
            perturb(model, number)
            with _seconds("wake"):
                engine.resume_memory_occupation(tags=["weights"])
                update(engine, model)
                engine.resume_memory_occupation(tags=["kv_cache"])
        difference = log_prob_difference(model, PROMPTS, answer(engine, PROMPTS, 32))
        tell(**{f"log_prob_difference_{number}": round(difference, 5)})
        if difference > TOLERANCE:
            sys.exit(f"after {number} updates sglang's log-probabilities differ from the weights' by {difference:.3f}")
    engine.shutdown()


if __name__ == "__main__":
    main()
