"""What the run will open: data files, the reward function, packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import load_dataset
from omegaconf import DictConfig, ListConfig, OmegaConf
from pyarrow.parquet import ParquetFile
from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls

from verl_v05.compat.packages import attention_costs, lacking
from verl_v05.dry_run import Problem, error, refuse, warn
from verl_v05.dry_run.from_verl import reason
from verl_v05.plugin import is_for_this_machine

REWARD: tuple[tuple[str, str, Callable[[DictConfig], object]], ...] = (
    ("reward.custom_reward_function", "path", get_custom_reward_fn),
    ("reward.reward_manager", "module.path", resolve_reward_manager_cls),
)


def check_data(config: DictConfig) -> Iterator[Problem]:
    """Data files that are here hold what verl's dataset, reward managers and trainer read of them."""
    for key in ("data.train_files", "data.val_files"):
        value = OmegaConf.select(config, key)
        names = [name for name in (value if isinstance(value, ListConfig) else [value]) if name]
        if not names:
            yield refuse(key, value, "a file or a list of them")
        here = [name for name in names if "://" not in name and Path(name).expanduser().exists()]
        if absent := [name for name in names if "://" not in name and name not in here]:
            yield warn(f"{key}: not on this machine: {', '.join(absent)}")
        if OmegaConf.select(config, "data.custom_cls.path"):  # a dataset class of the user's reads what it wants
            continue
        rows, fine = 0, names and len(here) == len(names)
        for name in here:
            try:
                count, first = _read(Path(name).expanduser())
                fault = _fault(config, first)
            except Exception as refusal:  # of any of the readers
                count, fault = 0, f"cannot be read: {reason(refusal)}"
            rows, fine = rows + count, fine and not fault
            if fault:
                yield error(f"{key}: {name} {fault}")
        batch, most = config.data.train_batch_size, config.data.train_max_samples
        rows = min(rows, most) if most > 0 else rows
        if fine and key == "data.train_files" and rows < batch:
            yield error(f"{key}: {rows} rows are less than one batch, data.train_batch_size={batch}")


def check_reward(config: DictConfig) -> Iterator[Problem]:
    """The reward function and its manager are loaded as verl's reward workers load them."""
    for key, path, load in REWARD:
        try:
            load(config)
        except FileNotFoundError:
            yield warn(f"{key}.{path}: not on this machine: {OmegaConf.select(config, f'{key}.{path}')}")
        except (Exception, SystemExit) as refusal:  # whatever the user's module raises
            yield error(f"{key} cannot be loaded: {reason(refusal)}")


def check_packages(config: DictConfig) -> Iterator[Problem]:
    """Packages that the run imports; a launch for GPUs, checked without one, will have others of its kind."""
    of_machine = is_for_this_machine(config)
    yield from map(warn, lacking(config, of_machine))
    if of_machine:
        yield from map(warn, attention_costs(config))


def _read(path: Path) -> tuple[int, dict[str, Any] | None]:
    """Number of rows, and the first; by the end of its name, as verl does."""
    if path.suffix == ".parquet":
        with ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=1), None)
            return file.metadata.num_rows, batch.to_pylist()[0] if batch else None
    if path.suffix in (".json", ".jsonl"):
        lines = load_dataset("json", data_files=str(path), split="train", streaming=True)
        return sum(1 for _ in lines), next(iter(lines), None)
    raise ValueError("verl reads .parquet, .json and .jsonl only")


def _fault(config: DictConfig, row: dict[str, Any] | None) -> str:
    """What is wrong with a file that starts with that row; an empty text if nothing is."""
    if row is None:
        return "has no rows"
    # A reward model, or a reward manager of the user's, may do without a gold answer.
    graded = config.reward.reward_manager.source == "register" and not config.reward.reward_model.enable
    key = config.data.prompt_key
    if absent := [name for name in (key, *(("data_source", "reward_model") if graded else ())) if name not in row]:
        return f"has no column {', '.join(absent)}, only {', '.join(row)}"
    prompt, gold = row[key], row.get("reward_model")
    if not (isinstance(prompt, list) and prompt and all(isinstance(m, dict) and "content" in m for m in prompt)):
        return f"has no messages, [{{role, content}}, ...], in {key}, but a {type(prompt).__name__}: {prompt!r:.80}"
    if graded and not (isinstance(gold, dict) and "ground_truth" in gold):
        return f"has no ground_truth in reward_model: {gold!r:.80}"
    return ""
