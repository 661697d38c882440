"""The last check of an export: the whole bundle against what transformers computes from the same folder."""
