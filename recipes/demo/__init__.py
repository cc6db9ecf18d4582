"""A demonstration small enough for a CPU: an arithmetic task and a tiny policy that is partly right."""
