"""How good a value model's probabilities are, against predictors that need none.

``python -m value_model.evaluate --model PATH --data DIR --out DIR`` takes the files of ``value_model.trajectories``
and writes ``evaluation.json``, ``evaluation.md`` and ``reliability.png``: every predictor on held-out prompts, and on
held-out models where there are any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import Progress

from value_model.evaluation import baselines, metrics
from value_model.evaluation.baselines import Embed, Predictor
from value_model.trajectories import HELDOUT_MODELS, read_trajectories, split_by_prompt

logger = logging.getLogger(__name__)

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]  # of score, n, group, p
METRICS: dict[str, Metric] = {
    "auc": lambda score, n, group, p: metrics.auc(metrics.hard_label(score), p),
    "grouped_auc": lambda score, n, group, p: metrics.grouped_auc(metrics.hard_label(score), p, group),
    "pair_accuracy": lambda score, n, group, p: metrics.pair_accuracy(score, p, group),
    "separated_pairs": lambda score, n, group, p: metrics.separated_pair_accuracy(score, p, group),
    "brier": lambda score, n, group, p: metrics.brier(score, p),
    "ece": lambda score, n, group, p: metrics.ece(score, p),
    "value_mse": lambda score, n, group, p: metrics.value_mse(score, p),
    "value_mse_unbiased": lambda score, n, group, p: metrics.value_mse_unbiased(score, n, p),
}
VALUE_MODEL = "value model"
MODES = {"default": "the package's own small model", "none": "baselines only"}


class ValueModelLike(Protocol):
    """What :class:`ValueModelPredictor` asks of a value model."""

    def predict(
        self, context_prompts: Sequence[str], context_scores: Sequence[float], prompts: Sequence[str]
    ) -> np.ndarray: ...


class ValueModelPredictor(Predictor):
    """A value model as a predictor."""

    def __init__(self, model: ValueModelLike, name: str = VALUE_MODEL):
        self.model = model
        self.name = name

    def predict(self, context: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
        return self.model.predict(context["prompt"].to_list(), context["score"].to_numpy(), queries["prompt"].to_list())


@dataclass(frozen=True)
class EvalTask:
    """One (model, step): what was measured on some prompts, and other prompts whose outcome is to be predicted."""

    model: str
    step: int
    context: pd.DataFrame
    queries: pd.DataFrame


@dataclass(frozen=True)
class Predictions:
    """Every predictor's answer to every query of a set of tasks."""

    queries: pd.DataFrame  # trajectories, one row a query
    p: pd.DataFrame  # one column a predictor, rows as in queries
    seconds_per_query: Mapping[str, float]


def tasks_from(train: pd.DataFrame, held_out: pd.DataFrame, context_size: int, seed: int) -> list[EvalTask]:
    """One task for each (model, step) of ``held_out``.

    The context is a sample without replacement of ``context_size`` of the group's own rows in ``train``, both classes
    among them. A step with fewer rows is topped up with the same model's newest earlier steps, each prompt once, as
    the support buffer of a run would be; what is then still too small is used as it is. The sample depends on the
    seed and the group's name and rows, not on the other groups.

    Groups whose context would be empty or of one class are left out with a warning: no in-context model can answer.

    Args:
        train: trajectories to draw contexts from.
        held_out: trajectories to ask for, of prompts that ``train`` does not hold.
        context_size: prompts in a context, at least 2.
        seed: of the samples.

    Raises:
        ValueError: the two share a prompt, or no group has a usable context.
    """
    shared = set(train["prompt"]) & set(held_out["prompt"])
    if shared:
        raise ValueError(f"{len(shared)} prompts are in train and in held_out, such as {sorted(shared)[0][:60]!r}")
    tasks, left_out = [], []
    for (model, step), queries in held_out.groupby(["model", "step"]):
        context = _context(train[train["model"] == model], step, context_size, seed)
        if metrics.hard_label(context["score"]).any() and not metrics.hard_label(context["score"]).all():
            tasks.append(EvalTask(model, int(step), context, queries.reset_index(drop=True)))
        else:
            left_out.append((model, int(step)))
    if left_out:
        logger.warning("%d groups have no context with both classes and are left out: %s", len(left_out), left_out[:5])
    if not tasks:
        raise ValueError("no (model, step) of held_out has training prompts of both classes to be a context")
    return tasks


