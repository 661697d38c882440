"""Invitations on the screen, for phones."""

from __future__ import annotations


def print_code(text: str) -> None:
    """Print an invitation as a QR code and as text. Raises BrokerError where the library for codes is missing."""
    from fedspzo.device_runtime.errors import BrokerError, install_hint
    from fedspzo.device_runtime.link.invitation import QR_BYTES

    try:
        import segno
    except ImportError:
        raise BrokerError("access.no-qr-library", f"QR codes need segno; {install_hint('server')}") from None
    if len(text) <= QR_BYTES:
        segno.make_qr(text, error="l", boost_error=False).terminal(compact=True)
    else:
        print(f"no QR code can hold its {len(text)} bytes; pass the text on")
    print(text, flush=True)
