"""Devices that add noise, as processes of their own: ``python noisy.py FUNCTION ARGUMENT…``."""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.device.measuring import Measurer
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.privacy.ledger import Ledger
from fedspzo.device_runtime.privacy.masks import Purpose, hash_group, mask
from fedspzo.device_runtime.privacy.release import make_release
from fedspzo.device_runtime.privacy.words import pack
from fedspzo.device_runtime.protocol.codec import decode, encode, fingerprint
from fedspzo.device_runtime.protocol.messages import Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.state import DeviceState

#: Devices of a group.
DEVICES = 4


def send_noise(plan: str, number: str, file: str) -> None:
    """Save what a device sends under masks that measured zeros: as it should, and with each of some faults."""
    own, right = int(number), _read_plan(plan)
    (noise,) = right.noise
    draws: dict[str, dict[str, Any]] = {
        "honest": {},
        "none": {"variance": 1},
        "twice": {"variance": 2 * noise.variance},
        "seeded": {"below": random.Random(0).randrange},
    }
    names = [bytes([each]) * 16 for each in range(DEVICES)]
    keys = {names[other]: bytes([*sorted((own, other))]) for other in range(DEVICES) if other != own}
    purpose = Purpose("job", b"", fingerprint(right), hash_group(names))
    sent = {}
    for fault, changed in draws.items():
        drawn = replace(right, noise=(replace(noise, variance=changed.pop("variance", noise.variance)),))
        scalars, loss = make_release(drawn, np.zeros((1, right.scalars)), np.zeros(1), **changed)
        result = Result(right.round, b"", tuple(scalars.tolist()), loss, right.batch, 0.0, b"")
        sent[fault] = mask(pack(right, result), names[own], keys, purpose)
    np.savez(file, **sent)  # type: ignore[arg-type]


def answer(bundle: str, folder: str, plan: str, killed: str) -> None:
    """Answer a plan with an account that is kept, and print the answer; or be killed after a step on the way there."""
    state = DeviceState(Path(folder, "state"), Bundle(Path(bundle)), "a", afresh=True)
    store = load_data(f"{folder}/data.jsonl", state.replica.bundle)
    measurer = Measurer(create_engine("litert"), state, lambda: store, ledger=Ledger(Path(folder, "ledger")))
    if killed == "spend":
        spend = Ledger.spend

        def spend_and_die(ledger: Ledger, plan: Plan) -> None:
            spend(ledger, plan)
            os.kill(os.getpid(), signal.SIGKILL)

        Ledger.spend = spend_and_die  # type: ignore[method-assign]
    found = measurer.answer(_read_plan(plan))
    print(encode(found).hex(), flush=True)
    if killed == "answer":
        os.kill(os.getpid(), signal.SIGKILL)


def _read_plan(text: str) -> Plan:
    plan = decode(bytes.fromhex(text))
    assert isinstance(plan, Plan)
    return plan


if __name__ == "__main__":
    {"send_noise": send_noise, "answer": answer}[sys.argv[1]](*sys.argv[2:])
