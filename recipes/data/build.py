"""Make the data folder: read, check, compare and write, unless it is up to date."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from recipes.data import checks, quality_report
from recipes.data.overlap import overlap
from recipes.data.reading import Input, SourceError, checksum, find, read
from recipes.data.rows import TEMPLATE, verl_rows
from recipes.data.sources import SOURCES, TESTS, TRAIN, Source
from value_model.files import replaced, write_json, write_text

MANIFEST, REPORT, CONTAMINATION = "manifest.json", "report.md", "contamination.parquet"
FORMAT = 2  # raise it whenever the code makes something else from the same inputs and options


@dataclass(frozen=True)
class Options:
    """All that decides what is made of the inputs.

    The `drop_` options take rows out of the training set; benchmarks always stay whole. `max_rows` is a sample of
    every file, drawn with `seed`.
    """

    template: str = TEMPLATE
    max_rows: int | None = None
    seed: int = 0
    drop_contaminated: bool = False
    drop_conflicting: bool = False
    drop_broken: bool = False
    repair_escapes: bool = False


def make_data(
    out: Path,
    options: Options,
    console: Console,
    *,
    local: Path | None = None,
    files: Mapping[str, Path] | None = None,
    accept_changes: bool = False,
) -> bool:
    """Fill `out` with train/, test/, report.md, contamination.parquet and manifest.json.

    Args:
        out: made if it is not there; each file is replaced as a whole, the manifest last.
        options: what to make.
        console: for progress.
        local: folder with `<source>.jsonl` or `.parquet`; None for the hub.
        files: source -> its file, before `local` and the hub.
        accept_changes: go on where a source is not the one of the last run, or has another number of rows than the
            published copies.

    Returns:
        False where all this was there already, from the same bytes by the same options.

    Raises:
        SourceError: a source is missing, changed or unusable.
    """
    last = _manifest(out)
    with _progress(console) as progress:
        inputs = {
            source.name: find(source, local, files or {})
            for source in progress.track(SOURCES, description="finding the sources")
        }
        if _is_made(out, last, inputs, options):
            return False
        if not accept_changes:
            _require_unchanged(last, inputs)

        tables, sizes = {}, {}
        for source in progress.track(SOURCES, description="reading the sources"):
            tables[source.name], sizes[source.name] = read(source, inputs[source.name].path)
            if not accept_changes:
                _require_count(source, sizes[source.name], inputs[source.name])
        repaired = _repair(tables) if options.repair_escapes else 0

        progress.add_task("comparing the training set with the benchmarks", total=None)
        pairs = overlap(tables[TRAIN.name], {source.name: tables[source.name] for source in TESTS})
        written, dropped = select(tables, pairs, options)

    manifest = {
        "format": FORMAT,
        "options": asdict(options),
        "inputs": {source.name: _described(source, inputs[source.name], sizes[source.name]) for source in SOURCES},
        "dropped": dropped,
        "repaired": repaired,
        "rows": {name: len(table) for name, table in written.items()},
    }
    outputs = _write_tables(out, written, pairs, options)
    outputs.append(out / REPORT)
    write_text(out / REPORT, quality_report.markdown(manifest, tables, written, pairs))
    manifest["outputs"] = {str(path.relative_to(out)): checksum(path) for path in outputs}
    # Last, so that a run that was interrupted is not taken for a complete one.
    write_json(out / MANIFEST, manifest, indent=2)
    return True


def select(
    tables: Mapping[str, pd.DataFrame], pairs: pd.DataFrame, options: Options
) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """The rows to write, and how many rows of the training set each rule took out.

    Repeated rows (the same problem with the same answer) of the training set always go: they would only weigh
    some problems more.

    Args:
        tables: source -> id, problem, answer.
        pairs: of :func:`recipes.data.overlap.overlap`.
        options: see :class:`Options`.

    Returns:
        source -> rows with the column `contaminated`; rule -> rows, in the order of the rules.
    """
    rules = {
        "repeated": (True, checks.repeated),
        "conflicting": (options.drop_conflicting, checks.conflicting),
        "broken escapes": (options.drop_broken, checks.broken),
        "contaminated": (options.drop_contaminated, lambda table: table["id"].isin(pairs["train_id"])),
        "beyond --max-rows": (options.max_rows is not None, lambda table: ~_sampled(table, options)),
    }
    train, dropped = tables[TRAIN.name], {}
    for rule, (wanted, mask) in rules.items():
        out = mask(train) if wanted else pd.Series(False, index=train.index)
        train, dropped[rule] = train[~out], int(out.sum())

    written = {TRAIN.name: train.assign(contaminated=train["id"].isin(pairs["train_id"]))}
    held = pairs[pairs["train_id"].isin(train["id"])]
    for source in TESTS:
        table = tables[source.name]
        table = table[_sampled(table, options)]
        hit = held.loc[held["test_source"] == source.name, "test_id"]
        written[source.name] = table.assign(contaminated=table["id"].isin(hit))
    return written, dropped


def _sampled(table: pd.DataFrame, options: Options) -> pd.Series:
    rows = len(table) if options.max_rows is None else min(options.max_rows, len(table))
    return table.index.to_series().isin(table.sample(rows, random_state=options.seed).index)


def _repair(tables: dict[str, pd.DataFrame]) -> int:
    table = tables[TRAIN.name]
    repaired = table["problem"].map(checks.repair_escapes)
    tables[TRAIN.name] = table.assign(problem=repaired)
    return int((repaired != table["problem"]).sum())


def _manifest(out: Path) -> dict[str, Any]:
    path = out / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else {}


def _is_made(out: Path, last: Mapping[str, Any], inputs: Mapping[str, Input], options: Options) -> bool:
    return (
        last.get("format") == FORMAT
        and last["options"] == asdict(options)
        and all(last["inputs"][name]["sha256"] == given.sha256 for name, given in inputs.items())
        and all((out / name).is_file() and checksum(out / name) == was for name, was in last["outputs"].items())
    )


def _require_unchanged(last: Mapping[str, Any], inputs: Mapping[str, Input]) -> None:
    for name, was in last.get("inputs", {}).items():
        if name in inputs and was["sha256"] != inputs[name].sha256:
            raise SourceError(
                f"{name}: {inputs[name].origin} has sha256 {inputs[name].sha256}, the last run read {was['origin']} "
                f"with {was['sha256']}; --accept-changes replaces its data"
            )


def _require_count(source: Source, rows: int, given: Input) -> None:
    if rows not in source.counts:
        known = " or ".join(f"{count:,}" for count in source.counts)
        raise SourceError(
            f"{source.name}: {given.origin} has {rows:,} rows, the published copies have {known}; "
            "--accept-changes takes it as it is"
        )


def _described(source: Source, given: Input, rows: int) -> dict[str, Any]:
    return {
        "origin": given.origin,
        "revision": given.revision,
        "sha256": given.sha256,
        "rows": rows,
        "homepage": source.homepage,
        "licence": source.licence,
    }


def _write_tables(out: Path, written: Mapping[str, pd.DataFrame], pairs: pd.DataFrame, options: Options) -> list[Path]:
    paths = []
    for source in SOURCES:
        table = written[source.name]
        contaminated = set(table.loc[table["contaminated"], "id"])
        rows = verl_rows(table, source.name, source.split, contaminated, options.template)
        paths.append(out / source.split / f"{source.name}.parquet")
        _write_parquet(paths[-1], rows)
    paths.append(out / CONTAMINATION)
    _write_parquet(paths[-1], pa.Table.from_pandas(pairs, preserve_index=False))
    return paths


def _write_parquet(path: Path, table: pa.Table) -> None:
    with replaced(path) as partial:
        pq.write_table(table, partial)


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)
