"""What the screen and the service can ask for. Every command gives JSON, and its errors as ``{"error": sentence}``."""

from __future__ import annotations

import functools
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from fedspzo.device_runtime.data.feedback import ACCEPTED, REJECTED
from fedspzo.device_runtime.data.live import LiveData
from fedspzo.device_runtime.data.suggestion import Suggestion
from fedspzo.device_runtime.engines.protocol import Engine
from fedspzo.device_runtime.errors import DataError, FedSPZOError, StateError
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import MANIFEST
from fedspzo.device_runtime.replica.state import DeviceState, read_identity
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo_app import own_examples
from fedspzo_app.bundles import import_bundle
from fedspzo_app.download import Download
from fedspzo_app.engines import choose_engine
from fedspzo_app.held_back import SplitExamples
from fedspzo_app.history import History
from fedspzo_app.improvement import Improvement
from fedspzo_app.joining import join
from fedspzo_app.model import ask, describe, open_state
from fedspzo_app.phone import Phone
from fedspzo_app.private_files import PrivateFiles, Vault, parse_invitation
from fedspzo_app.settings import load_limits, parse_limits
from fedspzo_app.training import Training

#: Threads of the engine and for weights: the fast cores of a phone are few, and the phone is to stay usable.
_MOST_THREADS = 4
_P = ParamSpec("_P")


def _command(do: Callable[Concatenate[App, _P], dict[str, Any] | None]) -> Callable[Concatenate[App, _P], str]:
    """One command at a time; what it gives as JSON, or the sentence of its error."""

    @functools.wraps(do)
    def command(app: App, *arguments: _P.args, **named: _P.kwargs) -> str:
        with app.lock:
            try:
                return json.dumps(do(app, *arguments, **named) or {})
            except FedSPZOError as error:
                return json.dumps({"error": str(error), "kind": getattr(error, "kind", "")})

    return command


