"""``python -m benchmarks.estimators.selection_page``: which prompts get rollouts, and what that does to a gradient.

The page of :mod:`benchmarks.estimators.selection_gradients`; it needs no data. Two minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta

from benchmarks.estimators import selection_gradients as selection
from benchmarks.estimators.advantage_gradients import FIT_BATCHES, FIT_PROMPTS, LEFT_OUT
from benchmarks.estimators.baselines import GROUP_MEAN
from benchmarks.estimators.selection_gradients import ALONE, CONSTANT, EXACT, GRPO, HISTORY, SHAPES, SPARSE, Line, run
from value_model.files import write_text

TEMPLATE = Path(__file__).parent / "selection_page.md"
NAMED = {  # in the page's text
    "grpo": GRPO,
    "grpo_4": replace(GRPO, k=4),
    "grpo_2": replace(GRPO, k=2),
    "alone": ALONE,
    "alone_history": replace(ALONE, prior=HISTORY),
    "alone_constant": replace(ALONE, prior=CONSTANT),
    "alone_exact": replace(ALONE, prior=EXACT),
    "alone_exact_bare": replace(ALONE, prior=EXACT, sigma_floor=1.0),
    "sparse": SPARSE,
    "sparse_history": replace(SPARSE, prior=HISTORY),
    "sparse_exact_bare": replace(SPARSE, prior=EXACT, sigma_floor=1.0),
    "weighted_exact_bare": replace(SPARSE, prior=EXACT, sigma_floor=1.0, weights=True),
    "posterior": replace(SPARSE, prior=HISTORY, utility="posterior"),
    "product": replace(SPARSE, prior=HISTORY, utility="product"),
}


def over_grpo(found: pd.DataFrame) -> dict[Line, pd.DataFrame]:
    """One population's figures by line, one row a policy; trace, noises and progress over those of ``GRPO``."""
    names = [field.name for field in fields(Line)]
    records = [row | {"k": None if pd.isna(row["k"]) else int(row["k"])} for row in found[names].to_dict("records")]
    by_line = dict(tuple(found.set_index("seed").groupby([Line(**row) for row in records], sort=False)))
    grpo = by_line[GRPO]
    compared = {"trace": "trace", "noise": "noise", "own_noise": "noise", "progress": "progress"}
    return {
        line: here.assign(**{name: here[name] / grpo[of] for name, of in compared.items()})
        for line, here in by_line.items()
    }


def table(ratios: Mapping[Line, pd.DataFrame]) -> str:
    """Of :func:`over_grpo`: means over policies, ± their standard error."""
    rows = []
    for line, here in ratios.items():
        unbiased = line.baseline.endswith(LEFT_OUT)
        rows.append(
            {
                "rollouts": f"{line.k} each" if line.k else f"drawn, ε = {line.explore:g}",
                "utility": "" if line.k else line.utility + (", weights" if line.weights else ""),
                "baseline": line.baseline + ("" if line.sigma_floor < 1 else ", not normalised"),
                "prior": "" if line.baseline == GROUP_MEAN else line.prior,
                "trace": _ratio(here["trace"]),
                "noise": _ratio(here["noise"]),
                "cosine": f"{here['cosine'].mean():.3f}",
                "bias": _root(here["bias_sq"]),
                "own: noise": _ratio(here["own_noise"]) if unbiased else "",
                "own: bias": _root(here["own_bias_sq"]) if unbiased else "",
                "progress": _ratio(here["progress"]),
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def page(found: pd.DataFrame, steps: int, seeds: int) -> str:
    """The page's text, of :func:`run` with these arguments."""
    values: dict[str, object] = {"steps": steps, "seeds": seeds, **SHAPES}
    values |= {
        "prompts": selection.PROMPTS,
        "budget": selection.BUDGET,
        "pool": selection.POOL,
        "rate_limit": selection.RATE_LIMIT,
        "auc": selection.V0_AUC,
        "most_earlier": selection.MOST_EARLIER,
        "fit_batches": FIT_BATCHES,
        "fit_prompts": FIT_PROMPTS,
        "fit_rollouts": selection.FIT_ROLLOUTS,
        "extreme_certain": 1 - np.diff(beta.cdf([0.02, 0.98], *SHAPES["extreme"]))[0],
    }
    for name in SHAPES:
        here = found[found["population"] == name]
        ratios = over_grpo(here)
        values |= {
            f"{name}_table": table(ratios),
            f"{name}_noise": {key: ratios[line]["noise"].mean() for key, line in NAMED.items()},
            f"{name}_bias": {key: _root(ratios[line]["bias_sq"]) for key, line in NAMED.items()},
            f"{name}_progress": here.loc[(here["k"] == GRPO.k) & (here["sigma_floor"] < 1), "progress"].mean(),
        }
    return TEMPLATE.read_text().format(**values)


def _ratio(values: pd.Series) -> str:
    return f"{values.mean():.3f} ± {values.sem():.3f}"


def _root(values: pd.Series) -> str:
    return f"{np.sqrt(max(values.mean(), 0.0)):.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    name = "python -m benchmarks.estimators.selection_page"
    parser = argparse.ArgumentParser(prog=name, description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TEMPLATE.parent)
    parser.add_argument("--steps", type=int, default=5000, help="of each line on each policy")
    parser.add_argument("--seeds", type=int, default=8, help="policies of each population")
    args = parser.parse_args(arguments)
    found = run(steps=args.steps, seeds=range(args.seeds))
    write_text(args.out / "selection.csv", found.to_csv(index=False, float_format="%.4g"))
    write_text(args.out / "selection.md", page(found, args.steps, args.seeds))


if __name__ == "__main__":
    main()
