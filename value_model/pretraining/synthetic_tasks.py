"""Synthetic tasks for in-context learning: rows of features, and the success rate of each row.

A task is drawn in three parts: the latent factors of a row (Gaussian, clusters, tokens), how its logit of success
depends on them (linear, smooth, a network, prototypes, products, thresholds), and the observed features (factors mixed,
rotated, warped, among irrelevant columns). Success is noisy: part of the logit is independent of the features, and
labels come from 1 to 16 rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from value_model.conversions import hard_label, reward_of_success

Array = np.ndarray
Structure = Callable[[np.random.Generator, int], Array]  # (rng, rows) -> factors (rows, d)
Response = Callable[[np.random.Generator, Array], Array]  # (rng, factors) -> one number per row (rows,)

MAX_ROLLOUTS = 16
_EPSILON = 1e-6


class Tasks(NamedTuple):
    """A batch of tasks; float32 arrays."""

    x: Array  # observed features, (batch, rows, features)
    probability: Array  # true success probability of each row, in (0, 1), (batch, rows)
    success_rate: Array  # mean of the task's rollouts for each row, in [0, 1], (batch, rows)

    @property
    def labels(self) -> Array:
        """Hard label of each row as the value model makes it: success rate of at least a half, (batch, rows) bool."""
        return hard_label(reward_of_success(self.success_rate))


def sample_tasks(rng: np.random.Generator, batch: int, rows: int, features: int) -> Tasks:
    """Draw ``batch`` independent tasks of ``rows`` rows and ``features`` columns; they depend on ``rng`` alone.

    Raises:
        ValueError: ``batch`` or ``features`` below 1, or fewer than 2 rows.
    """
    if batch < 1 or features < 1 or rows < 2:
        raise ValueError(f"batch and features must be at least 1, rows at least 2; got {batch=}, {features=}, {rows=}")
    tasks = [_sample_task(rng, rows, features) for _ in range(batch)]
    return Tasks(*(np.stack(part).astype(np.float32) for part in zip(*tasks, strict=True)))


def _sample_task(rng: np.random.Generator, rows: int, features: int) -> tuple[Array, Array, Array]:
    factors = _choose(rng, STRUCTURES)(rng, rows)
    response = _standardise(_choose(rng, RESPONSES)(rng, _standardise(factors)))
    probability = _success_probability(rng, response)
    rollouts = rng.integers(1, MAX_ROLLOUTS + 1)
    return _observe(rng, factors, features), probability, rng.binomial(rollouts, probability) / rollouts


def _choose(rng: np.random.Generator, options: Sequence) -> Callable:
    return options[int(rng.integers(len(options)))]


def _standardise(values: Array) -> Array:
    return (values - values.mean(0)) / (values.std(0) + _EPSILON)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _success_probability(rng: np.random.Generator, response: Array) -> Array:
    """Sigmoid of base rate, signal and unobserved noise; large scales give U-shaped success rates."""
    invisible = rng.beta(1.0, 1.5)
    signal = np.sqrt(1 - invisible) * response + np.sqrt(invisible) * rng.standard_normal(len(response))
    scale = _log_uniform(rng, 0.7, 8.0)
    base = rng.normal(0.0, 0.5 + 0.4 * scale)
    return 1 / (1 + np.exp(-np.clip(base + scale * signal, -15, 15)))


# Latent factors of the rows.


def _gaussian_factors(rng: np.random.Generator, rows: int) -> Array:
    """Independent factors whose variances fall off as a power law, as principal components' do."""
    rank = int(_log_uniform(rng, 2, 64))
    return rng.standard_normal((rows, rank)) * np.arange(1, rank + 1) ** -rng.uniform(0, 1)


def _clusters(rng: np.random.Generator, rows: int) -> Array:
    count, dimension = rng.integers(2, 16), int(_log_uniform(rng, 2, 32))
    centres = rng.standard_normal((count, dimension))
    chosen = rng.choice(count, rows, p=rng.dirichlet(np.ones(count)))
    return centres[chosen] + rng.uniform(0.1, 1.5) * rng.standard_normal((rows, dimension))


def _tokens(rng: np.random.Generator, rows: int) -> Array:
    """A model of short texts: in each slot one token of a small vocabulary, one-hot (operand, operator, template)."""
    slots = [_one_hot(rng, rows) for _ in range(rng.integers(2, 7))]
    return np.concatenate(slots, axis=1)


def _one_hot(rng: np.random.Generator, rows: int) -> Array:
    size = int(rng.integers(2, 13))
    frequency = rng.dirichlet(np.full(size, 3.0))
    return np.eye(size)[rng.choice(size, rows, p=frequency)]


STRUCTURES: tuple[Structure, ...] = (_gaussian_factors, _clusters, _tokens)


# How the logit of success depends on the factors (standardised, (rows, d)).


def _direction(rng: np.random.Generator, dimension: int) -> Array:
    """Weights of which a random share is zero, never all."""
    weights = rng.standard_normal(dimension) * (rng.random(dimension) < rng.uniform(0.1, 1))
    weights[rng.integers(dimension)] += rng.choice([-1.0, 1.0])
    return weights / np.linalg.norm(weights)


def _linear(rng: np.random.Generator, factors: Array) -> Array:
    return factors @ _direction(rng, factors.shape[1])


