"""Which benchmark problems occur in the training set. Pure functions of texts.

Kinds, strongest first; a pair of problems has one:

- ``exact``: the same string;
- ``normalised``: the same letters and digits, in any case;
- ``same_core``: the same letters and digits without drawings (``[asy]``) and without what is said about the form of
  the answer;
- ``near``: a share of at least :data:`NEAR` of the test problem's shingles (runs of eight words) occurs in the training
  problem. Some of these are variants with other numbers: look at ``same_answer``.

Translations and free paraphrases are not found.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from fractions import Fraction

import pandas as pd

KINDS = ("exact", "normalised", "same_core", "near")
COLUMNS = ["train_id", "test_source", "test_id", "kind", "same_answer"]
SHINGLE_WORDS = 8
NEAR = 0.6

_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_ANSWER_FORM = re.compile(
    r"""(?: (?:provide|give|express|report|write|submit|enter)\ (?:your|the)\ (?:\w+\ )*?(?:answer|value|sum)\b
          | please\b
          | the\ (?:original\ |final\ )?answer\ (?:is|can|should|must|will)\b ) .*""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
# Commands that say how something is set, not what it is: two typists of one problem differ in them.
_TYPESETTING = re.compile(
    r"""\\ (?: left | right | [bB]igg?[lr]? | text[a-z]* | operatorname | mbox | math[a-z]+ | boldsymbol | q?quad | tag
             | [dt]?frac | [lc]?dots | to | mapsto | (?:long)?(?:left|right)arrow ) (?![A-Za-z])""",
    re.VERBOSE,
)
_WORD = re.compile(r"[^\W\d_]+|\d+")


def normalise(text: str) -> str:
    """The letters and digits of a text, in lower case."""
    return re.sub(r"[\W_]+", "", text).lower()


def core(problem: str) -> str:
    """A problem without its drawings and without what is said about the form of the answer, normalised."""
    return normalise(_ANSWER_FORM.sub("", _DRAWING.sub("", problem)))


def shingles(problem: str) -> set[tuple[str, ...]]:
    """All runs of :data:`SHINGLE_WORDS` words, where a word is a run of letters or of digits; empty for short texts."""
    words = _WORD.findall(_TYPESETTING.sub(" ", problem).lower())
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}


def same_answer(one: str, other: str) -> bool:
    """Whether two golds are equal as texts without spaces, or as numbers."""
    one, other = ("".join(answer.split()) for answer in (one, other))
    if one == other:
        return True
    try:
        return Fraction(one) == Fraction(other)
    except (ValueError, ZeroDivisionError):
        return False


def overlap(train: pd.DataFrame, tests: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All pairs of a training and a test problem that are the same or nearly so.

    Args:
        train: id, problem, answer (text); ids are unique.
        tests: benchmark -> the same columns.

    Returns:
        train_id, test_source, test_id, kind (of :data:`KINDS`), same_answer; in the order of the tests, then of train.
    """
    problems = {
        (source, row.id): (row.problem, row.answer) for source, table in tests.items() for row in table.itertuples()
    }
    texts = {key: problem for key, (problem, _) in problems.items()}
    answers = dict(zip(train["id"], train["answer"], strict=True))
    kinds: dict[tuple[str, tuple[str, str]], str] = {}
    for kind, key_of in (("exact", str), ("normalised", normalise), ("same_core", core)):
        for pair in _equal(train, texts, key_of):
            kinds.setdefault(pair, kind)
    for pair in _near(train, texts):
        kinds.setdefault(pair, "near")

    place = {key: i for i, key in enumerate(problems)}
    train_place = {name: i for i, name in enumerate(train["id"])}
    ordered = sorted(kinds, key=lambda pair: (place[pair[1]], train_place[pair[0]]))
    rows = [(name, *key, kinds[name, key], same_answer(answers[name], problems[key][1])) for name, key in ordered]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"same_answer": bool})


def _equal(
    train: pd.DataFrame, texts: Mapping[Hashable, str], key_of: Callable[[str], str]
) -> Iterable[tuple[str, Hashable]]:
    where = defaultdict(list)
    for key, text in texts.items():
        where[key_of(text)].append(key)
    where.pop("", None)  # nothing but a drawing or an answer's form
    for name, problem in zip(train["id"], train["problem"], strict=True):
        yield from ((name, key) for key in where.get(key_of(problem), ()))


def _near(train: pd.DataFrame, texts: Mapping[Hashable, str]) -> Iterable[tuple[str, Hashable]]:
    where, sizes = defaultdict(list), {}
    for key, text in texts.items():
        runs = shingles(text)
        sizes[key] = len(runs)
        for run in runs:
            where[run].append(key)
    for name, problem in zip(train["id"], train["problem"], strict=True):
        common = Counter(key for run in shingles(problem) for key in where.get(run, ()))
        yield from ((name, key) for key, count in common.items() if count >= NEAR * sizes[key])
