"""The demo's rule reward, loaded by verl by file path, hence free of imports from this package."""

from typing import Any

CALCULATION = "verl_v05/demo_calculation"
SEPARATOR = ","  # before the answer of a calculation


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float]:
    """Score one response: 1.0 where its answer equals the ground truth after both are stripped, else 0.0.

    The answer is the response, or of a calculation what follows its last comma. `acc` repeats `score`, because verl's
    validation reports `acc` where a reward names it. The other arguments are verl's calling convention.
    """
    answer = solution_str.rpartition(SEPARATOR)[2] if data_source == CALCULATION else solution_str
    correct = float(answer.strip() == ground_truth.strip())
    return {"score": correct, "acc": correct}
