"""A device and a server at work on their state folders, in processes whose power is cut.

Whatever is printed acknowledges what came before: it is to survive.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from fedspzo.broker.rounds.aggregate import ClosedRound, close_round
from fedspzo.broker.server import schema
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import decode, fingerprint
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica import journal
from fedspzo.device_runtime.replica import state as state_module
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica

DEVICES = ("a", "b", "c")
#: Sessions of a process, and the rounds that a snapshot from elsewhere saves it.
SESSIONS, SKIPPED = 3, 4


def results_of(plan: Plan) -> dict[str, Result]:
    """Made-up results of a round, the same in every process."""
    numbers = np.random.default_rng(plan.round)

    def result() -> Result:
        scalars = tuple(numbers.standard_normal(plan.scalars).astype(np.float32).tolist())
        return Result(plan.round, fingerprint(plan), scalars, loss=1.0, examples=4, seconds=0.5, digest=b"")

    return {device: result() for device in DEVICES}


def entry_of(plan: Plan) -> Entry:
    return close_round(plan, results_of(plan))


def set_up(plans_file: str, pragma: str) -> list[Plan]:
    """Read the plans; open every database with one more setting."""

    def connect(path: Path, factory: type[Any] = sqlite3.Connection) -> Any:
        connection = journal.connect(path, factory)
        connection.execute(f"PRAGMA {pragma}")
        return connection

    state_module.connect = schema.connect = connect
    plans = (decode(bytes.fromhex(line)) for line in Path(plans_file).read_text().split())
    return [plan for plan in plans if isinstance(plan, Plan)]


def say(*words: object) -> None:
    """Acknowledge."""
    print(*words, flush=True)


def work_as_device(folder: str, bundle_folder: str, plans_file: str, pragma: str) -> None:
    """Apply all rounds in some sessions, the later of which begin with a snapshot that was made elsewhere."""
    plans, bundle = set_up(plans_file, pragma), Bundle(Path(bundle_folder))
    state_module.SNAPSHOT_EVERY = 6
    for session in range(1, SESSIONS + 1):
        state = DeviceState(Path(folder), bundle)
        say("is", state.device, state.signer.public.hex())
        say("applied", state.replica.round)
        if session > 1:
            other = Replica(bundle, Path(folder, "snapshot.safetensors"))
            for plan in plans[other.round : other.round + SKIPPED]:
                other.apply(entry_of(plan))
            other.save_snapshot(Path(folder, "offered"))
            say("asked", other.round)
            state.adopt(Path(folder, "offered"))
            say("applied", other.round)
        for plan in plans[state.replica.round : len(plans) * session // SESSIONS]:
            say("asked", plan.round)
            state.apply(entry_of(plan))
            say("applied", plan.round)
        if session < SESSIONS:
            state.snapshot()
        state.close()


def work_as_server(folder: str, bundle_folder: str, plans_file: str, pragma: str) -> None:
    """Open and close all rounds, in some sessions that end in the middle of a round, with a snapshot now and then."""
    plans, bundle = set_up(plans_file, pragma), Bundle(Path(bundle_folder))
    for session in range(1, SESSIONS + 1):
        store = ServerStore(Path(folder), bundle.identity)
        say("is", "server", store.signer.public.hex())
        replica = server_replica(store, bundle)
        say("closed", replica.round)
        for plan in plans[replica.round : len(plans) * session // SESSIONS]:
            go_on(store, plan)
            replica.apply(entry_of(plan))
            if plan.round % 6 == 0:
                replica.save_snapshot(store.new_snapshot(plan.round))
                say("snapshot", plan.round)
        if replica.round < len(plans):
            begin(store, plans[replica.round], DEVICES[:2])
        del store


def begin(store: ServerStore, plan: Plan, devices: tuple[str, ...]) -> None:
    """Open a round unless it is open, and take some devices' results."""
    if store.load_open_round(0.0) is None:
        store.save_open_round(plan, DEVICES)
        say("opened", plan.round)
    for device in devices:
        store.save_result(device, results_of(plan)[device])
        say("result", plan.round, device)


def go_on(store: ServerStore, plan: Plan) -> None:
    """Take a round to its end, from wherever it stands."""
    begin(store, plan, DEVICES)
    store.close_round(entry_of(plan), ClosedRound(plan.round, 1.0, DEVICES, 1.0, 0.5))
    say("closed", plan.round)


def server_replica(store: ServerStore, bundle: Bundle) -> Replica:
    replica = Replica(bundle, store.snapshot)
    for entry in store.journal.entries(after=replica.round):
        replica.apply(entry)
    return replica
