"""Checkpoints of a value model: ours, the layout the V0 authors released, and what is neither."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor
from transformers import ByT5Tokenizer

from tests.faults.statement import fault
from tests.tiny_value_model import RELEASED_ADAPTER, build_adapter, build_head, write_encoder
from value_model import checkpoint
from value_model.backbone import Backbone
from value_model.checkpoint import CheckpointError
from value_model.config import AdapterConfig, BackboneConfig, HeadConfig, ValueModelConfig
from value_model.head import HeadError
from value_model.model import ValueModel

pytest_plugins = ("tests.tiny_value_model",)

CONTEXT = [f"{a} * {b} =" for a in range(4) for b in (3, 41)]
SCORES = [1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0]
PROMPTS = ["2 * 2 =", "", "héllo"]
RELEASED_HEAD = "pretrained/tabpfn-v2.5-classifier-v2.5_default.ckpt"


def ask(model: ValueModel) -> np.ndarray:
    return model.predict(CONTEXT, SCORES, PROMPTS)


def refusal(path: Path | str, backbone: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        ValueModel.from_pretrained(path, backbone)
    return str(error.value)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def torch_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / "config.json").read_text())
    edit(values)
    (folder / "config.json").write_text(json.dumps(values))


def released_state(encoder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The authors' names; the encoder's weights are not those of ``encoder``."""
    backbone = Backbone(BackboneConfig(name=str(encoder)))
    weights = {f"backbone.{name}": tensor * 1.1 for name, tensor in backbone.encoder.state_dict().items()}
    adapter = build_adapter(backbone.width, AdapterConfig()).state_dict()
    return {prefix + name: tensor for name, tensor in {**weights, **adapter_keys(adapter)}.items()}


def adapter_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"adapter_layer.{name}": tensor for name, tensor in state.items()}


def write_released(folder: Path, state: dict[str, Tensor]) -> Path:
    (folder / "pretrained").mkdir(parents=True)
    torch.save({"model_state_dict": state}, folder / "v_0_for_grpo_training.pt")
    head = build_head()
    values = {"state_dict": head.network.state_dict(), "config": head.architecture, "architecture_name": "tabpfn_v2_5"}
    torch.save(values, folder / RELEASED_HEAD)
    return folder


def by_hand(encoder: Path) -> ValueModel:
    """The model that :func:`released_state` describes."""
    config = ValueModelConfig(backbone=BackboneConfig(name=str(encoder)))
    backbone = Backbone(config.backbone)
    with torch.no_grad():
        for parameter in backbone.encoder.parameters():
            parameter.mul_(1.1)
    return ValueModel(config, backbone, build_adapter(backbone.width, config.adapter), build_head(config.head))


