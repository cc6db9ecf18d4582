"""`python -m benchmarks.dashboard RUN_DIR... --out DIR`: one page that compares training runs by their local logs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.dashboard.html_page import NotesError, warnings, write_dashboard
from benchmarks.dashboard.methods import REFERENCE, ConfigError
from benchmarks.dashboard.runs import RunError, read_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__.split(": ", 1)[1])
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_DIR",
        help="folder with metrics.jsonl and hydra/.hydra/config.yaml; LABEL=DIR names its method, LABEL@SEED=DIR its "
        "seed too",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for index.html, PNGs, table.md and table.csv")
    parser.add_argument(
        "--reference", help=f"method that the others are compared with, by seed (default: {REFERENCE} if it is there)"
    )
    parser.add_argument("--notes", type=Path, help="Markdown shown above the numbers: what the figures mean")
    parser.add_argument("--title", default="Training runs compared")
    args = parser.parse_args(argv)
    console = Console(stderr=True, soft_wrap=True)
    try:
        notes = args.notes.read_text() if args.notes else ""
        comparison = read_runs(args.runs)
        reference = choose_reference(args.reference, list(comparison.by_method))
        dashboard = write_dashboard(comparison, args.out, args.title, notes, reference)
    except (RunError, ConfigError, NotesError, OSError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: ", end="")
        console.print(str(error), markup=False)
        return 1
    for text in (*warnings(comparison), *(f"No figure: {reason}" for reason in dashboard.absent)):
        console.print(text, markup=False, style="yellow")
    methods = ", ".join(f"{method} ({len(runs)})" for method, runs in comparison.by_method.items())
    console.print(f"{len(comparison.runs)} runs: {methods}", markup=False)
    print(f"{args.out / 'index.html'}")
    return 0


def choose_reference(asked: str | None, methods: Sequence[str]) -> str | None:
    """The method to compare with; None when the default is not there, or nothing else is.

    Raises:
        RunError: the one asked for is not among the methods.
    """
    if asked is not None and asked not in methods:
        raise RunError(f"--reference {asked!r} is none of the methods: {', '.join(methods)}")
    chosen = asked or REFERENCE
    return chosen if chosen in methods and len(methods) > 1 else None


if __name__ == "__main__":
    sys.exit(main())
