"""Query-performance trajectories: mean outcomes of one policy on one prompt at one training step.

``python -m value_model.trajectories RUN... --out DIR`` reads what runs recorded and splits it by prompt:

- ``train.parquet``: training prompts. They are training queries *and* the pool that contexts are drawn from: the
  context of a (model, step) is a random sample of that group's training prompts, filled up from the newest earlier
  steps of the same model where the step has too few (:func:`value_model.evaluation.tasks.tasks_from`);
- ``validation.parquet`` (and ``test.parquet``): prompts that are in no other file. They are used as queries only, with
  a context from ``train.parquet``;
- ``heldout_models.parquet``: every row of the models excluded from training, both kinds of prompts; the same split by
  prompt divides it into contexts and queries;
- ``splits.json``: the settings and counts.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from pandas.api import types
from rich.console import Console
from rich.table import Table

from value_model.conversions import success_of_reward
from value_model.files import lfs_pointer_problem, replaced, write_json

KEY = ["model", "step", "prompt_id"]
TEXT = ["model", "prompt_id", "prompt", "data_source"]
COLUMNS = ["model", "step", "prompt_id", "prompt", "data_source", "score", "n"]
HELDOUT_MODELS = "heldout_models"
SPLITS = ("train", "validation", "test", HELDOUT_MODELS)


class TrajectoryError(ValueError):
    """An invalid trajectory table; the message names file, column and row."""


def success(table: pd.DataFrame) -> pd.Series:
    """Success rate of each row, in [0, 1]."""
    return success_of_reward(table["score"])


def check(table: pd.DataFrame, source: str = "table") -> pd.DataFrame:
    """The table's seven columns, checked.

    Args:
        table: model, prompt_id, prompt, data_source (text), step (int >= 0), score (in [-1, 1]), n (int >= 1);
            further columns are dropped.
        source: name of the table in error messages, such as its file.

    Raises:
        TrajectoryError: a column is missing or of another type, a value is out of range, or one id has two texts.
    """
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise TrajectoryError(f"{source}: no column {missing[0]!r}; it has {list(table)}, trajectories need {COLUMNS}")
    table = table[COLUMNS]
    for column in TEXT:
        is_text = table[column].map(lambda value: isinstance(value, str))
        _check_rows(table, is_text, column, source, "text")
    for column, least in (("step", 0), ("n", 1)):
        _check_whole_numbers(table, column, source, least)
    if not types.is_numeric_dtype(table["score"]):
        raise TrajectoryError(f"{source}: column 'score' holds {table['score'].dtype}, expected numbers in [-1, 1]")
    _check_rows(table, table["score"].between(-1, 1), "score", source, "a mean outcome reward in [-1, 1]")
    _check_one_text_per_id(table, source)
    return table.astype({"step": "int64", "n": "int64", "score": "float64"})


def read_trajectories(paths: Iterable[str | Path]) -> pd.DataFrame:
    """All rows of all paths, sorted by (model, step, prompt_id), each such key once.

    Where a key occurs more than once, the row with the most rollouts is kept (of equals, the last one read).

    Args:
        paths: parquet files, jsonl files, or folders of runs, searched for ``trajectories/step_*.parquet``.

    Raises:
        TrajectoryError: nothing was found at a path, or a file fails :func:`check`.
    """
    files = [file for path in paths for file in _trajectory_files(Path(path))]
    if not files:
        raise TrajectoryError("no path given; name parquet files, jsonl files or run folders")
    table = pd.concat([check(_read_file(file), str(file)) for file in files], ignore_index=True)
    _check_one_text_per_id(table, "the files together")
    newest = table.sort_values("n", kind="stable").drop_duplicates(KEY, keep="last")
    return newest.sort_values(KEY, ignore_index=True)


def write_trajectories(table: pd.DataFrame, path: str | Path) -> None:
    """Write a checked table as parquet; readers see the old file or the complete new one.

    Raises:
        TrajectoryError: the table fails :func:`check`.
    """
    checked = check(table, f"table for {path}")
    with replaced(path) as partial:
        checked.to_parquet(partial, index=False)


def split_by_prompt(
    table: pd.DataFrame, fractions: Mapping[str, float], seed: int, holdout_models: Sequence[str] = ()
) -> dict[str, pd.DataFrame]:
    """Split into frames that share no prompt.

    A prompt's split is a hash of (seed, its text) alone: it does not change when rows are added or removed, and the
    same text is in the same split for every model and step. Fractions are therefore met in expectation only.

    Args:
        table: as :func:`read_trajectories` gives it.
        fractions: name of a split -> share of the prompts, such as ``{"train": 0.8, "validation": 0.2}``; sum 1.
        seed: of the hash.
        holdout_models: models whose rows all go to ``"heldout_models"`` instead.

    Returns:
        Split -> rows; ``"heldout_models"`` only if any are named.

    Raises:
        ValueError: fractions are negative or do not sum to 1, a held-out model is not in the table, or none is left.
    """
    if min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(f"fractions={dict(fractions)} must each be at least 0 and sum to 1")
    held_out = table["model"].isin(_known_models(table, holdout_models))
    split = table["prompt"].map({text: _split_of(text, fractions, seed) for text in table["prompt"].unique()})
    frames = {name: table[(split == name) & ~held_out].reset_index(drop=True) for name in fractions}
    if holdout_models:
        frames[HELDOUT_MODELS] = table[held_out].reset_index(drop=True)
    return frames


def split_counts(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Rows, prompts, models, (model, step) groups, rollouts and mean success rate of each split."""
    rows = {
        name: {
            "rows": len(frame),
            "prompts": frame["prompt"].nunique(),
            "models": frame["model"].nunique(),
            "groups": frame.groupby(["model", "step"]).ngroups,
            "rollouts": int(frame["n"].sum()),
            "success": round(float(success(frame).mean()), 4),
        }
        for name, frame in frames.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _trajectory_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise TrajectoryError(f"{path}: no such file or folder")
    # The path may be the folder of steps itself.
    found = set(path.rglob("trajectories/step_*.parquet"))
    found |= set(path.glob("step_*.parquet")) if path.name in ("trajectories", "state_trajectories") else set()
    if not found:
        raise TrajectoryError(f"{path}: no trajectories/step_*.parquet below it; is this the folder of a run?")
    return sorted(found)


def _read_file(file: Path) -> pd.DataFrame:
    if file.suffix not in (".parquet", ".jsonl"):
        raise TrajectoryError(f"{file}: suffix {file.suffix!r} is neither .parquet nor .jsonl")
    if problem := lfs_pointer_problem(file):
        raise TrajectoryError(problem)
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        # Without dtype=False pandas converts ids such as "007" to numbers.
        return pd.read_json(file, lines=True, dtype=False, convert_dates=False, precise_float=True)
    except (OSError, ValueError) as error:  # pyarrow's errors and UnicodeDecodeError are ValueErrors
        raise TrajectoryError(f"{file}: no {file.suffix.removeprefix('.')} file in UTF-8 ({error})") from error


def _check_rows(table: pd.DataFrame, good: pd.Series, column: str, source: str, wanted: str) -> None:
    if not good.all():
        row = int((~good.to_numpy()).argmax())
        value = table[column].iloc[row]
        raise TrajectoryError(f"{source}: column {column!r}, row {row} (from 0): {value!r} is not {wanted}")


def _check_whole_numbers(table: pd.DataFrame, column: str, source: str, least: int) -> None:
    if len(table) and not types.is_integer_dtype(table[column]):
        raise TrajectoryError(f"{source}: column {column!r} holds {table[column].dtype}, expected whole numbers")
    _check_rows(table, table[column] >= least, column, source, f"a whole number of at least {least}")


def _check_one_text_per_id(table: pd.DataFrame, source: str) -> None:
    pairs = table.drop_duplicates(["prompt_id", "prompt"])
    again = pairs[pairs["prompt_id"].duplicated()]
    if len(again):
        prompt_id = again["prompt_id"].iloc[0]
        texts = [text[:60] for text in pairs.loc[pairs["prompt_id"] == prompt_id, "prompt"]]
        raise TrajectoryError(
            f"{source}: column 'prompt', row {again.index[0]} (from 0): id {prompt_id!r} has {len(texts)} texts, "
            f"{texts[0]!r} and {texts[1]!r}; give every text its own id"
        )


def _known_models(table: pd.DataFrame, holdout_models: Sequence[str]) -> set[str]:
    models, held_out = set(table["model"]), set(holdout_models)
    if held_out - models:
        raise ValueError(f"holdout_models: no {sorted(held_out - models)} in the table, its models: {sorted(models)}")
    if held_out and held_out == models:
        raise ValueError(f"holdout_models={sorted(held_out)} leaves no model to train on")
    return held_out


def _split_of(text: str, fractions: Mapping[str, float], seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for name, fraction in fractions.items():
        if position < fraction:
            return name
        position -= fraction
    # Rounding can make the fractions sum to slightly less than 1.
    return max(fractions, key=fractions.__getitem__)


def write_splits(frames: Mapping[str, pd.DataFrame], folder: Path, settings: Mapping[str, object]) -> None:
    """Write each split as ``<name>.parquet`` and ``splits.json``; files of an earlier, other split are removed."""
    for name in SPLITS:
        if name in frames:
            write_trajectories(frames[name], folder / f"{name}.parquet")
        else:
            (folder / f"{name}.parquet").unlink(missing_ok=True)
    summary = {"settings": dict(settings), "counts": split_counts(frames).to_dict(orient="index")}
    write_json(folder / "splits.json", summary, indent=2)


def _print_split_counts(frames: Mapping[str, pd.DataFrame], console: Console) -> None:
    summary = split_counts(frames)
    table = Table(title="Trajectories by split")
    table.add_column("split")
    for column in summary:
        table.add_column(column, justify="right")
    for name, row in summary.iterrows():
        table.add_row(name, *(f"{v:.3f}" if c == "success" else f"{v:.0f}" for c, v in row.items()))
    console.print(table)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m value_model.trajectories", description="Split recorded trajectories by prompt."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, parquet or jsonl file")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--validation", type=float, default=0.2, help="share of the prompts held out (default 0.2)")
    parser.add_argument("--test", type=float, default=0.0, help="a second share held out (default none)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--holdout-model", action="append", default=[], metavar="NAME", help="may be repeated")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    args = _arguments(arguments)
    fractions = {"train": 1 - args.validation - args.test, "validation": args.validation}
    if args.test:
        fractions["test"] = args.test
    try:
        frames = split_by_prompt(read_trajectories(args.runs), fractions, args.seed, args.holdout_model)
    except ValueError as error:  # a TrajectoryError, or shares and models that do not fit
        raise SystemExit(f"error: {error}") from error
    empty = [name for name, frame in frames.items() if frame.empty]
    if empty:
        raise SystemExit(f"no prompt fell into {empty}: record more prompts, or change {fractions} or --seed")
    settings = {"fractions": fractions, "seed": args.seed, "holdout_models": args.holdout_model}
    write_splits(frames, args.out, {**settings, "runs": [str(run) for run in args.runs]})
    console = Console()
    _print_split_counts(frames, console)
    console.print(f"written to {args.out}")


if __name__ == "__main__":
    main()
