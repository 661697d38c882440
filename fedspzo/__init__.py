"""The ``fedspzo`` command."""
