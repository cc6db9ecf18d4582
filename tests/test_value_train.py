"""Training a value model: settings, resumption, processes, what is trained, and what is written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from recipes.value_model.simulate import SimulationSettings, simulate
from value_model.checkpoint import BACKBONE
from value_model.config import HeadConfig
from value_model.head import InContextHead, build_network
from value_model.model import ValueModel
from value_model.train import train
from value_model.training.data import load_data
from value_model.training.embedder import Embedder
from value_model.training.log import LOG
from value_model.training.meta_tasks import MetaTasks, MetaTaskSettings
from value_model.training.model_builder import build_model
from value_model.training.processes import ProcessGroup
from value_model.training.settings import SettingsError, TrainSettings, load_settings
from value_model.training.tiny_encoder import TinyEncoderSettings, byte_tokenizer, write_tiny_encoder
from value_model.training.trainer import BEST, MODEL, TRAINING, Trainer, TrainError
from value_model.trajectories import COLUMNS, check, read_trajectories, split_by_prompt, write_trajectories

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes" / "value_model").glob("*.yaml"))
HEAD = {"max_num_classes": 2, "num_buckets": 1, "emsize": 16, "nlayers": 1, "nhead": 2, "features_per_group": 6}


def write_head(path: Path) -> None:
    torch.manual_seed(0)
    network = build_network({**HEAD, "num_thinking_rows": 2})
    for parameter in network.parameters():
        if not parameter.any():  # a fresh network's output projections: nothing before them would get a gradient
            torch.nn.init.normal_(parameter, std=0.1)
    InContextHead(network, {**HEAD, "num_thinking_rows": 2}, HeadConfig()).save(path)


def write_table(path: Path) -> None:
    """Four policies, each of which knows some last digits."""
    rng = np.random.default_rng(0)
    rows = []
    for model in range(4):
        known = rng.permutation(10) < 5
        for step in range(1, 7):
            for prompt in rng.choice(60, 16, replace=False):
                wins = rng.binomial(4, 0.9 if known[prompt % 10] else 0.1)
                rows.append((f"m{model}", step, str(prompt), f"{prompt // 10}+{prompt % 10}=", "test", wins / 2 - 1, 4))
    columns = ["model", "step", "prompt_id", "prompt", "data_source", "score", "n"]
    pd.DataFrame(rows, columns=columns).to_parquet(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_head(folder / "head.v2.5.safetensors")
    write_table(folder / "table.parquet")
    return folder


def values(files: Path, out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "init": {
            "new": {
                "head_weights": str(files / "head.v2.5.safetensors"),
                "backbone": {"name": "tiny", "padding_side": "right"},
                "tiny": {"width": 16, "layers": 1, "heads": 2, "max_length": 32},
                "adapter": {"queries": 4, "dim": 3, "bottleneck": 4, "dropout": 0.3},
                "head": {"estimators": 2},
            }
        },
        "data": {"paths": [str(files / "table.parquet")], "heldout_models": ["m3"]},
        "tasks": {"context_min": 8, "context_max": 12, "window": 2, "own_step": False, "pairs": 2},
        "optimizer": {"adapter_lr": 1e-2, "backbone_lr": 1e-3, "tasks_per_update": 2, "max_updates": 4},
        "validation": {"every": 2, "tasks": 3, "queries": 8},
        "device": "cpu",
    }


def write_config(files: Path, out: Path) -> Path:
    path = out.parent / f"{out.name}.yaml"
    OmegaConf.save(OmegaConf.create(values(files, out)), path)
    return path


def settings_of(files: Path, out: Path, *overrides: str) -> TrainSettings:
    return load_settings(write_config(files, out), overrides)


def trainer_of(settings: TrainSettings) -> Trainer:
    Path(settings.out).mkdir(parents=True, exist_ok=True)
    return Trainer(settings, load_data(settings), ProcessGroup())


def log_of(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def weights(model: ValueModel, part: str = "") -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith(part)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ValueModel]:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    return out, train(settings_of(files, out))


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(config: Path) -> None:
    settings = load_settings(config, ["out=elsewhere", "optimizer.epochs=3"])
    assert (settings.out, settings.optimizer.epochs) == ("elsewhere", 3)


def test_the_defaults_are_the_papers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("{out: o, init: {from_pretrained: m}, data: {paths: [p]}}")
    settings = load_settings(tmp_path / "c.yaml")
    optimizer, tasks = settings.optimizer, settings.tasks
    assert (optimizer.adapter_lr, optimizer.backbone_lr, optimizer.head_lr) == (2e-4, 0, 0)
    assert (optimizer.weight_decay, optimizer.warmup_share, optimizer.clip_norm, optimizer.epochs) == (
        0.01,
        0.05,
        1,
        50,
    )
    assert (tasks.context_min, tasks.context_max, tasks.pairs, tasks.window) == (256, 256, 4, 0)
    assert (settings.pairwise_weight, tasks.own_step, tasks.balanced) == (0.25, True, True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.adapter_rate=1", r"optimizer\.adapter_rate.*known keys: adapter_lr"),
        ("epochs=1", r"epochs.*known keys: out"),
        ("optimizer.epochs=many", r"optimizer\.epochs.*many"),
        ("optimizer.epochs=0", r"optimizer\.epochs=0 is not allowed"),
        ("tasks.pairs=0", r"tasks\.pairs=0 is not allowed"),
        ("validation.metric=f1", r"validation\.metric='f1'.*one of loss"),
        ("init.from_pretrained=somewhere", "either init.from_pretrained or init.new"),
        ("optimizer={adapter_lr: 0, backbone_lr: 0}", "a positive learning rate"),
        ("states_cache_prompts=5", "states_cache_prompts=5.*backbone is trained"),
        ("init.new.tiny.width=18", r"tiny\.width=18"),
        ("difficulty=max", r"difficulty='max'.*one of mean, last_token"),
    ],
)
def test_a_wrong_setting_is_named(files: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_of(files, tmp_path / "out", override)


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("{out: o, init: {from_pretrained: m}}")
    with pytest.raises(SettingsError, match=r"data\.paths"):
        load_settings(tmp_path / "c.yaml")


def test_an_unknown_key_of_the_new_model_is_named(files: Path, tmp_path: Path) -> None:
    settings = settings_of(files, tmp_path / "out", "init.new.adapter.width=3")
    with pytest.raises(SettingsError, match=r"adapter\.width=3"):
        build_model(settings.init, settings.seed)


def test_the_byte_tokenizer_is_byt5s_with_an_end(tmp_path: Path) -> None:
    tokens = byte_tokenizer(32)(["12+7=", "héllo", "", "数 \n"])["input_ids"]
    assert [len(t) for t in tokens] == [6, 7, 1, 6] and len({t[-1] for t in tokens}) == 1
    write_tiny_encoder(tmp_path, TinyEncoderSettings(), seed=0)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 1_000_000


def test_a_new_model_is_the_same_for_the_same_seed(files: Path, tmp_path: Path) -> None:
    init = settings_of(files, tmp_path / "out").init
    assert same(weights(build_model(init, 1)), weights(build_model(init, 1)))
    assert not same(weights(build_model(init, 1)), weights(build_model(init, 2)))


def test_training_writes_a_log_a_card_and_a_model_that_loads(finished: tuple[Path, ValueModel]) -> None:
    out, model = finished
    log = log_of(out)
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    wanted = {"loss", "cross_entropy", "pairwise", "lr/adapter", "lr/backbone", "grad_norm", "epoch"}
    assert all(wanted <= record.keys() for record in log)
    assert ["validation/auc" in record for record in log] == [False, True, False, True]
    prompts, scores = [f"{i}+{i}=" for i in range(6)], [1, -1, 1, -1, 0.5, -0.5]
    loaded = ValueModel.from_pretrained(out / MODEL)
    asked = ["1+2=", "5+5="]
    assert np.array_equal(loaded.predict(prompts, scores, asked), model.predict(prompts, scores, asked))
    card = (out / MODEL / "README.md").read_text()
    assert "3 policies" in card and "m3" in card and "value_mse" in card and "$" not in card


def test_the_log_holds_the_weighted_sum_of_both_losses(finished: tuple[Path, ValueModel]) -> None:
    for record in log_of(finished[0]):
        assert record["pairwise"] > 0.1
        assert record["loss"] == pytest.approx(0.25 * record["pairwise"] + 0.75 * record["cross_entropy"])


def test_the_pairwise_weight_changes_what_is_learnt(files: Path, tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 0.25):
        trainer = trainer_of(settings_of(files, tmp_path / "out", f"pairwise_weight={weight}"))
        trainer._accumulate_gradients()
        found.append(torch.cat([p.grad.flatten() for p in trainer.parameters.values()]))
    assert all(gradient.norm() > 0 for gradient in found) and not torch.allclose(*found)


def test_a_resumed_run_equals_an_unbroken_one(files: Path, tmp_path: Path, finished: tuple[Path, ValueModel]) -> None:
    settings = settings_of(files, tmp_path / "out")
    broken = trainer_of(settings)
    for _ in range(3):
        broken.advance()
    broken.save(Path(settings.out) / TRAINING)
    (Path(settings.out) / LOG).write_text('{"step": 4, "of": "an update after the checkpoint"}\n')
    torch.manual_seed(123)  # nothing may depend on the random state
    model = train(settings)
    assert same(weights(model), weights(finished[1]))
    assert log_of(Path(settings.out)) == log_of(finished[0])[3:]


def test_a_run_of_other_settings_is_not_resumed(files: Path, tmp_path: Path) -> None:
    settings = settings_of(files, tmp_path / "out")
    trainer_of(settings).save(Path(settings.out) / TRAINING)
    with pytest.raises(TrainError, match=r"another optimizer\.adapter_lr, seed"):
        train(settings_of(files, tmp_path / "out", "seed=1", "optimizer.adapter_lr=0.5"))


def test_a_damaged_checkpoint_is_refused_by_name(files: Path, tmp_path: Path) -> None:
    settings = settings_of(files, tmp_path / "out")
    trainer = trainer_of(settings)
    path = Path(settings.out) / TRAINING
    path.parent.mkdir(exist_ok=True)
    for content in (b"", b"PK", pickle.dumps({})):
        path.write_bytes(content)
        with pytest.raises(TrainError, match=r"training.pt is damaged .*delete it to train from the start"):
            trainer.load(path)
    torch.save({"update": 3}, path)
    with pytest.raises(TrainError, match=r"training.pt is damaged \(KeyError\('settings'\)"):
        trainer.load(path)


def test_a_checkpoint_holds_tensors_and_plain_values_only(finished: tuple[Path, ValueModel]) -> None:
    state = torch.load(finished[0] / TRAINING, weights_only=True)
    assert {"parameters", "optimizer", "scheduler", "update"} <= state.keys()
    assert not any(name.startswith("head.") for name in state["parameters"])


def test_a_difficulty_needs_held_out_prompts(files: Path, tmp_path: Path) -> None:
    for without in ("validation.every=0", "data.heldout_prompts=0"):
        with pytest.raises(SettingsError, match=r"difficulty='mean'.*without validation\.every"):
            settings_of(files, tmp_path / "out", "difficulty=mean", without)


def test_a_finished_run_can_be_given_a_difficulty_of_its_training_prompts(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = train(settings_of(files, out))
    prompts, scores, asked = [f"{i}+{i}=" for i in range(6)], [1, -1, 1, -1, 0.5, -0.5], ["1+2=", "5+5="]
    model = train(settings_of(files, out, "difficulty=mean"))
    assert same(weights(plain, "adapter"), weights(model, "adapter"))
    assert model.difficulty is not None and torch.isfinite(model.difficulty.combination).all()
    trained_on = load_data(settings_of(files, out)).train.table["prompt"].nunique()
    assert len(model.difficulty.centres) == trained_on
    again = ValueModel.from_pretrained(out / MODEL)
    assert np.array_equal(again.predict(prompts, scores, asked), model.predict(prompts, scores, asked))
    card = (out / MODEL / "README.md").read_text()
    assert "difficulty: mean" in card and "combination/difficulty" in card
    # A model trained on without the setting loses it: it would no longer fit the adapter and the head.
    without = train(settings_of(files, tmp_path / "next", f"init={{from_pretrained: {out / MODEL}, new: null}}"))
    assert without.difficulty is None and without.config.difficulty is None


def test_the_best_model_is_kept(files: Path, tmp_path: Path) -> None:
    trainer = trainer_of(settings_of(files, tmp_path / "out"))
    trainer.update = 1
    trainer._keep_if_best({"cross_entropy": 0.5})
    best = weights(trainer.model)
    with torch.no_grad():
        trainer.model.adapter.static_queries.add_(1.0)
    trainer._keep_if_best({"cross_entropy": 0.6})
    assert trainer.best == {"step": 1, "cross_entropy": 0.5} and (tmp_path / "out" / BEST).exists()
    assert same(weights(trainer.finish()), best)


@pytest.mark.parametrize("part", ["adapter", "backbone", "head"])
def test_only_parts_with_a_learning_rate_are_trained(files: Path, tmp_path: Path, part: str) -> None:
    rates = [f"optimizer.{p}_lr={0.01 if p == part else 0.0}" for p in ("adapter", "backbone", "head")]
    trainer = trainer_of(settings_of(files, tmp_path / "out", "validation.every=0", *rates))
    before = weights(trainer.model)
    trainer.advance()
    trainer.advance()  # the first one's warm-up rate is zero
    changed = {
        key.split(".")[0] for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {part}


def test_a_trained_encoder_of_another_name_is_saved_with_the_model(files: Path, tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path / "named", TinyEncoderSettings(width=16, layers=1, heads=2), seed=5)
    trainer = trainer_of(settings_of(files, tmp_path / "out", f"init.new.backbone.name={tmp_path / 'named'}"))
    model = trainer.finish()
    assert model.config.backbone.name == BACKBONE
    assert (tmp_path / "out" / MODEL / BACKBONE / "model.safetensors").exists()


def test_cached_token_states_give_the_same_features(files: Path, tmp_path: Path) -> None:
    trainer = trainer_of(settings_of(files, tmp_path / "out", "optimizer.backbone_lr=0", "states_cache_prompts=3"))
    texts = ["1+1=", "12+34=", "1+1=", "a longer text", ""]
    plain = Embedder(trainer.model)(texts)
    for _ in range(2):
        assert torch.allclose(trainer.embed(texts), plain, atol=1e-6)
    assert torch.equal(plain[0], plain[2]) and torch.allclose(plain, trainer.model.features(texts), atol=1e-6)


def test_held_out_prompts_and_models_are_never_trained_on(files: Path, tmp_path: Path) -> None:
    data = load_data(settings_of(files, tmp_path / "out"))
    drawn = [data.train.draw(e, i) for e in range(3) for i in range(len(data.train))]
    asked = [data.validation.draw(0, i) for i in range(len(data.validation))]
    trained_on = {p for task in drawn for p in (*task.prompts, *task.context_prompts)}
    assert {task.model for task in drawn} == {"m0", "m1", "m2"} and {task.model for task in asked} == {"m3"}
    assert not trained_on & {p for task in asked for p in task.prompts}


def test_validation_without_anything_held_out_is_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="needs held-out data"):
        load_data(settings_of(files, tmp_path / "out", "data.heldout_models=[]", "data.heldout_prompts=0"))


def test_a_run_without_validation_has_nothing_to_validate_on(files: Path, tmp_path: Path) -> None:
    trainer = trainer_of(settings_of(files, tmp_path, "validation.every=0"))
    with pytest.raises(TrainError, match="nothing to validate on"):
        trainer.validate()


def test_a_table_split_with_the_same_seed_before_is_refused(files: Path, tmp_path: Path) -> None:
    table = read_trajectories([files / "table.parquet"])
    write_trajectories(split_by_prompt(table, {"train": 0.8, "validation": 0.2}, 0)["train"], tmp_path / "t.parquet")
    changes = [f"data.paths=[{tmp_path / 't.parquet'}]", "data.heldout_models=[]", "data.heldout_prompts=0.2"]
    with pytest.raises(SettingsError, match=r"split_seed=0 holds out none of the \d+ prompts"):
        load_data(settings_of(files, tmp_path / "out", *changes))
    assert load_data(settings_of(files, tmp_path / "out", *changes, "data.split_seed=1")).validation is not None


def test_tasks_that_cannot_be_shared_out_are_refused(files: Path, tmp_path: Path) -> None:
    settings = settings_of(files, tmp_path / "out")
    with pytest.raises(TrainError, match=r"tasks_per_update=2 must be a multiple.*\(3\)"):
        Trainer(settings, load_data(settings), ProcessGroup(rank=0, world_size=3))


def test_processes_share_out_every_task_once() -> None:
    shares = [list(ProcessGroup(rank, 3).shard(8)) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(8))


@pytest.mark.slow
def test_two_processes_get_what_one_gets(files: Path, tmp_path: Path, finished: tuple[Path, ValueModel]) -> None:
    out = tmp_path / "two"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, "-m", "value_model.train", "--config", str(write_config(files, out))]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600)
    together, alone = weights(ValueModel.from_pretrained(out / MODEL)), weights(finished[1])
    assert all(torch.allclose(together[key], alone[key], atol=1e-5) for key in alone)
    for one, two in zip(log_of(finished[0]), log_of(out), strict=True):
        assert two == pytest.approx(one, rel=1e-4, nan_ok=True)


def test_simulated_policies_make_a_trajectory_table_that_tasks_come_from() -> None:
    settings = SimulationSettings(policies=3, steps=10, prompts=256, prompts_per_step=32)
    table = simulate(settings, seed=1)
    assert check(table).equals(table[COLUMNS]) and table["model"].nunique() == 3
    assert simulate(replace(settings, policies=2), seed=1).equals(table[: 2 * 10 * 32])
    by_digit = table.groupby(["model", table["prompt"].str[-2]])["score"].mean().unstack()
    assert (by_digit.max(axis=1) - by_digit.min(axis=1)).min() > 0.8  # every policy knows some digits
    small = MetaTaskSettings(context_min=32, context_max=192, window=8, own_step=False, balanced=False, pairs=16)
    assert len(MetaTasks(table, small)) > 20


def test_simulated_calculations_are_known_by_operation_and_last_digit_and_harder_with_more_steps() -> None:
    table = simulate(
        SimulationSettings(task="calculation", policies=3, steps=4, prompts=512, prompts_per_step=64), seed=1
    )
    assert check(table).equals(table[COLUMNS]) and table["prompt"].str.fullmatch(r"\d+([-+*]\d+){2,6}=").all()
    steps = table["prompt"].str.count(r"[-+*]")
    assert table.groupby(steps)["score"].mean().loc[[2, 6]].is_monotonic_decreasing
