"""The key of a device's state folder, and those before it.

A new one lies under another name until the old one's hand-over is on the disk, so whatever is killed, one of the two
names has the newest key.
"""

from __future__ import annotations

from pathlib import Path

import cbor2

from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.files import lock_folder, move_into_place, write_atomically
from fedspzo.device_runtime.protocol.device_keys import MOST, former_keys, hand_over
from fedspzo.device_runtime.protocol.plain_cbor import loads
from fedspzo.device_runtime.protocol.signing import Signer

#: Files: the key, the one that is yet to take its place, and the hand-overs of those before.
KEY, NEXT, FORMER = "device.key", "device.key.next", "former-keys"


def open_signer(folder: Path, device: str) -> tuple[Signer, tuple[bytes, ...]]:
    """What signs with a device's newest key, made where it is new, and the hand-overs to it.

    Raises:
        StateError: a file cannot be used.
    """
    hand_overs = read_hand_overs(folder / FORMER)
    if (folder / NEXT).is_file() and _leads(device, Signer(folder / NEXT), hand_overs):
        move_into_place(folder / NEXT, folder / KEY)  # a change that was broken off
    signer = Signer(folder / KEY)
    return signer, hand_overs if _leads(device, signer, hand_overs) else ()


def change_key(folder: Path) -> tuple[str, bytes]:
    """Give a device that is stopped another key; returns its id and the new public key.

    Raises:
        StateError: not a device's folder, or it is in use, or cannot be written.
    """
    if not (folder / KEY).is_file() or not (folder / "device").is_file():
        raise StateError(
            "state.not-a-devices", f"{folder} is not the state folder of a device; give one as --state has"
        )
    try:
        lock = lock_folder(folder)
    except StateError:
        raise StateError(
            "state.in-use", f"a device runs on {folder}; stop it first, and start it again afterwards"
        ) from None
    with lock:
        try:
            device = (folder / "device").read_text(encoding="utf-8").strip()
            signer, hand_overs = open_signer(folder, device)
            (folder / NEXT).unlink(missing_ok=True)  # of a change that was broken off before it counted
            new = Signer(folder / NEXT)
            kept = [*hand_overs, hand_over(signer, device, new.public)][-MOST:]
            write_atomically(folder / FORMER, cbor2.dumps(kept))
            move_into_place(folder / NEXT, folder / KEY)
        except (OSError, UnicodeDecodeError) as error:
            raise StateError("state.unusable", f"{folder} cannot be used ({error}); choose another folder") from None
    return device, new.public


def _leads(device: str, signer: Signer, hand_overs: tuple[bytes, ...]) -> bool:
    """Whether hand-overs lead to a key."""
    try:
        return bool(former_keys(device, signer.public, hand_overs))
    except MessageError:
        return False


def read_hand_overs(file: Path) -> tuple[bytes, ...]:
    """The hand-overs in a file, in CBOR; nothing where it is damaged or missing."""
    try:
        found = loads(file.read_bytes())
    except (OSError, MessageError):
        return ()
    whole = isinstance(found, list) and all(isinstance(each, bytes) for each in found)
    return tuple(found) if whole else ()
