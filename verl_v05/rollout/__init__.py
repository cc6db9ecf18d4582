"""Dynamic-sampling rollouts: who gets how many, and when."""
