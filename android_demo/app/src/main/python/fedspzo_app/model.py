"""The model on this phone: the bundle, the replica in its state folder, an engine, and questions put to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedspzo.device_runtime.data.feedback import takes_feedback
from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import tokenise
from fedspzo.device_runtime.data.suggestion import Suggestion, suggest
from fedspzo.device_runtime.data.texts import check_text
from fedspzo.device_runtime.engines.protocol import Engine
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.metrics import SINGLE
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


def describe(bundle: Bundle) -> dict[str, object]:
    """The task, for the screen: its name, fields, labels to choose from, and what the answer is called."""
    task = bundle.manifest.task
    return {
        "name": task.name,
        "fields": list(task.fields),
        # To choose one of; sets of labels and numbers are typed, as texts are.
        "labels": [label.name for label in task.labels] if task.kind == SINGLE else [],
        "target": task.target,
    }


def ask(
    replica: Replica, engine: Engine, fields: Mapping[str, str], so_far: Callable[[str], None], explore: float = 0.0
) -> tuple[dict[str, object], Suggestion | None]:
    """What the model answers: ``{"answer": text}``, or ``{"labels": [[name, share], …]}``, the likeliest first.

    While the model is being trained the answer may be that of a model between two rounds.

    Args:
        so_far: told of a generated answer as it grows.
        explore: probability with which any label is suggested, each alike.

    Returns:
        The answer, and what of it is suggested; None where the task takes no reactions.

    Raises:
        DataError: a field is missing or empty, or ``explore`` is no probability.
    """
    task = replica.bundle.manifest.task
    for name in task.fields:
        if not fields.get(name, "").strip():
            raise DataError("data.empty-field", f"the field '{name}' is empty; write something there")
        check_text(name, fields[name])
    store = tokenise(replica.bundle, [Example({name: fields[name] for name in task.fields}, 0)])
    forward, reached = Forward(engine, replica), replica.round
    if task.form == GENERATION:
        answer = ""
        for _, answer in stream(forward, store):
            so_far(answer)
        taken = answer.strip() and takes_feedback(task)
        return {"answer": answer}, Suggestion(answer.strip(), 1.0, {}, reached) if taken else None
    answer, shares = read_answer(task, predict(forward, store)[1][0])
    if not shares:
        return {"answer": answer}, None
    labels = [[name, round(share, 4)] for name, share in shares.items()]
    return {"labels": labels}, suggest(shares, reached, explore) if takes_feedback(task) else None
