"""Measuring a value model against baselines."""
