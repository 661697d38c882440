"""The demo's processes: broker, server and devices, each started as a user would start it."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fedspzo.broker.mqtt.embedded import spawn_broker
from fedspzo.broker.server.state_folder import pin_bundle
from fedspzo.device_runtime.errors import FedSPZOError

_STOP_S = 10.0
#: Seconds between looks at the devices while the server says nothing.
_POLL_S = 1.0


@contextmanager
def federation(
    bundle: Path, devices: dict[str, Path], held_out: Path, folder: Path, engine: str, job: list[str]
) -> Iterator[Iterator[dict[str, Any]]]:
    """Start all processes; gives the server's progress as it comes.

    Args:
        bundle: the bundle's folder.
        devices: device → its data file.
        held_out: the server's data file.
        folder: where each process gets a folder and a log.
        engine: of all processes.
        job: options of ``fedspzo server``.

    Raises:
        FedSPZOError: a process ended before the job did; the message is what it said.
    """
    logs = folder / "logs"
    logs.mkdir()
    pin_bundle(bundle, folder / "server")  # devices start before the server does
    with ExitStack() as stack:
        broker = stack.enter_context(spawn_broker())
        common = ["--broker", broker.url, "--engine", engine]
        processes = {
            name: _start(
                stack,
                ["device", bundle, *common, "--state", folder / "devices" / name, "--data", data, "--id", name],
                logs / f"{name}.log",
            )
            for name, data in devices.items()
        }
        server = _start(
            stack,
            [
                "server",
                bundle,
                *common,
                "--state",
                folder / "server",
                "--data",
                held_out,
                "--serve-after",
                0,
                "--json",
                *job,
            ],
            logs / "server.log",
            read=True,
        )
        yield _progress(server, logs / "server.log", processes, logs)
        for process in processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)


def _start(stack: ExitStack, arguments: list[Any], log: Path, read: bool = False) -> subprocess.Popen[str]:
    errors = stack.enter_context(log.open("w"))
    process = subprocess.Popen(
        [sys.executable, "-m", "fedspzo", *map(str, arguments)],
        stdout=subprocess.PIPE if read else errors,
        stderr=errors,
        text=True,
    )
    stack.callback(_stop, process)
    return process


def _progress(
    server: subprocess.Popen[str], log: Path, devices: dict[str, subprocess.Popen[str]], logs: Path
) -> Iterator[dict[str, Any]]:
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(server, lines), daemon=True).start()
    while True:
        with suppress(queue.Empty):
            line = lines.get(timeout=_POLL_S)
            if not line:
                break
            yield json.loads(line)
        failed = [name for name, process in devices.items() if process.poll() not in (None, 0)]
        if failed:
            raise FedSPZOError(
                "demo.device-ended",
                f"the process of {failed[0]} ended ({_last_line(logs / f'{failed[0]}.log')}); see its log in {logs}",
            )
    if server.wait() != 0:
        raise FedSPZOError("demo.server-ended", f"the server ended ({_last_line(log)}); see {log}")


def _read(server: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Each line that the server writes, then an empty one."""
    assert server.stdout is not None
    for line in server.stdout:
        lines.put(line)
    lines.put("")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"see {log}"


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
