"""What ``import fedspzo`` gives, by subject: models, simulation, planning, devices, trackers of experiments."""
