"""report.md: sources, checks, dropped rows, and problems that are in both the training set and a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from recipes.data import checks
from recipes.data.overlap import KINDS
from recipes.data.sources import SOURCES, TESTS, TRAIN

EXAMPLES = 3


def contamination_table(pairs: pd.DataFrame, sizes: Mapping[str, int]) -> pd.DataFrame:
    """One row a benchmark: its problems found in the training set, each counted under its strongest kind.

    Args:
        pairs: of :func:`recipes.data.overlap.overlap`.
        sizes: benchmark -> its number of problems.
    """
    rows = []
    for name, size in sizes.items():
        found = pairs[pairs["test_source"] == name]
        strongest = found.assign(rank=found["kind"].map(KINDS.index)).groupby("test_id")["rank"].min()
        rows.append(
            {
                "benchmark": name,
                "problems": size,
                "in the training set": len(strongest),
                **{kind: int((strongest == rank).sum()) for rank, kind in enumerate(KINDS)},
                "with the same answer": found.loc[found["same_answer"], "test_id"].nunique(),
                "training rows": found["train_id"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def source_table(
    inputs: Mapping[str, Mapping[str, Any]], tables: Mapping[str, pd.DataFrame], written: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """One row a source: rows in its file, distinct rows, rows that each check marks, rows written."""
    return pd.DataFrame(
        [
            {
                "source": source.name,
                "rows in the file": inputs[source.name]["rows"],
                "problems": len(tables[source.name]),
                **checks.counts(tables[source.name]),
                "written": len(written[source.name]),
            }
            for source in SOURCES
        ]
    )


def markdown(
    manifest: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    written: Mapping[str, pd.DataFrame],
    pairs: pd.DataFrame,
) -> str:
    """The whole report.

    Args:
        manifest: its options, inputs, dropped and repaired.
        tables: source -> the problems as read.
        written: source -> the problems as written.
        pairs: of :func:`recipes.data.overlap.overlap`.
    """
    sizes = {source.name: len(tables[source.name]) for source in TESTS}
    dropped = pd.DataFrame(manifest["dropped"].items(), columns=["taken out of the training set", "rows"])
    options = pd.DataFrame(
        [(name, f"`{value!r}`") for name, value in manifest["options"].items()], columns=["option", "value"]
    )
    origins = pd.DataFrame(
        [
            {
                "source": name,
                "read from": entry["origin"],
                "sha256": f"`{entry['sha256'][:12]}`",
                "licence": entry["licence"],
            }
            for name, entry in manifest["inputs"].items()
        ]
    )
    return f"""# Data

{_table(origins)}

## Counts and checks

{_table(source_table(manifest["inputs"], tables, written))}

The columns between "problems" and "written" count rows that a check marks: the same problem and answer as an earlier
row; a problem with other answers elsewhere; control characters where LaTeX was; Han characters; anything but ASCII;
a relay problem that asks for T without giving it.

{_table(dropped)}

Broken escapes repaired: {manifest["repaired"]:,} rows.

## Benchmark problems in the training set

{_table(contamination_table(pairs, sizes))}

Of {TRAIN.name} as read; `contaminated` in a row's `extra_info` is about the rows written. Each problem is counted under
its strongest kind; all pairs are in `contamination.parquet`. Numbers may differ in a pair that is `near`; "with the
same answer" counts problems with a pair whose golds are equal. Translations and paraphrases are not found.

{_examples(pairs)}
## Options

{_table(options)}
"""


def _examples(pairs: pd.DataFrame) -> str:
    lines = []
    for (source, kind), found in pairs.groupby(["test_source", "kind"], sort=False):
        shown = ", ".join(f"{row.test_id} = {row.train_id}" for row in found.head(EXAMPLES).itertuples())
        lines.append(f"- {source}, {kind}: {shown}\n")
    return "".join(lines)


def _table(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, intfmt=",")
