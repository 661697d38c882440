"""One module for each command: ``configure`` adds its options, ``run`` runs it."""
