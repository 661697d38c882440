"""Virtual devices by the thousand, over the same rounds, estimator and journal as those that are live."""
