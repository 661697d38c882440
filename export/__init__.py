"""Export: a Hugging Face language model becomes a bundle of forward-only graphs, and a trained bundle a checkpoint."""
