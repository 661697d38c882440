"""Java's own classes as far as the app's Python uses them."""
