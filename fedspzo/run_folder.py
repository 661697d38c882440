"""The model of a folder: a run's (``bundle/`` and ``server/``), a server's or simulation's, or a bundle's.

The state folder of a server or a simulation has a link to its bundle.
"""

from __future__ import annotations

from pathlib import Path

from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.broker.server.held_out import best_of, read_evaluations
from fedspzo.broker.server.state_folder import (
    BUNDLE,
    DATABASE,
    newest_snapshot,
    open_database,
    open_journal,
    snapshot_rounds,
)
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.replica.weights import TOGETHER, Replica

SERVER = "server"
#: Names of rounds: the last one, and that of the best evaluation on held-out examples.
LAST, BEST = "last", "best"


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle's own, and not a run's."""
    return (folder / MANIFEST).is_file()


def open_bundle(folder: Path) -> Bundle:
    """The bundle of a run, or the one that the folder is. Raises as :func:`open_run` does."""
    if is_bundle(folder):
        return Bundle(folder)
    server, bundle = server_folder(folder), Bundle(folder / BUNDLE)
    if not (server / DATABASE).is_file():
        return bundle
    with open_database(server) as connection:
        job = connection.execute("SELECT CAST(bundle AS BLOB) FROM job").fetchone()
    if job and job[0] != bundle.identity:
        raise StateError(
            "state.other-bundle",
            f"{bundle.folder} is not the bundle that {folder} was trained with; put that one back, or make the link to"
            f" it again: ln -sfn BUNDLE {bundle.folder}",
        )
    return bundle


def open_run(folder: Path, round: int | str = LAST) -> Replica:
    """The replica of a run after a round: a snapshot of the server, or θ₀, with the journal after it.

    Args:
        folder: a run's, as the demo makes, or the state folder of a server or a simulation.
        round: its number, or :data:`LAST`, or :data:`BEST`.

    Raises:
        StateError, BundleError: the folder is neither, or is damaged; its bundle is not the job's; or there is no such
            round, or no way to it.
    """
    server, bundle = server_folder(folder), open_bundle(folder)
    if round == BEST:
        best = best_evaluation(folder)
        if best is None:
            raise StateError(
                "state.no-evaluation",
                f"{folder} has no evaluation that says which round is the best; train with held-out examples (server"
                " --data, simulate --held-out), or give a round's number",
            )
        round = best.round
    up_to = None if round == LAST else int(round)
    replica = Replica(bundle, newest_snapshot(server, up_to))
    replay(replica, server, up_to)
    if up_to is not None and replica.round != up_to:
        kept = ", ".join(map(str, [0, *snapshot_rounds(server)]))
        raise StateError(
            "state.no-such-round",
            f"{folder} cannot give round {up_to}: from its snapshots (rounds {kept}) its journal leads to round"
            f" {replica.round}; a run by backpropagation has no journal. Give another round, or 'last'",
        )
    return replica


def open_model(folder: Path, round: int | str = LAST) -> Replica:
    """The replica of a run after a round, or a bundle's θ₀, its round 0. Raises as :func:`open_run` does."""
    if not is_bundle(folder):
        return open_run(folder, round)
    if round not in (LAST, 0):
        raise StateError(
            "state.round-of-a-bundle",
            f"{folder} is a bundle, which has no round {round}; give the folder of a run, or leave the round out",
        )
    return Replica(Bundle(folder))


def best_evaluation(folder: Path) -> Evaluated | None:
    """The best of a run's evaluations on held-out examples. Raises StateError when the folder is not a run."""
    with open_database(server_folder(folder)) as connection:
        return best_of(read_evaluations(connection))


def replay(replica: Replica, server: Path, up_to: int | None = None) -> None:
    """Apply the entries of a server's journal that the replica does not have, up to a round where one is given."""
    with open_journal(server) as journal:

        def wanted() -> int:
            return TOGETHER if up_to is None else max(0, min(TOGETHER, up_to - replica.round))

        while entries := list(journal.entries(replica.round, wanted())):
            replica.apply_all(entries, journal.head(entries[-1].round))


def server_folder(folder: Path) -> Path:
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
