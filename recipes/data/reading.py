"""From a file, local or of the hub, to a table of problems."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from recipes.data.sources import Source
from value_model.files import lfs_pointer_problem
from verl_v05.grading.answer import gold_text

PLAIN = ("id", "problem", "answer")
SUFFIXES = (".jsonl", ".parquet")


class SourceError(ValueError):
    """A source that is missing or cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Input:
    """The file of a source: where it is, where it came from (path or page on the hub), and its sha256 in hex."""

    path: Path
    origin: str
    revision: str | None
    sha256: str


def find(source: Source, local: Path | None, files: Mapping[str, Path]) -> Input:
    """The file of a source: the one named in `files`, else the one in the folder `local`, else, without, the hub's.

    Raises:
        SourceError: there is none, or more than one.
    """
    if source.name in files:
        path = files[source.name]
        if not path.is_file():
            raise SourceError(f"{source.name}: no file {path}, given by --file")
        return _input(path)
    return _in_folder(source, local) if local else _on_hub(source)


def _in_folder(source: Source, folder: Path) -> Input:
    names = {_plain(name) for name in (source.name, source.repository.split("/")[1], *source.aliases)}
    found = sorted(p for p in folder.glob("*") if p.suffix in SUFFIXES and _plain(p.stem) in names)
    if not found:
        raise SourceError(
            f"{source.name}: no {source.name}.jsonl or .parquet in {folder}; put it there with the columns "
            f"{', '.join(PLAIN)}, name it by --file {source.name}=PATH, or download {source.file} of {source.homepage}"
        )
    if len(found) > 1:
        raise SourceError(f"{source.name}: {found[0]} and {found[1]} could both be it; choose by --file {source.name}=")
    return _input(found[0])


def _input(path: Path, origin: str | None = None, revision: str | None = None) -> Input:
    return Input(path, origin or str(path), revision, checksum(path))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _on_hub(source: Source) -> Input:
    try:
        path = hf_hub_download(source.repository, source.file, repo_type="dataset", revision=source.revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise SourceError(
            f"{source.name}: cannot get {source.file} of {source.homepage} at revision {source.revision} ({error}); "
            f"without the hub, give a folder with {source.name}.jsonl by --local, or --file {source.name}=PATH"
        ) from error
    return _input(Path(path), source.homepage, source.revision)


def checksum(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read(source: Source, path: Path) -> tuple[pd.DataFrame, int]:
    """Problems of a file, with the columns id, problem, answer or with those of the hub.

    The answer is the gold as :func:`verl_v05.grading.answer.gold_text` reads it, as training and the bench do. Rows
    that are repeated, id and all, come once.

    Returns:
        id, problem, answer (text, outer whitespace stripped), and the number of rows in the file.

    Raises:
        SourceError: a column is missing, an id has two rows, or a problem or answer is empty or unusable.
    """
    rows: dict[tuple[str, str, str], None] = {}
    count = 0
    for count, record in enumerate(_records(source, path), start=1):
        rows[_row(source, record, count - 1, path)] = None
    table = pd.DataFrame(list(rows), columns=list(PLAIN))
    for column in PLAIN:
        empty = table.index[table[column] == ""]
        if len(empty):
            raise SourceError(f"{source.name}: {len(empty)} rows of {path} have an empty {column}, first {empty[0]}")
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise SourceError(f"{source.name}: id {twice.iloc[0]!r} of {path} has different rows; ids must be unique")
    return table, count


def _records(source: Source, path: Path) -> Iterator[dict[str, Any]]:
    if problem := lfs_pointer_problem(path):
        raise SourceError(f"{source.name}: {problem}")
    if path.suffix == ".parquet":
        try:
            file = pq.ParquetFile(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise SourceError(f"{source.name}: {path} is no parquet file ({error})") from error
        wanted = {*PLAIN, *(p.split(".")[0] for p in (source.problem, source.answer, source.id, source.context))}
        for batch in file.iter_batches(columns=[c for c in file.schema_arrow.names if c in wanted]):
            yield from batch.to_pylist()
        return
    # Read as bytes, so that a line that is not UTF-8 can be named. Some editors begin a file with a byte order mark.
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(BOM_UTF8) if number == 1 else line
            if text.strip():
                yield _json_row(source, text, number, path)


def _json_row(source: Source, line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise SourceError(f"{source.name}: line {number} of {path} is not UTF-8 ({error}); convert the file") from None
    except json.JSONDecodeError as error:
        raise SourceError(f"{source.name}: line {number} of {path} is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise SourceError(f"{source.name}: line {number} of {path} is {line[:60]!r}; every line must be a JSON object")
    return record


def _row(source: Source, record: dict[str, Any], index: int, path: Path) -> tuple[str, str, str]:
    if all(column in record for column in PLAIN):
        name = _text(record["id"])
        name = f"{source.name}-{name}" if name.isdigit() else name  # so that ids tell the sources apart
        return name, _text(record["problem"]), _answer(source, record["answer"], index, path)
    try:
        problem, answer = _field(record, source.problem), _field(record, source.answer)
        name = _field(record, source.id) if source.id else f"{index:05d}"
    except (KeyError, IndexError, TypeError):
        columns = [c for c in (source.id, source.problem, source.answer) if c]
        # Of a column that is there but is of another form, for example a prompt that is text and no chat.
        kinds = {c.split(".")[0]: type(record.get(c.split(".")[0])).__name__ for c in columns if "." in c}
        raise SourceError(
            f"{source.name}: row {index} of {path} has the columns {sorted(record)}; expected {list(PLAIN)} or the "
            f"hub's {columns}{f', where there is now {kinds}' if kinds else ''}"
        ) from None
    problem = _without_template(source, _text(problem), index, path)
    context = _text(record.get(source.context))
    problem = f"{context}\n\n{problem}" if context else problem
    return f"{source.name}-{name}", problem, _answer(source, answer, index, path)


def _field(record: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        record = record[int(part)] if part.isdigit() else record[part]
    return record


def _without_template(source: Source, text: str, index: int, path: Path) -> str:
    if not (text.startswith(source.before) and text.endswith(source.after)):
        raise SourceError(
            f"{source.name}: the problem in row {index} of {path} is not between {source.before!r} and "
            f"{source.after!r}, which are around every published problem; the source has changed"
        )
    return text.removeprefix(source.before).removesuffix(source.after).strip()


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _answer(source: Source, value: Any, index: int, path: Path) -> str:
    if not _text(value):
        return ""
    try:
        return gold_text(value)
    except ValueError as error:
        raise SourceError(f"{source.name}: row {index} of {path} cannot be graded: {error}") from None
