"""A run's folder, ``bundle/`` and ``server/``: the model that its journal stands for."""

from __future__ import annotations

from pathlib import Path

from broker.store import SNAPSHOT, read_journal
from device_runtime.bundle import Bundle
from device_runtime.errors import StateError
from device_runtime.replica import Replica

BUNDLE, SERVER = "bundle", "server"


def open_run(folder: Path) -> Replica:
    """The replica of a run's last round: the server's snapshot with the journal after it.

    Raises:
        StateError, BundleError: the folder is not a run's, or is damaged.
    """
    if not (folder / BUNDLE).is_dir() or not (folder / SERVER).is_dir():
        raise StateError(f"{folder} is not a run: it needs the folders '{BUNDLE}' and '{SERVER}'; see fedspzo demo")
    replica = Replica(Bundle(folder / BUNDLE), folder / SERVER / SNAPSHOT)
    replay(replica, folder / SERVER)
    return replica


def replay(replica: Replica, server: Path) -> None:
    """Apply the entries of a server's journal that the replica does not have."""
    for entry in read_journal(server):
        if entry.round > replica.round:
            replica.apply(entry)
