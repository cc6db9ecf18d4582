"""The finished samples on disk: one line each, appended as they finish and read at the next start."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from benchmarks.bench import BenchError
from value_model.files import naming_full_disk, write_text

FINGERPRINT = "fingerprint.json"
FOLDER = "samples"

Key = tuple[str, str, int]  # benchmark, problem id, number of the sample


@dataclass(frozen=True)
class Sample:
    """One graded response.

    ``session`` is the start that made it, from 1, ``seconds`` when it was generated after that session's first
    request; ``finish`` is "stop" or "length"; ``failure`` is None or why no comparison with the gold was made.
    """

    benchmark: str
    id: str
    sample: int
    session: int
    seconds: float
    prompt_tokens: int
    tokens: int
    finish: str
    gold: str
    answer: str | None
    correct: bool
    failure: str | None
    response: str

    @property
    def key(self) -> Key:
        return self.benchmark, self.id, self.sample


class SampleStore:
    """``out/samples/*.jsonl``; holds everything but the responses in memory.

    Raises:
        BenchError: ``out`` is in use, or holds samples of another fingerprint, or a damaged file.
    """

    def __init__(self, out: Path, fingerprint: Mapping[str, Any]):
        self.folder = out / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        # A lock of the kernel: released however the process ends, and not inherited by its workers.
        self._lock = (out / "lock").open("w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BenchError(f"{out} is in use by another process; wait for it or choose another --out") from error
        check_fingerprint(out, fingerprint)
        self.finished: dict[Key, Sample] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            cut_torn_line(path)
            self.finished |= {s.key: s for s in read_samples(path)}
        self._files: dict[str, TextIO] = {}

    @property
    def session(self) -> int:
        """The number of the next session."""
        return 1 + max((s.session for s in self.finished.values()), default=0)

    def append(self, sample: Sample) -> None:
        """Store a sample; it survives the end of this process, a kill included."""
        if sample.benchmark not in self._files:
            self._files[sample.benchmark] = (self.folder / f"{sample.benchmark}.jsonl").open("a")
        file = self._files[sample.benchmark]
        with naming_full_disk(file.name):
            file.write(json.dumps(asdict(sample)) + "\n")
            file.flush()
        self.finished[sample.key] = replace(sample, response="")

    def close(self) -> None:
        for file in (*self._files.values(), self._lock):
            with naming_full_disk(file.name):  # of a last line that did not fit
                file.close()


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a file, without their responses."""
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                yield Sample(**{**json.loads(line), "response": ""})
            except (ValueError, TypeError) as error:
                raise BenchError(f"{path}:{number} is no sample ({error}); remove that line to ask it again") from error


def cut_torn_line(path: Path) -> None:
    """Remove a last line without its end, which a killed process leaves."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def check_fingerprint(out: Path, fingerprint: Mapping[str, Any]) -> None:
    """Write the fingerprint of what is measured, or compare it with the one that is there.

    Benchmarks may be added later: only what both name is compared.

    Raises:
        BenchError: naming what differs.
    """
    path = out / FINGERPRINT
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise BenchError(f"{path} is damaged ({error}); remove it, or choose another --out") from error
    changed = differences(known, fingerprint)
    if changed:
        raise BenchError(
            f"{out} holds samples of another measurement; different are:\n  "
            + "\n  ".join(changed)
            + "\nChoose another --out, or the settings of before"
        )
    write_text(path, json.dumps(merge(known, fingerprint), indent=2) + "\n")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[str]:
    """One line for each entry of two nested mappings that both have and that differs."""
    lines = []
    for key in before.keys() & now.keys():
        old, new = before[key], now[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{at}{key}.")
        elif old != new:
            lines.append(f"{at}{key}: {old!r} there, {new!r} now")
    return sorted(lines)


def merge(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of both nested mappings."""
    both = {**before, **now}
    for key in before.keys() & now.keys():
        if isinstance(now[key], Mapping):
            both[key] = merge(before[key], now[key])
    return both
