"""Config of a value model: what is refused, and that nothing is lost on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from value_model.checks import field_check
from value_model.config import AdapterConfig, BackboneConfig, ConfigError, HeadConfig, ValueModelConfig
from value_model.config_loader import config_from_yaml


def refusal(values: Any) -> str:
    with pytest.raises(ConfigError) as error:
        ValueModelConfig.from_dict(values)
    return str(error.value)


def test_defaults_are_the_released_model() -> None:
    config = ValueModelConfig()
    assert (config.backbone.name, config.backbone.revision) == ("Qwen/Qwen3-Embedding-0.6B", None)
    assert (config.backbone.max_length, config.backbone.padding_side) == (2048, "left")
    adapter = config.adapter
    assert (adapter.kind, adapter.queries, adapter.dim, adapter.heads) == ("residual_query", 168, 6, 3)
    assert (adapter.layers, adapter.bottleneck, adapter.dropout) == (1, 128, 0.2)
    assert config.head.estimators == 4


@pytest.mark.parametrize(
    "config",
    [
        ValueModelConfig(),
        ValueModelConfig(
            BackboneConfig("some/encoder", "abc", 64, "right", "bfloat16", 100),
            AdapterConfig("mean", 4, 8, 2, 3, 5, 0.5, 7),
            HeadConfig(2, 1.5, 11, 9),
            cache_prompts=3,
        ),
    ],
)
def test_json_round_trip(config: ValueModelConfig) -> None:
    assert ValueModelConfig.from_dict(json.loads(config.to_json())) == config


def test_keys_left_out_keep_their_defaults() -> None:
    config = ValueModelConfig.from_dict({"adapter": {"queries": 4}})
    assert config == ValueModelConfig(adapter=AdapterConfig(queries=4))
    assert ValueModelConfig.from_dict({}) == ValueModelConfig()


def test_from_dict_leaves_its_argument_alone() -> None:
    values = {"adapter": {"queries": 4}}
    ValueModelConfig.from_dict(values)
    assert values == {"adapter": {"queries": 4}}


@pytest.mark.parametrize(
    ("values", "key", "value", "known"),
    [
        ({"colour": "red"}, "colour", "'red'", "backbone"),
        ({"backbone": {"model": "x"}}, "backbone.model", "'x'", "padding_side"),
        ({"adapter": {"query": 8}}, "adapter.query", "8", "queries"),
        ({"head": {"ensemble": None}}, "head.ensemble", "None", "estimators"),
    ],
)
def test_unknown_key_names_key_value_and_known_keys(values: dict, key: str, value: str, known: str) -> None:
    message = refusal(values)
    assert f"{key}={value}" in message and known in message


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("backbone", "name", 5),
        ("backbone", "revision", 7),
        ("backbone", "max_length", "long"),
        ("backbone", "max_length", 1.5),
        ("backbone", "max_length", True),
        ("backbone", "max_length", None),
        ("backbone", "dtype", ["float32"]),
        ("backbone", "batch_tokens", "100"),
        ("adapter", "queries", "8"),
        ("adapter", "dim", 6.0),
        ("adapter", "dropout", "none"),
        ("adapter", "dropout", None),
        ("adapter", "features", "3"),
        ("head", "estimators", []),
        ("head", "softmax_temperature", "warm"),
        ("head", "seed", "zero"),
        (None, "cache_prompts", "many"),
        (None, "cache_prompts", None),
        (None, "backbone", 5),
        (None, "adapter", "mean"),
        (None, "head", None),
    ],
)
def test_wrong_type_names_key_and_value(part: str | None, key: str, value: object) -> None:
    message = refusal({part: {key: value}} if part else {key: value})
    assert f"{part}.{key}={value!r}" in message if part else f"{key}={value!r}" in message
    assert "must be" in message


@pytest.mark.parametrize("values", [None, [], "config", 3])
def test_a_config_that_is_no_mapping_is_refused(values: object) -> None:
    assert repr(values) in refusal(values)


@pytest.mark.parametrize(
    ("part", "key", "value", "allowed"),
    [
        ("backbone", "name", "", "a hub id or a path"),
        ("backbone", "max_length", 0, "at least 1"),
        ("backbone", "padding_side", "top", "left, right"),
        ("backbone", "dtype", "int8", "float32, bfloat16, float16"),
        ("backbone", "batch_tokens", -1, "at least 1"),
        ("adapter", "kind", "max", "residual_query, last_token, mean"),
        ("adapter", "queries", 0, "at least 1"),
        ("adapter", "dim", 0, "at least 1"),
        ("adapter", "heads", 0, "at least 1"),
        ("adapter", "heads", 4, "a divisor of adapter.dim (6)"),
        ("adapter", "layers", 0, "at least 1"),
        ("adapter", "bottleneck", 0, "at least 1"),
        ("adapter", "dropout", 1.0, "in [0, 1)"),
        ("adapter", "dropout", -0.1, "in [0, 1)"),
        ("adapter", "dropout", float("nan"), "in [0, 1)"),
        ("adapter", "features", 0, "null or at least 1"),
        ("head", "estimators", 0, "at least 1"),
        ("head", "softmax_temperature", 0.0, "positive"),
        ("head", "softmax_temperature", float("nan"), "positive"),
        ("head", "softmax_temperature", float("inf"), "positive"),
        ("head", "query_batch", 0, "at least 1"),
        (None, "cache_prompts", 0, "at least 1"),
    ],
)
def test_impossible_value_names_key_value_and_what_is_allowed(
    part: str | None, key: str, value: object, allowed: str
) -> None:
    message = refusal({part: {key: value}} if part else {key: value})
    assert f"{key}={value!r}" in message and allowed in message
    assert part is None or f"{part}.{key}" in message


def test_an_integer_is_a_number() -> None:
    config = ValueModelConfig.from_dict({"adapter": {"dropout": 0}, "head": {"softmax_temperature": 1}})
    assert (config.adapter.dropout, config.head.softmax_temperature) == (0, 1)


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="adapter.queries=0"):
        AdapterConfig(queries=0)
    with pytest.raises(ConfigError, match="head.seed='x'"):
        HeadConfig(seed="x")  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Part:
    """A section of the test's own config, without defaults."""

    path: str
    names: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        field_check(self, "part.", ConfigError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    """The test's own config, with a section, an optional one and a secret."""

    part: Part
    other: Part | None = None
    count: int = 1
    token: str | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        field_check(self)


def load(folder: Path, text: str, *overrides: str) -> Whole:
    (folder / "c.yaml").write_text(text)
    return config_from_yaml(Whole, folder / "c.yaml", overrides, ConfigError)


def test_yaml_and_overrides_are_merged_into_nested_sections(tmp_path: Path) -> None:
    loaded = load(tmp_path, "{part: {path: a}, other: {path: b}}", "part.names=[x]", "count=3")
    assert loaded == Whole(part=Part("a", ["x"]), other=Part("b"), count=3)
    assert load(tmp_path, "{part: {path: a}, other: {path: b}}", "other=null").other is None


def test_numbers_are_text_where_a_file_or_the_command_line_means_text(tmp_path: Path) -> None:
    assert load(tmp_path, "part: {path: 1, names: [2, x]}", "part.path=7").part == Part("7", ["2", "x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "part.path is missing"),
        ("part: {names: [a]}", "part.path is missing"),
        ("{part: {path: a}, other: {names: []}}", "other.path is missing"),
        ("part: {path: a, place: b}", r"part.place='b' .*known keys: path, names"),
        ("{part: {path: a}, count: '3'}", "count='3' is not allowed: it must be of type int"),
        ("{part: {path: a}, count: true}", "count=True is not allowed: it must be of type int"),
        ("{part: {path: [a]}}", r"part.path=\['a'\] is not allowed: it must be of type str"),
        ("part: a", "part='a' is not allowed: it must be a mapping"),
        ("part: {path: '???'}", "part.path"),
        ("[1]", "c.yaml"),
        ("{", "c.yaml cannot be read as yaml"),
    ],
)
def test_what_a_file_lacks_or_has_too_much_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_a_secret_is_not_in_the_message() -> None:
    with pytest.raises(ValueError, match="token=") as error:
        Whole(part=Part("a"), token=b"hidden")  # type: ignore[arg-type]
    assert "hidden" not in str(error.value)


def test_configs_cannot_be_changed_after_the_check() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ValueModelConfig().cache_prompts = 0  # type: ignore[misc]