class App:
    """One phone's part in a federation.

    Attributes:
        lock: held while a command is carried out.
    """

    def __init__(self, folder: Path, phone: Phone, vault: Vault) -> None:
        self.lock = threading.Lock()
        self._files, self._phone, self._vault = PrivateFiles(folder), phone, vault
        self._threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 2) // 2))
        self._bundle: Bundle | None = None
        self._engine: Engine | None = None
        self._state: DeviceState | None = None
        self._training: Training | None = None
        self._download: Download | None = None
        self._listener: Any = None
        self._message = self._kind = self._answer = ""
        self._suggested: tuple[dict[str, str], Suggestion] | None = None
        self._examples = own_examples.count(self._files)
        self._history, self._improvement = History(self._files.history), Improvement(self._files.improvement)
        self._limits = load_limits(self._files.limits)
        try:
            self._invitation = self._files.load_invitation(vault)
            if (self._files.bundle / MANIFEST).exists():
                self._bundle = Bundle(self._files.bundle)
        except FedSPZOError as error:
            self._message, self._kind = str(error), error.kind
            self._invitation = None

    @_command
    def describe_invitation(self, text: str) -> dict[str, Any]:
        """What an invitation is to, for a person to agree: ``{"broker", "device", "job"}``."""
        invitation = parse_invitation(text)
        return {"broker": invitation.access.place, "device": invitation.access.user, "job": invitation.job}

    @_command
    def enrol(self, text: str) -> None:
        """Take an invitation: what a QR code says, an access file's content, or a broker's URL."""
        invitation, known = parse_invitation(text), self._invitation
        if known and (invitation.access.user, invitation.job) != (known.access.user, known.job):
            raise StateError(
                "device.joined",
                f"this phone takes part in job '{known.job}' as '{known.access.user}'; leave it before you join"
                " another",
            )
        if invitation.token:
            with self._files.key_unsealed(self._vault):
                invitation = join(invitation, self._files.state)
        self._stop()
        self._close_state()
        self._files.save_invitation(invitation, self._vault)
        self._files.finished.unlink(missing_ok=True)
        self._invitation, self._message, self._kind = invitation, "", ""

    @_command
    def import_bundle(self, source: str) -> None:
        """Take a bundle's folder, which is used up. Training that runs is stopped."""
        with self._another_bundle():
            import_bundle(Path(source), self._files.bundle)

    @_command
    def fetch_bundle(self) -> None:
        """Get the bundle, or what of it is missing, from where the invitation says. Training that runs is stopped."""
        self._download = Download(self._needed_invitation())
        try:
            with self._another_bundle():
                self._download.run(self._files.bundle)
        finally:
            self._download = None

    def cancel_fetch(self) -> str:
        """Stop :meth:`fetch_bundle`, which holds the lock; what has arrived is kept for the next time."""
        if (download := self._download) is not None:
            download.cancel()
        return "{}"

    @_command
    def import_examples(self, source: str) -> dict[str, Any]:
        """Add the examples of a file: ``{"added": how many}``."""
        added = own_examples.import_file(self._files, Path(source), self._needed_bundle().manifest.task)
        self._examples += added
        return {"added": added}

    @_command
    def add_example(self, record: str) -> None:
        """Add one labelled example, as the JSON of a record; training that runs sees it from the next round on."""
        try:
            fields = json.loads(record)
        except ValueError:
            raise DataError("data.not-json", "the example is not JSON; write one JSON object") from None
        own_examples.add(self._files, fields, self._needed_bundle().manifest.task)
        self._examples += 1

    @_command
    def set_limits(self, limits: str) -> None:
        """Take part only within these limits, the JSON of ``platform.conditions.Limits``; from now on."""
        self._limits = parse_limits(limits)
        self._files.write(self._files.limits, json.dumps(asdict(self._limits)).encode())
        if self._training is not None:
            self._training.set_limits(self._limits)

    @_command
    def check_ready(self) -> None:
        """Say what is missing before :meth:`start`, if something is."""
        self._needed_invitation()
        self._needed_bundle()
        self._check_examples()

    @_command
    def start(self, listener: Any) -> None:
        """Take part, in a thread of its own. ``listener.changed()`` is called when there is something new to show."""
        self._listener = listener
        if self._training is not None and self._training.running:
            return
        invitation, bundle = self._needed_invitation(), self._needed_bundle()
        self._check_examples()
        engine = self._needed_engine()
        if self._state is None:
            self._state = open_state(self._files, bundle, invitation, self._vault, self._threads)
        examples = LiveData(str(self._files.examples), bundle, self._files.tokens)
        self._files.paused.unlink(missing_ok=True)
        self._training = Training(
            invitation,
            engine,
            self._state,
            SplitExamples(examples.current, bundle.manifest.task),
            self._history,
            self._improvement,
            self._limits,
            self._phone.read,
            self._phone.energy_source(),
            self._tell,
        )
        self._training.start()

    @_command
    def pause(self) -> None:
        """Stop after the round's work that is at hand, and stay so until :meth:`start`."""
        self._files.write(self._files.paused, b"")
        self._stop()

    @_command
    def rest(self) -> None:
        """Stop because Android wants it: unlike :meth:`pause`, the next chance to train is taken."""
        self._stop()

    @_command
    def leave(self) -> None:
        """Stop, and forget login, key, journal and rounds. Bundle and examples stay on the phone."""
        self._stop()
        self._close_state()
        self._files.forget_membership()
        self._history = History(self._files.history)
        self._improvement = Improvement(self._files.improvement)
        self._invitation, self._message, self._kind = None, "", ""

    @_command
    def show_key(self) -> dict[str, Any]:
        """The line that the server's ``--admit`` list takes, made where it is new: ``{"line": "NAME KEY"}``."""
        user = self._needed_invitation().access.user
        if self._state is not None:
            name, key = self._state.device, self._state.signer.public
        else:
            with self._files.key_unsealed(self._vault):
                name, key = read_identity(self._files.state, user or None)
        return {"line": f"{name} {key.hex()}"}

    @_command
    def predict(self, fields: str, explore: float = 0.0) -> dict[str, Any]:
        """Ask the model as it is now, with the JSON of the task's fields; see :func:`fedspzo_app.model.ask`.

        Where :meth:`react` is possible, the answer has ``"shown"``: what is suggested.
        """
        bundle, engine = self._needed_bundle(), self._needed_engine()
        if self._state is None and self._invitation is not None:
            self._state = open_state(self._files, bundle, self._invitation, self._vault, self._threads)
        replica = self._state.replica if self._state is not None else Replica(bundle, None, self._threads)

        def so_far(answer: str) -> None:
            self._answer = answer

        try:
            asked = json.loads(fields)
            answer, suggestion = ask(replica, engine, asked, so_far, explore)
        finally:
            self._answer = ""
        if suggestion is None:
            return answer
        self._suggested = {name: asked[name] for name in bundle.manifest.task.fields}, suggestion
        return {**answer, "shown": suggestion.shown}

    @_command
    def react(self, accepted: bool, corrected: str = "") -> None:
        """Write down what the person did with the last suggestion; training that runs sees it from the next round on.

        Args:
            corrected: what is right, where it was not accepted and the person says so.
        """
        if self._suggested is None:
            raise StateError("device.no-suggestion", "there is no suggestion to react to; ask the model first")
        fields, suggestion = self._suggested
        record = suggestion.record(fields, ACCEPTED if accepted else REJECTED, corrected.strip())
        own_examples.react(self._files, record, self._needed_bundle().manifest.task)
        self._suggested = None
        self._examples += 1

    def status(self) -> str:
        """All that the screen shows, as JSON, with the answer so far of a question; waits for no command."""
        training, invitation, bundle, state = self._training, self._invitation, self._bundle, self._state
        rounds = self._history.rounds
        now = self._phone.read()
        message, kind = self._message, self._kind
        if training is not None and training.message:
            message, kind = training.message, training.kind
        spent = [entry.joules for entry in rounds if entry.joules is not None]
        return json.dumps(
            {
                "broker": invitation.access.place if invitation else "",
                "device": invitation.access.user if invitation else "",
                "job": invitation.job if invitation else "",
                "offers_bundle": invitation is not None and bool(invitation.bundle_url),
                "fetched": download.progress if (download := self._download) else None,
                "task": describe(bundle) if bundle else None,
                "examples": self._examples,
                "answer": self._answer,
                "running": training is not None and training.running,
                "connected": training is not None and training.connected,
                "working": training is not None and training.working,
                "finished": self._files.finished.exists(),
                "paused": self._files.paused.exists(),
                "message": message,
                "kind": kind,
                "round": state.replica.round if state else self._last_round(),
                "rounds": training.rounds if training else 0,
                "improvement": self._improvement.describe(bundle) if bundle else None,
                "losses": [[entry.round, entry.loss] for entry in rounds],
                "bytes_up": sum(entry.bytes_up for entry in rounds),
                "bytes_down": sum(entry.bytes_down for entry in rounds),
                "joules": sum(spent) if spent else None,
                "joules_rounds": len(spent),
                "battery": now.battery,
                "charging": now.charging,
                "temperature": None if math.isnan(now.temperature_c) else now.temperature_c,
                "throttled": now.throttled,
                "metered": now.metered,
                "limits": asdict(self._limits),
                "waits": self._limits.refusal(now),
                "unmet": self._limits.unmet(now),
            }
        )

    def digest(self) -> str:
        """Hash of the replica's weights, in hexadecimal; "" before there is a replica."""
        return self._state.replica.digest().hex() if self._state is not None else ""

    def _last_round(self) -> int:
        """Of a job that has ended; 0 before."""
        finished = self._files.finished
        return int(finished.read_bytes() or 0) if finished.exists() else 0

    def _needed_invitation(self) -> Invitation:
        if self._invitation is None:
            raise StateError("device.no-invitation", "there is no invitation; scan or paste one")
        return self._invitation

    def _check_examples(self) -> None:
        if not self._examples:
            raise DataError(
                "data.none-yet",
                "there is nothing to learn from yet; add examples, import a file of them, or react to suggestions",
            )

    def _needed_bundle(self) -> Bundle:
        if self._bundle is None:
            raise StateError("device.no-bundle", "there is no bundle; import the one that the job's server offers")
        return self._bundle

    @contextmanager
    def _another_bundle(self) -> Iterator[None]:
        """Stop what uses the bundle, and open what is there afterwards: a new one, or where that failed the old one."""
        self._stop()
        self._close_state()
        self._engine = self._bundle = None
        try:
            yield
        finally:
            if (self._files.bundle / MANIFEST).exists():
                self._bundle = Bundle(self._files.bundle)

    def _needed_engine(self) -> Engine:
        if self._engine is None:
            self._engine = choose_engine(self._needed_bundle(), self._threads)
        return self._engine

    def _stop(self) -> None:
        if self._training is not None:
            self._training.stop()

    def _close_state(self) -> None:
        self._training = None
        if self._state is not None:
            self._state.close()
            self._state = None

    def _tell(self) -> None:
        training, state = self._training, self._state
        if training is not None and state is not None and training.finished:
            self._files.write(self._files.finished, str(state.replica.round).encode())
        if self._listener is not None:
            self._listener.changed()
