"""The comparison as a report on wandb: `python -m benchmarks.dashboard.wandb_report ENTITY/PROJECT`.

Its panels are those of the local figures, for the metrics that the project's runs have logged; runs are grouped by the
settings that tell methods apart.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.dashboard import panels
from benchmarks.dashboard.methods import METHOD_KEYS
from benchmarks.dashboard.panels import Axis
from benchmarks.dashboard.runs import ACCURACY

NOT_READY = 2  # exit status
STEP = "Step"  # wandb's own, which verl sets to the training step
GRID_WIDTH, WIDTH, HEIGHT = 24, 8, 8  # of a row and of a panel, in wandb's units
PROJECT = re.compile(r"^(?P<entity>[^/\s]+)/(?P<project>[^/\s]+)$")

NO_ACCOUNT = """\
No wandb account on this machine: WANDB_API_KEY is not set and nobody has logged in, or WANDB_MODE is offline.
  1. train with trainer.logger=[console,file,wandb]; without a network set WANDB_MODE=offline
  2. where there is a network: wandb login, then wandb sync --entity ENTITY wandb/offline-run-*
  3. run this again there
The same comparison without wandb: python -m benchmarks.dashboard RUN_DIR... --out DIR"""
NO_LIBRARY = "The report API is a library of its own: pip install wandb-workspaces"


@dataclass(frozen=True)
class PanelSpec:
    """A line plot: ``metrics`` against ``x`` (None: training steps), as lines a method or stacked to 100 %."""

    title: str
    metrics: tuple[str, ...]
    x: str | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Section:
    """Panels under a heading."""

    title: str
    panels: tuple[PanelSpec, ...]


def report_sections(metrics: Iterable[str]) -> list[Section]:
    """What the report shows, from the names of the metrics that were logged; sections without any are left out."""
    names = sorted(set(metrics))
    accuracy = [_accuracy_section(axis, names) for axis in panels.AXES]
    curves = tuple(PanelSpec(c.title, (c.metric,)) for c in panels.CURVES if c.metric in names)
    stacks = tuple(PanelSpec(s.title, tuple(s.parts(names).values()), stacked=True) for s in panels.STACKS)
    errors = tuple(PanelSpec(f"Squared error: {t}", (m,)) for t, m in panels.BASELINE_ERRORS.items() if m in names)
    v05 = (*(panel for panel in stacks if panel.metrics), *errors)
    sections = [*accuracy, Section("Stability", curves), Section("V0.5", v05)]
    return [section for section in sections if section.panels]


def _accuracy_section(axis: Axis, names: Sequence[str]) -> Section:
    if axis.metric is not None and axis.metric not in names:
        return Section("", ())
    found = {match["source"]: name for name in names if (match := ACCURACY.match(name))}
    specs = tuple(PanelSpec(source, (name,), axis.metric) for source, name in found.items())
    return Section(f"Validation accuracy against {axis.name}", specs)


def build_report(entity: str, project: str, title: str, sections: Sequence[Section]) -> Any:
    """The ``wandb_workspaces`` report, not saved yet."""
    import wandb_workspaces.reports.v2 as wr

    def panel(position: int, spec: PanelSpec) -> Any:
        kind = {"plot_type": "pct-area"} if spec.stacked else {"groupby_rangefunc": "stddev"}
        row, column = divmod(position, GRID_WIDTH // WIDTH)
        layout = wr.Layout(x=column * WIDTH, y=row * HEIGHT, w=WIDTH, h=HEIGHT)
        metrics = list(spec.metrics)
        return wr.LinePlot(title=spec.title, x=spec.x or STEP, y=metrics, groupby_aggfunc="mean", layout=layout, **kind)

    groupby = [f"config.{key}" for key in METHOD_KEYS]
    blocks = [wr.TableOfContents()]
    for section in sections:
        runset = wr.Runset(entity=entity, project=project, name="methods", groupby=groupby)
        drawn = [panel(position, spec) for position, spec in enumerate(section.panels)]
        blocks += [wr.H2(section.title), wr.PanelGrid(runsets=[runset], panels=drawn)]
    return wr.Report(entity=entity, project=project, title=title, blocks=blocks, width="fluid")


def logged_metrics(path: str) -> set[str]:
    """Names of all metrics that any run of ``ENTITY/PROJECT`` has logged."""
    import wandb

    return {name for run in wandb.Api().runs(path) for name in run.summary.keys()}


def missing_requirement(offline: bool, logged_in: bool, library: bool) -> str | None:
    """Message about what is missing to write a report; None if nothing is."""
    if offline or not logged_in:
        return NO_ACCOUNT
    return None if library else NO_LIBRARY


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dashboard.wandb_report", description="Write the comparison as a report on wandb."
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="where the runs were logged or synced to")
    parser.add_argument("--title", default="Training runs compared")
    args = parser.parse_args(argv)
    match = PROJECT.match(args.project)
    if match is None:
        parser.error(f"{args.project!r} is not ENTITY/PROJECT, for example my-team/v05")
    offline = os.environ.get("WANDB_MODE") in ("offline", "disabled")
    library = importlib.util.find_spec("wandb_workspaces") is not None
    if reason := missing_requirement(offline, _logged_in(), library):
        print(reason, file=sys.stderr)
        return NOT_READY
    sections = report_sections(logged_metrics(args.project))
    if not sections:
        print(f"{args.project} has no run with validation accuracy or actor metrics: wandb sync them", file=sys.stderr)
        return NOT_READY
    print(build_report(match["entity"], match["project"], args.title, sections).save().url)
    return 0


def _logged_in() -> bool:
    """Whether wandb finds a key, in WANDB_API_KEY or of an earlier login; without a prompt or a network request."""
    import wandb

    return wandb.login(prompt=False, verify=False)


if __name__ == "__main__":
    sys.exit(main())
