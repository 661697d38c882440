"""Show the state of a job: its rounds, its devices and how far behind they are, and the bytes that it took."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("state", type=Path, metavar="DIR", help="the server's state folder; the server may be running")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(options: argparse.Namespace) -> None:
    """Read the state folder and print."""
    from fedspzo.broker.server.status import read_status

    status = read_status(options.state)
    if options.json:
        print(json.dumps(status))
        return
    recent = status["recent"]
    print(f"round {status['round']}, journal of {status['journal_bytes']:,} bytes")
    if recent:
        print(
            f"last {recent['rounds']} rounds: loss {recent['loss']:.4f}, {recent['results']:.1f} results and"
            f" {recent['seconds']:.2f} s a round; the last was closed {status['closed_ago']:.0f} s ago"
        )
    if recent and (energy := recent["energy"]):
        print(
            f"a round takes a device {energy['joules_a_device']:.4g} ± {energy['uncertainty']:.2g} J above idle"
            f" ({energy['devices']:.1f} devices say so{', in part by ESTIMATE' * (0 < energy['estimated'] < 1)}"
            f"{', by ESTIMATE' * (energy['estimated'] == 1)})"
        )
    if opened := status["open"]:
        print(f"open: round {opened['round']}, {opened['results']} of {opened['asked']} answered")
    print(", ".join(f"{name} {count}" for name, count in sorted(status["counts"].items())) or "nothing counted yet")
    if not status["devices"]:
        print("no device has come yet")
        return
    columns = f"{'round':>6} {'behind':>6} {'results':>7} {'examples':>8} {'up':>10} {'down':>10}"
    print(f"{'device':<24} {columns} {'J a round':>11} {'heard':>8}")
    for device in status["devices"]:
        print(
            f"{device['name']:<24} {device['round']:>6} {device['behind']:>6} {device['results']:>7}"
            f" {device['examples']:>8} {device['bytes_up']:>10,} {device['bytes_down']:>10,} {_joules(device):>11}"
            f" {device['heard']:>6.0f} s"
        )


def _joules(device: dict[str, Any]) -> str:
    """What a round takes a device; ~ marks an estimate."""
    if device["joules_a_round"] is None:
        return "-"
    return f"{'~' * device['joules_estimated']}{device['joules_a_round']:.4g}"
