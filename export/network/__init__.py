"""A checkpoint and a task as a network: stages, their graphs, and where their tensors come from."""
