"""Graphs in each engine's format, and the constants that belong to them."""
