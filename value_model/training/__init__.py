"""Training of the value model's adapter."""
