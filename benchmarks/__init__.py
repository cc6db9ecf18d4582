"""Measurements: every figure the README or a release claims comes from a command in here."""
