"""Recipes that run on top of verl_v05."""
