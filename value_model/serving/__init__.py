"""Serving a value model: replicas beside the policy, and an HTTP endpoint."""
