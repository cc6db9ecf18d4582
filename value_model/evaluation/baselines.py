"""Baselines of the evaluation: predictors of success without a value model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from value_model.trajectories import success

Embed = Callable[[Sequence[str]], np.ndarray]
Fit = Callable[[pd.DataFrame], np.ndarray]

FOLDS = 5
STRENGTHS = np.logspace(-3, 3, 7)  # of regularisation


class Predictor(ABC):
    """Predicts success probabilities of one (model, step)'s prompts. ``name`` is its label in tables."""

    name: str

    @abstractmethod
    def predict(self, context: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
        """Success probability of each query, in [0, 1], shape (queries,).

        Args:
            context: trajectories measured on other prompts by the same model; at least one row.
            queries: trajectories to predict; ``score`` and ``n`` are the target, which a predictor must not use.
        """


class Learner(Predictor):
    """A predictor fitted to rows: to each task's context ("in context"), or once to many rows by :class:`Fitted`."""

    @abstractmethod
    def fit(self, rows: pd.DataFrame) -> Fit:
        """Fit to ``rows``; returns the function from queries to probabilities."""

    def predict(self, context: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
        return np.clip(self.fit(context)(queries), 0, 1)


class Fitted(Predictor):
    """A learner fitted once, to rows of any models and steps; it uses only the mean success of the context.

    The rows may be of later steps than the queries' step: the predictor then uses outcomes that are not available at
    that step of a run.

    Args:
        learner: what to fit.
        rows: what to fit it to.
        level: add the context's mean success minus that of ``rows`` to every prediction; without it, the predictions
            do not depend on the model and step of the queries.
    """

    def __init__(self, learner: Learner, rows: pd.DataFrame, level: bool = True):
        self.name = f"{learner.name}, fitted" + ("" if level else ", no level")
        self.level = level
        self._mean = success(rows).mean()
        self._fit = learner.fit(rows)

    def predict(self, context: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
        shift = success(context).mean() - self._mean if self.level else 0.0
        return np.clip(np.clip(self._fit(queries), 0, 1) + shift, 0, 1)


class GlobalMean(Learner):
    """The mean success of the rows, for every query."""

    name = "global mean"

    def fit(self, rows: pd.DataFrame) -> Fit:
        mean = success(rows).mean()
        return lambda queries: np.full(len(queries), mean)


class PromptHistory(Predictor):
    """The prompt's own outcomes of the same model at earlier steps, smoothed with the context's mean success.

    p = (a + strength * g) / (a + b + strength), with a successes and b failures so far; each visit's counts are
    multiplied by ``forgetting`` once for every later visit: the formula of ``verl_v05.prior.HistoryPrior``, whose g is
    the mean of all prompts seen. A prompt without earlier outcomes gets g.

    Args:
        history: trajectories with the earlier outcomes. It may contain the queries' own rows, which are not used.
        forgetting: in [0, 1].
        strength: weight of g in rollouts, > 0.
    """

    name = "prompt history"

    def __init__(self, history: pd.DataFrame, forgetting: float = 0.75, strength: float = 1.0):
        if not 0 <= forgetting <= 1 or not strength > 0:
            raise ValueError(f"forgetting={forgetting} must be in [0, 1] and strength={strength} positive")
        self.forgetting = forgetting
        self.strength = strength
        self._visits = history.sort_values("step").assign(success=success)[
            ["model", "step", "prompt_id", "success", "n"]
        ]

    def predict(self, context: pd.DataFrame, queries: pd.DataFrame) -> np.ndarray:
        mean = success(context).mean()
        counts = pd.concat([self._counts(group) for _, group in queries.groupby(["model", "step"])]).loc[queries.index]
        p = (counts["success"] + self.strength * mean) / (counts["n"] + self.strength)
        return p.to_numpy()

    def _counts(self, queries: pd.DataFrame) -> pd.DataFrame:
        """Successes and rollouts before the queries' one (model, step), on the queries' index."""
        visits = self._visits
        past = visits[(visits["model"] == queries["model"].iloc[0]) & (visits["step"] < queries["step"].iloc[0])]
        later_visits = past.groupby("prompt_id").cumcount(ascending=False)
        n = past["n"] * self.forgetting**later_visits
        sums = past.assign(success=past["success"] * n, n=n).groupby("prompt_id")[["success", "n"]].sum()
        return sums.reindex(queries["prompt_id"]).fillna(0.0).set_axis(queries.index)


class EmbeddingLearner(Learner):
    """A learner on embeddings normalised to unit length.

    Rows of the same prompt are merged into one, with their mean success and their number as its weight, so that
    cross-validation of a hyperparameter never has one prompt on both sides of a split.

    Args:
        embed: texts -> array of shape (texts, d); see :func:`remembered` for a cache.
    """

    def __init__(self, embed: Embed):
        self.embed = embed

    def fit(self, rows: pd.DataFrame) -> Fit:
        prompts = rows.assign(success=success).groupby("prompt", sort=False)["success"].agg(["mean", "size"])
        if len(prompts) < FOLDS or prompts["mean"].nunique() == 1:
            return GlobalMean().fit(rows)  # too few prompts, or only one target value, to choose a hyperparameter
        features = self._features(prompts.index)
        function = self.learn(features, prompts["mean"].to_numpy(), prompts["size"].to_numpy(dtype=np.float64))
        return lambda queries: function(self._features(queries["prompt"]))

    @abstractmethod
    def learn(
        self, features: np.ndarray, success: np.ndarray, weight: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Fit; returns the function from (queries, d) features to probabilities.

        Args:
            features: shape (prompts, d), of at least 5 prompts.
            success: rates, shape (prompts,), not all equal.
            weight: shape (prompts,).
        """

    def _features(self, texts: Sequence[str]) -> np.ndarray:
        return normalize(np.asarray(self.embed(list(texts)), dtype=np.float64))


class KNearest(EmbeddingLearner):
    """Mean success of the k nearest prompts; k minimises the leave-one-out squared error."""

    name = "kNN"

    def __init__(self, embed: Embed, max_k: int = 256):
        super().__init__(embed)
        self.max_k = max_k

    def learn(
        self, features: np.ndarray, success: np.ndarray, weight: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        neighbours = NearestNeighbors(n_neighbors=min(self.max_k, len(features) - 1)).fit(features)
        left_out = _cumulative_means(success[neighbours.kneighbors(return_distance=False)])
        errors = np.average((left_out - success[:, None]) ** 2, axis=0, weights=weight)
        k = int(errors.argmin()) + 1
        return lambda queries: success[neighbours.kneighbors(queries, k, return_distance=False)].mean(axis=1)


class Ridge(EmbeddingLearner):
    """Linear regression of the success rate, its penalty chosen by leave-one-out."""

    name = "ridge"

    def learn(
        self, features: np.ndarray, success: np.ndarray, weight: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        return RidgeCV(alphas=STRENGTHS).fit(features, success, sample_weight=weight).predict


class Logistic(EmbeddingLearner):
    """Logistic regression of the success rate (soft labels), its penalty chosen by 5-fold cross-validation."""

    name = "logistic"

    def learn(
        self, features: np.ndarray, success: np.ndarray, weight: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        folds = KFold(FOLDS, shuffle=True, random_state=0)
        grid = {"strength": STRENGTHS}
        search = GridSearchCV(_SoftLogistic(), grid, scoring="neg_mean_squared_error", cv=folds)
        return search.fit(features, success, sample_weight=weight).predict


class _SoftLogistic(RegressorMixin, BaseEstimator):
    """scikit-learn's logistic regression for success rates: each row once per class, weighted by that class's rate."""

    def __init__(self, strength: float = 1.0):
        self.strength = strength

    def fit(self, features: np.ndarray, success: np.ndarray, sample_weight: np.ndarray) -> _SoftLogistic:
        rows = len(features)
        weights = np.concatenate([sample_weight * success, sample_weight * (1 - success)])
        seen = weights > 0
        self.model_ = LogisticRegression(C=1 / self.strength, max_iter=1000)
        self.model_.fit(np.tile(features, (2, 1))[seen], np.repeat([1, 0], rows)[seen], weights[seen])
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        return self.model_.predict_proba(features)[:, 1]


def remembered(embed: Embed) -> Embed:
    """``embed`` with an unbounded cache: each text is computed once."""
    known: dict[str, np.ndarray] = {}

    def recall(texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, np.asarray(embed(new)), strict=True))
        return np.stack([known[text] for text in texts])

    return recall


def in_context_baselines(embed: Embed | None) -> list[Predictor]:
    """Every baseline that learns from the context alone; without ``embed`` only the global mean."""
    embedding_learners = [KNearest, Ridge, Logistic] if embed else []
    return [GlobalMean(), *(learner(embed) for learner in embedding_learners)]


def fitted_baselines(embed: Embed | None, rows: pd.DataFrame) -> list[Predictor]:
    """Every baseline fitted to all rows, shifted to the context's mean success."""
    return [Fitted(learner, rows) for learner in in_context_baselines(embed) if isinstance(learner, EmbeddingLearner)]


def _cumulative_means(values: np.ndarray) -> np.ndarray:
    """Mean of the first 1, 2, ... columns."""
    return np.cumsum(values, axis=1) / np.arange(1, values.shape[1] + 1)
