"""One page from everything that was measured: ``README.md``, figures, and the numbers as CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.estimators import figures, findings, tables
from benchmarks.estimators.allocations import COST, K_INIT, K_MAX, STEP
from benchmarks.estimators.catalogue import AUCS, CONSTANT, HELD_OUT, MIDDLE, PUBLIC, SHUFFLED
from benchmarks.estimators.estimators import EMPIRICAL_BAYES, SHRINKAGE
from benchmarks.estimators.populations import LOGIT_BOUND, POINTS
from benchmarks.estimators.summary import CELL
from benchmarks.whole_file import write_text
from value_model.evaluation.predictions import VALUE_MODEL

BATCHES_SHOWN = (0, 1, 2, 4, 9)
KEPT = [*CELL, "rollouts", "mse", "mse_low", "mse_high", "bias", "bayes"]  # in cells.csv


@dataclass(frozen=True)
class Found:
    """What the page is made of.

    Attributes:
        graded, real, visited: cells of :func:`benchmarks.estimators.summary.cells`, by kind of population.
        real_means: of :func:`benchmarks.estimators.summary.sequence_means`.
        learning: of :func:`benchmarks.estimators.summary.learning`.
        gradients: of :func:`benchmarks.estimators.gradient.run`.
        quality: AUC against one outcome of the real priors, of the measured rows and of the population made of them.
        conditions: how much was simulated, with which seed: a sentence.
    """

    graded: pd.DataFrame
    real: pd.DataFrame
    visited: pd.DataFrame
    real_means: pd.DataFrame
    learning: pd.DataFrame
    gradients: pd.DataFrame
    quality: pd.DataFrame
    conditions: str

    @property
    def cells(self) -> pd.DataFrame:
        """All of them."""
        return pd.concat([self.graded, self.real, self.visited], ignore_index=True)


def write(out: Path, found: Found) -> None:
    """Write the page into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    learning = found.learning[found.learning["estimator"].isin([EMPIRICAL_BAYES, SHRINKAGE])]
    for name, table in {"cells": found.cells[KEPT], "learning": learning, "gradients": found.gradients}.items():
        write_text(out / f"{name}.csv", table.to_csv(index=False, float_format="%.4g"))
    figures.by_rollouts(found.cells, _panels(found.cells), out / "by_rollouts.png")
    figures.to_bayes(found.graded, list(dict.fromkeys(found.graded["distribution"])), out / "to_bayes.png")
    figures.learning_curves(found.learning, out / "learning.png")
    write_text(out / "README.md", page(found))


