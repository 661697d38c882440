"""A cut of power at any instant: what was acknowledged is there, and work goes on from it."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from power_cut import Recording, record
from strace import Kill, NotModelled, Operation, Rename, Say, Sync, Write
from survivors import DEVICES, entry_of, go_on, results_of, server_replica, work_as_device, work_as_server

from fedspzo.broker.server.state_folder import read_history
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica

ROUNDS, SOME_ROUNDS = 60, 24
#: Pages: a checkpoint every few rounds, as a long job has them.
CAREFUL = "wal_autocheckpoint = 20"
CARELESS = "synchronous = OFF"


@dataclass(frozen=True)
class Job:
    """The rounds, and the digest after each of them from θ₀ on, as a replica that wrote nothing has it."""

    bundle: Bundle
    plans: list[Plan]
    digests: list[bytes]


def acknowledged(said: list[str], what: str) -> int:
    """The last round of which something was said."""
    rounds = [int(line.split()[1]) for line in said if line.startswith(f"{what} ")]
    return max(rounds, default=0)


def check_device(folder: Path, job: Job, said: list[str]) -> None:
    state = DeviceState(folder, job.bundle)
    assert not said or said[0].split()[1:] == [state.device, state.signer.public.hex()], "it has another name or key"
    round = state.replica.round
    assert acknowledged(said, "applied") <= round <= acknowledged(said, "asked"), f"it is at round {round}"
    assert state.replica.digest() == job.digests[round], f"round {round} has other weights"
    state.apply(entry_of(job.plans[round]))
    state.close()
    assert DeviceState(folder, job.bundle).replica.digest() == job.digests[round + 1], "it does not go on"


def check_server(folder: Path, job: Job, said: list[str]) -> None:
    store = ServerStore(folder, job.bundle.identity)
    assert not said or said[0].split()[2] == store.signer.public.hex(), "it has another key"
    closed, opened = acknowledged(said, "closed"), acknowledged(said, "opened")
    saved = Replica(job.bundle, store.snapshot).round
    assert saved >= acknowledged(said, "snapshot"), f"the newest snapshot is of round {saved}"
    replica = server_replica(store, job.bundle)
    round = replica.round
    assert round in (closed, closed + 1), f"it is at round {round}"
    assert replica.digest() == job.digests[round], f"round {round} has other weights"
    assert [one.round for one in read_history(folder)] == list(range(1, round + 1)), "it has another history"
    plan, open_round = job.plans[round], store.load_open_round(0.0)
    assert open_round is not None or opened <= round, f"round {opened} is not open"
    if open_round is not None:
        assert (open_round.plan, open_round.cohort) == (plan, DEVICES), "another round is open"
        assert open_round.results.items() <= results_of(plan).items(), "the results are others"
        missing = {
            line.split()[2] for line in said if line.startswith(f"result {plan.round} ")
        } - open_round.results.keys()
        assert not missing, f"the results of {sorted(missing)} are gone"
    go_on(store, plan)
    del store
    assert server_replica(ServerStore(folder, job.bundle.identity), job.bundle).digest() == job.digests[round + 1]


Work = Callable[[str, str, str, str], None]
Check = Callable[[Path, Job, list[str]], None]


def instants(recording: Recording, count: int, chance: random.Random) -> list[int]:
    """Random instants after each kind of call to each file in turn, so that the rare kinds have their share."""
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for instant, operation in enumerate(recording.operations, start=1):
        if not isinstance(operation, Say) and not operation.path.name.endswith("-shm"):
            kinds[type(operation).__name__, operation.path.name].append(instant)
    return [chance.choice(kinds[kind]) for kind in itertools.islice(itertools.cycle(kinds), count)]


def deaths(recording: Recording, chance: random.Random) -> list[tuple[int, Kill]]:
    """Instants when something can be read that is yet to be synced, be it renamed or committed, and how to die then."""
    kinds: dict[str, list[tuple[int, Kill]]] = defaultdict(list)
    calls: Counter[str] = Counter()
    last: Operation = Say("")
    for instant, operation in enumerate(recording.operations):
        if isinstance(operation, Sync):
            calls[operation.call] += 1
            if isinstance(last, Rename) or (isinstance(last, Write) and last.path.name.endswith("-wal")):
                kind = last.path.name.lstrip("0123456789")
                kinds[kind].append((instant, Kill(operation.call, calls[operation.call])))
        last = operation
    return [death for kind in kinds.values() for death in chance.sample(kind, min(2, len(kind)))]


def losses(recording: Recording, check: Check, job: Job, folder: Path, chosen: list[int], seed: int) -> list[str]:
    """What is wrong after a power cut at each of some instants."""
    chance, found = random.Random(seed), []
    for instant in chosen:
        cut = chance.getrandbits(32)
        into = folder / f"{instant}-{cut}"
        recording.after_power_cut(instant, cut, into)
        try:
            check(into / "state", job, recording.said(instant))
        except Exception as error:
            found.append(f"instant {instant}, seed {cut}, after {recording.operations[instant - 1]!r:.120}: {error!r}")
    return found


@pytest.fixture(scope="module")
def strace() -> None:
    """Skip where programs cannot be traced."""
    try:
        subprocess.run(["strace", "-o", "/dev/null", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"strace does not work here: {error}")


@pytest.fixture(scope="module")
def job(bundle: Bundle, make_plan: Callable[..., Plan]) -> Job:
    plans = [make_plan(round=round, base_seed=round * 17, shared=bool(round % 2)) for round in range(1, ROUNDS + 2)]
    replica = Replica(bundle)
    digests = [replica.digest()]
    for plan in plans:
        replica.apply(entry_of(plan))
        digests.append(replica.digest())
    return Job(bundle, plans, digests)


def record_work(work: Work, job: Job, rounds: int, folder: Path, pragma: str, kill: Kill | None = None) -> Recording:
    recorded, plans = folder / "recorded", folder / "plans"
    recorded.mkdir(parents=True)
    plans.write_text("\n".join(encode(plan).hex() for plan in job.plans[:rounds]))
    support = str(Path(__file__).parents[1] / "support")
    call = f"import sys; sys.path.append({support!r}); import survivors; survivors.{work.__name__}"
    arguments = (str(recorded / "state"), str(job.bundle.folder), str(plans), pragma)
    return record([sys.executable, "-c", f"{call}{arguments!r}"], recorded, kill)


for_both = pytest.mark.parametrize(
    ("work", "check"), [(work_as_device, check_device), (work_as_server, check_server)], ids=["device", "server"]
)


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@for_both
def test_nothing_acknowledged_is_lost(work: Work, check: Check, job: Job, tmp_path: Path) -> None:
    recording = record_work(work, job, ROUNDS, tmp_path, CAREFUL)
    found = losses(recording, check, job, tmp_path, instants(recording, 100, random.Random(1)), seed=1)
    assert not found, f"{len(found)} of 100:\n" + "\n".join(found)


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@for_both
def test_nothing_is_lost_when_the_process_was_killed_before(work: Work, check: Check, job: Job, tmp_path: Path) -> None:
    """What a killed process had written and not synced is there for the next one, and yet not durable."""
    chance, found = random.Random(2), []
    whole = record_work(work, job, SOME_ROUNDS, tmp_path / "whole", CAREFUL)
    for number, (instant, kill) in enumerate(deaths(whole, chance)):
        folder = tmp_path / str(number)
        recording = record_work(work, job, SOME_ROUNDS, folder, CAREFUL, kill)
        chosen = [min(instant + chance.randrange(60), recording.instants) for _ in range(8)]
        found += [f"{kill}, {loss}" for loss in losses(recording, check, job, folder, chosen, number)]
    assert not found, f"{len(found)}:\n" + "\n".join(found)


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@for_both
def test_without_synchronisation_something_is_lost(work: Work, check: Check, job: Job, tmp_path: Path) -> None:
    """The check can fail."""
    recording = record_work(work, job, SOME_ROUNDS, tmp_path, CARELESS)
    found = losses(recording, check, job, tmp_path, instants(recording, 40, random.Random(1)), seed=1)
    assert any("it is at round" in loss for loss in found)


REPLACE = """
import os
from pathlib import Path
folder = Path({folder!r})
for text in ("old", "new"):
    with (folder / "partial").open("w") as file:
        file.write(text * 1000)
        file.flush()
        if {sync_file}:
            os.fsync(file.fileno())
    os.replace(folder / "partial", folder / "file")
    if {sync_folder}:
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    print(text, flush=True)
"""


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("sync_folder", [True, False])
@pytest.mark.parametrize("sync_file", [True, False])
def test_a_replaced_file_is_whole_only_when_synced_and_there_only_when_the_folder_is(
    sync_file: bool, sync_folder: bool, tmp_path: Path
) -> None:
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    script = REPLACE.format(folder=str(recorded), sync_file=sync_file, sync_folder=sync_folder)
    recording = record([sys.executable, "-c", script], recorded)
    whole = current = True
    for seed in range(20 * recording.instants):
        into, instant = tmp_path / str(seed), 1 + seed % recording.instants
        recording.after_power_cut(instant, seed, into)
        found = (into / "file").read_text(errors="replace") if (into / "file").exists() else ""
        said = recording.said(instant)
        whole &= found in ("", "old" * 1000, "new" * 1000)
        current &= not said or found[:3] == said[-1] or (len(said) == 1 and found[:3] == "new")
    assert whole == sync_file
    assert current == (sync_file and sync_folder)


MAP = """
import mmap
with open({file!r}, "w+b") as file:
    file.truncate(4096)
    mmap.mmap(file.fileno(), 4096)[:3] = b"abc"
"""


@pytest.mark.usefixtures("strace")
def test_a_file_that_is_mapped_to_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotModelled, match="it can be written without a call"):
        record([sys.executable, "-c", MAP.format(file=str(tmp_path / "file"))], tmp_path)
