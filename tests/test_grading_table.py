"""The table's writers: true answers stay true, probes are wrong."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.grading.__main__ import table
from benchmarks.grading.writings import IN_BOX, WRONG_IN_BOX, cases_of, golds_of


@pytest.mark.parametrize(
    ("name", "gold", "written"),
    [
        (r"\dfrac", r"\frac{1}{2}", r"\dfrac{1}{2}"),
        ("decimal of a fraction", r"-\frac{25}{8}", "-3.125"),
        ("decimal of a fraction", r"\frac{1}{3}", None),
        ("fraction of a decimal", "1.25", r"\frac{5}{4}"),
        (r"e-notation as 4.5 \times 10^{33}", "4.5e-33", r"4.5 \times 10^{-33}"),
        ("list reversed", "1,-2,3", "3, -2, 1"),
        ("list reversed", "58,500", None),
        ("list reversed", "(1,2)", None),
        ("without its name", "f(x)=2 x", "2 x"),
        (r"thousands 10\,080", "10080", r"10\,080"),
        (r"thousands 10\,080", "980", None),
        ("factored", "x^2+x", r"x \left(x + 1\right)"),
    ],
)
def test_a_writer_writes_the_same_value_or_nothing(name: str, gold: str, written: str | None) -> None:
    assert IN_BOX[name](gold) == written


@pytest.mark.parametrize(
    ("name", "gold", "written"),
    [
        ("off by one", r"\frac{1}{2}", r"\frac{3}{2}"),
        ("sign flipped", "-5", "5"),
        ("sign flipped", "0", None),
        ("last digit", "1.99", "2.00"),
        ("last digit", "0.006", "0.007"),
        ("last digit", "4.5e33", "4.6e33"),
        ("wrong exponent", "4.5e33", r"4.5 \times 10^{331}"),
        ("tuple swapped", "(2,2)", None),
        ("several candidates", "5", "4, 5, 6, 7"),
        ("fraction inverted", r"\frac{2}{3}", r"\frac{3}{2}"),
    ],
)
def test_a_probe_writes_another_value_or_nothing(name: str, gold: str, written: str | None) -> None:
    assert WRONG_IN_BOX[name](gold) == written


def test_golds_are_read_from_parquet_and_from_jsonl(tmp_path: Path) -> None:
    sources = ["aime24", "aime25", "amc23", "math500", "minerva_math"]
    for source in sources:
        (tmp_path / f"{source}.jsonl").write_text('{"id": "a", "problem": "p", "answer": "0.10"}\n')
    with pytest.raises(FileNotFoundError, match="olympiadbench.parquet"):
        golds_of(tmp_path)
    row = {"reward_model": {"style": "rule", "ground_truth": "3,4"}, "extra_info": {"id": "o"}}
    pd.DataFrame([row]).to_parquet(tmp_path / "olympiadbench.parquet")
    golds = golds_of(tmp_path)
    assert golds["gold"].tolist() == ["0.10"] * 5 + ["3,4"]
    assert golds["id"].tolist() == ["a"] * 5 + ["o"]


def test_a_table_counts_wrong_verdicts_with_a_total() -> None:
    cases = pd.DataFrame({"source": ["a", "a", "b"], "one": [True, False, False]})
    lines = [line.replace(" ", "") for line in table(cases, "source", ["one"], lambda v: ~v).splitlines()]
    assert lines[2:] == ["|a|2|1|", "|b|1|1|", "|all|3|2|"]


def test_wrong_golds_come_from_another_problem_of_another_gold() -> None:
    golds = pd.DataFrame({"source": "s", "id": ["a", "b", "c"], "gold": ["1", "1", "2"]})
    cases = cases_of(golds, seed=0)
    others = cases[cases["writing"] == "gold of another problem"]
    assert ["boxed{2}" in response for response in others["response"]] == [True, True, False]
