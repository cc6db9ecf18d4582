"""What the paper's theorems say, against exact enumeration: ``python -m benchmarks.theorems``."""
