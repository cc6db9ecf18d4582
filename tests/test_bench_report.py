"""The bench's results: accounting by hand, files, comparison of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.bench import BenchError
from benchmarks.bench import compare as comparison
from benchmarks.bench.compare import Result, caveats, compare, pair
from benchmarks.bench.problems import Problem
from benchmarks.bench.queue import requests
from benchmarks.bench.results_page import OVERALL, correct_counts, measure, requested_samples, throughput, write_result
from benchmarks.bench.samples import Sample


def row(benchmark: str, problem: str, correct: bool, **other: Any) -> dict[str, Any]:
    kept = {"finish": "stop", "failure": None, "tokens": 10, "contaminated": False, "session": 1, "seconds": 1.0}
    return {"benchmark": benchmark, "id": problem, "correct": correct, **kept, **other}


TABLE = pd.DataFrame(
    [
        row("a", "p", True, tokens=4, contaminated=True),
        row("a", "p", True, contaminated=True),
        row("a", "q", False, finish="length", failure="no_answer", tokens=32, seconds=5.0),
        row("a", "q", True),
        row("b", "r", False, failure="timeout", session=2, seconds=2.0),
        row("b", "r", False, failure="error", finish="length", tokens=32, session=2),
        row("b", "s", False, failure="unparsed", session=2),
        row("b", "s", False, session=2, tokens=12),
    ]
)


def test_figures_of_a_benchmark_are_those_counted_by_hand() -> None:
    a = measure(TABLE, samples=2, seed=0)["a"]
    assert (a["problems"], a["samples"], a["accuracy"]) == (2, 4, 0.75)
    assert (a["pass@1"], a["pass@2"]) == (0.75, 1.0)
    assert (a["tokens"], a["tokens_mean"]) == (56, 14.0)
    assert (a["truncated"], a["no_answer"], a["unparsed"], a["grading_failures"]) == (0.25, 0.25, 0.0, 0)
    assert (a["contaminated_problems"], a["accuracy_contaminated"], a["accuracy_clean"]) == (1, 1.0, 0.5)


def test_a_response_that_could_not_be_graded_is_counted_as_such_and_as_wrong() -> None:
    b = measure(TABLE, samples=2, seed=0)["b"]
    assert (b["accuracy"], b["grading_failures"], b["unparsed"], b["truncated"]) == (0.0, 2, 0.25, 0.25)
    assert b["accuracy_contaminated"] is None


def test_benchmarks_weigh_the_same_in_the_mean_and_counts_are_summed() -> None:
    mean = measure(TABLE, samples=2, seed=0)[OVERALL]
    assert (mean["accuracy"], mean["pass@2"], mean["problems"], mean["tokens"]) == (0.375, 0.5, 4, 120)
    assert mean["grading_failures"] == 2
    assert mean["accuracy_contaminated"] == 1.0  # of the one benchmark that has such problems
    assert mean["accuracy_clean"] == 0.25


def test_throughput_counts_each_session_from_its_first_request_to_its_last_response() -> None:
    assert throughput(TABLE) == {
        "sessions": 2,
        "generation_seconds": 7.0,
        "tokens": 120,
        "tokens_per_second": 17.1,
    }


def test_only_what_is_asked_is_selected_and_all_of_it() -> None:
    problem = Problem("a", "p", (), "1", contaminated=True)

    def kept(number: int) -> Sample:
        return Sample("a", "p", number, 1, 1.0, 1, 1, "stop", "1", None, number == 1, None, "")

    finished = {kept(n).key: kept(n) for n in range(3)}
    table = requested_samples(finished, requests({"a": [problem]}, samples=2, seed=0))
    assert table["sample"].tolist() == [0, 1]
    assert table["contaminated"].all()
    assert correct_counts(table).to_dict() == {"p": 1}
    with pytest.raises(KeyError):
        requested_samples(finished, requests({"a": [problem]}, samples=4, seed=0))


def result(model: str = "m", top_p: float = 0.7) -> dict[str, Any]:
    return {
        "model": model,
        "sample": True,
        "samples": 2,
        "drawn": {"a": "2 of 30", "b": "2 of 40"},
        "sampling": {"temperature": 1.0, "top_p": top_p, "max_tokens": 32, "seed": 0, "deterministic": False},
        "benchmarks": measure(TABLE, samples=2, seed=0),
        "run": {**throughput(TABLE), "startup_seconds": 3.0, "wall_seconds": 9.0},
        "machine": {"gpus": [], "cpus": 2, "memory_gib": 4, "python": "3.11", "versions": {"sglang": "0"}},
        "engine": {"device": "cpu"},
        "fingerprint": {"model": model, "sampling": {"top_p": top_p}},
    }


def test_a_result_is_written_as_a_page_a_table_and_scores(tmp_path: Path) -> None:
    write_result(tmp_path, result(), TABLE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.csv", "result.json", "result.md"]
    page = (tmp_path / "result.md").read_text()
    assert page.startswith("# SAMPLE, not a benchmark result: m\n")
    assert "a 2 of 30, b 2 of 40" in page
    assert "| a                  | 2          | 75.0     |" in page
    assert json.loads((tmp_path / "result.json").read_text())["scores"] == {
        "a": {"p": 1.0, "q": 0.5},
        "b": {"r": 0.0, "s": 0.0},
    }
    assert pd.read_csv(tmp_path / "result.csv", index_col="benchmark").loc["a", "accuracy"] == 0.75


def scored(label: str, scores: dict[str, dict[str, float]], **fingerprint: Any) -> Result:
    return Result(label, 4, scores, fingerprint)


def test_problems_are_paired_by_id_and_only_common_ones_count() -> None:
    first = scored("first", {"a": {"p": 0.0, "q": 0.5, "only here": 1.0}, "b": {"r": 1.0}})
    second = scored("second", {"a": {"q": 1.0, "other": 0.0, "p": 0.25}, "c": {"r": 1.0}})
    paired = pair([first, second])
    assert {name: [s.tolist() for s in scores] for name, scores in paired.items()} == {"a": [[0.0, 0.5], [0.25, 1.0]]}


def test_results_without_a_common_problem_are_refused_with_what_they_have() -> None:
    with pytest.raises(BenchError, match=r"share no problem:\n  x: a \(1 problems\)\n  y: a \(2 problems\)"):
        pair([scored("x", {"a": {"p": 1.0}}), scored("y", {"a": {"q": 1.0, "r": 0.0}})])


def test_differences_are_tested_by_problem_and_corrected_for_the_benchmarks() -> None:
    names = [f"p{n}" for n in range(4)]
    first = scored("first", {b: dict.fromkeys(names, 0.25) for b in "ab"})
    gains = {"a": dict.fromkeys(names, 0.75), "b": dict(zip(names, [0.25, 0.25, 0.5, 0.0], strict=True))}
    table = compare([first, scored("second", gains)]).set_index(["benchmark", "result"])
    a, b, both = (table.loc[(name, "second")] for name in ("a", "b", OVERALL))
    assert (a["difference"], a["p"], a["holm"]) == (0.5, 2 / 16, 4 / 16)
    assert pd.isna(a["low"]) and b["low"] < 0 < b["high"]
    assert (b["difference"], b["p"], b["holm"]) == (0.0, 1.0, 1.0)
    assert (both["difference"], both["problems"]) == (0.25, 8)
    assert pd.isna(both["holm"])
    assert pd.isna(table.loc[("a", "first"), "p"])


def test_what_differs_besides_the_model_is_said() -> None:
    first = scored("first", {}, model="1", sampling={"top_p": 0.7})
    assert caveats([first, scored("second", {}, model="2", sampling={"top_p": 0.7})]) == []
    (line,) = caveats([first, scored("second", {}, model="2", sampling={"top_p": 1.0})])
    assert "second" in line and "sampling.top_p: 0.7 there, 1.0 now" in line


def test_the_command_compares_folders(tmp_path: Path) -> None:
    for name, model, top_p in (("x", "m", 0.7), ("y", "n", 1.0)):
        (tmp_path / name).mkdir()
        write_result(tmp_path / name, result(model, top_p), TABLE)
    comparison.main([str(tmp_path / "x"), str(tmp_path / "y"), "--out", str(tmp_path / "table.md")])
    page = (tmp_path / "table.md").read_text()
    assert "+0.0" in page and "sampling.top_p" in page and "nan" not in page
    assert len(pd.read_csv(tmp_path / "table.csv")) == 6


@pytest.mark.parametrize("content", ["{", "[]", '{"model": "m"}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_result(tmp_path / name, result(), TABLE)
    (tmp_path / "y" / "result.json").write_text(content)
    with pytest.raises(SystemExit, match=r"^compare: .*y/result\.json is no result of this bench"):
        comparison.main([str(tmp_path / "x"), str(tmp_path / "y"), "--out", str(tmp_path / "t.md")])


@pytest.mark.parametrize("folders", [["x"], ["x", "x"], ["x", "nothing"]])
def test_folders_that_cannot_be_compared_are_refused(tmp_path: Path, folders: list[str]) -> None:
    (tmp_path / "x").mkdir()
    write_result(tmp_path / "x", result(), TABLE)
    with pytest.raises(SystemExit, match=r"^compare: .*(two or more|no result\.json)"):
        comparison.main([*(str(tmp_path / f) for f in folders), "--out", str(tmp_path / "t.md")])
