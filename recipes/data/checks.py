"""Checks of a set of problems. Pure functions; each returns a mask of the rows concerned."""

from __future__ import annotations

import re

import pandas as pd

# What is left of LaTeX commands whose backslash and first letter some program read as one control character.
# Lost ligatures ("fi" as a form feed) look alike but are ambiguous, so they stay.
_REPAIRS = (
    (re.compile(r"\x0c(?=rac\s*\{)"), r"\\f"),
    (re.compile(r"\x08(?=(?:eta|egin|inom)\b)"), r"\\b"),
    (re.compile(r"\t(?=(?:ext\{|imes\b|riangle\b|heta\b))"), r"\\t"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HAN = re.compile(r"[\u3400-\u9fff]")
# "T, the number you will receive" from the teammate before.
_RELAY = re.compile(r"T\s*=\s*T\s*N\s*Y\s*W\s*R")


def repeated(table: pd.DataFrame) -> pd.Series:
    """Rows whose problem and answer were in a row before."""
    return table.duplicated(["problem", "answer"])


def conflicting(table: pd.DataFrame) -> pd.Series:
    """Rows whose problem has other answers in other rows."""
    return table.groupby("problem")["answer"].transform("nunique") > 1


def broken(table: pd.DataFrame) -> pd.Series:
    """Rows whose problem holds control characters, such as a form feed from `\\frac`."""
    return table["problem"].map(lambda text: bool(_CONTROL.search(text))).astype(bool)


def chinese(table: pd.DataFrame) -> pd.Series:
    """Rows whose problem holds Han characters."""
    return table["problem"].map(lambda text: bool(_HAN.search(text))).astype(bool)


def non_ascii(table: pd.DataFrame) -> pd.Series:
    """Rows whose problem is not plain ASCII."""
    return ~table["problem"].map(str.isascii).astype(bool)


def without_context(table: pd.DataFrame) -> pd.Series:
    """Relay problems that ask for T, the teammate's answer, without giving it: nobody can solve them as posed."""
    return table["problem"].map(lambda text: bool(_RELAY.search(text))).astype(bool)


CHECKS = {
    "repeated": repeated,
    "conflicting": conflicting,
    "broken escapes": broken,
    "Chinese": chinese,
    "non-ASCII": non_ascii,
    "no context": without_context,
}


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Rows that each of :data:`CHECKS` marks."""
    return {name: int(check(table).sum()) for name, check in CHECKS.items()}


def repair_escapes(text: str) -> str:
    """A text whose broken LaTeX commands are whole again, where there is only one reading.

    These are \\frac, \\beta, \\begin, \\binom, \\text, \\times, \\triangle and \\theta.
    """
    for pattern, replacement in _REPAIRS:
        text = pattern.sub(replacement, text)
    return text
