"""`python -m recipes.data`: DAPO-Math-17k and six benchmarks, checked, as parquet files for verl."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from recipes.data.build import REPORT, Options, make_data
from recipes.data.reading import SourceError
from recipes.data.rows import TEMPLATE, check_template
from recipes.data.sources import SOURCES


def main() -> None:
    """Command line."""
    args = _parser().parse_args()
    console = Console()
    options = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
    try:
        made = make_data(
            args.out,
            options,
            console,
            local=args.local,
            files=dict(args.file),
            accept_changes=args.accept_changes,
        )
    except SourceError as error:
        raise SystemExit(str(error)) from None
    if not made:
        console.print(f"{args.out} is up to date: same inputs, same options; see {args.out / REPORT}", soft_wrap=True)
        return
    console.print(Markdown((args.out / REPORT).read_text()))
    console.print(f"written to {args.out}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.data", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data"))
    parser.add_argument("--local", type=Path, help="folder with <source>.jsonl or .parquet; the default is the hub")
    parser.add_argument(
        "--file", type=_named_file, action="append", default=[], metavar="SOURCE=PATH", help="file of one source"
    )
    parser.add_argument("--template", type=_template, default=TEMPLATE, help="the prompt, with {problem} in it")
    parser.add_argument("--max-rows", type=_positive, help="a sample of so many rows of every file")
    parser.add_argument("--seed", type=int, default=Options.seed, help="of the sample")
    parser.add_argument("--drop-contaminated", action="store_true", help="training rows that are in a benchmark")
    parser.add_argument("--drop-conflicting", action="store_true", help="training rows with other answers elsewhere")
    parser.add_argument("--drop-broken", action="store_true", help="training rows with control characters")
    parser.add_argument("--repair-escapes", action="store_true", help="turn a form feed and 'rac{' back into \\frac{")
    parser.add_argument("--accept-changes", action="store_true", help="take sources that are not the known ones")
    return parser


def _named_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    names = [source.name for source in SOURCES]
    if name not in names or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not SOURCE=PATH with SOURCE one of {', '.join(names)}")
    return name, Path(path)


def _template(text: str) -> str:
    try:
        return check_template(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows; expected 1 or more")
    return int(text)


if __name__ == "__main__":
    main()
