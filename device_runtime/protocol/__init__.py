"""What travels between a device and its server: plans, entries and other messages, their topics and signatures."""
