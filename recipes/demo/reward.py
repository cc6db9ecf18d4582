"""The demo's rule reward, loaded by verl by file path, hence free of imports from this package."""

from typing import Any


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Score one response: 1.0 where it equals the ground truth after both are stripped, else 0.0.

    `acc` repeats `score`, because verl's validation reports `acc` where a reward names it.
    The other arguments are verl's calling convention and do not enter.
    """
    correct = float(solution_str.strip() == ground_truth.strip())
    return {"score": correct, "acc": correct}
