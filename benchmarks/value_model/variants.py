"""What each part of the value model, and what else was tried, does to its predictions for new prompts.

``benchmarks/value_model/train_public.sh`` runs it with ``VARIANTS=1``. Cross-validated by prompt over a training table,
so that no choice between variants is made on the held-out prompts of the main table: in each fold a model is trained,
and its variants are scored on the fold's prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit
from torch import Tensor

from value_model.conversions import hard_label, success_of_reward
from value_model.difficulty import combination_terms
from value_model.evaluation.baselines import Fitted, Logistic, Ridge
from value_model.evaluation.predictions import Predictions
from value_model.evaluation.summary import bootstrap, differences, summary
from value_model.evaluation.tables import markdown_table
from value_model.evaluation.tasks import EvalTask, tasks_from
from value_model.head import InContextHead
from value_model.model import ValueModel
from value_model.training.data import load_data
from value_model.training.difficulty import fit_combination
from value_model.training.embedder import Embedder
from value_model.training.meta_tasks import MetaTask
from value_model.training.processes import ProcessGroup
from value_model.training.settings import TrainSettings, load_settings
from value_model.training.trainer import Trainer
from value_model.trajectories import read_trajectories, success
from verl_v05.calibration import Calibration, Evidence

FOLDS, CONTEXT, DRAWS = 3, 256, 200
METRICS = ("auc", "grouped_auc", "pair_accuracy", "brier", "ece")
REFERENCE = "logistic, fitted"
Array = np.ndarray


class Variants:
    """One fold's trained model, and the predictions of its variants for a task.

    Args:
        model: trained, with a difficulty.
        embed: of the model.
        rows: what the fold may be fitted to, and draws contexts from.
        trained: those of ``rows`` that the model was trained on.
        selection: tasks on the others.
        texts: every prompt.
    """

    def __init__(
        self,
        model: ValueModel,
        embed: Embedder,
        rows: pd.DataFrame,
        trained: pd.DataFrame,
        selection: Sequence[MetaTask],
        texts: Sequence[str],
    ):
        assert model.difficulty is not None
        self.number = {text: i for i, text in enumerate(texts)}
        self.features, pooled = embed(texts), embed.rows(texts, model.difficulty.pool)
        self.rows, self.heads = rows, {count: _head(model, count) for count in (model.head.config.estimators, 16)}
        self.head = self.heads[model.head.config.estimators]
        vectors = pooled.numpy()
        self.logistic = Fitted(Logistic(lambda chosen: vectors[self._at(chosen)]), rows)
        ridge = Fitted(Ridge(lambda chosen: vectors[self._at(chosen)]), trained, level=False)
        linear = logit(ridge.predict(rows, pd.DataFrame({"prompt": texts})).clip(0.01, 0.99))
        self.difficulties = {"kernel": model.difficulty.of_pooled(pooled), "linear": torch.from_numpy(linear)}
        rate = np.concatenate([success_of_reward(task.scores) for task in selection])
        terms = {
            kind: np.concatenate([self._terms(t.context_prompts, t.labels, t.prompts, kind) for t in selection])
            for kind in self.difficulties
        }
        self.weights = {
            "value model": model.difficulty.combination.double().numpy(),
            "linear difficulty": fit_combination(terms["linear"], rate),
        }
        for name, column in (("without head", 1), ("without difficulty", 2)):
            kept = np.arange(terms["kernel"].shape[1]) != column
            self.weights[name] = fit_combination(terms["kernel"] * kept, rate) * kept

    def predict(self, task: EvalTask) -> dict[str, Array]:
        """Success probabilities of the task's queries by variant."""
        texts, prompts = task.context["prompt"].tolist(), task.queries["prompt"].tolist()
        rates = success(task.context).to_numpy()
        labels = hard_label(task.context["score"])
        terms, linear = (self._terms(texts, labels, prompts, kind) for kind in ("kernel", "linear"))
        copies = (rates[:, None] > (np.arange(4) + 0.5) / 4).ravel()
        cuts = [rates >= cut for cut in (0.15, 0.35, 0.55, 0.75, 0.95)]
        steps = self.rows[self.rows["model"] == task.model]
        own = steps[steps["step"] == task.step]
        draws = [own.sample(min(CONTEXT, len(own)), random_state=seed) for seed in range(4)]
        combined = {name: expit((linear if "linear" in name else terms) @ w) for name, w in self.weights.items()}
        return {
            REFERENCE: self.logistic.predict(task.context, task.queries),
            **combined,
            "head + difficulty, weights 1": expit(terms[:, 1] + terms[:, 2]),
            "head": expit(terms[:, 1]),
            "head, 16 estimators": self._probabilities(texts, labels, prompts, self.heads[16]),
            "head, context rows x 4 by score": self._probabilities(np.repeat(texts, 4).tolist(), copies, prompts),
            "head, five score thresholds": np.mean([self._probabilities(texts, cut, prompts) for cut in cuts], axis=0),
            "head, mean over 4 contexts": np.mean([self._on(rows, prompts) for rows in draws], axis=0),
            "head, all rows of the group": self._on(own, prompts),
            "head, all steps of the model": self._on(steps, prompts),
        }

    def _at(self, texts: Iterable[str]) -> Array:
        return np.array([self.number[text] for text in texts])

    def _logits(self, texts: list[str], labels: Array, prompts: list[str], head: InContextHead) -> Tensor:
        return head(self.features[self._at(texts)], torch.from_numpy(labels), self.features[self._at(prompts)])

    def _terms(self, texts: list[str], labels: Array, prompts: list[str], kind: str) -> Array:
        logits, of_all = self._logits(texts, labels, prompts, self.head), self.difficulties[kind]
        of_context, of_queries = of_all[self._at(texts)], of_all[self._at(prompts)]
        return combination_terms(logits, torch.from_numpy(labels), of_context, of_queries).double().numpy()

    def _probabilities(
        self, texts: list[str], labels: Array, prompts: list[str], head: InContextHead | None = None
    ) -> Array:
        return self._logits(texts, labels, prompts, head or self.head).double().softmax(dim=-1)[:, 1].numpy()

    def _on(self, rows: pd.DataFrame, prompts: list[str]) -> Array:
        return self._probabilities(rows["prompt"].tolist(), hard_label(rows["score"]), prompts)


