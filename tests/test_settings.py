"""Settings: the paper's defaults, readable errors, and presets that agree with the dataclass."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from verl_v05.method import Method
from verl_v05.settings import SettingsError, V05Settings, WatchSettings, load_settings, load_watch_settings

SCHEDULE_PRESETS = ("rounds", "streaming", "fixed")
PRESETS = (*SCHEDULE_PRESETS, "empirical_bayes", "sparse")


def group(**values: Any) -> DictConfig:
    return OmegaConf.create({"algorithm": {"v05": values}})


def check(values: dict[str, Any]) -> None:
    """As a launch does: values one by one, then the choices against each other."""
    Method.from_settings(load_settings(group(**values)))


def composed(preset: str, *overrides: str) -> DictConfig:
    with initialize_config_module("verl_v05.config", version_base=None):
        return compose(overrides=[f"+algorithm/v05={preset}", *overrides])


def test_defaults_are_the_papers() -> None:
    settings = V05Settings()
    assert (settings.schedule, settings.k_init, settings.k_max, settings.step) == ("rounds", 4, 16, 2)
    assert (settings.cost, settings.halt_share, settings.pad_multiple) == (0.0039, 0.25, 32)
    assert (settings.support.capacity, settings.support.sample) == (512, 256)
    assert (settings.outcome.low, settings.outcome.high, settings.outcome.shaping_key) == (0.0, 1.0, None)
    assert (settings.max_rollouts_per_step, settings.group_weighting, settings.sigma_floor) == (None, "per_prompt", 0.1)


def test_an_empty_group_means_the_defaults() -> None:
    assert load_settings(group()) == V05Settings()


def test_values_reach_the_settings_typed() -> None:
    config = group(
        schedule="streaming",
        step="to_target",
        cost=1,
        max_rollouts_per_step=4096,
        outcome={"key": "score", "low": -1, "shaping_key": "overlong"},
        prior={"kwargs": {"strength": 2, "nested": {"a": [1]}}},
    )
    settings = load_settings(config)
    assert isinstance(settings, V05Settings) and type(settings.outcome).__name__ == "OutcomeSettings"
    assert settings.cost == 1.0 and isinstance(settings.cost, float) and settings.outcome.low == -1.0
    assert settings.prior.kwargs == {"strength": 2, "nested": {"a": [1]}} and type(settings.prior.kwargs) is dict
    assert settings.max_rollouts_per_step == 4096


def test_interpolations_are_resolved() -> None:
    assert load_settings(group(k_init=8, k_max="${.k_init}")).k_max == 8


@pytest.mark.parametrize(("step", "per_ask"), [(2, 2), (1, 1), ("to_target", None)])
def test_step_is_a_count_or_to_target(step: int | str, per_ask: int | None) -> None:
    assert load_settings(group(step=step)).rollouts_per_ask == per_ask


@pytest.mark.parametrize(
    ("values", "key", "known"),
    [
        ({"k_int": 4}, "algorithm.v05.k_int", ["k_init", "k_max", "halt_share", "record_dir"]),
        ({"prior": {"provder": "none"}}, "algorithm.v05.prior.provder", ["provider", "kwargs", "timeout_s"]),
        ({"outcome": {"name": "acc"}}, "algorithm.v05.outcome.name", ["key", "low", "high", "shaping_key"]),
        ({"support": {"size": 4}}, "algorithm.v05.support.size", ["capacity", "sample", "seed"]),
    ],
)
def test_unknown_keys_are_named_with_the_known_ones(values: dict, key: str, known: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(group(**values))
    assert key in str(caught.value) and all(name in str(caught.value) for name in known)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k_init": "many"}, r"algorithm\.v05\.k_init.*many.*Integer"),
        ({"k_init": 4.5}, r"algorithm\.v05\.k_init.*4\.5.*Integer"),
        ({"k_max": None}, r"algorithm\.v05\.k_max.*None.*int"),
        ({"cost": "cheap"}, r"algorithm\.v05\.cost.*cheap.*Float"),
        ({"allow_missing_state": "maybe"}, r"algorithm\.v05\.allow_missing_state.*maybe.*bool"),
        ({"outcome": {"low": "zero"}}, r"algorithm\.v05\.outcome\.low.*zero.*Float"),
        ({"prior": {"timeout_s": "soon"}}, r"algorithm\.v05\.prior\.timeout_s.*soon.*Float"),
        ({"k_init": "${nowhere}"}, r"algorithm\.v05\.k_init.*nowhere"),
    ],
)
def test_wrong_types_name_key_value_and_type(values: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(group(**values))


@pytest.mark.parametrize(
    ("values", "key", "value", "allowed"),
    [
        ({"schedule": "round"}, "schedule", "'round'", "rounds, streaming, fixed"),
        ({"k_init": 0}, "k_init", "0", "at least 1"),
        ({"k_init": -1}, "k_init", "-1", "at least 1"),
        ({"k_init": 0, "k_max": 0}, "k_max", "0", "at least k_init .*and 1"),
        ({"sparse": {"seed": -1}}, "sparse.seed", "-1", "at least 0"),
        ({"support": {"seed": -1}}, "support.seed", "-1", "at least 0"),
        ({"sparse": {"explore": 0}}, "sparse.explore", "0.0", r"in \(0, 1\]"),
        ({"sparse": {"reserve": 1}}, "sparse.reserve", "1.0", r"in \[0, 1\)"),
        ({"k_init": 8, "k_max": 4}, "k_max", "4", r"at least k_init \(8\)"),
        ({"cost": 0}, "cost", "0.0", "positive"),
        ({"cost": -1}, "cost", "-1.0", "positive"),
        ({"cost": float("nan")}, "cost", "nan", "positive"),
        ({"step": 0}, "step", "0", "an integer >= 1 or 'to_target'"),
        ({"step": 2.0}, "step", "2.0", "an integer >= 1 or 'to_target'"),
        ({"step": True}, "step", "True", "an integer >= 1 or 'to_target'"),
        ({"step": "target"}, "step", "'target'", "an integer >= 1 or 'to_target'"),
        ({"halt_share": 1.5}, "halt_share", "1.5", r"in \[0, 1\]"),
        ({"halt_share": -0.1}, "halt_share", "-0.1", r"in \[0, 1\]"),
        ({"pad_multiple": 0}, "pad_multiple", "0", "at least 1"),
        ({"max_rollouts_per_step": 2048}, "max_rollouts_per_step", "2048", "schedule=streaming"),
        ({"schedule": "fixed", "max_rollouts_per_step": 9}, "max_rollouts_per_step", "9", "schedule=streaming"),
        ({"schedule": "streaming", "max_rollouts_per_step": 0}, "max_rollouts_per_step", "0", "positive integer"),
        ({"sigma_floor": 0}, "sigma_floor", "0.0", r"in \(0, 1\]"),
        ({"sigma_floor": 1.1}, "sigma_floor", "1.1", r"in \(0, 1\]"),
        ({"group_weighting": "none"}, "group_weighting", "'none'", "per_prompt, per_rollout"),
        ({"outcome": {"low": 1, "high": 1}}, "outcome.high", "1.0", "greater than outcome.low"),
        ({"support": {"capacity": 0}}, "support.capacity", "0", "at least 2"),
        ({"support": {"sample": 0}}, "support.sample", "0", r"in \[2, support.capacity \(512\)\]"),
        ({"support": {"sample": 513}}, "support.sample", "513", r"in \[2, support.capacity \(512\)\]"),
        ({"fusion": "bayes"}, "fusion", "'bayes'", "one of shrinkage, empirical_bayes"),
        ({"baseline": "loo"}, "baseline", "'loo'", "one of plain, leave_one_out"),
        ({"allocation": "none"}, "allocation", "'none'", "one of osla, posterior"),
        ({"allocation": "posterior"}, "allocation", "'posterior'", "osla with fusion=shrinkage"),
        ({"cost": 0}, "cost", "0.0", "a positive number"),
        ({"calibration": {"forgetting": 1.1}}, "calibration.forgetting", "1.1", r"in \[0, 1\]"),
        ({"calibration": {"history_forgetting": -1}}, "calibration.history_forgetting", "-1.0", r"in \[0, 1\]"),
        ({"prior": {"timeout_s": 0}}, "prior.timeout_s", "0.0", "a positive number of seconds"),
        ({"prior": {"timeout_s": float("inf")}}, "prior.timeout_s", "inf", "a positive number of seconds"),
        ({"watch": {"reward_s": 0}}, "watch.reward_s", "0.0", "a positive number of seconds"),
        ({"watch": {"update_s": float("inf")}}, "watch.update_s", "inf", "a positive number of seconds"),
        ({"watch": {"answer_s": -1}}, "watch.answer_s", "-1.0", "a positive number of seconds"),
        ({"prior": {"text_key": ""}}, "prior.text_key", "''", "null or an entry of extra_info"),
    ],
)
def test_impossible_values_name_key_value_and_what_is_allowed(values: dict, key: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError, match=rf"algorithm\.v05\.{key}={value} is not allowed: it must be .*{allowed}"):
        check(values)


def test_a_run_without_the_group_may_set_the_watchs_limits() -> None:
    assert load_watch_settings(OmegaConf.create({"algorithm": {}})) == WatchSettings()
    given: dict[str, Any] = {"algorithm": {"v05": {"watch": {"reward_s": 5}}}}
    assert load_watch_settings(OmegaConf.create(given)) == WatchSettings(reward_s=5.0)
    for value, message in (("soon", r"watch\.reward_s: Value 'soon'"), (0, r"watch\.reward_s=0\.0 is not allowed")):
        given["algorithm"]["v05"]["watch"]["reward_s"] = value
        with pytest.raises(SettingsError, match=rf"algorithm\.v05\.{message}"):
            load_watch_settings(OmegaConf.create(given))


@pytest.mark.parametrize("config", [{}, {"algorithm": {"gamma": 1}}, {"algorithm": {"v05": None}}])
def test_a_missing_group_says_how_to_add_it(config: dict) -> None:
    with pytest.raises(
        SettingsError, match=r"algorithm\.v05 is missing: .*pkg://verl_v05.config.*\+algorithm/v05=rounds"
    ):
        load_settings(OmegaConf.create(config))


def test_every_preset_is_covered_here() -> None:
    folder = files("verl_v05.config") / "algorithm" / "v05"
    assert sorted(f.name for f in folder.iterdir() if f.name.endswith(".yaml")) == sorted(f"{p}.yaml" for p in PRESETS)


@pytest.mark.parametrize("preset", SCHEDULE_PRESETS)
def test_presets_load_and_differ_from_the_paper_only_in_the_schedule(preset: str) -> None:
    assert load_settings(composed(preset)) == V05Settings(schedule=preset)


def test_the_preset_beyond_the_paper_changes_fusion_and_allocation() -> None:
    assert load_settings(composed("empirical_bayes")) == V05Settings(
        fusion="empirical_bayes", allocation="posterior", schedule="streaming"
    )


def test_the_sparse_preset_asks_for_the_rollouts_of_a_step() -> None:
    with pytest.raises(SettingsError, match="max_rollouts_per_step=None is not allowed: it must be the number"):
        Method.from_settings(load_settings(composed("sparse")))
    settings = load_settings(composed("sparse", "algorithm.v05.max_rollouts_per_step=128"))
    assert Method.from_settings(settings).fusion.has_strength
    assert settings == V05Settings(
        fusion="empirical_bayes",
        baseline="leave_one_out",
        allocation="outcome_variance",
        schedule="sparse",
        k_init=0,
        k_max=4,
        group_weighting="per_rollout",
        max_rollouts_per_step=128,
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_composed_as_files_of_the_package(preset: str) -> None:
    with initialize_config_module("verl_v05.config", version_base=None):
        assert compose(config_name=f"algorithm/v05/{preset}").algorithm.v05.schedule in (*SCHEDULE_PRESETS, "sparse")


def test_rounds_preset_spells_out_every_default() -> None:
    preset = OmegaConf.to_container(OmegaConf.load(str(files("verl_v05.config") / "algorithm" / "v05" / "rounds.yaml")))
    assert preset == asdict(V05Settings())
    assert list(preset) == list(asdict(V05Settings()))


def test_presets_take_overrides() -> None:
    overrides = ["algorithm.v05.k_init=8", "algorithm.v05.step=to_target", "algorithm.v05.max_rollouts_per_step=9000"]
    settings = load_settings(composed("streaming", *overrides, "algorithm.v05.prior.provider=none"))
    assert (settings.k_init, settings.rollouts_per_ask, settings.max_rollouts_per_step) == (8, None, 9000)
    assert settings.prior.provider == "none"


@pytest.mark.parametrize("value", ["streaming", 3])
def test_a_group_that_is_no_mapping_is_refused_with_the_way_to_choose_a_preset(value: object) -> None:
    with pytest.raises(SettingsError, match=rf"algorithm\.v05='?{value}'? is not allowed: .* algorithm/v05={value}"):
        load_settings(OmegaConf.create({"algorithm": {"v05": value}}))


def test_every_preset_is_a_method() -> None:
    for preset in PRESETS:
        cap = ["algorithm.v05.max_rollouts_per_step=128"] if preset == "sparse" else []
        Method.from_settings(load_settings(composed(preset, *cap)))


@pytest.mark.parametrize("key", ["fusion", "allocation", "schedule"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.module.Thing", "is not allowed: it must be one of .*, or the path of a verl_v05"),
        ("pathlib.Path", "is not a verl_v05.* subclass"),
        ("os.getcwd", "is not a verl_v05.* subclass"),
    ],
)
def test_class_paths_that_are_no_choice_are_refused(key: str, path: str, message: str) -> None:
    with pytest.raises(SettingsError, match=rf"algorithm\.v05\.{key}='{path}' {message}"):
        check({key: path})
