"""The weights at a journal position, the journal, and the folder that a device restarts from."""
