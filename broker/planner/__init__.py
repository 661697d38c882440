"""Which settings suit a model and a fleet: measured, predicted, then tried out."""