def predict_all(
    predictors: Sequence[Predictor], tasks: Sequence[EvalTask], advance: Callable[[], Any] = lambda: None
) -> Predictions:
    """Ask every predictor every task; ``advance`` is called after each answer.

    Raises:
        ValueError: two predictors of one name, or an answer that is not one probability a query.
    """
    names = [predictor.name for predictor in predictors]
    if len(set(names)) < len(names):
        raise ValueError(f"predictors need names of their own, got {names}")
    queries = pd.concat([task.queries for task in tasks], ignore_index=True)
    p, seconds = {}, {}
    for predictor in predictors:
        started = time.perf_counter()
        answers = []
        for task in tasks:
            answers.append(_answer(predictor, task))
            advance()
        p[predictor.name] = np.concatenate(answers)
        seconds[predictor.name] = (time.perf_counter() - started) / len(queries)
    return Predictions(queries, pd.DataFrame(p), seconds)


def evaluate(
    predictors: Sequence[Predictor], tasks: Sequence[EvalTask], *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """:func:`predict_all`, then :func:`summary`: one row a predictor."""
    predictions = predict_all(predictors, tasks)
    return summary(predictions, bootstrap(predictions, draws, seed))


def measure(score: np.ndarray, n: np.ndarray, group: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Every metric of every predictor, shape (predictors, metrics); ``p`` has shape (rows, predictors)."""
    return np.array([[metric(score, n, group, column) for metric in METRICS.values()] for column in p.T])


def bootstrap(predictions: Predictions, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """:func:`measure` on resamples of the prompts, shape (draws, predictors, metrics).

    All predictors see the same resamples, so differences between them are paired.
    """
    unit = predictions.queries["prompt_id"].to_numpy()
    return metrics.resample(measure, *_arrays(predictions), unit=unit, seed=seed, n=draws)


def summary(predictions: Predictions, draws: np.ndarray) -> pd.DataFrame:
    """One row a predictor: each metric with its 95 % interval (``<metric>_low``, ``_high``), ``seconds_per_query``.

    Args:
        predictions: of :func:`predict_all`.
        draws: of :func:`bootstrap`.
    """
    table = _with_intervals(predictions, measure(*_arrays(predictions)), draws)
    return table.assign(seconds_per_query=pd.Series(predictions.seconds_per_query))


def differences(predictions: Predictions, draws: np.ndarray, reference: str) -> pd.DataFrame:
    """Each other predictor's metrics minus the reference's, with paired 95 % intervals; columns as in the summary.

    Raises:
        ValueError: there is no predictor of that name.
    """
    names = list(predictions.p)
    if reference not in names:
        raise ValueError(f"reference={reference!r} is none of the predictors {names}")
    at = names.index(reference)
    values = measure(*_arrays(predictions))
    table = _with_intervals(predictions, values - values[at], draws - draws[:, [at]])
    return table.drop(index=reference)


def _context(rows: pd.DataFrame, step: int, size: int, seed: int) -> pd.DataFrame:
    """Sample of the pool of one model's step, see :func:`tasks_from`."""
    past = rows[rows["step"] <= step].sort_values("step", ascending=False, kind="stable").drop_duplicates("prompt_id")
    pool = past.head(max(size, int((past["step"] == step).sum()))).reset_index(drop=True)
    if len(pool) <= size:
        return pool
    name = hashlib.sha256(f"{pool['model'].iloc[0]}\n{step}".encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(name[:8], "big")])
    chosen = rng.choice(len(pool), size, replace=False)
    label = metrics.hard_label(pool["score"])
    others = np.flatnonzero(label != label[chosen[0]])
    if len(others) and (label[chosen] == label[chosen[0]]).all():
        chosen[-1] = rng.choice(others)  # the head needs both classes
    return pool.iloc[chosen].reset_index(drop=True)


def _answer(predictor: Predictor, task: EvalTask) -> np.ndarray:
    p = np.asarray(predictor.predict(task.context, task.queries), dtype=np.float64)
    if p.shape != (len(task.queries),):
        raise ValueError(f"{predictor.name} answered shape {p.shape} to {len(task.queries)} queries")
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        raise ValueError(f"{predictor.name} answered {p[wrong][0]} in {task.model}, step {task.step}: no probability")
    return p


def _arrays(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    queries = predictions.queries
    group = queries.groupby(["model", "step"]).ngroup().to_numpy()
    return queries["score"].to_numpy(), queries["n"].to_numpy(), group, predictions.p.to_numpy()


def _with_intervals(predictions: Predictions, values: np.ndarray, draws: np.ndarray) -> pd.DataFrame:
    low, high = metrics.interval(draws)
    columns = {}
    for i, name in enumerate(METRICS):
        columns |= {name: values[:, i], f"{name}_low": low[:, i], f"{name}_high": high[:, i]}
    return pd.DataFrame(columns, index=pd.Index(predictions.p.columns, name="predictor"))


def _load_model(name: str) -> Any:
    if name == "none":
        return None
    from value_model.model import ValueModel

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


def _task_sets(data: Path, context_size: int, seed: int) -> dict[str, list[EvalTask]]:
    """Tasks of the held-out prompts, and of the held-out models if ``data`` has any."""
    train, validation = (read_trajectories([data / f"{name}.parquet"]) for name in ("train", "validation"))
    sets = {"held-out prompts": tasks_from(train, validation, context_size, seed)}
    if (data / f"{HELDOUT_MODELS}.parquet").exists():
        settings = json.loads((data / "splits.json").read_text())["settings"]
        rows = read_trajectories([data / f"{HELDOUT_MODELS}.parquet"])
        parts = split_by_prompt(rows, settings["fractions"], settings["seed"])
        sets["held-out models"] = tasks_from(parts["train"], parts["validation"], context_size, seed)
    return sets


def _predictors(model: Any, embed: Embed | None, data: Path) -> list[Predictor]:
    files = [data / f"{name}.parquet" for name in ("train", "validation", HELDOUT_MODELS)]
    history = read_trajectories([file for file in files if file.exists()])
    value_model = [ValueModelPredictor(model)] if model is not None else []
    learnt = [*baselines.in_context(embed), *baselines.fitted(embed, read_trajectories(files[:1]))]
    return [*value_model, *learnt, baselines.PromptHistory(history)]


def _encode(sets: Mapping[str, Sequence[EvalTask]], encoders: Mapping[str, Embed], progress: Progress) -> dict:
    """Compute all embeddings before anything is timed; seconds a text of each encoder."""
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
    model = _load_model(args.model)
    embed = _embedding(args.encoder, model)
    sets = _task_sets(args.data, args.context_size, args.seed)
    encoders: dict[str, Embed] = {} if model is None else {VALUE_MODEL: model.features}
    encoders |= {} if args.encoder is None else {str(args.encoder): embed}
    with Progress(console=console) as progress:
        seconds_per_text = _encode(sets, encoders, progress)
        predictors = _predictors(model, embed, args.data)
        found = {name: _evaluate_set(predictors, tasks, args, name, progress) for name, tasks in sets.items()}
    reference = args.reference or predictors[0].name
    tables = {
        name: (summary(predictions, draws), differences(predictions, draws, reference))
        for name, (predictions, draws) in found.items()
    }
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings |= {"reference": reference, "seconds_per_text": seconds_per_text}
    tables.write(args.out, sets, tables, settings)
    first, (predictions, _) = next(iter(found.items()))
    tables.draw_reliability(predictions.queries, predictions.p, args.out / "reliability.png", f"Reliability on {first}")
    for name, (table, _) in tables.items():
        console.print(tables.screen_table(table, name))
    console.print(f"evaluation.json, evaluation.md and reliability.png written to {args.out}")


if __name__ == "__main__":
    main()