@pytest.fixture(scope="module")
def saved(tiny_model: ValueModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model: not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_model.save_pretrained(folder, model_card="# Tiny")
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A saved tiny model of the test's own."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="module")
def released(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the authors' layout: not to be changed."""
    return write_released(tmp_path_factory.mktemp("released") / "v0", released_state(encoder))


# Ours.


@pytest.mark.parametrize(
    ("adapter", "config"),
    [
        (None, {}),
        (AdapterConfig(queries=4, dim=8, heads=2, layers=2, bottleneck=8), {"cache_prompts": 7}),
        (AdapterConfig("mean", features=5), {}),
        (AdapterConfig("last_token"), {}),
    ],
)
def test_a_saved_model_predicts_the_same(
    fresh_model: Callable[..., ValueModel], tmp_path: Path, adapter: AdapterConfig | None, config: dict
) -> None:
    model = fresh_model(adapter, **config)
    model.save_pretrained(tmp_path / "deep" / "model")
    again = ValueModel.from_pretrained(tmp_path / "deep" / "model")
    assert again.config == model.config and again.identity == model.identity
    np.testing.assert_array_equal(ask(again), ask(model))
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_a_loaded_model_can_be_saved_again(saved: Path, tmp_path: Path) -> None:
    ValueModel.from_pretrained(str(saved)).save_pretrained(tmp_path / "again", model_card="# Tiny")
    again, before = files(tmp_path / "again"), files(saved)
    # The order of the header's entries is safetensors' own affair.
    assert torch_equal(load(again.pop("head.safetensors")), load(before.pop("head.safetensors")))
    assert again == before


def test_the_folder_holds_tensors_json_and_the_card(saved: Path) -> None:
    assert {"config.json", "adapter.safetensors", "head.safetensors", "README.md"} <= set(files(saved))
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} == {".json", ".safetensors", ".md"}
    assert (saved / "README.md").read_text() == "# Tiny"
    assert json.loads((saved / "config.json").read_text())["format"] == 1


def test_everybody_can_read_what_was_saved(saved: Path) -> None:
    for part in (saved, *saved.rglob("*")):
        assert part.stat().st_mode & 0o777 == (0o755 if part.is_dir() else 0o644)


def test_an_encoder_of_elsewhere_is_named_not_copied(encoder: Path, tmp_path: Path) -> None:
    config = ValueModelConfig(BackboneConfig(str(encoder)), AdapterConfig("mean"), HeadConfig(2))
    backbone = Backbone(config.backbone)
    model = ValueModel(config, backbone, build_adapter(backbone.width, config.adapter), build_head(config.head))
    model.save_pretrained(tmp_path / "model")
    assert set(files(tmp_path / "model")) == {"config.json", "adapter.safetensors", "head.safetensors"}
    np.testing.assert_array_equal(ask(ValueModel.from_pretrained(tmp_path / "model")), ask(model))


def test_another_encoder_can_be_given(saved: Path, tmp_path: Path) -> None:
    other = write_encoder(tmp_path / "other", layers=1)
    model = ValueModel.from_pretrained(saved, backbone=str(other))
    assert model.config.backbone.name == str(other)
    assert model.backbone.encoder.config.num_hidden_layers == 1
    model.save_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(ask(ValueModel.from_pretrained(tmp_path / "model")), ask(model))


def test_an_encoder_of_another_width_does_not_fit(saved: Path, tmp_path: Path) -> None:
    wide = write_encoder(tmp_path / "wide", width=48, layers=1)
    assert "adapter.safetensors does not fit" in refusal(saved, str(wide))


def test_saving_over_a_model_replaces_all_of_it(fresh_model: Callable[..., ValueModel], copy: Path) -> None:
    (copy / "stale.txt").write_text("old")
    model = fresh_model(AdapterConfig("mean"))
    model.save_pretrained(copy)
    assert not {"stale.txt", "README.md"} & set(files(copy))
    assert os.listdir(copy.parent) == ["copy"]
    np.testing.assert_array_equal(ask(ValueModel.from_pretrained(copy)), ask(model))


def test_saving_into_an_empty_folder_and_through_a_link(tiny_model: ValueModel, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    for _ in range(2):
        tiny_model.save_pretrained(tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "model" / "config.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["link", "model"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_model_is_not_replaced(tiny_model: ValueModel, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thesis"
    target = path if kind == "file" else path / "chapter.txt"
    target.parent.mkdir(exist_ok=True)
    target.write_text("precious")
    with pytest.raises(CheckpointError, match="thesis"):
        tiny_model.save_pretrained(path)
    assert target.read_text() == "precious"


@pytest.mark.parametrize("failing", ["adapter", "head", "encoder", "card", "first move", "second move"])
def test_a_save_that_fails_leaves_the_old_model(
    fresh_model: Callable[..., ValueModel], copy: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    model = fresh_model(AdapterConfig("mean"))
    before, moves = files(copy), []

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    def move(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == (1 if failing == "first move" else 2):
            fail()
        os.rename(source, target)

    if failing == "adapter":
        monkeypatch.setattr(checkpoint, "save_file", fail)
    elif failing == "head":
        monkeypatch.setattr(model.head, "save", fail)
    elif failing == "encoder":
        monkeypatch.setattr(model.backbone.encoder, "save_pretrained", fail)
    elif failing == "card":
        monkeypatch.setattr(Path, "write_text", fail)
    else:
        monkeypatch.setattr(checkpoint, "exchange", lambda first, second: False)  # a file system that cannot
        monkeypatch.setattr(checkpoint.os, "replace", move)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(copy, model_card="new")
    monkeypatch.undo()
    assert files(copy) == before
    assert os.listdir(copy.parent) == ["copy"]


def test_processes_that_save_to_one_folder_leave_a_whole_model_of_one_of_them(
    fresh_model: Callable[..., ValueModel], tmp_path: Path
) -> None:
    """In threads here: the system sees the same calls on the same paths."""
    models = [fresh_model(AdapterConfig("mean", features=5)), fresh_model(AdapterConfig("mean", features=6))]
    identities = {model.identity for model in models}
    models[0].save_pretrained(tmp_path / "model")
    saving = [True]

    def save(model: ValueModel) -> None:
        for _ in range(10):
            model.save_pretrained(tmp_path / "model")
            time.sleep(0.1)

    def read() -> set[str]:
        found = set()
        while saving[0] or not found:
            try:
                found.add(ValueModel.from_pretrained(tmp_path / "model").identity)
            except CheckpointError as error:
                assert "was replaced during each of 5 reads" in str(error)  # on a machine that is slow at reading
        return found

    with ThreadPoolExecutor(3) as pool:
        reader, savers = pool.submit(read), [pool.submit(save, model) for model in models]
        for saver in savers:
            saver.result()
        saving[0] = False
        assert reader.result() <= identities
    assert os.listdir(tmp_path) == ["model"]


def test_the_shipped_model_is_the_published_one() -> None:
    model = ValueModel.from_pretrained()
    assert model.identity == "28bae9ba31531937563e230e"
    context = [f"What is {i} + {i + 3}?" for i in range(20)]
    scores = [1.0 if i % 3 else -1.0 for i in range(20)]
    predictions = model.predict(context, scores, ["What is 4 + 5?", "Compute 12*13.", "What is 77 - 8?"])
    assert predictions == pytest.approx([0.790036, 0.847815, 0.722168], abs=1e-3)


# What is missing, damaged or of another kind.


@pytest.mark.parametrize(
    "name", ["adapter.safetensors", "backbone", "backbone/config.json", "backbone/model.safetensors"]
)
def test_a_missing_part_is_named(copy: Path, name: str) -> None:
    part = copy / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    message = refusal(copy)
    assert name.split("/")[0] in message and str(copy) in message


def test_a_missing_encoder_is_not_taken_from_the_working_directory(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(copy / "backbone", tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    assert "lacks its encoder" in refusal(copy)


def test_an_encoder_that_cannot_be_reached_is_named(copy: Path, offline: None) -> None:
    edit_config(copy, lambda values: values["backbone"].update(name="nobody/encoder"))
    message = refusal(copy)
    assert "'nobody/encoder'" in message and "backbone=" in message


@fault(
    "a value model is copied without its tokenizer",
    happens="refused at load",
    do="copy the whole folder",
)
def test_an_encoder_without_its_tokenizer_is_refused(copy: Path) -> None:
    for path in (copy / "backbone").glob("*token*"):
        path.unlink()
    message = refusal(copy)
    assert "backbone lacks its tokenizer" in message and "copy the whole checkpoint" in message


@fault(
    "a value model is copied with another tokenizer",
    happens="refused at load; it would have another identity",
    do="copy the whole folder",
)
def test_another_tokenizer_is_refused_and_is_another_identity(saved: Path, copy: Path) -> None:
    edit_config(copy, lambda values: values.pop("tokenizer"))  # as written by earlier versions, which did not know it
    assert ValueModel.from_pretrained(copy).identity == ValueModel.from_pretrained(saved).identity
    ByT5Tokenizer(extra_ids=7).save_pretrained(copy / "backbone")
    assert ValueModel.from_pretrained(copy).identity != ValueModel.from_pretrained(saved).identity
    edit_config(copy, lambda values: values.update(json.loads((saved / "config.json").read_text())))
    assert "tokenizer" in refusal(copy) and "is not the one it was saved with" in refusal(copy)


def test_the_shipped_model_refuses_another_vocabulary(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint.SMALL, tmp_path / "small"))
    tokenizer = folder / "backbone" / "tokenizer.json"
    values = json.loads(tokenizer.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    tokenizer.write_text(json.dumps(values))
    assert "is not the one it was saved with" in refusal(folder)


@fault(
    "a value model's config names an encoder outside its folder",
    happens="refused at load",
    do="take models from who you trust",
)
@pytest.mark.parametrize("name", ["../outside", "backbone/../../outside", ".."])
def test_an_encoder_outside_the_checkpoint_is_not_followed(copy: Path, name: str) -> None:
    shutil.copytree(copy / "backbone", copy.parent / "outside")
    edit_config(copy, lambda values: values["backbone"].update(name=name))
    assert f"backbone.name={name!r} is not allowed" in refusal(copy)


@fault(
    "a value model's config asks for a huge model",
    happens="refused before it is built",
    do="take models from who you trust",
)
def test_a_config_that_asks_for_a_huge_model_is_refused_before_it_is_built(copy: Path) -> None:
    started = time.monotonic()
    for key, value in (("queries", 10**8), ("dim", 10**6), ("layers", 10**6), ("bottleneck", 10**9), ("queries", 4096)):
        config = json.loads((copy / "config.json").read_text())
        edit_config(copy, lambda values, key=key, value=value: values["adapter"].update({"dim": 600, key: value}))
        assert f"adapter.{key}={value} is not allowed: it must be " in refusal(copy)
        (copy / "config.json").write_text(json.dumps(config))
    assert time.monotonic() - started < 5


def test_a_config_nested_too_deeply_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("[" * 200_000 + "]" * 200_000)
    assert "config.json is missing, damaged, or no value model's config: nested too deeply" in refusal(copy)


@pytest.mark.parametrize("name", ["config.json", "adapter.safetensors", "head.safetensors", "backbone/config.json"])
def test_a_pointer_of_git_lfs_is_named(copy: Path, name: str) -> None:
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS .*git lfs pull"):
        ValueModel.from_pretrained(copy)


def test_a_missing_head_says_where_the_weights_are(copy: Path) -> None:
    (copy / "head.safetensors").unlink()
    with pytest.raises(HeadError, match="Prior-Labs"):
        ValueModel.from_pretrained(copy)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("name", ["adapter.safetensors", "backbone/model.safetensors", "config.json"])
def test_a_truncated_part_is_named(copy: Path, name: str, kept: float) -> None:
    os.truncate(copy / name, int((copy / name).stat().st_size * kept))
    assert name.split("/")[0] in refusal(copy)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_an_adapter_that_does_not_fit_is_refused(copy: Path, change: str) -> None:
    tensors = load_file(copy / "adapter.safetensors")
    if change == "missing":
        del tensors["static_queries"]
    else:
        tensors["stranger" if change == "extra" else "static_queries"] = torch.zeros(2)
    save_file(tensors, copy / "adapter.safetensors")
    message = refusal(copy)
    assert "adapter.safetensors does not fit" in message
    assert ("stranger" if change == "extra" else "static_queries") in message


@pytest.mark.parametrize("found", [None, 0, 2, "1"])
def test_an_unknown_format_is_refused(copy: Path, found: object) -> None:
    edit_config(copy, lambda values: values.update(format=found))
    message = refusal(copy)
    assert f"format={found!r}" in message and "reads format 1" in message and "config.json" in message


def test_a_config_without_a_format_is_refused(copy: Path) -> None:
    edit_config(copy, lambda values: values.pop("format"))
    assert "reads format 1" in refusal(copy)


@pytest.mark.parametrize("content", ["", "[]", "3", "null", "{", "\x00", "{}"])
def test_a_config_of_something_else_is_refused(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    assert "config.json" in refusal(copy)


def test_a_wrong_key_of_the_config_is_named(copy: Path) -> None:
    edit_config(copy, lambda values: values["adapter"].update(colour="red"))
    assert "adapter.colour='red'" in refusal(copy)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    assert "neither config.json nor v_0_for_grpo_training.pt" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "no/such/folder", "/no/such/folder", "../nothing", ""])
def test_what_cannot_be_fetched_is_refused_quickly(offline: None, name: str) -> None:
    started = time.monotonic()
    message = refusal(name)
    assert time.monotonic() - started < 5
    assert repr(name) in message or "no value model" in message


# The authors' layout.


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_released_layout_is_read(encoder: Path, released: Path, tmp_path: Path, prefix: str) -> None:
    folder = write_released(tmp_path / "v0", released_state(encoder, prefix)) if prefix else released
    model = ValueModel.from_pretrained(folder, backbone=str(encoder))
    assert model.adapter.width == 168 * 6
    np.testing.assert_array_equal(ask(model), ask(by_hand(encoder)))


def test_the_released_encoders_weights_are_saved_again(encoder: Path, released: Path, tmp_path: Path) -> None:
    model = ValueModel.from_pretrained(released, backbone=str(encoder))
    model.save_pretrained(tmp_path / "ours")
    again = ValueModel.from_pretrained(tmp_path / "ours")
    np.testing.assert_array_equal(ask(again), ask(model))
    assert again.identity == model.identity


def test_the_released_names_and_shapes_at_their_own_width(tmp_path: Path) -> None:
    wide = write_encoder(tmp_path / "wide", width=1024, layers=1)
    adapter = {name: torch.randn(shape) for name, shape in RELEASED_ADAPTER.items()}
    encoder_state = Backbone(BackboneConfig(name=str(wide))).encoder.state_dict()
    state = {**{f"backbone.{name}": tensor for name, tensor in encoder_state.items()}, **adapter_keys(adapter)}
    folder = write_released(tmp_path / "v0", {f"module.{name}": tensor for name, tensor in state.items()})
    model = ValueModel.from_pretrained(folder, backbone=str(wide))
    loaded = model.adapter.state_dict()
    assert torch_equal(loaded, adapter)


@pytest.mark.parametrize(
    "name",
    [
        "adapter_layer.static_queries",
        "adapter_layer.generator.4.weight",
        "adapter_layer.mha.in_proj_bias",
        "backbone.norm.weight",
    ],
)
def test_a_missing_released_key_is_an_error(encoder: Path, tmp_path: Path, name: str) -> None:
    state = released_state(encoder)
    del state[name]
    assert name.split(".", 1)[1] in refusal(write_released(tmp_path / "v0", state), str(encoder))


def test_a_release_without_any_adapter_is_an_error(encoder: Path, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in released_state(encoder).items() if name.startswith("backbone.")}
    assert "static_queries" in refusal(write_released(tmp_path / "v0", state), str(encoder))


@pytest.mark.parametrize("name", ["adapter_layer.more", "backbone.more", "head.more", "more"])
def test_an_unexpected_released_key_is_an_error(encoder: Path, tmp_path: Path, name: str) -> None:
    folder = write_released(tmp_path / "v0", {**released_state(encoder), name: torch.zeros(1)})
    assert "more" in refusal(folder, str(encoder))


def test_a_released_tensor_of_another_shape_is_an_error(encoder: Path, tmp_path: Path) -> None:
    state = {**released_state(encoder), "adapter_layer.ln_q.bias": torch.zeros(7)}
    assert "ln_q.bias" in refusal(write_released(tmp_path / "v0", state), str(encoder))


def test_a_release_without_its_head_says_where_the_weights_are(encoder: Path, released: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(released, tmp_path / "v0"))
    (folder / RELEASED_HEAD).unlink()
    with pytest.raises(HeadError, match="Prior-Labs") as error:
        ValueModel.from_pretrained(folder, str(encoder))
    assert str(folder / RELEASED_HEAD) in str(error.value)


def test_a_release_whose_encoder_cannot_be_reached_says_so(released: Path, offline: None) -> None:
    message = refusal(released, "nobody/encoder")
    assert "nobody/encoder" in message and "backbone=" in message


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_release_is_refused(encoder: Path, released: Path, tmp_path: Path, kept: float) -> None:
    folder = Path(shutil.copytree(released, tmp_path / "v0"))
    path = folder / "v_0_for_grpo_training.pt"
    os.truncate(path, int(path.stat().st_size * kept))
    assert "v_0_for_grpo_training.pt is damaged" in refusal(folder, str(encoder))


class Malicious:
    """Runs code when it is unpickled."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self) -> tuple[Callable, tuple]:
        return shutil.rmtree, (str(self.victim),)


@fault(
    "a released value model holds other things than tensors, such as code",
    happens="refused; nothing of it is executed",
    do="take models from who you trust",
)
@pytest.mark.parametrize("content", ["code", "no state", "a list", "names that are no text"])
def test_a_release_of_other_contents_is_refused(encoder: Path, released: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(released, tmp_path / "v0"))
    victim = tmp_path / "victim"
    victim.mkdir()
    values = {
        "code": {"model_state_dict": released_state(encoder), "extra": Malicious(victim)},
        "no state": {"state_dict": {}},
        "a list": {"model_state_dict": [1, 2]},
        "names that are no text": {"model_state_dict": {3: torch.zeros(1)}},
    }[content]
    torch.save(values, folder / "v_0_for_grpo_training.pt")
    assert "v_0_for_grpo_training.pt" in refusal(folder, str(encoder))
    assert victim.is_dir()


def test_a_release_has_the_default_config(released: Path, encoder: Path) -> None:
    model = ValueModel.from_pretrained(released, str(encoder))
    defaults = ValueModelConfig()
    assert model.config == replace(defaults, backbone=replace(defaults.backbone, name="backbone"))
