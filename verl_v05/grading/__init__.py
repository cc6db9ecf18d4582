"""Rule-based correctness of mathematical answers, one function for training and for evaluation.

Importing it needs neither verl, torch nor sympy: sympy is loaded by the first comparison that needs it.
"""

from verl_v05.grading.pool import GradingPool, Verdict, grade

__all__ = ["GradingPool", "Verdict", "grade"]
