"""Training runs compared on the demo's arithmetic: methods, fusions of prior and rollouts, priors."""
