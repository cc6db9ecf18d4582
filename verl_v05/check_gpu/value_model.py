"""The value model on this machine's device: ``python -m verl_v05.check_gpu.value_model [options]``.

Seconds and memory to embed and predict N prompts of 128 tokens beside a context, twice, with a sleep between.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from value_model.serving.replica import Replica
from verl_v05.check_gpu.policy import SHAPE
from verl_v05.check_gpu.stages import tell

TOKENS = 128
HEAD = {"max_num_classes": 10, "num_buckets": 1}  # the rest is tabpfn's default, that of its v2.5: 24 layers of 192
# Differences of the answers of two rounds; any rounding changes the fingerprint, and with it answers.
ALLOWED, ALLOWED_WITH_FINGERPRINT = 1e-4, 0.05


def write_released_shape(folder: Path, layers: int | None = None) -> None:
    """A value model of the released shape with random weights, as the package saves one.

    Args:
        folder: for the encoder and the model, made if there is none.
        layers: of the encoder and of the head, by default the released ones; widths stay.
    """
    from transformers import Qwen3Config, Qwen3Model

    from value_model.adapter import make_adapter
    from value_model.backbone import Backbone
    from value_model.config import BackboneConfig, ValueModelConfig
    from value_model.head import InContextHead, build_network
    from value_model.model import ValueModel
    from value_model.training.tiny_encoder import byte_tokenizer

    shape, head = (
        (SHAPE, HEAD) if layers is None else (SHAPE | {"num_hidden_layers": layers}, HEAD | {"nlayers": layers})
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        encoder = Qwen3Model(Qwen3Config(vocab_size=151669, max_position_embeddings=32768, **shape))
    encoder.save_pretrained(folder / "encoder")
    byte_tokenizer(2048).save_pretrained(folder / "encoder")
    del encoder
    config = ValueModelConfig(backbone=BackboneConfig(name=str(folder / "encoder")))
    backbone, network = Backbone(config.backbone), build_network(head)
    with torch.no_grad():  # what is zero at first would hide the input from the output
        for parameter in network.parameters():
            if parameter.ndim >= 2 and not parameter.any():
                parameter.normal_(std=0.05)
    adapter = make_adapter(backbone.width, config.adapter)
    ValueModel(config, backbone, adapter, InContextHead(network, head, config.head)).save_pretrained(folder / "model")


def measure(replica: Replica, prompts: int, context: int) -> list[np.ndarray]:
    """Answers of two rounds, told with their seconds and memory."""
    texts = [f"{i:05d}" + "".join(chr(97 + (i * j) % 26) for j in range(TOKENS - 6)) for i in range(prompts + context)]
    labels, answers, cuda = np.arange(context) % 3 > 0, [], torch.cuda.is_available()
    for number in (1, 2):
        started = time.monotonic()
        features = replica.embed(texts)
        embedded = time.monotonic()
        answers.append(replica.predict(features[:context], labels, features[context:]))
        predicted = time.monotonic()
        peak = torch.cuda.max_memory_allocated() if cuda else 0
        replica.sleep()
        seconds = {"embed": embedded - started, "predict": predicted - embedded, "sleep": time.monotonic() - predicted}
        tell(**{f"{name}_s_{number}": round(value, 2) for name, value in seconds.items()})
        if cuda:
            left = torch.cuda.memory_allocated()
            tell(peak_gib=round(peak / 2**30, 2), left_mib_after_sleep=round(left / 2**20, 2))
            if left > 2**20:
                sys.exit(f"{left / 2**20:.1f} MiB of GPU memory are left after sleep")
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--released", type=Path, metavar="FOLDER")
    parser.add_argument("--layers", type=int, help="of the released shape, to try it where it is slow [all]")
    parser.add_argument("--prompts", type=int, default=2048)
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args()
    model = None
    if args.released is not None:
        write_released_shape(args.released, args.layers)
        model = str(args.released / "model")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    replica, started = Replica(model, device=device), time.monotonic()
    replica.load()
    tell(device=device, prompts=args.prompts, load_s=round(time.monotonic() - started, 2))
    first, second = measure(replica, args.prompts, args.context)
    repeated = float(np.abs(first - second).max())
    tell(rounds_differ_by=repeated, answers_std=round(float(first.std()), 4))
    allowed = ALLOWED_WITH_FINGERPRINT if args.released else ALLOWED
    if not (np.isfinite(first).all() and repeated < allowed):
        sys.exit(f"the answers of two rounds differ by {repeated:.2g}")


if __name__ == "__main__":
    main()
