"""The page: tables of means and spreads over seeds, and two figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.png import to_png
from benchmarks.schedules.compared_schedules import REFERENCE
from benchmarks.schedules.measures import busy
from benchmarks.schedules.simulation import Run
from benchmarks.schedules.training_step import Step
from value_model.files import write_bytes

TEMPLATE = Path(__file__).parent / "page.md"
STYLES = ("o-", "s-", "x--", "^-", "v-", "D-", "P-")  # one each for the scaled lines, some of which coincide
COLUMNS = {
    "makespan_ratio": f"makespan / {REFERENCE}",
    "over_at_once": "makespan / same rollouts at once",
    "rollouts_ratio": "rollouts",
    "tokens_ratio": "tokens",
    "slots": "busy slots",
    "rate": "of peak rate",
    "idle": "under 10 % busy",
    "tail": "after 95 % done",
}


def mean_and_spread(values: pd.Series) -> str:
    """Mean and standard deviation over seeds."""
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else f"{values.mean():.2f}"


def full_table(rows: pd.DataFrame) -> str:
    """Markdown: every measure of every line; rows hold one (line, seed) each."""
    table = rows.groupby("line", sort=False)[list(COLUMNS)].agg(mean_and_spread).rename(columns=COLUMNS)
    return table.reset_index().to_markdown(index=False)


def scale_table(rows: pd.DataFrame, measure: str) -> str:
    """Markdown: one measure by number of GPUs; rows hold one (line, gpus, seed) each."""
    table = rows.groupby(["line", "gpus"], sort=False)[measure].agg(mean_and_spread).unstack("gpus")
    table.columns = [f"{gpus} GPUs" for gpus in table.columns]
    return table.reset_index().to_markdown(index=False)


def page(
    tables: Sequence[tuple[str, Step, pd.DataFrame]],
    series: Mapping[str, pd.DataFrame],
    seeds: int,
    many: int,
    command: str,
    notes: str,
) -> str:
    """Markdown of the whole page; the first table's step is the one of the series."""
    first = tables[0][1]
    auc, hard_auc = first.sample.prior_auc
    fitted = f"Beta({first.rates.alpha:.3f}, {first.rates.beta:.3f}), fitted to the V0 authors' public data"
    measured = f"posterior draws given the V0 authors' public data, ten outcomes a prompt, under {fitted}"
    titles = {"makespan_ratio": f"makespan / {REFERENCE}", "over_at_once": "makespan / same rollouts at once"}
    fields = asdict(first.setting) | {
        "command": command,
        "seeds": seeds,
        "many": many,
        "notes": notes,
        "sections": "\n\n".join(f"## {title}\n\n{full_table(rows)}\n\n{step.words()}" for title, step, rows in tables),
        "reference": REFERENCE,
        "longest": first.lengths.longest,
        "series": "\n\n".join(
            f"{title}, {words}:\n\n{scale_table(rows, measure)}"
            for title, rows in series.items()
            for measure, words in titles.items()
        ),
        "rates": fitted if first.rates.successes is None else measured,
        "auc": auc,
        "hard_auc": hard_auc,
        "within_prompt": first.lengths.within_prompt,
        "prefill": 1000 * first.setting.prefill,
    }
    return TEMPLATE.read_text().format(**fields)


def draw_scale(series: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Makespan over the reference's against GPUs, one panel a series, with the range over seeds."""
    figure, panels = plt.subplots(
        1, len(series), figsize=(6 * len(series), 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (title, rows) in zip(panels[0], series.items(), strict=True):
        for (name, of_line), style in zip(rows.groupby("line", sort=False), STYLES, strict=False):
            ratio = of_line.groupby("gpus").makespan_ratio
            (curve,) = panel.plot(ratio.mean().index, ratio.mean(), style, markersize=5, label=name)
            panel.fill_between(ratio.mean().index, ratio.min(), ratio.max(), color=curve.get_color(), alpha=0.2)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set_xticks(sorted(rows.gpus.unique()), sorted(rows.gpus.unique()))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("GPUs")
        panel.set_title(title)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"makespan / {REFERENCE}")
    figure.legend(*panels[0][0].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
    write_bytes(path, to_png(figure))


def draw_busy(runs: Mapping[str, Run], path: Path) -> None:
    """Share of the slots that are busy, over time."""
    figure, panel = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, run in runs.items():
        times, running = busy(run)
        panel.step(times, running / (run.fleet.speed.slots * run.fleet.engines), where="post", label=name, linewidth=1)
    panel.set_xlabel("seconds")
    panel.set_ylabel("busy slots")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="upper right")
    write_bytes(path, to_png(figure))
