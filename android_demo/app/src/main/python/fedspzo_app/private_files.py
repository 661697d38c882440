"""The app's private folder: which file is what, and secrets that lie on disk only sealed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import make_folder, write_atomically
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.replica.device_key import KEY


class Vault(Protocol):
    """Seals texts with a key that does not leave the phone."""

    def seal(self, text: str) -> str:
        """The text, enciphered."""

    def open(self, text: str) -> str:
        """What was sealed. Raises an exception when it was altered, or the key is gone."""


@dataclass(frozen=True)
class PrivateFiles:
    """Names of what the app keeps.

    Attributes:
        root: the folder, which only this app can read.
    """

    root: Path

    @property
    def bundle(self) -> Path:
        """The imported bundle."""
        return self.root / "bundle"

    @property
    def examples(self) -> Path:
        """The phone's examples and reactions, JSON lines."""
        return self.root / "examples.jsonl"

    @property
    def tokens(self) -> Path:
        """The examples' tokens, kept by the runtime."""
        return self.root / "tokens.npz"

    @property
    def state(self) -> Path:
        """The runtime's state: journal, snapshot, id."""
        return self.root / "state"

    @property
    def history(self) -> Path:
        """What the rounds gave, for the screen."""
        return self.root / "history.jsonl"

    @property
    def improvement(self) -> Path:
        """How the model did on held-back examples."""
        return self.root / "improvement.json"

    @property
    def limits(self) -> Path:
        """Within which the phone takes part."""
        return self.root / "limits.json"

    @property
    def paused(self) -> Path:
        """There while the user wants no training."""
        return self.root / "paused"

    @property
    def finished(self) -> Path:
        """There when the job has ended, with the number of its last round."""
        return self.root / "finished"

    @property
    def invitation(self) -> Path:
        """Access and job, sealed."""
        return self.root / "invitation.sealed"

    @property
    def key(self) -> Path:
        """The device's private key, sealed."""
        return self.root / "key.sealed"

    @property
    def plain_key(self) -> Path:
        """The device's private key as the runtime reads it: there while a state is being opened, and no longer."""
        return self.state / KEY

    def write(self, file: Path, content: bytes) -> None:
        """Write a file that appears whole or not at all."""
        make_folder(file.parent)
        write_atomically(file, content, mode=0o600)

    def save_invitation(self, invitation: Invitation, vault: Vault) -> None:
        """Keep the right to take part, sealed."""
        self.write(self.invitation, vault.seal(invitation.text()).encode())

    def load_invitation(self, vault: Vault) -> Invitation | None:
        """The right to take part, or None before the phone has joined.

        Raises:
            StateError: it cannot be unsealed.
        """
        return Invitation.parse(self._unseal(self.invitation, vault)) if self.invitation.exists() else None

    @contextmanager
    def key_unsealed(self, vault: Vault) -> Iterator[None]:
        """Lay the device's key where the runtime reads it, or makes it; afterwards it is there only sealed.

        A kill in between leaves it plain, in a folder that only this app can read, until the next time.
        """
        if self.key.exists():
            self.write(self.plain_key, bytes.fromhex(self._unseal(self.key, vault)))
        try:
            yield
        finally:
            if self.plain_key.exists():
                if not self.key.exists():
                    self.write(self.key, vault.seal(self.plain_key.read_bytes().hex()).encode())
                self.plain_key.unlink()

    def forget_membership(self) -> None:
        """Remove what ties the phone to a federation; bundle and examples stay."""
        for file in (self.invitation, self.key, self.history, self.improvement, self.paused, self.finished):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.state, ignore_errors=True)

    def _unseal(self, file: Path, vault: Vault) -> str:
        try:
            return vault.open(file.read_text(encoding="ascii"))
        except Exception as error:  # Java's exceptions are not known here
            raise StateError(
                "state.sealed",
                f"{file.name} cannot be unsealed ({type(error).__name__}), because the phone's key store was emptied"
                " or the app's files come from another phone; leave, and join with a new invitation",
            ) from None


def parse_invitation(text: str) -> Invitation:
    """An invitation as it is scanned, or the content of an access file, or a broker's URL.

    Raises:
        BrokerError: it is not one of these.
    """
    text = text.strip()
    if text.startswith("{"):
        return Invitation(Access.from_json(text, "this text"))
    return Invitation(Access.parse(text)) if "://" in text else Invitation.parse(text)
