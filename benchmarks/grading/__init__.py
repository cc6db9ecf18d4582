"""The grader beside the scorers that verl has, on the published golds: `python -m benchmarks.grading`."""
