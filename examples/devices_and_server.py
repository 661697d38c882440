"""A server, its broker and two devices, all in your own process: each is an object that is started and stopped.

Run: python examples/devices_and_server.py BUNDLE runs/demo/data/device-1.jsonl runs/demo/data/device-2.jsonl state

The bundle must not belong to another server: copy one, or export it for this.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

import fedspzo


def show(event: object) -> None:
    """Print the server's progress."""
    if isinstance(event, fedspzo.ClosedRound):
        print(f"round {event.round}: loss {event.loss:.3f} from {', '.join(event.devices)}")


def main(bundle: str, first: str, second: str, state: str, *, rounds: int = 10) -> fedspzo.JobResult:
    """Run a job to its end, and see that all models are the same."""
    opened, folder = fedspzo.open_bundle(bundle), Path(state)
    job = fedspzo.Job(rounds=rounds, cohort=2)
    with fedspzo.spawn_broker() as broker, ExitStack() as stack:
        access = fedspzo.Access(broker.url)
        server = fedspzo.Server(opened, job, access, folder / "server", devices=2, serve_after=0, observe=show)
        stack.enter_context(server)  # it names itself in the bundle, which devices then believe
        devices = [
            fedspzo.Device(opened, access, folder / name, data, name=name)
            for name, data in (("phone-1", first), ("phone-2", second))
        ]
        for device in devices:
            stack.enter_context(device)
        result = server.wait()
    assert result is not None
    assert all(report.digest == result.digest for report in result.reports.values())
    print(f"{len(result.reports)} devices have the server's model: {result.digest.hex()}")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:5])
