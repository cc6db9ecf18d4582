"""One checked statement, and the page that lists them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.png import to_png
from value_model.files import write_bytes, write_text

Verdict = Literal["holds", "holds with a condition", "fails"]


@dataclass(frozen=True)
class Finding:
    """A statement of the paper and what enumeration says of it."""

    where: str  # in the paper
    says: str
    verdict: Verdict
    evidence: str  # the numbers
    figure: str | None = None  # name of the figure that shows it, without suffix


@dataclass(frozen=True)
class Section:
    """Findings that share figures; a figure is drawn when the page is written."""

    title: str
    findings: Sequence[Finding]
    figures: Sequence[tuple[str, str, Callable[[], plt.Figure]]]  # (name, caption, draws it)


def table(findings: Sequence[Finding]) -> str:
    """Markdown table of findings."""
    lines = ["| where | the paper says | verdict | evidence |", "|:--|:--|:--|:--|"]
    for f in findings:
        shown = f" ([figure]({f.figure}.png))" if f.figure else ""
        cells = (f.where, f.says, f"**{f.verdict}**", f.evidence + shown)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def write(folder: Path, introduction: str, sections: Sequence[Section]) -> None:
    """Write README.md and the figures into ``folder``."""
    counts = Counter(f.verdict for section in sections for f in section.findings)
    parts = [introduction, ", ".join(f"**{verdict}**: {counts[verdict]}" for verdict in get_args(Verdict)) + "."]
    for section in sections:
        parts += [f"## {section.title}", table(section.findings)]
        for name, caption, draw in section.figures:
            write_bytes(folder / f"{name}.png", to_png(draw(), dpi=110))
            parts += [f"![{name}]({name}.png)", caption]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def panels(count: int, height: float = 3.8) -> tuple[plt.Figure, list[plt.Axes]]:
    """A row of axes with grids."""
    figure, axes = plt.subplots(1, count, figsize=(5.2 * count, height), constrained_layout=True, squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, list(axes[0])
