"""Serving a value model: replicas next to the policy's ranks, and an HTTP endpoint."""
