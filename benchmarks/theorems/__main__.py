"""Check every theorem of the paper by enumeration and write the page: ``python -m benchmarks.theorems``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.progress import track

from benchmarks.png import to_png
from benchmarks.theorems import allocation, fusion, gradient
from benchmarks.theorems.verdicts import Author, Statement, Verdict, count_verdicts
from value_model.files import write_bytes, write_text

TEMPLATE = Path(__file__).parent / "page.md"
SECTIONS = (gradient, fusion, allocation)


def page(fields: Mapping[str, object]) -> str:
    """Markdown of the page from the numbers and verdicts of all sections."""
    statements = [value for value in fields.values() if isinstance(value, Statement)]
    return TEMPLATE.read_text().format(
        paper_counts=_counts(statements, Author.PAPER), our_counts=_counts(statements, Author.OURS), **fields
    )


def _counts(statements: Sequence[Statement], author: Author) -> str:
    counts = count_verdicts(statements, author)
    return f"{counts.total()} statements, " + ", ".join(f"**{v}**: {counts[v]}" for v in Verdict)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TEMPLATE.parent)
    args = parser.parse_args(argv)
    fields = {}
    for section in track(SECTIONS, "Enumerating"):
        fields |= section.measure()
        for name, draw in section.FIGURES.items():
            write_bytes(args.out / f"{name}.png", to_png(draw()))
    write_text(args.out / "README.md", page(fields))
    print(f"{args.out / 'README.md'}: {sum(isinstance(value, Statement) for value in fields.values())} statements")


if __name__ == "__main__":
    main()
