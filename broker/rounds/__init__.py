"""Rounds as pure functions: a job's settings, plans, cohorts and aggregation."""
