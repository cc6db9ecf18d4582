"""The results as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NO_GPU = "No GPU was found: nothing here has run on one. Training stages were composed and checked only."


def line(stage: Mapping[str, Any]) -> str:
    """One stage for the console."""
    return f"{stage['name']:<15} {stage['status']:<8} {stage['seconds']:>5.0f} s  {stage['detail'] or stage['what']}"


def page(results: Mapping[str, Any]) -> str:
    """Markdown: the stages, phases' seconds and memory of the training stages, and why stages failed."""
    stages, machine = results["stages"], results["machine"]
    text = ["# Check of this machine's GPU", ""]
    text += [f"{', '.join(machine['gpus'])}." if machine["gpus"] else NO_GPU, ""]
    text += _table(
        ("stage", "what", "result", "seconds", "limit"),
        ((s["name"], s["what"], s["status"], f"{s['seconds']:.0f}", str(s["limit_s"])) for s in stages),
    )
    for stage in stages:
        if stage["detail"] or stage["facts"] or stage["memory_mib"]:
            text += ["", f"## {stage['name']}: {stage['status']}", ""]
            text += [stage["detail"], ""] if stage["detail"] else []
            text += _details(stage)
    return "\n".join(text) + "\n"


def _details(stage: Mapping[str, Any]) -> list[str]:
    facts, text = dict(stage["facts"]), []
    phases = facts.pop("phases_s", None)
    if phases:
        text += [*_table(("phase", "seconds a step"), ((name, f"{s:g}") for name, s in phases.items())), ""]
    if stage["memory_mib"]:
        rows = sorted(stage["memory_mib"].items(), key=lambda item: -item[1])
        text += [*_table(("process", "GiB on the GPU at most"), ((n, f"{mib / 1024:.1f}") for n, mib in rows)), ""]
    text += [f"- {name}: {value}" for name, value in facts.items()]
    for title, lines in (("First errors", stage["first_errors"]), ("Last lines", stage["last_lines"])):
        if lines:
            text += ["", f"{title}:", "", "```", *lines, "```"]
    return text


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(columns)
    cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return [f"| {' | '.join(columns)} |", "|:--" * len(columns) + "|", *(f"| {row} |" for row in cells)]
