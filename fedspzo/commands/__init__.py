"""One module a command: ``configure`` describes its options, ``run`` does it."""
