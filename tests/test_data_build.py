"""The data folder, made from small sources: rows, flags, drops, report, and what a second run does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from recipes.data import __main__ as command
from recipes.data import build
from recipes.data.build import Options, make_data
from recipes.data.reading import SourceError, checksum
from recipes.data.rows import TEMPLATE, check_template, verl_rows
from recipes.data.sources import SOURCES

WALK = "Aya walks nine kilometers to a coffee shop and stays for t minutes before she walks home again. Find $t$."
TRAIN = [
    ("t0", "How many?", "1"),
    ("t1", "How many?", "1"),  # repeated
    ("t2", "How many?", "2"),  # conflicting
    ("t3", "The form is \x0crac{m}{n}", "3"),  # broken
    ("t4", WALK, "4"),  # amc23
    ("t5", WALK, "4"),
    ("t6", "What is $x^{2}$ for x=3?", "9"),  # math500, normalised
    ("t7", "Alone", "7"),
]
TESTS = {
    "aime24": [("a0", "Something else", "1")],
    "aime25": [("b0", "Something new", "1")],
    "amc23": [("c0", "Other", "5"), ("c1", WALK, "4")],
    "math500": [("d0", "what is x^2 for $x = 3$", "8")],
    "minerva_math": [("e0", "A star", "4.5e33")],
    "olympiadbench": [("f0", "Let $T=T N Y W R$.", "2"), ("f1", "Let $T=T N Y W R$.", "2")],
}
QUIET = Console(quiet=True)


def write(path: Path, rows: list[tuple[str, str, str]]) -> None:
    records = [dict(zip(("id", "problem", "answer"), row, strict=True)) for row in rows]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def local(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for name, rows in {"dapo_math_17k": TRAIN, **TESTS}.items():
        write(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def make(local: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make the folder; the small sources have other counts than the published ones."""

    def run(**options: Any) -> Path:
        make_data(tmp_path / "data", Options(**options), QUIET, local=local, accept_changes=True)
        return tmp_path / "data"

    return run


def rows_of(out: Path, source: str) -> list[dict[str, Any]]:
    split = "train" if source == "dapo_math_17k" else "test"
    return pq.read_table(out / split / f"{source}.parquet").to_pylist()


def ids(out: Path, source: str = "dapo_math_17k") -> list[str]:
    return [row["extra_info"]["id"] for row in rows_of(out, source)]


def flagged(out: Path, source: str) -> list[str]:
    return [row["extra_info"]["id"] for row in rows_of(out, source) if row["extra_info"]["contaminated"]]


def test_a_row_is_what_verl_reads(make: Callable[..., Path]) -> None:
    assert rows_of(make(), "amc23")[1] == {
        "data_source": "amc23",
        "prompt": [
            {
                "role": "user",
                "content": WALK + "\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
            }
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"id": "c1", "index": 1, "split": "test", "problem": WALK, "contaminated": True},
    }


def test_by_default_only_repeated_training_rows_go(make: Callable[..., Path]) -> None:
    out = make()
    assert ids(out) == ["t0", "t2", "t3", "t4", "t6", "t7"]
    assert [row["extra_info"]["index"] for row in rows_of(out, "dapo_math_17k")] == list(range(6))
    assert {row["extra_info"]["split"] for row in rows_of(out, "dapo_math_17k")} == {"train"}
    assert ids(out, "olympiadbench") == ["f0", "f1"], "a benchmark stays whole"


def test_what_is_in_both_is_flagged_and_listed(make: Callable[..., Path]) -> None:
    out = make()
    assert flagged(out, "dapo_math_17k") == ["t4", "t6"]
    assert {name: flagged(out, name) for name in TESTS if flagged(out, name)} == {"amc23": ["c1"], "math500": ["d0"]}
    assert pd.read_parquet(out / "contamination.parquet").to_dict("records") == [
        {"train_id": t, "test_source": s, "test_id": e, "kind": k, "same_answer": a}
        for t, s, e, k, a in [
            ("t4", "amc23", "c1", "exact", True),
            ("t5", "amc23", "c1", "exact", True),
            ("t6", "math500", "d0", "normalised", False),
        ]
    ]


