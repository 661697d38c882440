"""A device's state folder: its id, its journal, its snapshot; held by one process at a time."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import cbor2

from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import lock_folder, move_into_place, sync_folder, write_atomically
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.signing import Signer
from fedspzo.device_runtime.protocol.sums import Sums
from fedspzo.device_runtime.protocol.topics import valid_id
from fedspzo.device_runtime.replica.chain import EMPTY, Record, Row, chain, make_records
from fedspzo.device_runtime.replica.device_key import open_signer, read_hand_overs
from fedspzo.device_runtime.replica.journal import Journal, connect
from fedspzo.device_runtime.replica.weights import Replica

log = logging.getLogger(__name__)

DATABASE, SNAPSHOT = "journal.sqlite", "snapshot.safetensors"
#: The round after which the server has no backup of the journal's entries, once it has said so.
KEEP = "keep"
#: The server's hand-overs to other keys, as they were signed.
HAND_OVERS = "hand-overs"
#: Folder of entries that the server has signed for one round, where it has signed two.
EVIDENCE = "evidence"
#: Files in it at most, the first ones: a server can sign without end.
MOST_EVIDENCE = 16
#: Cache of activations, see :mod:`fedspzo.device_runtime.step.prefix_cache`.
PREFIX = "prefix.sqlite"
#: The last round that the device measured in for a plan with ``replay``, and how many before that one: a number each.
MEASURED = "measured"
#: Account of joules, see :mod:`fedspzo.device_runtime.energy.book`.
ENERGY = "energy.jsonl"
#: Entries applied between snapshots.
SNAPSHOT_EVERY = 50
#: Bytes of entries that are kept at most for a server that has no backup of them, beside those not in the snapshot.
MOST_KEPT_BYTES = 1 << 26


class DeviceState:
    """Replica = snapshot + the journal after it. Whatever instant the process dies at, opening again gives the same.

    Attributes:
        folder: where it lies.
        device: the device's id.
        replica: the weights at the last round on disk.
        signer: signs what the device sends.
        hand_overs_to_key: of its former keys, see ``protocol.device_keys``.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        device: str | None = None,
        afresh: bool = False,
        threads: int = 1,
        ahead: bool = False,
    ) -> None:
        """Open or create a state folder and catch up to the end of its journal.

        Args:
            device: the id to use; by default the folder's own, made at random the first time.
            afresh: forget all but the id and the key, by which the server knows the device, and begin at θ₀.

            threads, ahead: see :class:`fedspzo.device_runtime.replica.weights.Replica`.

        Raises:
            StateError: the folder is in use, cannot be written, is damaged or belongs to another device or bundle.
        """
        self.folder = folder
        _check_no_server(folder)
        with ExitStack() as stack:
            stack.enter_context(lock_folder(folder))
            try:
                if afresh:
                    for file in (
                        "bundle",
                        KEEP,
                        PREFIX,
                        MEASURED,
                        ENERGY,
                        SNAPSHOT,
                        *(DATABASE + end for end in ("", "-wal", "-shm")),
                    ):
                        (folder / file).unlink(missing_ok=True)
                    sync_folder(folder)
                self.device = _claim_id(folder, device)
                _claim(folder / "bundle", "bundle", bundle.identity.hex())
                self._keep_after = int(text) if (text := _read(folder / KEEP)).isdecimal() else None
            except (OSError, UnicodeDecodeError) as error:
                raise StateError(
                    "state.unusable", f"{folder} cannot be used ({error}); choose another folder"
                ) from None
            self._snapshot = folder / SNAPSHOT
            self._journal = Journal(stack.enter_context(closing(connect(folder / DATABASE))))
            self.signer, self.hand_overs_to_key = open_signer(folder, self.device)
            self.replica = Replica(bundle, self._snapshot, threads, ahead)
            self._replay()
            self._held = stack.pop_all()

    def apply(self, entry: Entry) -> None:
        """As :meth:`apply_all`, for one entry."""
        self.apply_all([entry])

    def apply_all(self, entries: Sequence[Entry]) -> None:
        """As :meth:`follow`, for entries that have no records yet."""
        self.follow(list(make_records(entries, self.replica.head)))

    def follow(self, records: Sequence[Record]) -> None:
        """Write the next rounds' entries down, then apply them; now and then put a snapshot in the journal's place.

        Raises:
            StateError: an entry is not the next round's.
            PlanError: an entry does not fit the bundle.
        """
        for ahead, record in enumerate(records):
            self.replica.check(record.entry, ahead)
        self._journal.extend(records)
        self.replica.apply_all([record.entry for record in records], records[-1].head)
        if self.replica.round - self._snapshot_round >= SNAPSHOT_EVERY:
            self.snapshot()

    def snapshot(self) -> None:
        """Write a snapshot of the replica and forget the journal before it."""
        self.replica.save_snapshot(self._snapshot)
        self._snapshot_round = self.replica.round
        self._forget()

    def keep(self, after: int) -> None:
        """Keep entries of later rounds than one, until told otherwise: the server has no backup of them.

        Raises:
            StateError: the disk refuses.
        """
        if after == self._keep_after:
            return
        self._write(KEEP, str(after).encode())
        self._keep_after = after
        self._forget()

    def measured_before(self, round: int) -> int:
        """In how many rounds the device has measured before one, by what :meth:`keep_measured` kept."""
        try:
            last, before = map(int, _read(self.folder / MEASURED).split())
        except (OSError, ValueError):  # it has not, or a damaged file starts again
            return 0
        return before + (last != round)

    def keep_measured(self, round: int) -> None:
        """The device has measured in a round.

        Raises:
            StateError: the disk refuses.
        """
        self._write(MEASURED, f"{round} {self.measured_before(round)}".encode())

    def hand_overs(self) -> tuple[bytes, ...]:
        """What :meth:`keep_hand_overs` kept; nothing where that is damaged."""
        return read_hand_overs(self.folder / HAND_OVERS)

    def keep_hand_overs(self, signed: Sequence[bytes]) -> None:
        """Keep the server's hand-overs to other keys, all of them, also beyond ``afresh``.

        Raises:
            StateError: the disk refuses.
        """
        self._write(HAND_OVERS, cbor2.dumps(list(signed)))

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_atomically(self.folder / name, content)
        except OSError as error:
            raise StateError(
                "state.unusable", f"{self.folder} cannot be used ({error}); choose another folder"
            ) from None

    def kept(self, after: int, most_bytes: int) -> tuple[bytes, ...]:
        """Signed entries of the rounds after one, where they are kept here; see :meth:`Journal.kept`."""
        return self._journal.kept(after, most_bytes)

    def known(self, round: int) -> tuple[bytes, Row] | None:
        """A round of the journal and the hash of the journal before it, where both are kept here."""
        rows = {row.round: row for row in self._journal.rows(round - 2, 2)}
        if round not in rows or (round > 1 and round - 1 not in rows):
            return None
        return (rows[round - 1].head if round > 1 else EMPTY), rows[round]

    def keep_evidence(self, before: bytes, own: Row, other: bytes) -> tuple[Path, bool]:
        """Keep two entries that the server has signed for one round, as CBOR; returns the file, and whether it is new.

        With :data:`MOST_EVIDENCE` files nothing is written, and the folder is returned.

        Args:
            before: hash of the journal before the round.
            other: the second entry, signed.

        Raises:
            StateError: the disk refuses.
        """
        folder = self.folder / EVIDENCE
        file = folder / f"{own.round:08d}-{chain(before, other).hex()[:8]}.cbor"
        if file.exists():
            return file, False
        try:
            folder.mkdir(0o700, exist_ok=True)
            if len(list(folder.glob("*.cbor"))) >= MOST_EVIDENCE:
                return folder, True
            write_atomically(file, cbor2.dumps([own.round, before, own.signed, other]))
        except OSError as error:
            raise StateError("state.unusable", f"{folder} cannot be used ({error}); choose another folder") from None
        return file, True

    def _forget(self) -> None:
        """Drop entries that the snapshot stands for, but not those that a server may want back."""
        up_to = self._snapshot_round
        if self._keep_after is not None:
            up_to = min(up_to, max(self._keep_after, self._journal.beyond(up_to, MOST_KEPT_BYTES)))
        self._journal.forget(up_to)

    def adopt(self, file: Path) -> None:
        """Take a snapshot file that was made elsewhere for this device's own.

        Raises:
            StateError: it is damaged or of another bundle; the replica is then as it was.
        """
        try:
            self.replica.restore(file)
        except StateError:
            self.replica.restore(self._snapshot if self._snapshot.exists() else None)
            self._replay()
            raise
        move_into_place(file, self._snapshot)
        self._snapshot_round = self.replica.round
        self._forget()

    def rebase(self, round: int, head: bytes, sums: Sums) -> None:
        """Go to a round that rebases without the entries up to it; see ``replica.weights.Replica.rebase``.

        Raises:
            PlanError: the sums do not fit the bundle; all is then as it was.
        """
        self.replica.rebase(round, head, sums)
        self.snapshot()

    def close(self) -> None:
        """Let go of the folder: another state may then be opened in it. This one must not be used any more."""
        self._held.close()

    def _replay(self) -> None:
        """Take the replica from its snapshot to the end of the journal."""
        self._snapshot_round = self.replica.round
        self._forget()  # a kill may have come between a snapshot and this
        entries: list[Entry] = []
        try:
            entries.extend(self._journal.entries(after=self.replica.round, head=self.replica.head))
        except StateError as error:
            if error.kind not in ("journal.entry-damaged", "journal.round-missing"):
                raise
            last = self.replica.round + len(entries)
            log.warning("a bit has flipped in the journal after round %d; the server is asked for the rest again", last)
            self._journal.drop(after=last)
        if entries:
            self.replica.apply_all(entries, self._journal.head(entries[-1].round))


