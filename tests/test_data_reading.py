"""From files with the hub's columns, and from plain ones, to problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from recipes.data import reading
from recipes.data.reading import SourceError, find, read
from recipes.data.sources import SOURCES, Source
from verl_v05.grading.answer import gold_text

BY_NAME = {source.name: source for source in SOURCES}
DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)

# What the hub has, one row each: columns, and the problem that comes of it.
ON_THE_HUB = {
    "dapo_math_17k": (
        {
            "data_source": "math_dapo",
            "prompt": [{"content": DAPO_PROMPT.format("Find $a$."), "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b6eb4"},
        },
        ("dapo_math_17k-9a9b6eb4", "Find $a$.", "34"),
    ),
    "aime24": (
        {"id": 60, "problem": "Find $b$.", "solution": "\\boxed{204}", "url": "https://example.org"},
        ("aime24-60", "Find $b$.", "204"),
    ),
    "aime25": ({"problem": "Find $c$.", "answer": "70", "id": "0"}, ("aime25-0", "Find $c$.", "70")),
    "amc23": ({"id": 0, "answer": 27.0, "url": "", "question": "Find $d$."}, ("amc23-0", "Find $d$.", "27")),
    "math500": (
        {"problem": "Find $e$.", "solution": "It is 1.", "answer": "\\frac{1}{2}", "unique_id": "test/algebra/1.json"},
        ("math500-test/algebra/1.json", "Find $e$.", "\\frac{1}{2}"),
    ),
    "minerva_math": ({"question": "Find $f$.", "answer": "4.5e33"}, ("minerva_math-00000", "Find $f$.", "4.5e33")),
    "olympiadbench": (
        {"id": 1606, "question": "Find $g$.", "final_answer": ["$2$"], "context": None, "unit": None},
        ("olympiadbench-1606", "Find $g$.", "2"),
    ),
}


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rows(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(table.itertuples(index=False, name=None))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_hub_file_is_asked_for_at_its_revision_and_read(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, expected = ON_THE_HUB[source.name]
    asked = []

    def download(repository: str, file: str, *, repo_type: str, revision: str) -> str:
        asked.append((repository, file, repo_type, len(revision)))
        return str(write(tmp_path, Path(file).name, [record]))

    monkeypatch.setattr(reading, "hf_hub_download", download)
    given = find(source, None, {})
    assert asked == [(source.repository, source.file, "dataset", 40)]
    assert (given.origin, given.revision) == (source.homepage, source.revision)
    table, count = read(source, given.path)
    assert (rows(table), count) == ([expected], 1)


def test_a_hub_that_cannot_be_reached_is_named_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(reading, "hf_hub_download", download)
    with pytest.raises(SourceError, match=r"amc23: .*math-ai/amc23 .*no connection.*--local.*--file amc23=PATH"):
        find(BY_NAME["amc23"], None, {})


def test_a_row_that_is_on_the_hub_many_times_comes_once(tmp_path: Path) -> None:
    record, expected = ON_THE_HUB["dapo_math_17k"]
    other = {**record, "extra_info": {"index": "other id"}}
    table, count = read(BY_NAME["dapo_math_17k"], write(tmp_path, "d.parquet", [record, other] * 100))
    assert rows(table) == [expected, ("dapo_math_17k-other id", *expected[1:])]
    assert count == 200


def test_a_prompt_without_the_known_template_is_a_changed_source(tmp_path: Path) -> None:
    record = {**ON_THE_HUB["dapo_math_17k"][0], "prompt": [{"role": "user", "content": "Find $a$."}]}
    with pytest.raises(SourceError, match=r"dapo_math_17k: the problem in row 0 .* is not between .*has changed"):
        read(BY_NAME["dapo_math_17k"], write(tmp_path, "d.parquet", [record]))


def test_context_comes_before_the_question(tmp_path: Path) -> None:
    record = {**ON_THE_HUB["olympiadbench"][0], "context": "Let $T=3$."}
    table, _ = read(BY_NAME["olympiadbench"], write(tmp_path, "o.parquet", [record]))
    assert rows(table)[0][1] == "Let $T=3$.\n\nFind $g$."


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_plain_columns_are_taken_as_they_are(tmp_path: Path, suffix: str) -> None:
    record = {"id": "x-1", "problem": " Find \x0crac{1}{2} of {\n}. ", "answer": "4.5e33", "level": 2}
    table, _ = read(BY_NAME["aime24"], write(tmp_path, f"a{suffix}", [record]))
    assert rows(table) == [("x-1", "Find \x0crac{1}{2} of {\n}.", "4.5e33")]


@pytest.mark.parametrize("name", ["math500.jsonl", "MATH-500.parquet", "math_500.jsonl"])
def test_local_files_are_found_by_any_spelling(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, [{"id": "1", "problem": "p", "answer": "a"}])
    assert find(BY_NAME["math500"], tmp_path, {}).path == path


def test_a_named_file_comes_before_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "aime24.jsonl", [])
    other = write(tmp_path / "else", "any.jsonl", [])
    assert find(BY_NAME["aime24"], tmp_path, {"aime24": other}).path == other
    with pytest.raises(SourceError, match=r"aime24: no file .*gone\.jsonl"):
        find(BY_NAME["aime24"], tmp_path, {"aime24": tmp_path / "gone.jsonl"})


def test_a_missing_local_file_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        find(BY_NAME["aime25"], tmp_path, {})
    for part in ("aime25.jsonl", str(tmp_path), "id, problem, answer", "huggingface.co/datasets/math-ai/aime25"):
        assert part in str(error.value)


def test_two_files_of_one_source_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "aime24.jsonl", [])
    write(tmp_path, "aime2024.jsonl", [])
    with pytest.raises(SourceError, match=r"aime2024\.jsonl and .*aime24\.jsonl could both be it"):
        find(BY_NAME["aime24"], tmp_path, {})


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"id": "1", "problem": "p"}], r"row 0 .* has the columns \['id', 'problem'\]; expected"),
        ([{"id": "1", "problem": " ", "answer": "2"}], "1 rows of .* have an empty problem"),
        ([{"id": "1", "problem": "p", "answer": None}], "1 rows of .* have an empty answer"),
        ([{"id": "1", "problem": p, "answer": "2"} for p in "pq"], "id 'aime24-1' of .* has different rows"),
    ],
)
def test_unusable_rows_are_errors(tmp_path: Path, records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(SourceError, match="aime24: .*" + message):
        read(BY_NAME["aime24"], write(tmp_path, "a.jsonl", records))


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "1", "problem": "p", "answer": "2"}\n\n{"id"\n')
    with pytest.raises(SourceError, match="line 3 of"):
        read(BY_NAME["aime24"], path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n")
    with pytest.raises(SourceError, match=rf"aime24: .*a\{suffix} is a pointer of Git LFS .*git lfs pull"):
        read(BY_NAME["aime24"], path)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("id,problem,answer\n")
    with pytest.raises(SourceError, match=r"aime24: .*a\.parquet is no parquet file"):
        read(BY_NAME["aime24"], tmp_path / "a.parquet")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_line_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": str(n), "problem": "Poincaré", "answer": "2"} for n in range(2)]
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding))
    with pytest.raises(SourceError, match="aime24: line 1 of .* is not UTF-8 .*convert the file"):
        read(BY_NAME["aime24"], path)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"id": "x-1", "problem": "Poincaré", "answer": "2"}\n'.encode("utf-8-sig"))
    table, _ = read(BY_NAME["aime24"], path)
    assert rows(table) == [("x-1", "Poincaré", "2")]


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('["1", "p", "2"]\n')
    with pytest.raises(SourceError, match="aime24: line 1 of .* every line must be a JSON object"):
        read(BY_NAME["aime24"], tmp_path / "a.jsonl")


def test_a_prompt_that_is_text_is_named_with_the_form_it_should_have(tmp_path: Path) -> None:
    record = {**ON_THE_HUB["dapo_math_17k"][0], "prompt": DAPO_PROMPT.format("Find $a$.")}
    with pytest.raises(SourceError, match=r"row 0 of .*'prompt\.0\.content'.*where there is now \{.*'prompt': 'str'"):
        read(BY_NAME["dapo_math_17k"], write(tmp_path, "d.parquet", [record]))


@pytest.mark.parametrize(
    ("published", "text"),
    [
        (27.0, "27"),
        (2.5, "2.5"),
        (["$2$"], "2"),
        (["$1$", "$3$"], "1, 3"),
        ("$\\frac{1}{2}$", "\\frac{1}{2}"),
        ("$1$ or $2$", "$1$ or $2$"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} or \\boxed{2}", "1, 2"),
        ("So it is $\\boxed{7}$, as 3 + 4 = 7.", "7"),
        ("2+2=4\n#### 4", "4"),
        ({"value": "5"}, "5"),
        ("['1']", "1"),
        ("[1,2]", "[1,2]"),
        (True, "True"),
        ("np.arcsin(10/13)", "np.arcsin(10/13)"),
    ],
)
def test_golds_are_read_out_of_their_wrapping(published: Any, text: str) -> None:
    assert gold_text(published) == text


@pytest.mark.parametrize("published", [float("nan"), "NaN", {"value": "5", "unit": "m"}, "so \\boxed{5", [], "####"])
def test_a_row_whose_answer_nobody_can_match_stops_the_run(tmp_path: Path, published: Any) -> None:
    path = write(tmp_path, "a.jsonl", [{"id": "1", "problem": "p", "answer": published}])
    with pytest.raises(SourceError, match="aime24: row 0 .* cannot be graded"):
        read(BY_NAME["aime24"], path)


def test_sources_are_the_ones_of_the_metrics() -> None:
    tests = ["aime24", "aime25", "amc23", "math500", "minerva_math", "olympiadbench"]
    assert [s.name for s in SOURCES if s.split == "test"] == tests
    assert [s.name for s in SOURCES if s.split == "train"] == ["dapo_math_17k"]
