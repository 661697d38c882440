"""The machine that a device runs on: power, heat and network, memory, systemd, and the time that phases take."""