@pytest.mark.parametrize(
    ("options", "left", "dropped"),
    [
        ({"drop_contaminated": True}, ["t0", "t2", "t3", "t7"], {"contaminated": 2}),
        ({"drop_conflicting": True}, ["t3", "t4", "t6", "t7"], {"conflicting": 2}),
        ({"drop_broken": True}, ["t0", "t2", "t4", "t6", "t7"], {"broken escapes": 1}),
        (
            {"drop_broken": True, "drop_conflicting": True, "drop_contaminated": True},
            ["t7"],
            {"broken escapes": 1, "conflicting": 2, "contaminated": 2},
        ),
    ],
)
def test_every_drop_is_counted_in_manifest_and_report(
    make: Callable[..., Path], options: dict[str, bool], left: list[str], dropped: dict[str, int]
) -> None:
    out = make(**options)
    assert ids(out) == left
    counts = json.loads((out / "manifest.json").read_text())["dropped"]
    assert {rule: count for rule, count in counts.items() if count} == {"repeated": 2, **dropped}
    report = (out / "report.md").read_text().replace(" ", "")
    for rule, count in counts.items():
        assert f"|{rule.replace(' ', '')}|{count}|" in report


def test_without_the_leaked_rows_no_benchmark_problem_is_flagged(make: Callable[..., Path]) -> None:
    out = make(drop_contaminated=True)
    assert [flagged(out, name) for name in TESTS] == [[]] * 6
    assert len(pd.read_parquet(out / "contamination.parquet")) == 3, "the pairs stay listed"


def test_a_sample_is_a_function_of_its_seed_and_keeps_the_order(make: Callable[..., Path]) -> None:
    one = ids(make(max_rows=3, seed=1))
    assert one == sorted(one) and len(one) == 3
    samples = {tuple(ids(make(max_rows=3, seed=seed))) for seed in range(5)}
    assert len(samples) > 1
    assert ids(make(max_rows=3, seed=1)) == one
    assert len(ids(make(max_rows=1), "olympiadbench")) == 1
    assert len(ids(make(max_rows=100))) == 6


def test_repairs_are_counted_and_change_the_problem_only_when_asked(make: Callable[..., Path]) -> None:
    assert rows_of(make(), "dapo_math_17k")[2]["extra_info"]["problem"] == "The form is \x0crac{m}{n}"
    out = make(repair_escapes=True)
    row = rows_of(out, "dapo_math_17k")[2]
    assert row["extra_info"]["problem"] == "The form is \\frac{m}{n}"
    assert row["prompt"][0]["content"].startswith("The form is \\frac{m}{n}\n\n")
    assert "Broken escapes repaired: 1 rows" in (out / "report.md").read_text()


def test_the_report_has_counts_and_contamination(make: Callable[..., Path]) -> None:
    report = (make() / "report.md").read_text().replace(" ", "")
    # rows in the file, problems, repeated, conflicting, broken, Chinese, non-ASCII, no context, written
    assert "|dapo_math_17k|8|8|2|3|1|0|0|0|6|" in report
    assert "|olympiadbench|2|2|1|0|0|0|0|2|2|" in report
    # problems, found, exact, normalised, same_core, near, with the same answer, training rows
    assert "|amc23|2|1|1|0|0|0|1|2|" in report
    assert "|math500|1|1|0|1|0|0|0|1|" in report
    assert "-amc23,exact:c1=t4,c1=t5" in report


def test_the_manifest_says_what_came_from_what(make: Callable[..., Path], local: Path) -> None:
    out = make(seed=3)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["options"]["seed"] == 3 and manifest["options"]["template"] == TEMPLATE
    assert list(manifest["inputs"]) == [source.name for source in SOURCES]
    given = manifest["inputs"]["amc23"]
    assert given["sha256"] == checksum(local / "amc23.jsonl")
    assert (given["origin"], given["revision"], given["rows"]) == (str(local / "amc23.jsonl"), None, 2)
    assert manifest["rows"]["dapo_math_17k"] == 6
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {*manifest["outputs"], "manifest.json"}, "and no partial file is left"
    for name, sha256 in manifest["outputs"].items():
        assert checksum(out / name) == sha256


def test_a_second_run_does_nothing(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**options: Any) -> bool:
        return make_data(tmp_path / "data", Options(**options), QUIET, local=local, accept_changes=True)

    assert run() is True
    with monkeypatch.context() as patch:
        patch.setattr(build, "read", lambda *_: pytest.fail("read again"))
        assert run() is False
    assert run(seed=1) is True, "another option"
    (tmp_path / "data" / "test" / "amc23.parquet").unlink()
    assert run(seed=1) is True, "a file is missing"
    (tmp_path / "data" / "report.md").write_text("edited")
    assert run(seed=1) is True, "a file is not the one that was written"
    assert run(seed=1) is False


