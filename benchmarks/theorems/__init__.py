"""The paper's theorems against exact enumeration: ``python -m benchmarks.theorems``."""
