"""The Android app's Python: its parts against stand-ins for Java's classes, and the whole as a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from android_federation import Federation
from android_process import Context, Keystore, Listener
from android_sdk import missing_tools, phone_python, pinned
from federation import held
from fedspzo_app.app import App
from fedspzo_app.executorch_java import create as create_executorch
from fedspzo_app.history import History, Round
from fedspzo_app.main import create
from fedspzo_app.private_files import PrivateFiles, parse_invitation
from patience import PATIENCE_S
from ports import free_port
from prometheus_client import CollectorRegistry
from refusals import raises
from starlette.applications import Starlette

from fedspzo.broker.mqtt.mosquitto_program import installed
from fedspzo.broker.server.enrolment.invitations import decide, invite, list_askers
from fedspzo.broker.server.enrolment.requests import Enrolment
from fedspzo.broker.server.enrolment.route import enrolment_route
from fedspzo.broker.server.http import serve, serve_app
from fedspzo.broker.server.state_folder import pin_bundle
from fedspzo.broker.server.store import ServerStore
from fedspzo.device_runtime.data.live import LiveData
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import BrokerError
from fedspzo.device_runtime.link.access import Access
from fedspzo.device_runtime.link.invitation import Invitation
from fedspzo.device_runtime.model.arrays import aligned_empty
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.device_key import KEY
from fedspzo.device_runtime.replica.state import DeviceState

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
FAKES = SUPPORT / "android_fakes"
LOGIN = Invitation(Access("mqtts://127.0.0.1:9", "phone-1", "secret-word"))


@pytest.fixture
def app(tmp_path: Path) -> App:
    return open_app(tmp_path)


def open_app(folder: Path) -> App:
    return create(str(folder / "no_backup"), Context(folder / "phone.json"), Keystore(folder / "keystore"))


@pytest.fixture
def copied_bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(bundle_folder, tmp_path / "chosen", ignore=shutil.ignore_patterns(PIN))
    pin_bundle(copy, tmp_path / "server")
    return copy


def result(answer: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer)
    assert "error" not in found, found
    return found


def error(answer: str) -> str:
    """The sentence, and in brackets the kind."""
    answered = json.loads(answer)
    return f"{answered['error']} [{answered['kind']}]"


def test_each_step_that_is_missing_is_named(app: App, copied_bundle: Path, tmp_path: Path) -> None:
    listener = Listener()
    status = result(app.status())
    assert (status["broker"], status["task"], status["running"], status["examples"]) == ("", None, False, 0)
    assert error(app.start(listener)) == "there is no invitation; scan or paste one [device.no-invitation]"
    assert "[access.invitation]" in error(app.enrol("fedspzo:AAAA"))
    assert "[access.url]" in error(app.enrol("http://host"))
    assert result(app.describe_invitation(LOGIN.text())) == {
        "broker": "mqtts://127.0.0.1:9", "device": "phone-1", "job": "default"
    }  # fmt: skip
    assert result(app.status())["broker"] == ""
    result(app.enrol(LOGIN.text()))
    assert "[device.no-bundle]" in error(app.start(listener))
    assert "[device.no-bundle]" in error(app.predict("{}"))
    assert "[bundle.no-manifest-in-zip]" in error(app.import_bundle(str(shutil.copytree(FAKES, tmp_path / "x"))))
    result(app.import_bundle(str(copied_bundle)))
    assert error(app.start(listener)) == error(app.check_ready())
    assert "[data.none-yet]" in error(app.check_ready())
    assert "[data.missing-field]" in error(app.add_example('{"label": "alarm"}'))
    assert "[data.unknown-label]" in error(app.add_example('{"text": "dance", "label": "dance"}'))
    assert "[data.empty-field]" in error(app.add_example('{"text": " ", "label": "alarm"}'))
    result(app.add_example('{"text": "wake me", "label": "alarm"}'))
    status = result(app.status())
    assert status["task"] == {
        "name": "requests", "fields": ["text"], "labels": ["alarm", "music", "call"], "target": "label"
    }  # fmt: skip
    assert result(app.check_ready()) == {}
    assert (status["device"], status["broker"], status["examples"]) == ("phone-1", "mqtts://127.0.0.1:9", 1)


class Logins:
    """A broker's logins: name → password."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}

    def check(self, name: str) -> None:
        pass

    def known(self, broker: Path) -> dict[str, str]:
        return self.given

    def give(self, broker: Path, passwords: Mapping[str, str], job: str) -> None:
        self.given.update(passwords)