def read_identity(folder: Path, device: str | None = None) -> tuple[str, bytes]:
    """The id and the public key of the device that a state folder belongs to, made where it is new.

    Raises:
        StateError: the folder is in use, cannot be written, or belongs to another device.
    """
    name, signer = open_identity(folder, device)
    return name, signer.public


def open_identity(folder: Path, device: str | None = None) -> tuple[str, Signer]:
    """As :func:`read_identity`, with what signs by the key."""
    _check_no_server(folder)
    with lock_folder(folder):
        try:
            name = _claim_id(folder, device)
            return name, open_signer(folder, name)[0]
        except (OSError, UnicodeDecodeError) as error:
            raise StateError("state.unusable", f"{folder} cannot be used ({error}); choose another folder") from None


def _check_no_server(folder: Path) -> None:
    if (folder / "server.sqlite").exists():
        raise StateError(
            "state.a-servers", f"{folder} is the state folder of a server; give the device a folder of its own"
        )


def _claim_id(folder: Path, device: str | None) -> str:
    """The id of a folder's device: the one that is asked for, or else its own, made at random the first time."""
    name = device if device is not None else f"device-{secrets.token_hex(4)}"
    if not valid_id(name):
        raise StateError("device.name", f"'{name}' is not a valid device id; use up to 64 letters, digits, '-' and '_'")
    return _claim(folder / "device", "device", name, keep=device is None)


def _claim(file: Path, what: str, value: str, keep: bool = False) -> str:
    """What a folder belongs to: recorded the first time; later it must be the same, unless any will do (``keep``)."""
    known = _read(file)
    if known and not keep and known != value:
        raise StateError(
            "state.other-owner",
            f"{file.parent} belongs to {what} '{known}', not '{value}'; give each a folder of its own"
            + (", or start the device once with --afresh, which keeps its id and key" if what == "bundle" else ""),
        )
    if not known:
        write_atomically(file, value.encode())
    return known or value


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""
