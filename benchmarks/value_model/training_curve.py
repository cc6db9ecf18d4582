"""Loss of a value model's training: `python -m benchmarks.value_model.training_curve RUN/metrics.jsonl loss.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.png import to_png
from value_model.files import write_bytes

SMOOTHED_OVER = 10  # updates
TRAINING, VALIDATION = "cross_entropy", "validation/cross_entropy"


def draw(records: pd.DataFrame) -> Figure:
    """Cross-entropy of the training tasks and, at the updates that were validated, of the held-out prompts.

    Args:
        records: a row for each update, as in ``metrics.jsonl``.
    """
    step, validated = records["step"], records.dropna(subset=[VALIDATION])
    best = validated.loc[validated[VALIDATION].idxmin()]
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axis.plot(step, records[TRAINING], color="#1b6ca8", alpha=0.25, linewidth=0.8)
    mean = records[TRAINING].rolling(SMOOTHED_OVER).mean()
    axis.plot(step, mean, color="#1b6ca8", label=f"training tasks, mean of {SMOOTHED_OVER} updates")
    axis.plot(validated["step"], validated[VALIDATION], color="#e08e45", marker="o", label="selection prompts")
    axis.axvline(best["step"], color="grey", linestyle="--", linewidth=0.8, label=f"kept: update {best['step']:.0f}")
    axis.set(xlabel="update", ylabel="cross-entropy", title="Adapter trained; encoder and head frozen")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of a run that kept its best model by cross-entropy")
    parser.add_argument("out", type=Path, help="PNG to write")
    args = parser.parse_args()
    write_bytes(args.out, to_png(draw(pd.read_json(args.metrics, lines=True))))


if __name__ == "__main__":
    main()
