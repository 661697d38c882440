"""Thousands of virtual devices, with the rounds, estimator and journal of a live job."""
