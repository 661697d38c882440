"""FedSPZO on a fleet of Flower: its grid takes the place of the broker, see docs/flower.md.

A server's and a device's messages travel in Flower's, as the bytes that they are on MQTT, with their signatures:
:mod:`fedspzo.flower.server_app` runs a server, :mod:`fedspzo.flower.client_app` a device.
"""

from __future__ import annotations

from fedspzo.device_runtime.errors import FedSPZOError

try:
    import flwr as _flwr  # noqa: F401
except ImportError:
    raise FedSPZOError(
        "install.flower",
        "Flower is not installed here, and it does not go beside the server extra; in an environment of its own, in a"
        " clone of FedSPZO, run: pip install '.[flower,litert]'",
    ) from None
