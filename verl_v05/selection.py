"""Division of a fixed number of rollouts among a pool of prompts, some of which get none.

Each prompt's expected number is decided first, then integers are drawn that have these expectations and sum exactly to
the budget. The gradient of one step, sum over rollouts of A grad log pi, then has the expectation of the sum over
prompts of ``expected`` x (its mean over the policy's rollouts): without weights the step ascends sum_i expected_i J_i
with the expectations held fixed, and with each rollout weighed by 1 / expected_i the plain sum_i J_i.
"""

from __future__ import annotations

import numpy as np


def expected_counts(utility: np.ndarray, budget: int, *, explore: float, most: float) -> np.ndarray:
    """Expected rollouts of each prompt: an equal share of ``explore`` x budget, the rest in proportion to utility.

    Args:
        utility: what a rollout of each prompt is worth, >= 0 and finite, shape (P,).
        budget: rollouts in all, in [0, P x most].
        explore: in (0, 1]; a prompt expects at least explore x budget / P, a set of prompts of the pool's share s at
            least explore x s x budget.
        most: largest expectation of a prompt; what is above it goes to the others.

    Returns:
        float64, shape (P,), in (0, most] for a positive budget; the sum is ``budget``.

    Raises:
        ValueError: a value out of range.
    """
    utility, prompts = np.asarray(utility, dtype=np.float64), len(utility)
    if not (np.isfinite(utility) & (utility >= 0)).all():
        raise ValueError(f"utilities must be finite and not negative; got {utility}")
    if not 0 < explore <= 1:
        raise ValueError(f"explore must be in (0, 1]; got {explore}")
    if not 0 <= budget <= prompts * most:
        raise ValueError(f"budget must be in [0, {prompts} prompts x {most}]; got {budget}")
    expected = np.full(prompts, explore * budget / max(prompts, 1))
    full = np.zeros(prompts, dtype=bool)
    # Whoever would exceed the limit is set to it, and the rest is divided again; each pass fills at least one prompt.
    while not full.all():
        rest = budget - most * full.sum() - expected[~full].sum()
        share = _shares(utility[~full]) * rest
        over = expected[~full] + share > most
        if not over.any():
            expected[~full] += share
            break
        full[np.flatnonzero(~full)[over]] = True
    expected[full] = most
    return expected


def draw_counts(expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Integers with these expectations and their exact sum, by systematic sampling.

    Each differs from its expectation by less than 1, and so does the sum over any run of neighbours.

    Args:
        expected: >= 0, shape (P,); the sum must be an integer but for rounding.

    Returns:
        int64, shape (P,).
    """
    edges = np.concatenate([[0.0], np.cumsum(expected)])
    total = round(edges[-1])
    if abs(edges[-1] - total) > 1e-6 * max(1.0, total):
        raise ValueError(f"expected counts must sum to an integer; got {edges[-1]}")
    marks = np.floor(np.minimum(edges, total) + rng.random())
    marks[-1] = marks[0] + total
    return np.diff(marks).astype(np.int64)


def _shares(utility: np.ndarray) -> np.ndarray:
    """In proportion to utility, equal if all is 0; sum 1."""
    utility = utility / max(utility.max(), np.finfo(float).tiny)  # so that no sum overflows
    total = utility.sum()
    return utility / total if total > 0 else np.full(len(utility), 1 / len(utility))
