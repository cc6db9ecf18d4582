"""The CPU platform's engines load and hand on models without what verl's need a GPU for."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import verl.utils.model as verl_model
from transformers import Qwen3Config, Qwen3ForCausalLM
from verl.workers.engine.base import EngineRegistry

from verl_v05.compat.module_attribute import module_attribute
from verl_v05.platform.cpu_engine import ShmTensor, load_value_model

VERLS_LOADER = verl_model.load_valuehead_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy, such as a critic starts from."""
    config = Qwen3Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("policy")
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def test_critic_is_built_by_verl_with_our_loader_in_the_place_of_verls(checkpoint: Path) -> None:
    engine_class = EngineRegistry._engines["value_model"]["fsdp2"]["cpu"]
    engine = object.__new__(engine_class)
    engine.engine_config = SimpleNamespace(model_dtype="fp32", forward_only=False)
    engine.model_config = SimpleNamespace(
        model_type="value_model",
        hf_config=Qwen3Config.from_pretrained(checkpoint),
        local_path=str(checkpoint),
        trust_remote_code=False,
        use_liger=False,
        use_fused_kernels=False,
        fused_kernel_options=None,
        enable_gradient_checkpointing=False,
    )
    engine.device_mesh, engine.use_remove_padding, engine.ulysses_sequence_parallel_size = None, False, 1
    module = engine._build_module()
    assert module(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 1)
    assert module.config._attn_implementation == "sdpa"
    assert verl_model.load_valuehead_model is VERLS_LOADER


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)):
        load_value_model(str(tmp_path), torch.float32, Qwen3Config(num_labels=1), False)


def test_replaced_attribute_is_restored_after_an_error() -> None:
    module = ModuleType("some_module")
    module.loader = "original"
    with pytest.raises(RuntimeError, match="no model"), module_attribute(module, "loader", "replacement"):
        assert module.loader == "replacement"
        raise RuntimeError("no model")
    assert module.loader == "original"


def test_attribute_that_verl_no_longer_has_is_an_error() -> None:
    with pytest.raises(AttributeError, match="loader"), module_attribute(ModuleType("some_module"), "loader", None):
        pass


def test_shared_tensor_is_pickled_as_a_plain_one() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    sharing = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")  # as the engines do: descriptors need multiprocessing
    try:
        received = pickle.loads(pickle.dumps(tensor.as_subclass(ShmTensor)))
    finally:
        torch.multiprocessing.set_sharing_strategy(sharing)
    assert type(received) is torch.Tensor and torch.equal(received, tensor)
