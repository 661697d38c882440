"""Android's classes as far as the app's Python uses them, over a JSON file that says how the phone is."""
