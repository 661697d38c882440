"""What a device's work costs on this machine, each figure with its physical bound."""
