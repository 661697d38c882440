"""The device's agent: it follows the journal, answers plans, and fetches what it lacks."""
