"""What the server must not lose: the journal, the open round and its results, in one SQLite file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import astuple, replace
from pathlib import Path

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.rounds.anomalies import Record
from fedspzo.broker.rounds.masked_round import MaskedRound, begin_round
from fedspzo.broker.rounds.open_round import OpenRound
from fedspzo.broker.server.devices import Member
from fedspzo.broker.server.member_tables import load_members, save_members
from fedspzo.broker.server.records import read_records
from fedspzo.broker.server.schema import check_whole, writing
from fedspzo.broker.server.shared.file import open_file
from fedspzo.broker.server.shared.holding import Held
from fedspzo.broker.server.shared.postgres import Postgres
from fedspzo.broker.server.signing_key import open_signer, read_keys
from fedspzo.broker.server.state_folder import (
    DATABASE,
    LAST_ROUND,
    SNAPSHOTS,
    has_moved,
    history,
    list_snapshots,
    newest_snapshot,
)
from fedspzo.device_runtime.errors import MessageError, StateError
from fedspzo.device_runtime.files import open_private, write_atomically
from fedspzo.device_runtime.protocol.codec import decode, encode
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.masked import Masked, Partner
from fedspzo.device_runtime.protocol.messages import Rebase, Result
from fedspzo.device_runtime.protocol.plan import MAX_SUMS, Plan
from fedspzo.device_runtime.protocol.signing import SIGNATURE_BYTES, Scope, split
from fedspzo.device_runtime.protocol.sums import EMPTY_SUMS, Sums, follow
from fedspzo.device_runtime.replica.chain import EMPTY, make_records
from fedspzo.device_runtime.replica.journal import Journal, connect
from fedspzo.device_runtime.replica.state import PREFIX

#: Snapshots that are kept beside the best round's: the one before the newest may be on its way to a device.
KEPT = 2


class ServerStore:
    """The server's state folder. What a method writes is on disk when it returns, or when a transaction around it ends.

    Attributes:
        bundle: identity of the job's bundle.
        name: of the job.
        journal: the entries of closed rounds.
        sums: what they add up to; None where they are not of one pool of seeds.
        check: of the signature of an entry, for the hash of the journal before it.
        rebase: the sums at the last round that rebased, if one did.
        keys: the server's public keys.
        signer: signs what the server sends, with the newest of them; made here the first time.
        activations: a file for a :class:`~fedspzo.device_runtime.step.prefix_cache.PrefixCache` of held-out examples.
    """

    def __init__(self, folder: Path, bundle: bytes, name: str = "default", held: Held | None = None) -> None:
        """Open or create.

        Args:
            bundle: identity of the job's bundle.
            name: of the job, which is part of what its entries are signed for.
            held: the job, by whoever has taken it already; this object lets go of it.

        Raises:
            StateError: the folder cannot be used, or belongs to another job.
        """
        self._held = held or Held(folder, folder / DATABASE)
        self.bundle, self.name = bundle, name
        self._database = folder / DATABASE
        self.activations = folder / PREFIX
        self._last_round = folder / LAST_ROUND
        self._unnoted: int | None = None
        self._snapshots = folder / SNAPSHOTS
        self._snapshots.mkdir(0o700, exist_ok=True)
        self.sums: Sums | None = EMPTY_SUMS
        with ExitStack() as opened:
            opened.callback(self._held.close)
            self._connection = opened.enter_context(closing(open_file(self._database)))
            check_whole(self._connection, self._database)
            if self._held.database is not None:
                self._fetch_snapshot(self._held.database)
            self.keys = read_keys(self._connection, folder, bundle, name)
            self.signer = open_signer(self._connection, folder)
            self.check = self.keys.check_entry
            self.journal = Journal(self._connection, self.check)
            self._claim(folder)
            self.rebase = self._load_rebase()
            self._add_up()
            opened.pop_all()

    def close(self) -> None:
        """Let go of the folder: another server may then be opened in it. This object must not be used any more."""
        self._connection.close()
        self._held.close()

    def __enter__(self) -> ServerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open_journal(self) -> Journal:
        """The journal for another thread: what is committed, over a connection of its own."""
        return Journal(connect(self._database), self.check)

    def _add_up(self) -> None:
        """Read the whole journal, which checks it, and add it up from where that is kept; see :attr:`sums`."""
        start = 0
        if self.rebase:
            start, self.sums = self.rebase.round, self.rebase.sums
        for entry in self.journal.entries():
            if entry.round > start:
                self.sums = follow(self.sums, entry)
                if self._rebases(entry):
                    self.rebase = Rebase(entry.round, self.journal.head(entry.round) or EMPTY, self.sums or EMPTY_SUMS)

    def _rebases(self, entry: Entry) -> bool:
        """Whether devices that are late can be sent the sums after an entry that has just been added up."""
        return bool(entry.plan.rebases and self.sums and self.sums.pool * len(self.sums.blocks) <= MAX_SUMS)

    def _claim(self, folder: Path) -> None:
        """Record which job the folder belongs to, the first time; raise StateError when it is another's."""
        with self.transaction() as execute:
            row = execute("SELECT bundle, name FROM job").fetchone()
            if row is None:
                execute("INSERT INTO job VALUES (?, ?)", (self.bundle, self.name))
                return
        if row[0] != self.bundle:
            raise StateError(
                "state.other-bundle", f"{folder} belongs to another bundle; give each job its own state folder"
            )
        if row[1] != self.name:
            raise StateError(
                "state.other-job", f"{folder} belongs to the job '{row[1]}'; give each job its own state folder"
            )

    def save_open_round(self, plan: Plan, cohort: tuple[str, ...]) -> None:
        """Record the plan and who is asked, before they are. What answered another plan of the round is forgotten."""
        encoded = encode(plan)
        with self.transaction() as execute:
            before = execute("SELECT CAST(plan AS BLOB) FROM open_round").fetchone()
            if before is not None and before[0] != encoded:
                execute("DELETE FROM results")
                execute("DELETE FROM summed")
            execute("DELETE FROM open_round")
            execute("INSERT INTO open_round VALUES (?, ?, ?)", (plan.round, encoded, " ".join(cohort)))

    def save_groups(self, round: int, groups: Iterable[Sequence[str]]) -> None:
        """Record whose results are added up in the open round, before they hear of it."""
        with self.transaction() as execute:
            for group in groups:
                execute("INSERT INTO summed VALUES (?, ?)", (round, " ".join(group)))

    def save_partner(self, device: str, card: Partner) -> None:
        """Keep a device's keys."""
        with self.transaction() as execute:
            execute("INSERT OR REPLACE INTO partners VALUES (?, ?, ?, ?, ?)", (device, *astuple(card)))

    def load_partners(self) -> list[tuple[str, Partner]]:
        """Devices and their keys."""
        rows = self._connection.execute("SELECT * FROM partners ORDER BY device").fetchall()
        return [(device, Partner(*keys)) for device, *keys in rows]

    def load_open_round(self, now: float) -> OpenRound | None:
        """The round that was open when the server stopped, with the results it had, opened again at ``now``."""
        row = self._connection.execute("SELECT plan, cohort FROM open_round").fetchone()
        if row is None:
            return None
        plan = decode(row[0])
        if not isinstance(plan, Plan):
            raise StateError(
                "state.open-round-damaged",
                "the record of the open round is damaged; restore the server's state folder from a backup, or remove"
                " it",
            )
        rows = self._connection.execute("SELECT device, result FROM results WHERE round = ?", (plan.round,))
        results = {device: decode(blob) for device, blob in rows.fetchall()}
        opened = begin_round(plan, tuple(row[1].split()), now)
        opened.results.update((device, each) for device, each in results.items() if isinstance(each, Result))
        if isinstance(opened, MaskedRound):
            groups = self._connection.execute("SELECT devices FROM summed WHERE round = ?", (plan.round,)).fetchall()
            opened.groups = tuple(tuple(devices.split()) for (devices,) in groups)
            opened.masked.update((device, each) for device, each in results.items() if isinstance(each, Masked))
        return opened

    def save_result(self, device: str, result: Result | Masked) -> None:
        """Keep a device's result of the open round; a second one of the same device changes nothing."""
        with self.transaction() as execute:
            execute("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", (result.round, device, encode(result)))

    def close_round(self, entry: Entry, closed: ClosedRound) -> bytes:
        """Sign and append the entry and forget the open round, at once or not at all; returns the entry as it travels.

        Its bytes are made once, and hashed once for the journal.
        """
        before = self.journal.head(entry.round - 1) or EMPTY
        record = next(make_records([entry], before))
        signed = self.signer.sign(record.payload, Scope(self.name, self.bundle, head=before))
        with self.transaction() as execute:
            self.journal.append(replace(record, signature=signed[-SIGNATURE_BYTES:]))
            self.sums = follow(self.sums, entry)
            if self._rebases(entry):
                self.rebase = Rebase(entry.round, record.head, self.sums or EMPTY_SUMS)
                kept = self.signer.sign(encode(self.rebase), Scope(self.name, self.bundle, head=record.head))
                execute("INSERT OR REPLACE INTO rebase VALUES (1, ?)", (kept,))
            execute("DELETE FROM open_round")
            execute("DELETE FROM results")
            execute("DELETE FROM summed")
            self._unnoted = entry.round
            spent = closed.spending
            joules = (spent.joules, spent.uncertainty, spent.devices, spent.estimated) if spent else (None,) * 4
            execute(
                "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (closed.round, closed.loss, " ".join(closed.devices), closed.seconds, closed.step_seconds, time.time(),
                 *joules),
            )  # fmt: skip
        return signed

    def _load_rebase(self) -> Rebase | None:
        """The sums at the last round that rebased, as they were kept; None where a bit in them has flipped."""
        row = self._connection.execute("SELECT CAST(message AS BLOB) FROM rebase").fetchone()
        try:
            message = decode(split(row[0])) if row else None
            if not isinstance(message, Rebase) or self.journal.head(message.round) != message.head:
                return None
            self.check(row[0], message.head)
        except MessageError:
            return None
        return message

    @property
    def moved(self) -> bool:
        """Whether the journal may not be the newest, as that of a copy; see :func:`~.state_folder.has_moved`."""
        if self._held.database is not None:
            return self._held.database.moved
        return has_moved(self._connection, self._database.parent)

    def settle(self) -> None:
        """Note that this file has the newest journal."""
        if self._held.database is not None:
            self._held.database.settle()
        with self.transaction() as execute:
            execute("INSERT OR REPLACE INTO place VALUES (1, ?)", (self._database.stat().st_ino,))
            self._unnoted = self.journal.last_round

    @property
    def backed_up(self) -> int:
        """The last round that a backup has, see :func:`fedspzo.broker.server.backup.back_up`; 0 without one."""
        row = self._connection.execute("SELECT round FROM backup").fetchone()
        return row[0] if row else 0

    def counted(self, round: int, device: str) -> bool:
        """Whether a device's result is part of a closed round."""
        row = self._connection.execute("SELECT devices FROM history WHERE round = ?", (round,)).fetchone()
        return row is not None and device in row[0].split()

    def history(self) -> list[ClosedRound]:
        """What became of each closed round."""
        return history(self._connection)

    @property
    def closed_at(self) -> float | None:
        """When the last round was closed, as Unix time; None where none was."""
        row = self._connection.execute("SELECT closed FROM history ORDER BY round DESC LIMIT 1").fetchone()
        return row[0] if row else None

    def save_members(self, members: Iterable[Member]) -> None:
        """Keep what is known of some devices."""
        with self.transaction() as execute:
            save_members(execute, members)

    def load_members(self) -> Iterator[Member]:
        """The devices that are known; none of them is there yet."""
        return load_members(self._connection)

    def save_authorities(self, fingerprint: bytes) -> None:
        """Keep which authorities the server trusts at its broker."""
        with self.transaction() as execute:
            execute("INSERT OR REPLACE INTO authorities VALUES ('', ?)", (fingerprint,))

    def save_records(self, records: Mapping[str, Record]) -> None:
        """Keep what was unusual in some devices' results."""
        with self.transaction() as execute:
            for device, record in records.items():
                execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (device, *astuple(record)))

    def load_records(self) -> dict[str, Record]:
        """What was unusual in devices' results."""
        return read_records(self._connection)

    def load_blocked(self) -> dict[str, bytes]:
        """Devices that are blocked, and their public keys; other processes change them."""
        return dict(self._connection.execute("SELECT name, key FROM blocked").fetchall())

    def load_enrolled(self, name: str | None = None) -> dict[str, tuple[bytes, str]]:
        """Devices that an invitation for many has let in, or one of them: name → public key and group."""
        which = "" if name is None else " AND name = ?"
        rows = self._connection.execute(
            f"SELECT name, key, \"group\" FROM enrolled WHERE state = 'admitted'{which}",
            () if name is None else (name,),
        )
        return {device: (key, group) for device, key, group in rows.fetchall()}

    def save_former_keys(self, device: str, keys: Iterable[bytes]) -> None:
        """Keep which keys a device has replaced by others."""
        with self.transaction() as execute:
            for key in keys:
                execute("INSERT OR IGNORE INTO former_keys VALUES (?, ?)", (key, device))

    def load_former_keys(self) -> dict[bytes, str]:
        """Keys that devices have replaced by others → the devices, the oldest first."""
        return dict(
            self._connection.execute("SELECT CAST(key AS BLOB), device FROM former_keys ORDER BY rowid").fetchall()
        )

    def save_counts(self, counts: Mapping[str, int]) -> None:
        """Keep what happened how often."""
        with self.transaction() as execute:
            for name, count in counts.items():
                execute("INSERT OR REPLACE INTO counts VALUES (?, ?)", (name, count))

    def load_counts(self) -> dict[str, int]:
        """What happened how often."""
        return dict(self._connection.execute("SELECT name, count FROM counts").fetchall())

    def new_snapshot(self, round: int, best: int | None = None) -> Path:
        """Where the snapshot of a round is written; old ones are removed, except that of the best round."""
        others = [path for path in list_snapshots(self._snapshots) if int(path.stem) not in (round, best)]
        for path in others[: -KEPT + 1]:
            path.unlink(missing_ok=True)
        return self._snapshots / f"{round:08d}.safetensors"

    def share_snapshot(self, round: int) -> None:
        """Give a snapshot to servers elsewhere, if the state is shared. Raises StateError where it cannot be."""
        if self._held.database is not None:
            self._held.database.save_snapshot(round, self.snapshots()[round].read_bytes())

    def _fetch_snapshot(self, database: Postgres) -> None:
        """Take the newest snapshot of a server elsewhere, if it is newer than those here."""
        found = database.load_snapshot(after=max(self.snapshots(), default=0))
        if found is not None:
            write_atomically(self.new_snapshot(found[0]), found[1], mode=0o600)

    def snapshots(self) -> dict[int, Path]:
        """Round → snapshot."""
        return {int(path.stem): path for path in list_snapshots(self._snapshots)}

    @property
    def snapshot(self) -> Path | None:
        """The newest snapshot."""
        return newest_snapshot(self._snapshots.parent)

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """All of what is written inside, or nothing. One inside another is part of it."""
        if self._connection.in_transaction:
            yield self._connection.execute
            return
        self._held.check()
        with writing(self._connection, self._database) as execute:
            yield execute
        self._note_last_round()  # after the database: it may lag, but is never ahead

    def _note_last_round(self) -> None:
        if self._unnoted is None:
            return
        try:
            with open_private(self._last_round, "w") as file:
                file.write(str(self._unnoted))
        except OSError as error:
            raise StateError(
                "state.unwritable", f"{self._last_round} cannot be written ({error.strerror}); make room on the disk"
            ) from None
        self._unnoted = None