def test_an_invitation_for_many_gives_the_phone_a_login_of_its_own(app: App, tmp_path: Path) -> None:
    """Key and password are sealed, as with any other; until a person has decided, the app says so."""
    state, logins = tmp_path / "server", Logins()
    ServerStore(state, bytes(32)).close()
    token = invite(state, "hall", 5, 60, tmp_path / "broker", waits=True)
    with (
        Enrolment(state, "default", logins) as enrolment,
        serve_app(Starlette(routes=[enrolment_route(enrolment)])) as url,
    ):
        text = Invitation(Access("mqtts://127.0.0.1:9"), "default", url, token).text()
        assert "accept the invitation again [device.waits]" in error(app.enrol(text))
        (asker,) = list_askers(state)
        decide(state, [asker.name], admit=True)
        result(app.enrol(text))
    status = result(app.status())
    assert (status["device"], status["offers_bundle"]) == (asker.name, True)
    assert result(app.show_key())["line"] == f"{asker.name} {asker.key.hex()}"
    kept = b"".join(file.read_bytes() for file in (tmp_path / "no_backup").rglob("*") if file.is_file())
    assert logins.given[asker.name].encode() not in kept
    assert token.encode() not in kept


def test_a_bundle_comes_from_where_the_invitation_says(
    app: App, copied_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It continues after a cancel; without a place it says what else there is."""
    result(app.enrol(LOGIN.text()))
    assert result(app.status())["offers_bundle"] is False
    assert "import the job's zip file [download.no-place]" in error(app.fetch_bundle())
    with serve(Bundle(copied_bundle), CollectorRegistry(), dict) as url:
        result(app.enrol(replace(LOGIN, bundle_url=url).text()))
        with monkeypatch.context() as patched:  # the phone's owner, as soon as something arrives
            read = HTTPResponse.read1
            patched.setattr(HTTPResponse, "read1", lambda *given: (app.cancel_fetch(), read(*given))[1])
            assert "[download.cancelled]" in error(app.fetch_bundle())
        status = result(app.status())
        assert (status["offers_bundle"], status["task"], status["fetched"]) == (True, None, None)
        result(app.fetch_bundle())
    assert result(app.status())["task"]["name"] == "requests"
    assert {file.name for file in PrivateFiles(app._files.root).bundle.iterdir()} >= {"manifest.json", PIN}


def test_bundles_are_checked_before_they_replace_another(app: App, copied_bundle: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "unpacked"
    shutil.copytree(copied_bundle, chosen / "bundle")
    result(app.import_bundle(str(chosen)))
    assert not chosen.exists()
    graph = next(copied_bundle.rglob("*.tflite"))
    graph.write_bytes(graph.read_bytes()[:-1])
    assert "[bundle.file-altered]" in error(app.import_bundle(str(copied_bundle)))
    assert result(app.status())["task"]["name"] == "requests"
    answer = result(app.predict('{"text": "wake me"}'))
    assert sum(share for _, share in answer["labels"]) == pytest.approx(1, abs=1e-3)
    assert "[data.empty-field]" in error(app.predict("{}"))


def test_examples_are_added_whole(
    app: App, copied_bundle: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]
) -> None:
    result(app.import_bundle(str(copied_bundle)))
    assert result(app.import_examples(str(write_examples(tmp_path / "few.jsonl", 3)))) == {"added": 3}
    (tmp_path / "more.csv").write_text('text,label\n"call, mum",call\n')
    assert result(app.import_examples(str(tmp_path / "more.csv"))) == {"added": 1}
    (tmp_path / "bad.jsonl").write_text('{"text": "stop", "label": "alarm"}\n{"text": "stop"}\n')
    assert "bad.jsonl, line 2: the field 'label'" in error(app.import_examples(str(tmp_path / "bad.jsonl")))
    lines = (tmp_path / "no_backup" / "examples.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"text": "call, mum", "label": "call"}
    assert len(lines) == result(app.status())["examples"] == 4


def reactions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "no_backup" / "examples.jsonl").read_text().splitlines()]


def test_what_is_done_with_a_suggestion_is_written_down(app: App, copied_bundle: Path, tmp_path: Path) -> None:
    result(app.import_bundle(str(copied_bundle)))
    assert "[device.no-suggestion]" in error(app.react(True))
    asked = result(app.predict('{"text": "call mum", "other": "x"}'))
    shown = asked["shown"]
    assert shown == asked["labels"][0][0]
    result(app.react(True))
    assert "[device.no-suggestion]" in error(app.react(True))
    for corrected in ("", "music" if shown != "music" else "alarm", shown):
        result(app.predict('{"text": "call mum"}'))
        assert "[data.unknown-label]" in error(app.react(False, "dance"))
        result(app.react(False, corrected))
    assert "[option.explore]" in error(app.predict('{"text": "call mum"}', 2.0))
    explored = result(app.predict('{"text": "call mum"}', 1.0))["shown"]
    result(app.react(False))
    found = reactions(tmp_path)
    for line in found:
        assert line.pop("scores") == dict(asked["labels"])
    common = {"text": "call mum", "shown": shown, "probability": 1.0, "round": 0}
    assert found == [
        {**common, "reward": 1.0},
        {**common, "reward": -1.0},
        {**common, "corrected": "music" if shown != "music" else "alarm"},
        {**common, "reward": 1.0},
        {**common, "shown": explored, "reward": -1.0, "probability": pytest.approx(1 / 3)},
    ]
    file = tmp_path / "no_backup" / "examples.jsonl"
    assert file.stat().st_mode & 0o077 == 0
    store = load_data(file, Bundle(tmp_path / "no_backup" / "bundle"))
    assert store.feedback is not None
    assert (len(store), result(app.status())["examples"]) == (6, 5), "a correction is a label, too"


def test_a_reaction_has_the_round_of_the_model_that_was_asked(
    app: App, copied_bundle: Path, tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    updated = shutil.copytree(copied_bundle, tmp_path / "updated")
    manifest = updated / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"requests"', '"more requests"'))
    files = PrivateFiles(tmp_path / "no_backup")
    result(app.enrol(LOGIN.text()))
    result(app.import_bundle(str(copied_bundle)))
    with files.key_unsealed(Keystore(tmp_path / "keystore")):
        state = DeviceState(files.state, Bundle(files.bundle), "phone-1")
    state.apply(Entry(make_plan(), (Contribution("", 1.0, (1.0, 2.0, 3.0, 4.0)),)))
    state.close()
    result(app.predict('{"text": "call mum"}'))
    result(app.import_bundle(str(updated)))
    result(app.react(True))
    result(app.predict('{"text": "call mum"}'))
    result(app.react(True))
    assert [line["round"] for line in reactions(tmp_path)] == [1, 0]


def test_a_broken_line_loses_no_other(app: App, copied_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "no_backup" / "examples.jsonl"
    result(app.import_bundle(str(copied_bundle)))
    for add in (lambda: app.react(True), lambda: app.add_example('{"text": "wake me", "label": "alarm"}')):
        result(app.predict('{"text": "call mum"}'))
        result(app.react(False))
        file.write_bytes(file.read_bytes()[:-9])  # as a kill may leave it
        result(app.predict('{"text": "call mum"}'))
        result(add())
    live = LiveData(str(file), Bundle(tmp_path / "no_backup" / "bundle"), tmp_path / "tokens.npz")
    assert len(live.current()) == 2
    with file.open("a") as more:
        more.write('{"text": "call mum", "shown": "dance", "reward": 1}\nnonsense\n')
    result(app.predict('{"text": "call mum"}'))
    result(app.react(True))
    assert len(live.current()) == 3
    assert open_app(tmp_path).status()


def test_secrets_lie_sealed(app: App, copied_bundle: Path, tmp_path: Path) -> None:
    root, vault = tmp_path / "no_backup", Keystore(tmp_path / "keystore")
    result(app.enrol(LOGIN.text()))
    line = result(app.show_key())["line"]
    assert re.fullmatch("phone-1 [0-9a-f]{64}", line)
    result(app.import_bundle(str(copied_bundle)))
    result(app.predict('{"text": "wake me"}'))  # opens the state
    assert app.digest()
    assert result(app.show_key())["line"] == line
    files = PrivateFiles(root)
    key = bytes.fromhex(vault.open(files.key.read_text()))
    for file in filter(Path.is_file, root.rglob("*")):
        content = file.read_bytes()
        assert b"secret-word" not in content, file
        assert key not in content, file
        assert key.hex().encode() not in content, file
    assert files.load_invitation(vault) == LOGIN
    with raises("state.sealed", "invitation.sealed", "join with a new invitation"):
        files.load_invitation(Keystore(tmp_path / "another"))
    assert "leave it before you join another [device.joined]" in error(app.enrol("mqtt://host"))
    result(app.leave())
    assert {file.name for file in root.iterdir()} == {"bundle"}
    result(app.enrol("mqtt://host"))


def test_an_update_of_the_app_keeps_what_version_0_2_0_wrote(
    copied_bundle: Path, pinned: Bundle, tmp_path: Path
) -> None:
    vault, files = Keystore(tmp_path / "keystore"), PrivateFiles(tmp_path / "no_backup")
    public = DeviceState(tmp_path / "other", pinned, "phone-1").signer.public
    shutil.copytree(copied_bundle, files.bundle)
    examples = '{"text": "wake me", "label": "alarm"}\n{"text": "call mum", "shown": "call", "reward": 1.0}\n'
    wrote = {
        "invitation.sealed": vault.seal("fedspzo:hgFzbXF0dHM6Ly8xMjcuMC4wLjE6OWdwaG9uZS0xa3NlY3JldC13b3JkgGdkZWZhdWx0"),
        "key.sealed": vault.seal((tmp_path / "other" / KEY).read_bytes().hex()),
        "examples.jsonl": examples,
        "history.jsonl": '{"round": 7, "loss": 1.25, "counted": true, "bytes_up": 3, "bytes_down": 4, "joules": 2}\n',
        "limits.json": '{"battery": 0.3, "temperature_c": 40.0, "charging": true, "unmetered": false}',
        "paused": "",
    }
    for name, content in wrote.items():
        (files.root / name).write_text(content)
    app = open_app(tmp_path)
    status = result(app.status())
    assert (status["broker"], status["device"], status["job"]) == ("mqtts://127.0.0.1:9", "phone-1", "default")
    assert (status["examples"], status["losses"], status["bytes_down"], status["paused"]) == (2, [[7, 1.25]], 4, True)
    assert status["limits"] == json.loads(wrote["limits.json"])
    assert status["task"]["name"] == "requests"
    assert result(app.show_key())["line"] == f"phone-1 {public.hex()}"
    assert files.examples.read_text() == examples


def test_a_key_that_a_kill_left_plain_is_sealed(pinned: Bundle, tmp_path: Path) -> None:
    files, vault = PrivateFiles(tmp_path / "app"), Keystore(tmp_path / "keystore")
    public = DeviceState(files.state, pinned, "a").signer.public
    assert files.plain_key.exists()
    for _ in range(2):
        with files.key_unsealed(vault):
            state = DeviceState(files.state, pinned, "a")
        assert state.signer.public == public
        assert (files.plain_key.exists(), files.key.exists()) == (False, True)
        state.close()


def test_invitations_come_in_three_forms(tmp_path: Path) -> None:
    assert parse_invitation(LOGIN.text()) == LOGIN
    LOGIN.access.save(tmp_path / "access.json")
    assert parse_invitation((tmp_path / "access.json").read_text()) == LOGIN
    assert parse_invitation("mqtt://me:pw@host:99\n").access == Access("mqtt://host:99", "me", "pw")
    for text in ("{}", "{", '{"url": 3}', "hello"):
        with pytest.raises(BrokerError):
            parse_invitation(text)


def test_the_phone_is_read_and_its_limits_are_kept(app: App, tmp_path: Path) -> None:
    def status(**phone: int) -> dict[str, Any]:
        (tmp_path / "phone.json").write_text(json.dumps(phone))
        told = result(app.status())
        return {name: told[name] for name in ("battery", "charging", "temperature", "throttled", "metered", "waits")}

    assert status() == {
        "battery": 0.8, "charging": True, "temperature": 30.1, "throttled": False, "metered": False, "waits": ""
    }  # fmt: skip
    assert status(level=25, scale=50, plugged=0, temperature=-1, metered=1, thermal=3) == {
        "battery": 0.5, "charging": False, "temperature": None, "throttled": True, "metered": True,
        "waits": "its network is metered",
    }  # fmt: skip
    assert status(level=-1)["battery"] == 1.0
    assert status(level=10)["waits"] == "its battery is at 10%, below 20%"
    assert status(temperature=455)["waits"] == "it is at 45.5 °C, above 42 °C"
    result(app.set_limits('{"battery": 0.05, "charging": true, "unmetered": false}'))
    assert "[option.limits]" in error(app.set_limits('{"battery": 5}'))
    assert result(open_app(tmp_path).status())["limits"] == {
        "battery": 0.05, "temperature_c": 42.0, "charging": True, "unmetered": False
    }  # fmt: skip
    assert status(level=10, metered=1, plugged=0)["waits"] == "it is not charging"


def test_the_history_outlives_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    rounds = [Round(number, 0.5, True, 200, 300, None) for number in range(1, 4)]
    history = History(file)
    for entry in rounds:
        history.add(entry)
    file.write_bytes(file.read_bytes()[:-9])
    history = History(file)
    for _ in range(2):  # a server that asks again has it acknowledged again
        history.add(rounds[2])
    assert list(History(file).rounds) == rounds


def test_executorch_through_java_gives_what_the_reference_does(bundle_folder: Path, bundle: Bundle) -> None:
    pytest.importorskip("executorch")
    engines = [create_executorch(2), create_engine("torch")]
    graph = bundle.manifest.shapes[0].graphs
    for spec in graph.values():
        reference = engines[1].load(bundle.folder / spec.files["torch"])
        loaded = engines[0].load(bundle.folder / spec.files["executorch"])
        shapes = [tuple(shape) for shape in _shapes(bundle.folder / spec.files["executorch"], outputs=False)]
        wanted = [tuple(shape) for shape in _shapes(bundle.folder / spec.files["executorch"], outputs=True)]
        draw = np.random.default_rng(0)
        inputs = [aligned_empty(shape) for shape in shapes]
        results = [[aligned_empty(shape) for shape in wanted] for _ in engines]
        for _ in range(2):  # the second time in arrays that are known
            for array in inputs:
                array[...] = 0.1 * draw.standard_normal(array.shape)
            loaded.run(inputs, results[0])
            reference.run(inputs, results[1])
            for found, expected in zip(*results, strict=True):
                np.testing.assert_allclose(found, expected, atol=1e-4)
        with raises("engine.result-size"):
            loaded.run(inputs, [aligned_empty((1, *shape, 2)) for shape in wanted])
    with raises("engine.load-failed", "export the bundle again"):
        engines[0].load(bundle_folder / "manifest.json")


def _shapes(path: Path, outputs: bool) -> list[tuple[int, ...]]:
    from executorch.runtime import Runtime

    meta = Runtime.get().load_program(path).load_method("forward").metadata
    count = meta.num_outputs() if outputs else meta.num_inputs()
    return [(meta.output_tensor_meta if outputs else meta.input_tensor_meta)(i).sizes() for i in range(count)]


@dataclass(frozen=True)
class Python:
    """What runs the app: a command, and the path on which the runtime and its packages lie."""

    command: list[str]
    path: str


def own_python(folder: Path) -> Python:
    """The one that runs the tests."""
    return Python([sys.executable], str(ROOT))


def embedded_python(folder: Path) -> Python:
    """As on the phone: Python 3.13, the app's packages alone, the runtime as Gradle carries it, libraries by name."""
    if missing := missing_tools():
        pytest.skip(f"not installed: {', '.join(missing)}")
    carried, libraries = folder / "carried", folder / "libraries"
    sources = shutil.ignore_patterns("*.so", "*.c", "*.cpp", "__pycache__")
    shutil.copytree(ROOT / "device_runtime", carried / "fedspzo" / "device_runtime", ignore=sources)
    shutil.copy(ROOT / "fedspzo" / "__init__.py", carried / "fedspzo")
    libraries.mkdir()
    flags = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-shared")
    source, library = ROOT / "device_runtime" / "directions" / "kernel.c", libraries / "libdirections.so"
    subprocess.run(["gcc", *flags, "-o", library, source], check=True)
    wheels = pinned(ROOT / "android_demo" / "requirements.txt")
    wheels["ai-edge-litert"] = pinned(ROOT / "constraints.txt")["ai-edge-litert"]
    command, packages = phone_python(wheels, libraries)
    return Python(command, f"{carried}:{packages}")


class Phone:
    """The app as a process; Java's part is a pipe."""

    def __init__(self, folder: Path, python: Python) -> None:
        folder.mkdir(exist_ok=True)
        command = [*python.command, str(SUPPORT / "android_process.py"), str(folder)]
        environment = {**os.environ, "PYTHONPATH": python.path}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, *command: object) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def wait(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while not condition(status := result(self.ask("status"))):
            assert time.monotonic() < end, json.dumps(status)
            time.sleep(0.05)
        return status


@pytest.fixture
def federation(copied_bundle: Path, tmp_path: Path) -> Iterator[Federation]:
    with Federation(copied_bundle, tmp_path) as running:
        yield running


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
def test_the_app_trains_through_a_kill_and_a_cut(
    federation: Federation,
    tmp_path: Path,
    write_examples: Callable[[Path, int], Path],
) -> None:
    python = embedded_python(tmp_path)
    phone_login, *others = federation.broker.add_users(["phone-1", "board-1", "board-2"])
    boards = []
    for access in others:
        data = write_examples(tmp_path / f"{access.user}.jsonl", 12)
        boards.append(federation.start(access.user, "device", access, "--data", data))
    server = federation.start(
        "server", "server", federation.broker.server_access(), "--json", "--devices", "3", "--cohort", "3",
        "--rounds", "120", "--deadline", "60", "--fanouts", "1,64", "--serve-after", "0",
    )  # fmt: skip
    invitation = federation.invitation(phone_login)
    chosen = shutil.copytree(federation.bundle, tmp_path / "unpacked")

    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "phone.json").write_text('{"plugged": 0, "watts": 2}')
    phone = Phone(tmp_path / "phone", python)
    result(phone.ask("enrol", invitation.text()))
    result(phone.ask("import_bundle", str(chosen)))
    result(phone.ask("import_examples", str(write_examples(tmp_path / "mine.jsonl", 12))))
    result(phone.ask("start"))
    status = phone.wait(lambda status: len(status["losses"]) >= 5 and status["working"])
    assert status["rounds"] == 120
    maps = Path(f"/proc/{phone.process.pid}/maps").read_text()
    assert all(library in maps for library in ("libLiteRt.so", "libdirections.so"))
    result(phone.ask("add_example", '{"text": "wake me now", "label": "alarm"}'))
    assert result(phone.ask("predict", '{"text": "wake me"}'))["labels"]

    with held(*boards):  # which would end the job without the phone
        phone.process.send_signal(signal.SIGKILL)
        phone.process.wait()
        phone = Phone(tmp_path / "phone", python)
        before = result(phone.ask("status"))
        assert len(before["losses"]) >= 5
        assert before["device"] == "phone-1"
        result(phone.ask("start"))
        phone.wait(lambda status: status["connected"])
    phone.wait(lambda status: len(status["losses"]) > len(before["losses"]))
    assert federation.proxy.cut("phone-1") >= 1
    phone.wait(lambda status: len(status["losses"]) > len(before["losses"]) + 1)

    (tmp_path / "phone" / "phone.json").write_text('{"metered": 1}')
    phone.wait(lambda status: status["waits"] == "its network is metered")
    time.sleep(0.5)  # a round that was at hand
    followed = result(phone.ask("status"))
    status = phone.wait(lambda status: status["round"] > followed["round"])
    assert status["losses"] == followed["losses"]
    assert phone.wait(lambda status: not status["working"])["running"], "the phone may sleep"
    result(phone.ask("set_limits", '{"unmetered": false}'))

    with held(*boards):
        result(phone.ask("pause"))
        status = result(phone.ask("status"))
        assert (status["running"], status["connected"], status["paused"]) == (False, False, True)
        result(phone.ask("start"))
        phone.wait(lambda status: status["connected"])
    status = phone.wait(lambda status: status["finished"] or not status["running"])
    assert status["finished"], status
    assert (status["round"], status["examples"], status["paused"]) == (120, 13, False)
    assert status["bytes_up"] > 0
    assert status["bytes_down"] > 0
    assert status["joules"] > 0

    digests = federation.digests(server)
    assert set(digests) == {"server", "journal", "phone-1", "board-1", "board-2"}
    assert {phone.ask("digest"), *digests.values()} == {digests["server"]}
    phone.process.kill()


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="mosquitto is not installed")
@pytest.mark.parametrize("objective", ["reward", "loss"])
def test_reactions_are_trained_on_where_the_job_uses_them(
    federation: Federation, tmp_path: Path, objective: str
) -> None:
    """A job that needs labels gets no result from reactions alone, and the screen says why."""
    login = federation.broker.add_user("phone-1")
    server = federation.start(
        "server", "server", federation.broker.server_access(), "--json", "--devices", "1", "--cohort", "1",
        "--rounds", "3", "--fanouts", "1,4", "--serve-after", "0", "--objective", objective,
    )  # fmt: skip
    phone = Phone(tmp_path / "phone", own_python(tmp_path))
    result(phone.ask("enrol", Invitation(login).text()))
    result(phone.ask("import_bundle", str(shutil.copytree(federation.bundle, tmp_path / "unpacked"))))
    assert "react to suggestions [data.none-yet]" in error(phone.ask("start"))
    result(phone.ask("predict", '{"text": "call mum"}'))
    result(phone.ask("react", False))
    result(phone.ask("start"))
    if objective == "loss":
        status = phone.wait(lambda status: status["message"])
        assert "these examples are reactions to what was shown" in status["message"]
        assert not status["losses"]
    else:
        status = phone.wait(lambda status: status["finished"] or not status["running"])
        assert (status["finished"], status["round"], status["examples"]) == (True, 3, 1)
        assert all(loss > 0 for _, loss in status["losses"]), "minus the reward: it was rejected"
        assert phone.ask("digest") == federation.digests(server)["server"]
    phone.process.kill()


