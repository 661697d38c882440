"""The model of a folder: a run's (``bundle/`` and ``server/``), a server's or simulation's, or a bundle's.

The state folder of a server or a simulation has a link to its bundle.
"""

from __future__ import annotations

from pathlib import Path

from fedspzo.broker.server.store import BUNDLE, DATABASE, newest_snapshot, open_journal
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.replica.weights import TOGETHER, Replica

SERVER = "server"


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle's own, and not a run's."""
    return (folder / MANIFEST).is_file()


def open_bundle(folder: Path) -> Bundle:
    """The bundle of a run, or the one that the folder is. Raises as :func:`open_run` does."""
    if is_bundle(folder):
        return Bundle(folder)
    _server(folder)
    return Bundle(folder / BUNDLE)


def open_run(folder: Path) -> Replica:
    """The replica of a run's last round: the server's snapshot with the journal after it.

    Args:
        folder: a run's, as the demo makes, or the state folder of a server or a simulation.

    Raises:
        StateError, BundleError: the folder is neither, or is damaged.
    """
    server = _server(folder)
    replica = Replica(Bundle(folder / BUNDLE), newest_snapshot(server))
    replay(replica, server)
    return replica


def open_model(folder: Path) -> Replica:
    """The replica of a run's last round, or a bundle's θ₀. Raises as :func:`open_run` does."""
    return Replica(Bundle(folder)) if is_bundle(folder) else open_run(folder)


def replay(replica: Replica, server: Path) -> None:
    """Apply the entries of a server's journal that the replica does not have."""
    with open_journal(server) as journal:
        while entries := list(journal.entries(replica.round, TOGETHER)):
            replica.apply_all(entries, journal.head(entries[-1].round))


def _server(folder: Path) -> Path:
    """The server's state folder of a run, which may be the folder itself."""
    server = folder if (folder / DATABASE).is_file() else folder / SERVER
    if not server.is_dir():
        raise StateError(
            "state.not-a-run",
            f"{folder} is not a run; give the --state folder of a server or a simulation, or the folder of a demo",
        )
    if not (folder / BUNDLE).is_dir():
        raise StateError(
            "state.no-bundle",
            f"{folder} has no bundle; if it has moved, make the link again: ln -sfn BUNDLE {folder / BUNDLE}",
        )
    return server
