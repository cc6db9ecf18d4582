"""What is counted as odd, and what a repair changes."""

from __future__ import annotations

import pandas as pd
import pytest

from recipes.data import checks

TABLE = pd.DataFrame(
    [
        ("0", "How many?", "1"),
        ("1", "How many?", "1"),
        ("2", "How many?", "2"),
        ("3", "In the form \x0crac{m}{n}", "3"),
        ("4", "求实数 $a$", "4"),
        ("5", "The angle is 60°\tand a tab\nis no escape", "5"),
        ("6", "Let $T=T N Y W R$. Compute $T$.", "6"),
        ("7", "Let $T=8$, and TNYWR.", "7"),
    ],
    columns=["id", "problem", "answer"],
)


@pytest.mark.parametrize(
    ("check", "marked"),
    [
        (checks.repeated, "1"),
        (checks.conflicting, "012"),
        (checks.broken, "3"),
        (checks.chinese, "4"),
        (checks.non_ascii, "45"),
        (checks.without_context, "6"),
    ],
)
def test_a_check_marks_its_rows(check, marked: str) -> None:
    assert TABLE["id"][check(TABLE)].tolist() == list(marked)


def test_counts_have_every_check_and_are_zero_for_an_empty_table() -> None:
    counts = checks.counts(TABLE)
    assert counts == {
        "repeated": 1,
        "conflicting": 3,
        "broken escapes": 1,
        "Chinese": 1,
        "non-ASCII": 2,
        "no context": 1,
    }
    assert set(checks.counts(TABLE.head(0)).values()) == {0}


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("$\x0crac{m}{n}$ or \x0crac {1}2", "$\\frac{m}{n}$ or \\frac {1}2"),
        ("=\x08eta$ \x08egin{cases} \x08inom", "=\\beta$ \\begin{cases} \\binom"),
        ("\text{...} 2 \times 3 \triangle A", "\\text{...} 2 \\times 3 \\triangle A"),
    ],
)
def test_a_command_with_one_reading_is_repaired(broken: str, whole: str) -> None:
    assert checks.repair_escapes(broken) == whole


@pytest.mark.parametrize(
    "text", ["fi\x0cve circles", "satis\x0ces", "$2 | \x0cx^2 |", "a\ttab and\textra", "\\frac{1}{2}", "\x08etafoo"]
)
def test_what_could_be_read_in_two_ways_stays(text: str) -> None:
    assert checks.repair_escapes(text) == text
