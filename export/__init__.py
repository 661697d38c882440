"""Export: a Hugging Face language model becomes a bundle of forward-only graphs, and a trained bundle a checkpoint."""

if __name__ != "fedspzo.export":
    raise ImportError("this package is imported as fedspzo.export, so that no module is loaded under two names")
