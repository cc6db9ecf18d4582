"""Write a random policy of Qwen3-0.6B's shape: ``python -m verl_v05.check_gpu.policy FOLDER [--tokenizer FOLDER]``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
VOCABULARY = 151936


def write_policy(
    folder: Path, tokenizer: Path | None = None, config_only: bool = False, shape: Mapping[str, Any] = SHAPE
) -> None:
    """Write config and weights in bfloat16, with another model's tokenizer if one is given.

    Args:
        folder: made if there is none.
        tokenizer: folder of the model whose tokenizer it takes.
        config_only: leave the weights out, as a dry run does not read them.
        shape: entries of the config that differ from those of 0.6B.
    """
    tokens = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else None
    special: dict[str, Any] = {
        f"{name}_token_id": getattr(tokens, f"{name}_token_id", None) for name in ("bos", "eos", "pad")
    }
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        **shape,
    }
    config = Qwen3Config(**sizes, **special, architectures=["Qwen3ForCausalLM"])
    config.save_pretrained(folder)
    if tokens is not None:
        tokens.save_pretrained(folder)
    if config_only:
        return
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--config-only", action="store_true")
    args = parser.parse_args()
    write_policy(args.folder, args.tokenizer, args.config_only)
