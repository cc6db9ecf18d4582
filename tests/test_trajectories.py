"""Trajectory tables: what is refused, reading, writing and splitting by prompt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from value_model import trajectories
from value_model.trajectories import COLUMNS, TrajectoryError, check, read_trajectories, split_by_prompt


def table(prompts: int = 40, models: tuple[str, ...] = ("a", "b"), steps: int = 2, seed: int = 0) -> pd.DataFrame:
    """Every prompt in every model and step."""
    rng = np.random.default_rng(seed)
    keys = [(m, s, i) for m in models for s in range(1, steps + 1) for i in range(prompts)]
    frame = pd.DataFrame(keys, columns=["model", "step", "i"])
    ids = "id" + frame["i"].astype(str)
    score = rng.integers(0, 5, len(frame)) / 2 - 1
    return frame.assign(prompt_id=ids, prompt="text of " + ids, data_source="s", score=score, n=4)[COLUMNS]


def assert_same(one: pd.DataFrame, two: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, two, check_dtype=False)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score", np.nan, "t: column 'score', row 3 .*nan"),
        ("score", 1.5, "t: column 'score', row 3 .*1.5.* is not a mean outcome reward in"),
        ("n", 0, "t: column 'n', row 3 .*0.* at least 1"),
        ("step", -1, "t: column 'step', row 3"),
        ("prompt", None, "t: column 'prompt', row 3 .* is not text"),
        (
            "prompt",
            "another text",
            "t: column 'prompt', row 4.* id 'id3' has 2 texts, 'another text' and 'text of id3'",
        ),
        ("model", 7, "t: column 'model', row 3 .*7 is not text"),
    ],
)
def test_a_wrong_value_is_named_by_column_and_row(column: str, value: object, message: str) -> None:
    frame = table(4, steps=2)
    frame[column] = frame[column].astype(object)
    frame.loc[3, column] = value
    frame[column] = frame[column].infer_objects()
    with pytest.raises(TrajectoryError, match=message.replace("row 4", r"row \d+")):
        check(frame, "t")


def test_a_missing_column_and_a_column_of_another_type_are_named() -> None:
    with pytest.raises(TrajectoryError, match="t: no column 'score'.*'n'"):
        check(table().drop(columns="score"), "t")
    with pytest.raises(TrajectoryError, match="column 'n' holds float64, expected whole numbers"):
        check(table().assign(n=2.5), "t")
    with pytest.raises(TrajectoryError, match="column 'score' holds"):
        check(table().assign(score="high"), "t")


def test_check_keeps_the_seven_columns_and_an_empty_table() -> None:
    assert list(check(table().assign(other=1))) == COLUMNS
    assert len(check(table().head(0))) == 0


def test_files_of_every_kind_are_read_alike(tmp_path: Path) -> None:
    frame = table()
    trajectories.write_trajectories(frame, tmp_path / "one.parquet")
    frame.to_json(tmp_path / "one.jsonl", orient="records", lines=True)
    for step, rows in frame.groupby("step"):
        trajectories.write_trajectories(rows, tmp_path / f"run/checkpoints/trajectories/step_{step}.parquet")
    want = frame.sort_values(["model", "step", "prompt_id"], ignore_index=True)
    for path in ("one.parquet", "one.jsonl", "run", "run/checkpoints/trajectories"):
        assert_same(read_trajectories([tmp_path / path]), want)
    assert_same(read_trajectories([tmp_path / "run", tmp_path / "one.jsonl"]), want)


def test_ids_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    frame = table(2, ("1",), 1).assign(prompt_id=["007", "7"])
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    assert read_trajectories([tmp_path / "t.jsonl"])["prompt_id"].tolist() == ["007", "7"]


def test_of_duplicates_the_one_with_most_rollouts_stays(tmp_path: Path) -> None:
    one = table(1, ("a",), 1)
    for name, score, n in (("0", 0.0, 4), ("1", 0.5, 16), ("2", -0.5, 16), ("3", 1.0, 2)):
        trajectories.write_trajectories(one.assign(score=score, n=n), tmp_path / f"{name}.parquet")
    read = read_trajectories(sorted(tmp_path.iterdir()))
    assert read[["score", "n"]].to_numpy().tolist() == [[-0.5, 16]]


def test_unreadable_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    for path, message in (("no", "no such file"), ("", "trajectories/step_"), ("t.csv", "neither .parquet nor .jsonl")):
        with pytest.raises(TrajectoryError, match=message):
            read_trajectories([tmp_path / path])
    with pytest.raises(TrajectoryError, match="no path"):
        read_trajectories([])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "pointer of Git LFS"),
        ("t.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "pointer of Git LFS"),
        ("t.parquet", b"model,step\n", "no parquet file"),
        ("t.jsonl", '{"prompt": "Poincaré"}'.encode("latin-1"), "no jsonl file in UTF-8"),
        ("t.jsonl", b'{"prompt"', "no jsonl file in UTF-8"),
    ],
)
def test_an_unreadable_file_is_named_and_ends_the_command_without_a_traceback(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TrajectoryError, match=rf"{name}.*{message}"):
        read_trajectories([tmp_path / name])
    with pytest.raises(SystemExit, match=rf"^error: .*{name}.*{message}"):
        trajectories.main([str(tmp_path / name), "--out", str(tmp_path / "out")])


def test_one_id_with_two_texts_in_two_files_is_refused(tmp_path: Path) -> None:
    trajectories.write_trajectories(table(2), tmp_path / "a.parquet")
    trajectories.write_trajectories(table(2).assign(prompt="x"), tmp_path / "b.parquet")
    with pytest.raises(TrajectoryError, match="id 'id0' has 2 texts"):
        read_trajectories([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    trajectories.write_trajectories(table(), path)

    def broken(self: pd.DataFrame, partial: Path, **_: object) -> None:
        Path(partial).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", broken)
    with pytest.raises(OSError, match="disk full"):
        trajectories.write_trajectories(table(3), path)
    assert list(tmp_path.iterdir()) == [path] and len(read_trajectories([path])) == len(table())


def test_no_prompt_is_in_two_splits_and_no_row_is_lost() -> None:
    frame = table(300)
    splits = split_by_prompt(frame, {"train": 0.6, "validation": 0.3, "test": 0.1}, seed=0)
    ids = [set(s["prompt_id"]) for s in splits.values()]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 300
    assert sum(map(len, splits.values())) == len(frame)
    assert [len(i) / 300 for i in ids] == pytest.approx([0.6, 0.3, 0.1], abs=0.08)


def test_one_text_under_two_ids_is_in_one_split() -> None:
    frame = pd.concat([table(100), table(100).assign(prompt_id=lambda t: "other " + t["prompt_id"])])
    train, validation = split_by_prompt(frame, {"train": 0.5, "validation": 0.5}, seed=0).values()
    assert not set(train["prompt"]) & set(validation["prompt"])


def test_a_prompt_stays_in_its_split_when_data_arrive() -> None:
    few, many = (split_by_prompt(table(n), {"train": 0.8, "validation": 0.2}, seed=3) for n in (50, 200))
    for name in few:
        assert set(few[name]["prompt_id"]) <= set(many[name]["prompt_id"])


def test_another_seed_is_another_split() -> None:
    one, two = (set(split_by_prompt(table(), {"train": 0.5, "v": 0.5}, seed=s)["v"]["prompt_id"]) for s in (0, 1))
    assert one != two


def test_held_out_models_are_in_no_other_split() -> None:
    splits = split_by_prompt(table(), {"train": 0.8, "validation": 0.2}, 0, holdout_models=["b"])
    assert {name: set(s["model"]) for name, s in splits.items()} == {
        "train": {"a"},
        "validation": {"a"},
        "heldout_models": {"b"},
    }
    assert len(splits["heldout_models"]) == (table()["model"] == "b").sum()


def test_wrong_splits_are_refused() -> None:
    for fractions in ({"train": 0.5}, {"train": 1.5, "validation": -0.5}):
        with pytest.raises(ValueError, match="sum to 1"):
            split_by_prompt(table(), fractions, 0)
    with pytest.raises(ValueError, match=r"no \['c'\] in the table, its models: \['a', 'b'\]"):
        split_by_prompt(table(), {"train": 1.0}, 0, ["c"])
    with pytest.raises(ValueError, match="no model to train on"):
        split_by_prompt(table(), {"train": 1.0}, 0, ["a", "b"])


def test_command_line_writes_every_split_and_its_counts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trajectories.write_trajectories(table(), tmp_path / "t.parquet")
    base = [str(tmp_path / "t.parquet"), "--out", str(tmp_path / "out"), "--validation", "0.25"]
    trajectories.main([*base, "--holdout-model", "b", "--test", "0.25"])
    assert "heldout_models" in capsys.readouterr().out
    written = json.loads((tmp_path / "out/splits.json").read_text())
    assert written["settings"]["fractions"] == {"train": 0.5, "validation": 0.25, "test": 0.25}
    for name, count in written["counts"].items():
        assert len(read_trajectories([tmp_path / f"out/{name}.parquet"])) == count["rows"]
    assert set(written["counts"]) == {"train", "validation", "test", "heldout_models"}
    trajectories.main(base)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"train.parquet", "validation.parquet", "splits.json"}


def test_command_line_refuses_an_empty_split(tmp_path: Path) -> None:
    trajectories.write_trajectories(table(1), tmp_path / "t.parquet")
    with pytest.raises(SystemExit, match="no prompt fell into"):
        trajectories.main([str(tmp_path / "t.parquet"), "--out", str(tmp_path / "out")])


PUBLIC = Path(__file__).parents[2] / "shared/data/v0_public"


@pytest.mark.skipif(not PUBLIC.exists(), reason="the authors' data are not here")
def test_the_authors_data_become_trajectories() -> None:
    from benchmarks.value_model.v0_public import load

    frame = load(PUBLIC, ["context"])
    assert frame.groupby(["model", "step"]).size().tolist() == [512] * 6
    assert len(load(PUBLIC)) == 3072 + 192 + 27
    splits = split_by_prompt(frame, {"train": 0.8, "validation": 0.2}, seed=0)
    assert not set(splits["train"]["prompt"]) & set(splits["validation"]["prompt"])


def test_a_loader_reads_the_authors_layout(tmp_path: Path) -> None:
    from benchmarks.value_model.v0_public import load

    row = {"id": 7, "score": 0.4, "type": "context", "model": "m", "step": 16, "dataset": "dapomath"}
    (tmp_path / "context.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "prompt_dict.json").write_text(json.dumps({"dapomath_7": "1 + 1?"}))
    assert load(tmp_path, ["context"]).iloc[0].to_dict() == {
        "model": "m",
        "step": 16,
        "prompt_id": "dapomath_7",
        "prompt": "1 + 1?",
        "data_source": "dapomath",
        "score": 0.4,
        "n": 10,
    }
