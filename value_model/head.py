"""The in-context head: tabpfn's classifier on features, differentiable in context and queries.

tabpfn is used through its public interface: the network is built here from its architecture registry, from plain
tensors, and passed in memory, so no pickled code is executed.

Shape suffixes: C context prompts, Q queries, F features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tabpfn import ModelSpecs, TabPFNClassifier
from tabpfn.architectures import ARCHITECTURES
from tabpfn.checkpoint import Checkpoint, save_as_safetensors
from tabpfn.constants import ModelVersion
from tabpfn.inference_config import InferenceConfig
from torch import Tensor, nn

from value_model.checks import require
from value_model.config import HeadConfig

ARCHITECTURE = "tabpfn_v2_5"
CLASSES = 2
# Far above any use: of an architecture in a checkpoint, which is built before its tensors are compared with it.
MOST = {"emsize": 8192, "nlayers": 256, "nhid_factor": 64, "num_thinking_rows": 65536, "num_buckets": 65536}
WEIGHTS_HELP = (
    "The TabPFN v2.5 weights are gated and licensed for non-commercial use. Accept their licence and download "
    "tabpfn-v2.5-classifier-v2.5_default.ckpt from https://huggingface.co/Prior-Labs/tabpfn_2_5, or train a head of "
    "your own with `python -m value_model.pretrain_head`"
)


class HeadError(ValueError):
    """A head's checkpoint is missing, damaged, or of another architecture."""


class InContextHead(nn.Module):
    """One TabPFN network, run ``estimators`` times with shuffled features, logits averaged.

    Args:
        network: from :func:`load_network` or :func:`build_network`.
        architecture: the values ``network`` was built from.
        config: the ensemble.
    """

    def __init__(self, network: nn.Module, architecture: dict[str, Any], config: HeadConfig):
        super().__init__()
        self.network = network
        self.architecture = architecture
        self.config = config
        self._classifiers: dict[tuple[str, int], TabPFNClassifier] = {}

    def forward(self, context_cf: Tensor, labels_c: Tensor, queries_qf: Tensor) -> Tensor:
        """Logits of failure and success, (Q, 2); ``labels_c`` must hold both classes."""
        device = str(context_cf.device)
        # A classifier keeps the feature schema and ensemble of its first fit, so each number of features needs its own.
        key = (device, context_cf.shape[1])
        if key not in self._classifiers:
            self._classifiers[key] = self._new_classifier(device)
        classifier = self._classifiers[key]
        classifier.fit_with_differentiable_input(context_cf, labels_c.long())
        batches = queries_qf.split(self.config.query_batch)
        return torch.cat([classifier.forward(b, use_inference_mode=True, return_logits=True) for b in batches])

    def release(self) -> None:
        """Drop the kept classifiers, and with them the last context's tensors on the device.

        The next forward pass builds them again from the same seed, so answers stay the same.
        """
        self._classifiers.clear()

    def save(self, path: str | os.PathLike) -> None:
        """Write the network as safetensors, see :func:`save_network`."""
        save_network(self.network, self.architecture, path)

    def _new_classifier(self, device: str) -> TabPFNClassifier:
        specs = ModelSpecs(
            model=self.network,
            architecture_config=ARCHITECTURES[ARCHITECTURE].parse_config(self.architecture)[0],
            inference_config=replace(
                InferenceConfig.get_default("multiclass", ModelVersion.V2_5),
                FINGERPRINT_FEATURE=self.config.fingerprint,
            ),
        )
        return TabPFNClassifier(
            model_path=specs,
            n_estimators=self.config.estimators,
            softmax_temperature=self.config.softmax_temperature,
            device=device,
            fit_mode="fit_preprocessors",
            differentiable_input=True,
            inference_precision=torch.float32,
            ignore_pretraining_limits=True,
            memory_saving_mode=False,
            random_state=self.config.seed,
        )


def build_network(architecture: dict[str, Any]) -> nn.Module:
    """A network with newly initialised weights."""
    module = ARCHITECTURES[ARCHITECTURE]
    return module.get_architecture(module.parse_config(architecture)[0])


def save_network(
    network: nn.Module,
    architecture: dict[str, Any],
    path: str | os.PathLike,
    inference_config: InferenceConfig | None = None,
) -> None:
    """Write a network as safetensors that tabpfn's own loader reads too.

    Args:
        network: to write.
        architecture: the values it was built from.
        path: file to write.
        inference_config: how tabpfn runs the network when tabpfn alone loads it; None is tabpfn's default.
    """
    checkpoint = {
        "state_dict": network.state_dict(),
        "config": architecture,
        "architecture_name": ARCHITECTURE,
    }
    if inference_config is not None:
        checkpoint["inference_config"] = asdict(inference_config)
    save_as_safetensors(checkpoint, path)


def load_network(path: str | os.PathLike) -> tuple[nn.Module, dict[str, Any]]:
    """Network and its architecture's values from a tabpfn checkpoint, ``.ckpt`` or ``.safetensors``.

    Raises:
        HeadError: the file is missing, damaged, of another architecture, or not only tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise HeadError(f"no head at {path}. {WEIGHTS_HELP}")
    checkpoint = _read_checkpoint(path)
    name = checkpoint.get("architecture_name", "tabpfn_v2")
    if name not in (ARCHITECTURE, "base"):  # "base" is the name in the published v2.5 file
        raise HeadError(f"{path} holds the architecture {name!r}, the head must be {ARCHITECTURE!r}. {WEIGHTS_HELP}")
    architecture = dict(checkpoint["config"])
    for key, most in MOST.items():
        value = architecture.get(key)
        require(
            f"{path}: {key}", value, not isinstance(value, (int, float)) or value <= most, f"at most {most}", HeadError
        )
    try:
        network = build_network(architecture)
        network.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, ValueError, AssertionError) as error:
        raise HeadError(f"the weights in {path} do not fit the architecture it names: {error}") from error
    return network, architecture


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            checkpoint = Checkpoint(path).load()
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the type of the error depends on how the file is damaged
        raise HeadError(f"{path} is damaged, or holds more than tensors and plain values: {error}") from error
    if not isinstance(checkpoint, Mapping):
        raise HeadError(f"{path} holds a {type(checkpoint).__name__}, not a tabpfn checkpoint")
    for key in ("state_dict", "config"):
        if not isinstance(checkpoint.get(key), Mapping):
            raise HeadError(f"{path} has no {key!r}: it is no tabpfn checkpoint")
    return dict(checkpoint)
