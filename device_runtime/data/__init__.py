"""A device's examples: read from files, turned into token ids, and kept as arrays."""
