"""Agents: sessions of turns between a policy and a text environment, as an agent loop of verl (docs/agents.md)."""
