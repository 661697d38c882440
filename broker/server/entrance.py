"""Which devices may take part in a job: what the operator's list, invitations, blocks and the devices' own keys say."""

from __future__ import annotations

from collections.abc import Sequence

from fedspzo.broker.rounds.anomalies import Watch
from fedspzo.broker.server.admission import Admission
from fedspzo.broker.server.blocking import Blocked
from fedspzo.broker.server.copies import Copies
from fedspzo.broker.server.device_keys import DeviceKeys
from fedspzo.broker.server.devices import Member, Roster
from fedspzo.broker.server.enrolment.enrolled import Enrolled
from fedspzo.broker.server.store import ServerStore


class Entrance:
    """Decides it, on the server's thread; any thread may ask for groups.

    Attributes:
        copies: notices devices that run twice.
    """

    def __init__(
        self, store: ServerStore, roster: Roster, copies: Copies, watch: Watch, admission: Admission | None = None
    ) -> None:
        """Read what the store has.

        Args:
            admission: the operator's list; without one, whoever the broker lets in may take part.
        """
        self.copies = copies
        self._roster, self._watch, self._admission = roster, watch, admission
        self._blocked, self._enrolled, self._keys = Blocked(store), Enrolled(store), DeviceKeys(store)

    @property
    def has_groups(self) -> bool:
        """Whether devices may be in groups."""
        return self._admission is not None or bool(self._enrolled)

    def group(self, device: str) -> str:
        """The group that a device is in, "" for none."""
        return self._enrolled.group(device) or (self._admission.group(device) if self._admission else "")

    def changed(self) -> bool:
        """Whether other devices are blocked or listed than when this was asked last."""
        blocked = self._blocked.changed()
        self._roster.blocked = self._blocked.names
        return blocked or (self._admission is not None and self._admission.changed())

    def barred(self, member: Member) -> str | None:
        """Why a member may not take part any more; None where it may."""
        return self._refused(member.name, *self._keys.former(member.name), member.key)

    def refusal(self, device: str, key: bytes, former: Sequence[bytes]) -> str | None:
        """Why a device may not take part that has shown that a key is its own; None where it may.

        Args:
            former: the keys before it, which have signed so.
        """
        known, keys = self._roster.get(device), (*former, key)
        own = known is not None and known.key in keys
        if not own and self._keys.replaced(keys):
            return "its key was replaced by another one; bring back its newest device.key and former-keys"
        if (reason := self._refused(device, *self._keys.former(device) * own, *keys)) is not None:
            return reason
        if (reason := self.copies.refusal(device, key)) is not None:
            return reason
        if self._admission is None and known is not None and not own:
            return (
                "its id belongs to another device's key; bring back its device.key, give it another id, or"
                " have the server forget this one (fedspzo forget)"
            )
        return None

    def rekey(self, member: Member, key: bytes, former: Sequence[bytes]) -> None:
        """Know a member by the key that it has shown; those before it are of no use any more."""
        self._keys.keep(member.name, former)
        self._roster.rekey(member, key)

    def _refused(self, device: str, *keys: bytes) -> str | None:
        """Why a device may not take part by the last of its keys; None where it may by one of them."""
        expelled = self._watch.expelled(device)
        if expelled is not None:
            return f"it was expelled ({expelled}); correct its data or program, then have the server forget it"
        for key in keys:
            if (blocked := self._blocked.refusal(device, key)) is not None:
                return blocked
        if (known := self._enrolled.key(device)) is not None and known in keys:
            return None
        if self._admission is not None:
            refusals = [self._admission.refusal(device, key) for key in keys]
            return None if None in refusals else refusals[-1]
        return None if known is None else "its id was given to another device's key, which an invitation has let in"
