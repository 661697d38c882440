"""The part of FedSPZO that runs on a phone or a board: forward passes of an exported bundle, seeds and scalars."""

if __name__ != "fedspzo.device_runtime":
    raise ImportError("this package is imported as fedspzo.device_runtime, so that no module is loaded under two names")
