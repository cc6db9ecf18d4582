"""One HTML file that needs no network: notes, tables, figures and the runs they come from."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import markdown
import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks.dashboard.figures import PLANS, MissingDataError
from benchmarks.dashboard.method_tables import (
    CONFIDENCE,
    SEEDS_FOR_INTERVAL,
    benchmark_tables,
    headline_tables,
    summary,
)
from benchmarks.dashboard.methods import LABELLED, SHOWN, styles
from benchmarks.dashboard.runs import Comparison, Run
from benchmarks.png import to_png
from value_model.files import write_bytes

PAGE = Template((Path(__file__).parent / "page.html").read_text())
DPI, CSS_DPI = 120, 96
LOADS = re.compile(r"<(?:img|script|link|iframe|object|embed|video|audio|source)\b|url\(", re.IGNORECASE)


class NotesError(ValueError):
    """The notes would load something, and the page would no longer be one file."""


@dataclass(frozen=True)
class DrawnFigure:
    """A figure as it goes into the page."""

    name: str
    title: str
    caption: str
    png: bytes
    width: int  # CSS pixels, so that letters are of one size in all figures


@dataclass(frozen=True)
class Dashboard:
    """Everything a page shows; ``absent`` names the data that each omitted figure needs."""

    title: str
    notes: str  # Markdown
    reference: str | None
    figures: tuple[DrawnFigure, ...]
    absent: tuple[str, ...]


def write_dashboard(comparison: Comparison, out: Path, title: str, notes: str, reference: str | None) -> Dashboard:
    """Write ``index.html``, ``table.md``, ``table.csv`` and a PNG a figure to ``out``."""
    dashboard = make_dashboard(comparison, title, notes, reference)
    for figure in dashboard.figures:
        write_bytes(out / f"{figure.name}.png", figure.png)
    write_bytes(out / "table.csv", summary(comparison, reference).drop(columns="digits").to_csv(index=False).encode())
    write_bytes(out / "table.md", (headline(comparison, reference) + by_benchmark(comparison, reference)).encode())
    write_bytes(out / "index.html", render(comparison, dashboard).encode())
    return dashboard


def make_dashboard(comparison: Comparison, title: str, notes: str, reference: str | None) -> Dashboard:
    """Draw every figure that the runs have data for.

    Raises:
        NotesError: the notes hold an image or a script.
    """
    if loads := LOADS.search(to_html(notes)):
        raise NotesError(f"the notes load something ({loads[0]!r}): only text, links and tables are one file")
    figures, absent = [], []
    for plan in track(PLANS, "drawing", console=Console(stderr=True), transient=True):
        try:
            figure = plan.draw(comparison)
            width = round(figure.get_figwidth() * CSS_DPI)
            figures.append(DrawnFigure(plan.name, plan.title, plan.caption, to_png(figure, DPI), width))
        except MissingDataError as error:
            absent.append(f"{plan.title}: {error}")
    return Dashboard(title, notes, reference, tuple(figures), tuple(absent))


def headline(comparison: Comparison, reference: str | None) -> str:
    """Accuracy and cost as Markdown, and how to read them."""
    labels = list(comparison.by_method)
    return "\n\n".join([how_to_read(reference, labels), *map(_section, headline_tables(comparison, reference))]) + "\n"


def by_benchmark(comparison: Comparison, reference: str | None) -> str:
    """Accuracy on each benchmark as Markdown; empty for a single one."""
    return "".join(f"\n{_section(table)}\n" for table in benchmark_tables(comparison, reference))


def how_to_read(reference: str | None, labels: Sequence[str]) -> str:
    """What the numbers of the tables are, and what is abbreviated in the methods' labels."""
    text = (
        "Mean ± sample standard deviation over seeds. After training is the last validation. Accuracy at a cost is "
        "interpolated between validations, at the smallest cost at which a run was last validated. Rollouts and tokens "
        "are those of training, whether trained on or discarded; seconds are those of training steps, without "
        "validation."
    )
    for variant in LABELLED:
        if any(variant.label in label.split() for label in labels):
            text += f" {variant.label}: {variant.name}."
    if reference is None:
        return text
    paired = f"Differences to {reference} are paired by seed; brackets are {CONFIDENCE:.0%} t-intervals"
    return f"{text} {paired}, for {SEEDS_FOR_INTERVAL} seeds or more."


def runs_table(comparison: Comparison) -> pd.DataFrame:
    """One row a run: what it is and its key settings; settings that no run has are left out."""
    order = list(styles(comparison.by_method))
    rows = [
        {
            "run": run.name,
            "method": run.method,
            "seed": run.seed,
            "steps": run.steps,
            "prompts x group": f"{run.setup.prompts} x {run.setup.group}",
            **run.setup.shown,
        }
        for run in sorted(comparison.runs, key=lambda run: (order.index(run.method), run.seed))
    ]
    table = pd.DataFrame(rows)
    return table.drop(columns=[name for name in SHOWN if (table[name] == "").all()])


def warnings(comparison: Comparison) -> Iterator[str]:
    """What makes a comparison unfair: runs left out, steps that differ, settings that differ within a method."""
    yield from (f"Left out: {reason}" for reason in comparison.left_out)
    if len({run.steps for run in comparison.runs}) > 1:
        steps = ", ".join(f"{run.name} {run.steps}" for run in comparison.runs)
        yield f"Runs differ in steps, so their last validations are not at equal steps: {steps}."
    for method, runs in comparison.by_method.items():
        for name, values in _settings(runs).items():
            if len(set(values)) > 1:
                yield f"Runs of {method} differ in {name}: {', '.join(sorted(set(values)))}."


def _settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    counts = {name: [str(getattr(run.setup, name)) for run in runs] for name in ("prompts", "group")}
    return {**counts, **{name: [run.setup.shown[name] for run in runs] for name in SHOWN}}


def render(comparison: Comparison, dashboard: Dashboard) -> str:
    """The page."""
    reference = dashboard.reference
    return PAGE.substitute(
        title=html.escape(dashboard.title),
        notes=to_html(dashboard.notes),
        warnings=_list(list(warnings(comparison))),
        headline=to_html(headline(comparison, reference)),
        by_benchmark=to_html(by_benchmark(comparison, reference)) or "<p>There is one benchmark.</p>",
        contents="".join(f'<li><a href="#{f.name}">{html.escape(f.title)}</a></li>' for f in dashboard.figures),
        figures="".join(map(_figure, dashboard.figures)),
        absent=_list(dashboard.absent) if dashboard.absent else "<p>None.</p>",
        runs=to_html(to_markdown(runs_table(comparison))),
    )


def to_html(text: str) -> str:
    """Markdown as HTML, wide tables scrolling in their own frame."""
    body = markdown.markdown(text, extensions=["tables"])
    return body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def to_markdown(table: pd.DataFrame) -> str:
    """A table of text; numbers stay as they were written."""
    return table.astype(str).to_markdown(index=False, disable_numparse=True)


def _figure(figure: DrawnFigure) -> str:
    image = base64.b64encode(figure.png).decode()
    return (
        f'<figure id="{figure.name}"><h3>{html.escape(figure.title)}</h3>'
        f'<img width="{figure.width}" alt="{html.escape(figure.title)}" src="data:image/png;base64,{image}">'
        f"<figcaption>{to_html(figure.caption)}</figcaption></figure>"
    )


def _section(titled: tuple[str, pd.DataFrame]) -> str:
    title, table = titled
    return f"### {title}\n\n{to_markdown(table)}"


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>" if items else ""
