"""The part of FedSPZO that runs on a phone or a board: forward passes of an exported bundle, seeds and scalars."""
