"""The model on this phone: the bundle, the replica in its state folder, an engine, and questions put to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import tokenise
from fedspzo.device_runtime.data.texts import check_text
from fedspzo.device_runtime.engines.protocol import Engine
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import GENERATION
from fedspzo.device_runtime.replica.state import DeviceState
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.generation import stream
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict, read_answer
from fedspzo_app.private_files import PrivateFiles, Vault


def open_state(files: PrivateFiles, bundle: Bundle, invitation: Invitation, vault: Vault, threads: int) -> DeviceState:
    """The device's state, at θ₀ where the bundle is another than before.

    Raises:
        StateError: it is damaged, or the key cannot be unsealed.
    """
    known = files.state / "bundle"
    afresh = known.exists() and known.read_text(encoding="ascii") != bundle.identity.hex()
    with files.key_unsealed(vault):
        return DeviceState(files.state, bundle, invitation.access.user or None, afresh, threads)


def ask(
    replica: Replica, engine: Engine, fields: Mapping[str, str], so_far: Callable[[str], None]
) -> dict[str, object]:
    """What the model answers: ``{"answer": text}``, or ``{"labels": [[name, share], …]}``, the likeliest first.

    While the model is being trained the answer may be that of a model between two rounds.

    Args:
        so_far: told of a generated answer as it grows.

    Raises:
        DataError: a field is missing or empty.
    """
    task = replica.bundle.manifest.task
    for name in task.fields:
        if not fields.get(name, "").strip():
            raise DataError("data.empty-field", f"the field '{name}' is empty; write something there")
        check_text(name, fields[name])
    store = tokenise(replica.bundle, [Example({name: fields[name] for name in task.fields}, 0)])
    forward = Forward(engine, replica)
    if task.form == GENERATION:
        answer = ""
        for _, answer in stream(forward, store):
            so_far(answer)
        return {"answer": answer}
    answer, shares = read_answer(task, predict(forward, store)[1][0])
    return {"labels": [[name, round(share, 4)] for name, share in shares.items()]} if shares else {"answer": answer}
