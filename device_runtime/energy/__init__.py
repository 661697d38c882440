"""Joules: readers of the sensors that there are, sampled on a thread, with what is idle subtracted and the rest
attributed to the phases of the work and to rounds."""