def _smooth(rng: np.random.Generator, factors: Array, waves: int = 64) -> Array:
    """A draw from a Gaussian process with an RBF kernel, by random Fourier features."""
    length = _log_uniform(rng, 0.7, 4.0) * np.sqrt(factors.shape[1])
    frequencies = rng.standard_normal((factors.shape[1], waves)) / length
    return np.cos(factors @ frequencies + rng.uniform(0, 2 * np.pi, waves)) @ rng.standard_normal(waves)


def _network(rng: np.random.Generator, factors: Array) -> Array:
    hidden, width = factors, int(rng.integers(4, 33))
    for _ in range(rng.integers(1, 3)):
        weights = rng.standard_normal((hidden.shape[1], width)) * rng.uniform(0.7, 2) / np.sqrt(hidden.shape[1])
        hidden = np.tanh(hidden @ weights + 0.5 * rng.standard_normal(width))
    return hidden @ rng.standard_normal(width)


def _prototypes(rng: np.random.Generator, factors: Array) -> Array:
    """Average of the prototypes' values, weighted by a softmax of their negative distances to the row."""
    prototypes = factors[rng.choice(len(factors), min(len(factors), int(rng.integers(3, 17))), replace=False)]
    distance = ((factors[:, None] - prototypes) ** 2).mean(-1)
    nearness = np.exp(-(distance - distance.min(1, keepdims=True)) / _log_uniform(rng, 0.05, 1.0))
    return nearness / nearness.sum(1, keepdims=True) @ rng.standard_normal(len(prototypes))


def _products(rng: np.random.Generator, factors: Array) -> Array:
    """Linear part plus products; for one-hot tokens a product depends on their co-occurrence."""
    pairs = sum(_standardise(_linear(rng, factors) * _linear(rng, factors)) for _ in range(rng.integers(1, 3)))
    return _standardise(_linear(rng, factors)) + rng.uniform(0.2, 1.0) * pairs


def _thresholds(rng: np.random.Generator, factors: Array) -> Array:
    """A sum of step functions, each of one factor or of one direction."""
    steps = (_step(rng, factors) for _ in range(rng.integers(1, 6)))
    return sum(steps, start=np.zeros(len(factors)))


def _step(rng: np.random.Generator, factors: Array) -> Array:
    values = factors[:, rng.integers(factors.shape[1])] if rng.random() < 0.5 else _linear(rng, factors)
    return rng.standard_normal() * (values > rng.choice(values))


# _linear is twice as likely: at this noise, most of what a few hundred labels can teach is linear.
RESPONSES: tuple[Response, ...] = (_linear, _linear, _smooth, _network, _prototypes, _products, _thresholds)


# Observed features of the rows.


def _observe(rng: np.random.Generator, factors: Array, features: int) -> Array:
    """Observed columns: relevant ones by one of the views, then irrelevant ones; in random order or by variance."""
    relevant = features if rng.random() < 0.4 else int(rng.integers(max(1, features // 6), features + 1))
    columns = _choose(rng, VIEWS)(rng, factors, relevant)
    columns = _standardise(columns) + _log_uniform(rng, 0.01, 0.7) * rng.standard_normal(columns.shape)
    columns = _warp(rng, np.concatenate([columns, _irrelevant(rng, len(factors), features - relevant)], axis=1))
    if rng.random() < 0.3:
        return _by_variance(columns)
    return columns[:, rng.permutation(features)]


def _mixed(rng: np.random.Generator, factors: Array, count: int) -> Array:
    """Random projections: every column depends on every factor, as in an embedding."""
    return factors @ rng.standard_normal((factors.shape[1], count))


def _sparsely_mixed(rng: np.random.Generator, factors: Array, count: int) -> Array:
    """Every column depends on one to three factors."""
    mixing = np.zeros((factors.shape[1], count))
    for column in mixing.T:
        column[rng.integers(factors.shape[1], size=rng.integers(1, 4))] = rng.choice([-1.0, 1.0])
    return factors @ mixing


def _encoded(rng: np.random.Generator, factors: Array, count: int) -> Array:
    """A random non-linear encoder over the factors."""
    hidden = np.tanh(_mixed(rng, _standardise(factors), 2 * count) * rng.uniform(0.3, 1.5) / np.sqrt(factors.shape[1]))
    return hidden @ rng.standard_normal((2 * count, count))


def _unit_length(rng: np.random.Generator, factors: Array, count: int) -> Array:
    """Rows of unit length, as sentence embeddings are."""
    columns = _mixed(rng, factors, count)
    return columns / (np.linalg.norm(columns, axis=1, keepdims=True) + _EPSILON)


VIEWS = (_mixed, _sparsely_mixed, _encoded, _unit_length)


def _irrelevant(rng: np.random.Generator, rows: int, count: int) -> Array:
    """Columns that do not depend on the success; with probability 1/2 they are correlated with each other."""
    noise = rng.standard_normal((rows, count))
    return noise @ rng.standard_normal((count, count)) if rng.random() < 0.5 else noise


def _warp(rng: np.random.Generator, columns: Array) -> Array:
    kind = rng.integers(5)
    if kind == 0:
        return np.tanh(columns * rng.uniform(0.5, 2))
    if kind == 1:
        return np.sign(columns) * np.abs(columns) ** rng.uniform(0.5, 2)
    return columns


def _by_variance(columns: Array) -> Array:
    """Principal components, the largest first; columns beyond the rank are zero."""
    centred = columns - columns.mean(0)
    components = np.linalg.svd(centred, full_matrices=False)
    scores = np.zeros_like(columns)
    scores[:, : len(components.S)] = components.U * components.S
    return scores
