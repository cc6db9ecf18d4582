"""The bench's samples on disk: resuming, torn lines, fingerprints."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.bench import BenchError
from benchmarks.bench.samples import Sample, SampleStore, differences


def sample(number: int, session: int = 1, benchmark: str = "aime24") -> Sample:
    return Sample(
        benchmark=benchmark,
        id="p",
        sample=number,
        session=session,
        seconds=1.5,
        prompt_tokens=3,
        tokens=7,
        finish="stop",
        gold="4",
        answer="4",
        correct=True,
        failure=None,
        response="line\nline\u2028\r",
    )


def test_finished_samples_are_found_again_and_the_session_counts_on(tmp_path: Path) -> None:
    with closing(SampleStore(tmp_path, {"model": "m"})) as store:
        assert (store.finished, store.session) == ({}, 1)
        store.append(sample(0))
        store.append(sample(1, benchmark="amc23"))
    with closing(SampleStore(tmp_path, {"model": "m"})) as store:
        assert set(store.finished) == {("aime24", "p", 0), ("amc23", "p", 1)}
        assert store.session == 2


def test_a_line_torn_by_a_kill_is_asked_again_and_the_next_one_is_whole(tmp_path: Path) -> None:
    with closing(SampleStore(tmp_path, {})) as store:
        store.append(sample(0))
        store.append(sample(1))
    path = tmp_path / "samples" / "aime24.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with closing(SampleStore(tmp_path, {})) as store:
        assert set(store.finished) == {("aime24", "p", 0)}
        store.append(sample(1))
    assert path.read_bytes() == whole


def test_a_sample_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    with closing(SampleStore(tmp_path, {})) as store:
        store.append(sample(0))
        assert (tmp_path / "samples" / "aime24.jsonl").read_text().endswith("}\n")


def test_damage_before_the_end_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "aime24.jsonl").write_text("{}\n")
    with pytest.raises(BenchError, match=r"aime24\.jsonl:1 is no sample"):
        SampleStore(tmp_path, {})


def test_another_measurement_in_the_same_folder_is_refused_by_name(tmp_path: Path) -> None:
    before = {"model": "m", "sampling": {"top_p": 0.7, "seed": 0}}
    SampleStore(tmp_path, before).close()
    with pytest.raises(BenchError) as refused:
        SampleStore(tmp_path, {"model": "m", "sampling": {"top_p": 0.9, "seed": 0}})
    assert "sampling.top_p: 0.7 there, 0.9 now" in str(refused.value)
    assert "seed" not in str(refused.value)
    SampleStore(tmp_path, before).close()


def test_benchmarks_can_be_added_but_not_exchanged(tmp_path: Path) -> None:
    SampleStore(tmp_path, {"data": {"a": "1"}}).close()
    SampleStore(tmp_path, {"data": {"b": "2"}}).close()
    with pytest.raises(BenchError, match=r"data\.a: '1' there, '3' now"):
        SampleStore(tmp_path, {"data": {"a": "3"}})


def test_differences_are_of_common_entries_only() -> None:
    assert differences({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"x": 1, "y": 3}, "c": 1}) == ["a.y: 2 there, 3 now"]


def test_a_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    code = "import pathlib, sys; from benchmarks.bench.samples import *; SampleStore(pathlib.Path(sys.argv[1]), {})"
    with closing(SampleStore(tmp_path, {})):
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "in use by another process" in other.stderr
