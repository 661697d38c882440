"""A step of the estimator: perturbations go through the stages, and losses come back as scalars."""
