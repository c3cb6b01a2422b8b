"""Measures login detection: a seeded generator of a gateway's days with labels, frozen scenarios, and a
scorer."""

VERSION = 1
"""Of the generator. It is part of every seed: a change of what is written must raise it."""
