"""Evaluate a value model's success probabilities against baselines without a value model.

``python -m value_model.evaluate --model PATH --data DIR --out DIR`` takes the files of ``value_model.trajectories``
and writes ``evaluation.json``, ``evaluation.md`` and ``reliability.png``: every predictor on held-out prompts, and on
held-out models where there are any.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import Progress

from value_model.evaluation import baselines
from value_model.evaluation.baselines import Embed, Predictor
from value_model.evaluation.predictions import VALUE_MODEL, Predictions, ValueModelPredictor, predict_all
from value_model.evaluation.reliability import plot_reliability
from value_model.evaluation.summary import bootstrap, differences, summary
from value_model.evaluation.tables import console_table, write_evaluation
from value_model.evaluation.tasks import EvalTask, read_tasks
from value_model.trajectories import HELDOUT_MODELS, read_trajectories

MODES = {"default": "the package's own small model", "none": "baselines only"}


def _load_model(name: str) -> Any:
    if name == "none":
        return None
    from value_model.model import ValueModel  # importing torch takes seconds, and the baselines alone do not need it

    return ValueModel.from_pretrained(None if name == "default" else name)


def _embedding(encoder: str | None, model: Any) -> Embed | None:
    """Texts -> vectors by a sentence encoder; without one by the value model's own features, if there is a model."""
    if encoder is not None:
        from sentence_transformers import SentenceTransformer

        encode = SentenceTransformer(encoder).encode
        return baselines.remembered(lambda texts: encode(list(texts), batch_size=16, show_progress_bar=False))
    if model is not None:
        return lambda texts: model.features(texts).numpy()
    return None


def _predictors(model: Any, embed: Embed | None, data: Path) -> list[Predictor]:
    files = [data / f"{name}.parquet" for name in ("train", "validation", HELDOUT_MODELS)]
    history = read_trajectories([file for file in files if file.exists()])
    value_model = [ValueModelPredictor(model)] if model is not None else []
    fitted = baselines.fitted_baselines(embed, read_trajectories(files[:1]))
    return [*value_model, *baselines.in_context_baselines(embed), *fitted, baselines.PromptHistory(history)]


def _embed_all(
    sets: Mapping[str, Sequence[EvalTask]], encoders: Mapping[str, Embed], progress: Progress
) -> dict[str, float]:
    """Seconds per text of each encoder. The encoders cache embeddings, so the predictors' times exclude them later."""
    frames = [frame for tasks in sets.values() for task in tasks for frame in (task.context, task.queries)]
    texts = list(pd.concat(frames)["prompt"].unique())
    seconds = {}
    for name, embed in encoders.items():
        bar = progress.add_task(f"embedding by {name}", total=len(texts))
        started = time.perf_counter()
        for start in range(0, len(texts), 64):
            chunk = texts[start : start + 64]
            embed(chunk)
            progress.advance(bar, len(chunk))
        seconds[name] = (time.perf_counter() - started) / len(texts)
    return seconds


def _evaluate_set(
    predictors: Sequence[Predictor], tasks: Sequence[EvalTask], args: argparse.Namespace, name: str, progress: Progress
) -> tuple[Predictions, np.ndarray]:
    bar = progress.add_task(f"predicting {name}", total=len(predictors) * len(tasks))
    predictions = predict_all(predictors, tasks, lambda: progress.advance(bar))
    progress.add_task(f"resampling {name}, {args.draws} draws", total=None)
    return predictions, bootstrap(predictions, args.draws, args.seed)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m value_model.evaluate", description=__doc__.splitlines()[0])
    modes = ", ".join(f"{name!r} ({meaning})" for name, meaning in MODES.items())
    parser.add_argument("--model", default="default", help=f"folder or hub id of a value model, or {modes}")
    parser.add_argument("--data", required=True, type=Path, help="folder that value_model.trajectories wrote")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    parser.add_argument("--context-size", type=int, default=256)
    parser.add_argument("--encoder", help="sentence encoder of the baselines; without it the value model's features")
    parser.add_argument("--reference", help="predictor to compare the others with (default: the value model)")
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap resamples")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    args = _arguments(arguments)
    console = Console()
    try:
        model = _load_model(args.model)
        sets = read_tasks(args.data, args.context_size, args.seed)
    except (OSError, ValueError) as error:  # a CheckpointError, HeadError or TrajectoryError, or no splits.json
        raise SystemExit(f"error: {error}") from error
    embed = _embedding(args.encoder, model)
    encoders: dict[str, Embed] = {} if model is None else {VALUE_MODEL: model.features}
    if args.encoder is not None and embed is not None:
        encoders[args.encoder] = embed
    with Progress(console=console) as progress:
        seconds_per_text = _embed_all(sets, encoders, progress)
        predictors = _predictors(model, embed, args.data)
        found = {name: _evaluate_set(predictors, tasks, args, name, progress) for name, tasks in sets.items()}
    reference = args.reference or predictors[0].name
    results = {
        name: (summary(predictions, draws), differences(predictions, draws, reference))
        for name, (predictions, draws) in found.items()
    }
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings |= {"reference": reference, "seconds_per_text": seconds_per_text}
    write_evaluation(args.out, sets, results, settings)
    first, (predictions, _) = next(iter(found.items()))
    plot_reliability(predictions.queries, predictions.p, args.out / "reliability.png", f"Reliability on {first}")
    for name, (table, _) in results.items():
        console.print(console_table(table, name))
    console.print(f"evaluation.json, evaluation.md and reliability.png written to {args.out}")


if __name__ == "__main__":
    main()