def _head(model: ValueModel, estimators: int) -> InContextHead:
    head = model.head
    return InContextHead(head.network, head.architecture, replace(head.config, estimators=estimators))


def calibrated(queries: pd.DataFrame, p: Array, batch: int = 64) -> Array:
    """``p`` after the online calibration of V0.5's belief, each batch of a group by the batches before it."""
    out, state = np.empty_like(p), Calibration.start()
    shuffled = queries.sample(frac=1, random_state=0)
    for rows in [g.index[i : i + batch] for _, g in shuffled.groupby("step") for i in range(0, len(g), batch)]:
        evidence = Evidence(p[rows], np.zeros(len(rows)), np.zeros(len(rows)))
        out[rows] = success_of_reward(state.belief(evidence).prior)
        n = queries.loc[rows, "n"].to_numpy()
        state = state.fit(evidence, success(queries.loc[rows]).to_numpy() * n, n)
    return out


def fold_of(prompts: pd.Series) -> pd.Series:
    """Fold of each row, by prompt."""
    texts = prompts.unique()
    folds = np.random.default_rng(100).permutation(len(texts)) % FOLDS
    return prompts.map(dict(zip(texts, folds, strict=True)))


def fold_predictions(
    settings: TrainSettings,
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    out: Path,
    share: Callable[[Trainer], Embedder],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train on one fold's rows; queries and the variants' predictions for them."""
    out.mkdir(parents=True, exist_ok=True)
    train.to_parquet(out / "train.parquet")
    settings = replace(settings, out=str(out), data=replace(settings.data, paths=[str(out / "train.parquet")]))
    trainer = Trainer(settings, load_data(settings), ProcessGroup())
    trainer.embed = share(trainer)
    while trainer.update < trainer.updates:
        trainer.advance()
    model = trainer.finish()
    tasks = tasks_from(train, held_out, CONTEXT, 0)
    assert trainer.data.validation is not None
    selection = [trainer.data.validation.draw(0, i) for i in range(len(trainer.data.validation))]
    texts = pd.concat([train, held_out])["prompt"].unique().tolist()
    with torch.no_grad():
        variants = Variants(model, trainer.embed, train, trainer.data.train.table, selection, texts)
        print(out.name, {name: weights.round(2).tolist() for name, weights in variants.weights.items()}, flush=True)
        p = pd.concat([pd.DataFrame(variants.predict(task)) for task in tasks], ignore_index=True)
    return pd.concat([task.queries for task in tasks], ignore_index=True), p


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="train.parquet of value_model.trajectories")
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="as of value_model.train, with a difficulty")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    settings = load_settings(args.config, [*args.overrides, f"out={args.out}", f"data.paths=[{args.table}]"])
    table = read_trajectories([args.table])
    folds, shared = fold_of(table["prompt"]), []

    def share(trainer: Trainer) -> Embedder:
        """One cache of token states for every fold, whose encoder is the same frozen one."""
        shared.append(trainer.embed)
        shared[0].model = trainer.model
        return shared[0]

    found = [
        fold_predictions(settings, table[folds != i], table[folds == i], args.out / f"fold_{i}", share)
        for i in range(FOLDS)
    ]
    queries, p = (pd.concat(parts, ignore_index=True) for parts in zip(*found, strict=True))
    for name in ("value model", "head"):
        models = [calibrated(g.reset_index(drop=True), p.loc[g.index, name].to_numpy()) for _, g in by_model(queries)]
        order = np.concatenate([g.index for _, g in by_model(queries)])
        p[f"{name}, calibrated online"] = pd.Series(np.concatenate(models), index=order)
    predictions = Predictions(queries, p, {name: 0.0 for name in p})
    draws = bootstrap(predictions, DRAWS)
    metrics = [f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")]
    tables = summary(predictions, draws)[metrics], differences(predictions, draws, REFERENCE)[metrics]
    text = "\n\n".join([markdown_table(tables[0]), markdown_table(tables[1], emphasise=True)]) + "\n"
    (args.out / "variants.md").write_text(text)
    print(text)


def by_model(queries: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each model: a run calibrates the belief of one policy."""
    return list(queries.groupby("model"))


if __name__ == "__main__":
    main()