@pytest.mark.slow
def test_the_app_waits_for_a_broker_that_is_away(app: App, copied_bundle: Path) -> None:
    result(app.enrol(Invitation(Access(f"mqtt://127.0.0.1:{free_port()}", "phone-1")).text()))
    result(app.import_bundle(str(copied_bundle)))
    result(app.add_example('{"text": "wake me", "label": "alarm"}'))
    listener = Listener()
    result(app.start(listener))
    end = time.monotonic() + PATIENCE_S
    while "does not answer within 15 s (Connection refused)" not in (status := result(app.status()))["message"]:
        assert time.monotonic() < end, json.dumps(status)
        time.sleep(0.1)
    assert status["running"]
    assert listener.changes
    assert not status["working"]
    result(app.rest())
    assert not result(app.status())["running"]
    assert not result(app.status())["paused"]


def test_a_pause_while_the_app_connects_is_no_error(app: App, copied_bundle: Path) -> None:
    result(app.enrol(Invitation(Access(f"mqtt://127.0.0.1:{free_port()}", "phone-1")).text()))
    result(app.import_bundle(str(copied_bundle)))
    result(app.add_example('{"text": "wake me", "label": "alarm"}'))
    result(app.start(Listener()))
    result(app.pause())
    status = result(app.status())
    assert (status["running"], status["message"], status["paused"]) == (False, "", True)
