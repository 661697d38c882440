"""What a device's work costs on this machine, each figure beside its physical bound."""
