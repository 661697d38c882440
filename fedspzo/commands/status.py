"""Show the state of a job: its rounds, its devices and how far behind they are, and the bytes that it took."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedspzo.device_runtime import plain_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "state", type=Path, metavar="DIR", help="a server's state folder, or the folder of a demo; it may be running"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(options: argparse.Namespace) -> None:
    """Read the state folder and print."""
    from fedspzo.broker.server.controls import RUNNING
    from fedspzo.broker.server.state_folder import DATABASE
    from fedspzo.broker.server.status import read_status
    from fedspzo.progress import describe_evaluation
    from fedspzo.run_folder import SERVER
    from fedspzo.tables import format_table

    of_demo = options.state / SERVER
    status = read_status(of_demo if (of_demo / DATABASE).is_file() else options.state)
    if options.json:
        print(plain_json.dumps(status))
        return
    recent = status["recent"]
    if status["job"] is not None:
        print(f"job '{status['job']}'")
    of = f" of {status['rounds']}" if status["rounds"] else ""
    print(f"round {status['round']}{of}, journal of {status['journal_bytes']:,} bytes")
    if status["state"] != RUNNING:
        print(f"the job is {status['state']} by an operator")
    if recent:
        print(
            f"last {recent['rounds']} rounds: loss {recent['loss']:.4f}, {recent['results']:.1f} results and"
            f" {recent['seconds']:.2f} s a round; the last was closed {status['closed_ago']:.0f} s ago"
        )
    if recent and (energy := recent["energy"]):
        print(
            f"a round takes a device {energy['joules_a_device']:.4g} ± {2 * energy['uncertainty']:.2g} J above idle"
            f" ({energy['devices']:.1f} devices say so{', in part by ESTIMATE' * (0 < energy['estimated'] < 1)}"
            f"{', by ESTIMATE' * (energy['estimated'] == 1)})"
        )
    if evaluated := status["evaluated"]:
        print(
            f"on the held-out examples: best in {describe_evaluation(evaluated['best'])},"
            f" last in {describe_evaluation(evaluated['last'])}"
        )
    if opened := status["open"]:
        print(f"open: round {opened['round']}, {opened['results']} of {opened['asked']} answered")
    simulated = status["round"] and not status["devices"]
    counted = ", ".join(f"{name} {count}" for name, count in sorted(status["counts"].items()))
    if counted or not simulated:
        print(counted or "nothing counted yet")
    if status["blocked"]:
        print(f"blocked: {', '.join(status['blocked'])}")
    if asking := status["asking"]:
        print(f"{len(asking)} devices ask to take part; fedspzo admit {options.state} lists them")
    for device in status["unusual"]:
        what = f"expelled after round {device['expelled']}" if device["expelled"] else "accused"
        print(f"device '{device['name']}'{f' is {what}' if device['accused'] else ''}: {device['reason']}")
    for device in status["devices"]:
        if device["copies"]:
            print(f"device '{device['name']}' runs in two processes, or did ({device['copies']} times seen)")
        if device["floods"]:
            print(
                f"device '{device['name']}' sent far more than it needs to, {device['floods']} times"
                f"{', and its login was taken away' * device['cut_off']}"
            )
    if not status["devices"]:
        print("its devices are simulated, and not listed" if simulated else "no device has come yet")
        return
    columns = ("device", "version", "can", "round", "behind", "results", "examples", "up", "down", "J a round", "heard")
    rows = [
        (
            device["name"], device["version"] or "-", ",".join(device["can"]) or "-", device["round"],
            device["behind"], device["results"], device["examples"],
            f"{device['bytes_up']:,}", f"{device['bytes_down']:,}", _joules(device), f"{device['heard']:.0f} s",
        )
        for device in status["devices"]
    ]  # fmt: skip
    print(format_table(columns, rows))


def _joules(device: dict[str, Any]) -> str:
    """What a round takes a device; ~ marks an estimate."""
    if device["joules_a_round"] is None:
        return "-"
    return f"{'~' * device['joules_estimated']}{device['joules_a_round']:.4g}"
