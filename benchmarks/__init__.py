"""Paired measurements; the only place speed and memory claims come from."""
