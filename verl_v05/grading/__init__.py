"""Rule-based correctness of mathematical answers. Importing it loads neither verl, torch nor sympy."""

from verl_v05.grading.pool import GradingPool, Verdict, grade

__all__ = ["GradingPool", "Verdict", "grade"]
