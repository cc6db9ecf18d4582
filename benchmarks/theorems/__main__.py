"""Check every theorem of the paper by enumeration and write the page: ``python -m benchmarks.theorems``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from benchmarks.theorems import allocation, fusion, gradient
from benchmarks.theorems.finding import write

INTRODUCTION = f"""# The theorems, checked

`python -m benchmarks.theorems` writes this page. Every figure is a finite sum over numbers of successes, or over
multisets of responses of a softmax policy whose gradient is known (`benchmarks/exact_policy.py`: five prompts, four
responses each, eight parameters in common, seed {gradient.SEED}): nothing is sampled, so there are no intervals. What
is checked are the functions that train (`verl_v05/fusion.py`, `verl_v05/allocation.py`); `tests/test_theorems.py`
pins the verdicts.

p is a prompt's success rate, μ = 2p - 1 its mean reward, V its prior, Δ = |V - μ|, k its rollouts, v̄ their mean. A
condition is one that the paper does not state. Priors and success rates are grids, so a largest value is that of a
grid."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/theorems"))
    args = parser.parse_args(argv)
    sections = [module.section() for module in track((gradient, fusion, allocation), "Enumerating")]
    write(args.out, INTRODUCTION, sections)
    print(f"{args.out / 'README.md'}: {sum(len(section.findings) for section in sections)} statements")


if __name__ == "__main__":
    main()
