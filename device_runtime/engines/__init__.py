"""Engines, which run stage graphs. Each is a module of its own, imported only when it is chosen."""
