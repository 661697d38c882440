"""Building blocks of a network in PyTorch, in the forms that the engines run whole."""
