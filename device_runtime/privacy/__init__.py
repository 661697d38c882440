"""What a device does to its result before it sends it in a sum: clip and count in whole numbers, then mask."""