def page(found: Found) -> str:
    """The page's text; every number in it is one of ``found``'s."""
    learnt = [batch for batch in BATCHES_SHOWN if batch in set(found.learning["batch"])]
    table = tables.markdown
    count = found.cells.groupby(["distribution", "prior"]).ngroups
    return f"""# Baselines against what is possible

`python -m benchmarks.estimators --public FOLDER --prior-model MODEL --encoder FOLDER` (`make bench-estimators`).
FOLDER is `data/` of a clone of [Now-Join-Us/V0](https://github.com/Now-Join-Us/V0), MODEL what
[`benchmarks/value_model_public.sh`](../../value_model_public.sh) trains on it. Everything is a simulation
on success rates; no policy is trained here. {found.conditions}

## The answer

Squared error of empirical Bayes over that of another baseline, on rewards of -1 and +1, on the held-out prompts of
the public data; below 1 it is better. Brackets are 95 % t-intervals over sequences of batches, here and everywhere.
"OSLA's rollouts": Eq. 9 with one-step look-ahead decides how many rollouts the batch gets; the posterior allocation
and the Bayes limit divide exactly as many, or fewer, among the same prompts.

{table(tables.targets(found.real_means))}

Over all {count} populations, point estimates:

{table(tables.worst(found.cells))}

{_list(found)}

## What is measured

A population is a joint distribution of a prompt's success rate p and of what is known of it before the first rollout,
on a grid of {POINTS} values of p. So the posterior given everything known and seen is exact: its mean is the best
baseline there is (the **Bayes limit**), its variance that baseline's squared error (the **Bayes risk**), and dynamic
programming on it is the best allocation. Nothing that is compared with them knows the population. A squared error is
(baseline - posterior mean)² + posterior variance, which has the mean of the error against the true rate and less
noise.

- *Real prior*: predictions on prompts that were held out from training. P(p | prediction) is a kernel mixture of the
  posteriors of the rows with predictions alike, so its information is that of the real predictor, less what the
  kernel smears:

{_indented(table(_rounded(found.quality)))}

- *Graded prior*: logit of the prediction = logit p + noise, clipped at ±{LOGIT_BOUND:g}; the noise is set so that the
  AUC against one outcome is that in the table. What even p itself does not reach is left out. "Calibrated" reports
  E(p | x) instead, "{MIDDLE:.2f}, logit 1 + 2x" shifts and stretches the logit x.
- *Useless prior*: the mean for every prompt (constant), or another prompt's prediction (shuffled).
- *Calibration* of empirical Bayes runs on line, from its start, one fit a batch on that allocation's own rollouts.
  The first batches are left out of every table but the learning curve's.
- k from {K_INIT} to {K_MAX} in steps of {STEP}, c = {COST}, as in the paper. "OSLA" is the streaming schedule, which
  has no halt; "OSLA, halt at 25 %" the paper's rounds, padded to 32; "posterior" asks by the posterior variance at
  the same c.
- Leave-one-out baselines differ within a group: their squared error is the mean over its rollouts. OPO's baseline is
  the group mean where lengths are equal, and so are BNPO's and HA-DW's.

![squared error by rollouts](by_rollouts.png)

## The real prior: {VALUE_MODEL}

"As good as a group mean of": rollouts with which a plain mean has the same error; "rollouts saved" is that over the
rollouts used, by which the rows are ranked. "To Bayes": over the Bayes risk with the same rollouts. The last column
is what both allocation rules set out to minimise.

{table(tables.methods(found.real, HELD_OUT, VALUE_MODEL))}

Squared error at fixed k:

{table(tables.fixed(found.real, HELD_OUT, VALUE_MODEL))}

## A useless prior: {SHUFFLED}

{table(tables.methods(found.real, HELD_OUT, SHUFFLED))}

## By quality of the prior

The held-out prompts and the public success rates, all six (model, step) groups together:

{table(tables.qualities(found.cells, [HELD_OUT, PUBLIC]))}

By distribution, the ratio of squared errors of empirical Bayes to the named, lowest to highest over priors (and at
which it is highest):

{table(tables.ranges(found.graded))}

![squared error over the Bayes risk](to_bayes.png)

## A prompt's own history

Prompts seen once before, with 4 or 8 rollouts; since then the logit of p has moved by 0.3 ± 0.5. Eq. 9 takes one
probability: the prediction where there is one, the smoothed history otherwise. Empirical Bayes takes both.

{table(tables.qualities(found.visited, list(dict.fromkeys(found.visited["distribution"]))))}

## How fast the calibration learns

Empirical Bayes on the real prior and on one that is as good as can be, squared error over the Bayes risk, batch by
batch from the start.

{table(tables.learning_table(found.learning, learnt))}

![learning curve](learning.png)

## The gradient

The whole advantage, normaliser included, on a [softmax policy](../../exact_policy.py) whose gradient of the mean
reward is known; success rates of its prompts are quantiles of the public ones. Methods of verl are verl's own
functions. "Scale": progress along the gradient, 1 if unbiased; "relative noise": trace of the covariance over the
squared progress, what a step of the right length carries; below cosine 1 the direction is biased, which a normaliser
that differs between prompts is by design. The good prior has noise of 0.5 in the logit; a prediction is the mean for
the useless one. k = {K_INIT}, the other sizes in [gradients.csv](gradients.csv). Figures with ± are from random
batches, the others exact.

{table(tables.gradients(found.gradients, K_INIT))}

All cells: [cells.csv](cells.csv); the learning curve: [learning.csv](learning.csv).
"""


def _list(found: Found) -> str:
    sentences = [
        findings.allocation(found.real),
        findings.prior(found.real),
        findings.leave_one_out(found.real),
        findings.learning(found.learning),
        findings.normaliser(found.gradients),
        findings.history(found.visited),
    ]
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _panels(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """The populations to draw: the real prior, the useless ones, and some grades on the public success rates."""
    known = set(cells[["distribution", "prior"]].itertuples(index=False, name=None))
    wanted = [
        *((HELD_OUT, prior) for prior in (VALUE_MODEL, SHUFFLED, CONSTANT)),
        *((PUBLIC, f"AUC {auc:.2f}") for auc in AUCS[::2]),
    ]
    return [case for case in wanted if case in known]


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda x: x if isinstance(x, str) else f"{x:.3f}")


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
