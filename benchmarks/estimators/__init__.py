"""Baselines and gradients of every estimator on populations whose best possible answer is known."""
