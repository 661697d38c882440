"""A materialised model's folder: its answers, its card, and its way to a hub, which an HTTP server here stands for."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from huggingface_hub import constants
from refusals import refused
from safetensors.numpy import load_file

import fedspzo
from fedspzo.broker.server.held_out import read_evaluations
from fedspzo.broker.server.state_folder import open_database
from fedspzo.cli import main
from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import tokenise
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.answering import write_labels

TEXTS = ("wake me at six", "play some loud music now", "call mum", "stop the song", "new list")
REPOSITORY = "someone/tiny"


class Hub(ThreadingHTTPServer):
    """What of the hub's API an upload takes.

    Attributes:
        files: path in the repository → its bytes.
        created: what was asked of the new repository.
        refuses: whether the token is taken.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.created: dict[str, object] = {}
        self.tokens: set[str] = set()
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body, hub = self._body(), self.server
        if self.path == "/api/validate-yaml":  # asks for no token
            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self._answer({"errors": [], "warnings": []})
            return
        if hub.refuses:
            self._answer({"error": "Invalid username or password."}, 401)
            return
        hub.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            hub.created = json.loads(body)
            self._answer({"url": f"{hub.url}/{REPOSITORY}"})
        elif self.path == f"/api/models/{REPOSITORY}/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
            self._answer(
                {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]}
            )
        elif self.path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif self.path.startswith(f"/api/models/{REPOSITORY}/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.objects[value["oid"]]
            commit = hashlib.sha1(body).hexdigest()
            self._answer(
                {"commitOid": commit, "commitUrl": f"{hub.url}/{REPOSITORY}/commit/{commit}", "hookOutput": ""}
            )
        else:
            self._answer({"error": self.path}, 404)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def run(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a simulated run, with evaluations."""
    folder = tmp_path_factory.mktemp("run")
    lines = [{"text": text, "label": label} for text in TEXTS for label in ("alarm", "music", "call")]
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    job = fedspzo.Job(rounds=4, cohort=2, seed=3).with_blocks(
        (fedspzo.Block(3, 1, 1.0, 2e-2), fedspzo.Block(5, 4, 1.0, 2e-2))
    )
    data = folder / "data.jsonl"
    fedspzo.simulate(bundle_folder, data, job, devices=3, held_out=data, state=folder / "server", evaluate_every=2)
    return folder / "server"


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("classify", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits(replica: Replica) -> np.ndarray:
    store = tokenise(replica.bundle, [Example({"text": text}, 0) for text in TEXTS])
    return predict(Forward(create_engine("litert"), replica), store)[1]


@pytest.mark.slow  # sentence-transformers takes long to import
def test_its_script_answers_as_the_run_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its accuracy on a file is that of ``fedspzo evaluate``."""
    replica = fedspzo.materialize_model(run, tmp_path / "out")
    script = load(tmp_path / "out" / "classify.py")
    classifier = script.Classifier()
    expected = logits(replica)
    assert np.abs(expected - logits(Replica(replica.bundle))).max() > 1e-2, "training changed answers"
    np.testing.assert_allclose(classifier.logits([{"text": text} for text in TEXTS]), expected, atol=1e-3)
    assert classifier.answers([{"text": TEXTS[0]}]) == [fedspzo.predict(replica, TEXTS[0]).answer]
    data = tmp_path / "data.jsonl"
    data.write_text((run.parent / "data.jsonl").read_text() + '{"text": "wake\u2028me", "label": "alarm"}\n', "utf-8")
    monkeypatch.setattr(sys, "argv", ["classify.py", str(data)])
    capsys.readouterr()
    script.main()
    found = json.loads(capsys.readouterr().out)
    evaluated = fedspzo.evaluate(replica, data)
    assert found == {"accuracy": evaluated.scores["accuracy"], "examples": evaluated.examples}
    data.write_bytes(b"\xef\xbb\xbf" + data.read_bytes())  # as some editors begin a file
    script.main()
    assert json.loads(capsys.readouterr().out) == found
    for content, said in (
        ("text,label\n", "line 1 is no JSON"),
        ('\n{"text": "a"}', "line 2 is no object with label, text"),
    ):
        data.write_text(content)
        with pytest.raises(SystemExit, match=said):
            script.main()
    monkeypatch.setattr(sys, "argv", ["classify.py", "--help"])
    with pytest.raises(SystemExit, match=r"python classify.py DATA.jsonl"):
        script.main()


def test_labels_that_stay_frozen_are_written_too(bundle_folder: Path, tmp_path: Path) -> None:
    """For the trained model embeds their words otherwise."""
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "frozen"))
    manifest = fedspzo.open_bundle(bundle_folder).manifest
    frozen = tuple(replace(spec, trainable=spec.trainable and spec.name != "labels") for spec in manifest.tensors)
    replace(manifest, tensors=frozen).write(folder)
    replica = fedspzo.open_model(folder)
    write_labels(replica, tmp_path)
    index = [spec.name for spec in frozen].index("labels")
    np.testing.assert_array_equal(load_file(tmp_path / "labels.safetensors")["labels"], replica.tensor(index)[0].T)


def test_a_card_has_the_figures_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["materialize", str(run), "--out", str(tmp_path / "out"), "--round", "2"]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "sentence-transformers"
    assert "federated-learning" in head["tags"]
    replica = fedspzo.open_model(run, 2)
    with open_database(run) as connection:
        losses = {round: found.loss for round, found in read_evaluations(connection).items()}
    assert "| rounds | 2 |" in card
    assert "| results | 4 |" in card
    assert f"(loss {losses[0]:.4f}" in card
    assert f"round 2 (loss {losses[2]:.4f}" in card
    assert replica.digest().hex() in card
    assert "No noise was added" in card
    assert "The devices were simulated" in card
    assert "Mode robust: the server sees each device's scalars." in card
    assert re.search(r"stages up to 3: 1 perturbation, learning rate [\d.]+; stages up to 5: 4 perturbations", card)


def test_a_model_goes_to_the_hub(run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["materialize", str(run), "--out", str(tmp_path / "out"), "--push", REPOSITORY]) == 0
    assert f"uploaded to {hub.url}/{REPOSITORY}" in capsys.readouterr().out
    written = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert hub.files == written
    assert written.keys() >= {"README.md", "model.safetensors", "labels.safetensors", "classify.py", "modules.json"}
    assert hub.created == {"name": "tiny", "organization": "someone", "visibility": "private"}
    assert hub.tokens == {"Bearer hf_secret"}
    hub.refuses = True
    error = refused(capsys, "materialize", run, "--out", tmp_path / "again", "--push", REPOSITORY)
    assert f"upload it with: hf upload {REPOSITORY} {tmp_path / 'again'} [export.push-failed]" in error
    assert (tmp_path / "again" / "README.md").exists(), "what was written stays"