def test_a_run_that_fails_leaves_the_folder_of_the_last_one(
    make: Callable[..., Path], local: Path, tmp_path: Path
) -> None:
    out = make()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write(local / "olympiadbench.jsonl", [("f0", "", "2")])
    with pytest.raises(SourceError, match="olympiadbench"):
        make()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_changed_source_is_an_error_until_accepted(make: Callable[..., Path], local: Path, tmp_path: Path) -> None:
    out = make()
    was = checksum(local / "amc23.jsonl")
    write(local / "amc23.jsonl", [*TESTS["amc23"], ("c2", "A new one", "1")])
    with pytest.raises(SourceError) as error:
        make_data(out, Options(), QUIET, local=local)
    for part in ("amc23", was, checksum(local / "amc23.jsonl"), "--accept-changes"):
        assert part in str(error.value)
    assert ids(out, "amc23") == ["c0", "c1"]
    make()
    assert ids(out, "amc23") == ["c0", "c1", "c2"]


def test_a_count_unlike_the_published_ones_is_an_error_until_accepted(local: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"dapo_math_17k: .* has 8 rows, .* 1,791,700 or 17,917; --accept-changes"):
        make_data(tmp_path / "data", Options(), QUIET, local=local)
    assert not (tmp_path / "data").exists()


def test_a_template_keeps_its_other_braces(make: Callable[..., Path]) -> None:
    row = rows_of(make(template="Q: {problem} {x} \\boxed{}"), "aime24")[0]
    assert row["prompt"] == [{"role": "user", "content": "Q: Something else {x} \\boxed{}"}]


@pytest.mark.parametrize("template", ["no slot", "{problem} and {problem}"])
def test_a_template_needs_one_slot(template: str) -> None:
    with pytest.raises(ValueError, match="needs it once"):
        check_template(template)


def test_no_problems_are_a_table_with_the_columns() -> None:
    empty = verl_rows(pd.DataFrame(columns=["id", "problem", "answer"]), "x", "test", set())
    assert empty.num_rows == 0 and "extra_info" in empty.column_names


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes.data", *arguments])
    command.main()


def test_the_command_makes_the_folder_and_says_when_it_is_there(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    write(other, [("z0", "From elsewhere", "1")])
    arguments = ["--out", str(tmp_path / "data"), "--local", str(local), "--file", f"aime24={other}"]
    arguments += ["--drop-contaminated", "--max-rows", "2", "--accept-changes"]
    call(monkeypatch, *arguments)
    assert "Benchmark problems in the training set" in capsys.readouterr().out
    assert ids(tmp_path / "data", "aime24") == ["z0"]
    assert len(ids(tmp_path / "data")) == 2
    call(monkeypatch, *arguments)
    assert "is up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "gsm8k=x"], "is not SOURCE=PATH with SOURCE one of dapo_math_17k"),
        (["--file", "aime24"], "is not SOURCE=PATH"),
        (["--template", "none"], "has 0 times {problem}"),
        (["--max-rows", "0"], "'0' is not a number of rows"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, *arguments)
    assert message in capsys.readouterr().err


def test_a_missing_source_ends_the_command_with_one_line(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (local / "amc23.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"amc23: no amc23\.jsonl or \.parquet in "):
        call(monkeypatch, "--local", str(local), "--out", str(tmp_path / "data"))


@pytest.mark.slow
def test_verls_own_dataset_reads_the_files(make: Callable[..., Path]) -> None:
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from recipes.demo.policy import build_tokenizer

    out = make()
    files = [str(out / "test" / f"{name}.parquet") for name in TESTS]
    config = OmegaConf.create({"cache_dir": str(out / "cache"), "filter_overlong_prompts": False})
    dataset = RLHFDataset(files, build_tokenizer(), config)
    assert len(dataset) == 8
    row = dataset[3]
    assert row["raw_prompt"][0]["content"].startswith(WALK)
    assert (row["data_source"], row["reward_model"]["ground_truth"], row["index"]) == ("amc23", "4", 1)
    assert row["extra_info"]["contaminated"] is True
