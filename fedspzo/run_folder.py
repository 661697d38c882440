"""A run's folder, ``bundle/`` and ``server/``: the model that its journal stands for. A bundle alone is θ₀."""

from __future__ import annotations

from pathlib import Path

from fedspzo.broker.server.store import newest_snapshot, read_journal
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.replica.weights import Replica

BUNDLE, SERVER = "bundle", "server"


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle's own, and not a run's."""
    return (folder / MANIFEST).is_file()


def open_bundle(folder: Path) -> Bundle:
    """The bundle of a run, or the one that the folder is. Raises as :func:`open_run` does."""
    if is_bundle(folder):
        return Bundle(folder)
    _check_run(folder)
    return Bundle(folder / BUNDLE)


def open_run(folder: Path) -> Replica:
    """The replica of a run's last round: the server's snapshot with the journal after it.

    Raises:
        StateError, BundleError: the folder is not a run's, or is damaged.
    """
    _check_run(folder)
    replica = Replica(Bundle(folder / BUNDLE), newest_snapshot(folder / SERVER))
    replay(replica, folder / SERVER)
    return replica


def open_model(folder: Path) -> Replica:
    """The replica of a run's last round, or a bundle's θ₀. Raises as :func:`open_run` does."""
    return Replica(Bundle(folder)) if is_bundle(folder) else open_run(folder)


def replay(replica: Replica, server: Path) -> None:
    """Apply the entries of a server's journal that the replica does not have."""
    replica.apply_all([entry for entry in read_journal(server) if entry.round > replica.round])


def _check_run(folder: Path) -> None:
    if not (folder / BUNDLE).is_dir() or not (folder / SERVER).is_dir():
        raise StateError(f"{folder} is not a run: it needs the folders '{BUNDLE}' and '{SERVER}'; see fedspzo demo")
