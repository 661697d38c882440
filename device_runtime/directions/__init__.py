"""Directions: seeded perturbations that are the same bits on every machine. numpy is the reference, C the fast way."""
