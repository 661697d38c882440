"""What a device has of a model: the bundle with its manifest, its task, and its tensors as they are on disk."""
