"""Which pairs of problems count as the same, and as what kind."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from recipes.data.overlap import overlap, same_answer, shingles

DATASHEET = Path(__file__).parents[2] / "shared" / "data"
TESTS = ("aime24", "aime25", "amc23", "math500", "minerva_math", "olympiadbench")
WALK = "Aya walks nine kilometers to a coffee shop and stays for t minutes before she walks home again. Find $t$."


def problems(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["id", "problem", "answer"])


def pair(train: str, test: str, answers: tuple[str, str] = ("1", "1")) -> list[tuple[str, bool]]:
    found = overlap(problems(("a", train, answers[0])), {"t": problems(("b", test, answers[1]))})
    assert (found[["train_id", "test_source", "test_id"]] == ["a", "t", "b"]).all(axis=None)
    return list(zip(found["kind"], found["same_answer"], strict=True))


@pytest.mark.parametrize(
    ("train", "test", "kind"),
    [
        (WALK, WALK, "exact"),
        ("What is $x^{2}$ for x=3?", "what is x^2 for $x = 3$", "normalised"),
        (WALK + " Express your answer in the form \\frac{k}{m}.", WALK, "same_core"),
        (WALK + " The original answer is k/m. Please provide k + m.", WALK, "same_core"),
        (WALK, "[asy] draw((0,0)--(1,1)); [/asy]" + WALK, "same_core"),
        ("Long ago, " + WALK.replace("nine", "ten"), WALK, "near"),
    ],
)
def test_the_strongest_kind_of_a_pair(train: str, test: str, kind: str) -> None:
    assert pair(train, test) == [(kind, True)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("How many primes are there below ten?", "How many primes are there below twelve?"),  # too short for shingles
        ("Please provide m + n.", "Please give x."),  # nothing is left of either
        (WALK, "Bob rolls two dice at once and adds what they show. Find the chance of seven."),
        (WALK.split(" before")[0], WALK),
    ],
)
def test_other_problems_do_not_overlap(train: str, test: str) -> None:
    assert pair(train, test) == []


def test_near_starts_at_six_of_ten_shingles_of_the_test_problem() -> None:
    test = " ".join(f"w{chr(97 + i)}" for i in range(17))  # 10 shingles
    assert len(shingles(test)) == 10
    assert pair(" ".join(test.split()[:13]), test) == [("near", True)]
    assert pair(" ".join(test.split()[:12]), test) == []
    assert pair(test + " and more words " * 50, test) == [("near", True)], "the training problem's length is no matter"


def test_typesetting_is_not_a_word_but_names_and_numbers_are() -> None:
    plain = "Let $f(x)=\\frac{1}{x}$ and let a_1,\\ldots,a_{10} be real"
    assert shingles(plain) == shingles("Let $f\\left(x\\right)=\\dfrac 1x$ and let $a_{1}, \\dots, a_{10}$ be real")
    assert shingles(plain) != shingles(plain.replace("10", "11"))
    assert shingles("a b c d e f g \\log") != shingles("a b c d e f g \\sin")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("27", "27.0", True), ("1/2", "0.5", True), ("x + 1", "x+1", True), ("3", "4", False), ("1/0", "1", False)],
)
def test_answers_are_compared_as_texts_and_as_numbers(one: str, other: str, same: bool) -> None:
    assert same_answer(one, other) is same
    assert pair(WALK, WALK, (one, other)) == [("exact", same)]


def test_pairs_come_in_the_order_of_the_tests_and_all_of_them() -> None:
    train = problems(("b", WALK, "1"), ("a", WALK + "!", "2"))
    tests = {"t2": problems(("y", WALK, "1")), "t1": problems(("x", "another", "1"), ("w", WALK, "2"))}
    found = overlap(train, tests)
    assert found.to_numpy().tolist() == [
        ["b", "t2", "y", "exact", True],
        ["a", "t2", "y", "normalised", False],
        ["b", "t1", "w", "exact", False],
        ["a", "t1", "w", "normalised", True],
    ]


def test_no_overlap_is_an_empty_table_with_the_columns() -> None:
    found = overlap(problems(("a", WALK, "1")), {"t": problems(("b", "other", "1"))})
    assert list(found) == ["train_id", "test_source", "test_id", "kind", "same_answer"]
    assert len(found) == 0


def _read(name: str) -> pd.DataFrame:
    rows = [json.loads(line) for line in (DATASHEET / f"{name}.jsonl").open(encoding="utf-8")]
    return pd.DataFrame(rows)[["id", "problem", "answer"]]


@pytest.mark.skipif(not (DATASHEET / "overlap.jsonl").is_file(), reason="needs the published sets")
def test_the_datasheets_pairs_are_found_and_only_a_few_more() -> None:
    found = overlap(_read("dapo_math_17k"), {name: _read(name) for name in TESTS})
    ours = {(row.train_id, row.test_id): row for row in found.itertuples()}
    lines = [json.loads(line) for line in (DATASHEET / "overlap.jsonl").open(encoding="utf-8")]
    theirs = {(r["train_id"], r["test_id"]): r for r in lines if r["train_file"] == "dapo_math_17k.jsonl"}

    assert len(theirs) == 132
    assert theirs.keys() - ours.keys() == {("dapo-01025", "olympiadbench-1873")}  # 1873 is found in two other rows
    for key in theirs.keys() & ours.keys():
        assert ours[key].same_answer == theirs[key]["same_answer"]
        # A longer list of answer-form sentences turns some "near" into "same_core"; the rest agrees.
        assert (theirs[key]["kind"], ours[key].kind) in {
            *((kind, kind) for kind in ("exact", "normalised", "same_core", "near")),
            ("near", "same_core"),
        }
    # Read one by one: the same problems, set or concluded differently.
    new = {test for _, test in ours} - {test for _, test in theirs}
    assert new == {
        "amc23-12A-05",
        *(f"olympiadbench-{n}" for n in (1718, 1737, 1869, 1938, 1964, 1969, 2644, 2918)),
    }
    hit = found.groupby("test_source")["test_id"].nunique().to_dict()
    assert hit == {"amc23": 25 + 1, "math500": 24, "olympiadbench": 61 + 8}
