"""Commands: bad input gets one sentence and status 1, and never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from models import make_checkpoint
from patience import PATIENCE_S
from refusals import raises, refused

from fedspzo import device_runtime, progress
from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.state_folder import DATABASE
from fedspzo.broker.server.store import ServerStore
from fedspzo.cli import COMMANDS, main
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.entry import Contribution, Entry
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.protocol.signing import PIN
from fedspzo.device_runtime.replica.chain import EMPTY, make_records


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedspzo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def test_every_command_has_help() -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0


def test_help_and_a_device_load_no_heavy_library() -> None:
    heavy = (
        "torch",
        "transformers",
        "executorch",
        "litert_torch",
        "fedspzo.export.pipeline",
        "fedspzo.broker",
        "matplotlib",
    )
    code = (
        "import sys; from fedspzo.cli import main\n"
        "try: main(['device', '--help'])\n"
        "except SystemExit: pass\n"
        "from fedspzo.device_runtime.device import agent\n"
        "from fedspzo.device_runtime.data import store\n"
        "from fedspzo.device_runtime.engines import litert\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stderr.strip() == "[]"


def test_export(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "b")
    assert "[model.no-folder]" in refused(capsys, "export", "./none", "--task", "intents", *out)
    assert "[task.unknown]" in refused(capsys, "export", "minilm", "--task", "none", *out)
    assert "[export.unknown-engine]" in refused(
        capsys, "export", "minilm", "--task", "intents", "--engine", "onnx", *out
    )
    assert "[export.shape-too-small]" in refused(
        capsys, "export", "minilm", "--task", "intents", "--max-length", 2, *out
    )
    assert not list(tmp_path.iterdir())


def test_an_argument_that_no_file_can_have_as_its_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    long, out = "m" * 5000, ("--out", tmp_path / "b")
    assert "[model.hub-failed]" in refused(capsys, "export", long, "--task", "sst2", *out)
    assert "[model.no-folder]" in refused(capsys, "export", f"./{long}.gguf", "--task", "sst2", *out)
    assert "[task.unreadable]" in refused(capsys, "export", "minilm", "--task", f"{long}.toml", *out)
    assert "[download." in refused(capsys, "fetch", long, *out)
    for words in (("export", "minilm", "--task", "sst2", "--out", long), ("materialize", long, *out)):
        assert "File name too long" in (said := refused(capsys, *words))
        assert said.endswith("; give a shorter name")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_device_and_server(
    capsys: pytest.CaptureFixture[str],
    bundle_folder: Path,
    tmp_path: Path,
    write_examples: Callable[[Path, int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = write_examples(tmp_path / "d.jsonl", 8)
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle", ignore=shutil.ignore_patterns(PIN))
    device = ("device", bundle, "--state", tmp_path / "s", "--data", data, "--broker")
    server = ("server", bundle, "--state", tmp_path / "j", "--data", data, "--broker")
    assert "[access.url]" in refused(capsys, *device, "localhost")
    assert "[access.url]" in refused(capsys, *server, "http://localhost")
    assert "[access.url]" in refused(capsys, *server, "mqtt://[::1")
    assert "[access.url]" in refused(capsys, *server, "mqtt://a..b")
    assert "[device.name]" in refused(capsys, *device, "mqtt://x", "--id", "a/b", "--state", tmp_path / "t")
    from fedspzo.device_runtime.link.connection import Link

    connect = Link.connect
    monkeypatch.setattr(Link, "connect", lambda link, **more: connect(link, timeout=0.5, **more))
    nobody = f"mqtt://127.0.0.1:{free_port()}"
    assert "[bundle.no-server-key]" in refused(capsys, *device, nobody)
    silence = "does not answer within 0.5 s (Connection refused); start it, or check the URL [broker.no-answer]"
    assert silence in refused(capsys, *server, nobody)
    assert silence in refused(capsys, *device, nobody)
    assert "[bundle.other-server]" in refused(capsys, *server, nobody, "--state", tmp_path / "k")
    (bundle / PIN).write_text("none")
    assert "[bundle.server-key-unreadable]" in refused(capsys, *device, nobody)
    assert "[option.no-broker]" in refused(capsys, *device[:-1])
    assert "[access.unreadable]" in refused(capsys, *device[:-1], "--access", tmp_path / "nowhere")
    assert "[access.not-an-access-file]" in refused(capsys, *device[:-1], "--access", data)
    assert "[bundle.not-a-bundle]" in refused(capsys, "device", tmp_path, *device[2:], nobody)
    assert "[engine.unknown]" in refused(capsys, *device, nobody, "--engine", "x")
    data.write_text("{")
    assert "[data.not-json]" in refused(capsys, *device, nobody)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fanouts", "1,2,3"), "3 fanouts, 2 scales, 2 learning rates and 1 in split [job.blocks-differ]"),
        (("--split", "9"), "[plan.empty-block]"),
        (("--rounds", "0"), "rounds lies between 1 and 1e+09, not 0 [job.out-of-range]"),
        (("--cohort", "2", "--quorum", "3"), "a quorum of 3 cannot be met by a cohort of 2; lower quorum"),
        (("--epsilon", "0"), "epsilon lies between 1e-09 and 1e+09, not 0"),
        (("--epsilon", "inf"), "epsilon lies between 1e-09 and 1e+09, not inf"),
        (("--deadline", "inf"), "deadline lies between 1e-09 and 1e+09, not inf"),
        (("--learning-rates", "nan,1"), "learning_rates lies between -1e+09 and 1e+09, not nan"),
        (("--final-rate", "nan"), "final_rate lies between 0 and 1, not nan"),
        (("--evaluate-every", "0"), "--evaluate-every and --devices are at least 1"),
        (("--seeds", "device", "--cohort", "17", "--fanouts", "1,1000"), "[job.round-too-large]"),
        (("--job", "a+"), "[job.name]"),
        (("--broker", "mqtt://server-x@127.0.0.1:1"), "[access.other-job]"),
        (("--admit", "/nowhere"), "[access.list-unreadable]"),
    ],
)
def test_job_options(
    capsys: pytest.CaptureFixture[str], bundle_folder: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    bundle = shutil.copytree(bundle_folder, tmp_path / "bundle", ignore=shutil.ignore_patterns(PIN))
    server = ("server", bundle, "--state", tmp_path / "j", "--broker", "mqtt://127.0.0.1:1")
    assert message in refused(capsys, *server, *options)


def test_a_model_type_is_refused_before_pytorch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    arguments = ["export", str(tmp_path), "--task", "sst2", "--out", str(tmp_path / "b")]
    code = f"import sys; from fedspzo.cli import main; print(main({arguments!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert "'mamba'" in done.stderr
    assert "one of the types bert, camembert," in done.stderr
    assert done.stdout.split() == ["1", "False"]


def test_offline_is_what_the_hub_library_takes_for_it() -> None:
    code = "from fedspzo.cli import main; main(['export', 'some/model', '--task', 'sst2', '--out', 'none/b'])"
    for value, said in (("0", "[model.hub-failed]"), ("1", "[model.no-folder]")):
        environment = {**os.environ, "HF_HUB_OFFLINE": value, "HF_ENDPOINT": "http://127.0.0.1:9"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, env=environment
        )
        assert said in done.stderr


def test_long_work_shows_where_it_is(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "ELSEWHERE_S", 0.01)
    with progress.steps("reading") as step:
        wait_for(lambda: "reading … 0 s\n" in capfd.readouterr().err)
        step("comparing")
        wait_for(lambda: "comparing … 0 s\n" in capfd.readouterr().err)


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_state_is_not_put_among_source_code(capsys: pytest.CaptureFixture[str], bundle_folder: Path) -> None:
    """`--state broker` in a clone wrote keys and passwords into the package of that name."""
    package = Path(device_runtime.__file__).parent
    bundle = ("--broker", "mqtt://127.0.0.1:1", "--state", package)
    for command in (("server", bundle_folder, *bundle), ("device", bundle_folder, *bundle, "--data", "none")):
        assert f"{package.resolve()}; choose another folder [state.in-package]" in refused(capsys, *command)
    assert "[state.in-package]" in refused(capsys, "broker", "--state", package / "new")
    assert not (package / "new").exists()


def test_a_state_folder_of_another_job(bundle: Bundle, tmp_path: Path) -> None:

    ServerStore(tmp_path, bundle.identity)
    with raises("state.other-bundle"):
        ServerStore(tmp_path, bytes(32))


def test_predict_and_materialize(
    capsys: pytest.CaptureFixture[str],
    bundle_folder: Path,
    bundle: Bundle,
    tmp_path: Path,
    make_plan: Callable[..., Plan],
) -> None:
    for command in (("predict", tmp_path, "x"), ("materialize", tmp_path, "--out", tmp_path / "out")):
        assert "give the --state folder of a server or a simulation" in refused(capsys, *command)
    (tmp_path / "bundle").symlink_to(bundle_folder)
    (tmp_path / "server").mkdir()
    assert "[state.no-journal]" in refused(capsys, "predict", tmp_path, "x")
    store = ServerStore(tmp_path / "server", bundle.identity)
    entry = Entry(make_plan(), (Contribution("", 1.0, (1.0, 2.0, 3.0, 4.0)),))
    store.journal.append(*make_records([entry], EMPTY))
    assert "give one each for text [option.texts]" in refused(capsys, "predict", tmp_path, "x", "y")
    assert main(["predict", str(tmp_path), "wake me at six"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == {"alarm", "music", "call"}
    assert sum(float(line.split("%")[0]) for line in lines) == pytest.approx(100, abs=0.2)
    assert main(["materialize", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "checkpoint of round 1 written" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()
    with sqlite3.connect(tmp_path / "server" / DATABASE) as connection:
        connection.execute("UPDATE job SET bundle = zeroblob(32)")
    for words in (
        ("predict", tmp_path, "x", "--round", "0"),
        ("evaluate", tmp_path, "--data", tmp_path / "none", "--round", "1"),
        ("materialize", tmp_path, "--out", tmp_path / "again", "--round", "1"),
    ):
        assert "ln -sfn BUNDLE" in (text := refused(capsys, *words))
        assert "[state.other-bundle]" in text
    with sqlite3.connect(tmp_path / "server" / DATABASE) as connection:
        connection.execute("DELETE FROM job")
    assert main(["predict", str(tmp_path), "x"]) == 0


def test_other_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in (str(kept), "..", "", "a b"):
        assert "[demo.run-name]" in refused(capsys, "demo", "--name", name)
    assert kept.exists()
    assert "[option.host-without-state]" in refused(capsys, "broker", "--host", "foo")
    assert "[demo.not-positive]" in refused(capsys, "demo", "--devices", "0")
    assert "[demo.too-many-devices]" in refused(capsys, "demo", "--devices", "500")
    assert "[option.port]" in refused(capsys, "broker", "--port", 99999)


def test_a_server_is_told_at_once_that_it_could_cut_nobody_off(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--broker", "mqtt://127.0.0.1:1", "--state", tmp_path / "state", "--cut-off", tmp_path / "nowhere"]
    assert "[broker.not-a-state-folder]" in refused(capsys, "server", bundle_folder, *given)


def test_a_port_that_is_taken_is_no_reason_to_stay_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What had it before may still be ending."""
    ServerStore(tmp_path, bytes(32)).close()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "[server.http-port-in-use]" in refused(capsys, "console", tmp_path, "--http", f"127.0.0.1:{port}")


@pytest.mark.parametrize("words", ["status --json", "server --help"])
def test_a_pipe_that_is_closed_ends_a_command_quietly(words: str, tmp_path: Path) -> None:
    ServerStore(tmp_path, bytes(32)).close()
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "fedspzo", *words.split(), tmp_path]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_mistyped_second_word_is_answered_with_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["privacy", "atack", "bundle"])
    assert "unrecognized arguments: bundle; beside fedspzo privacy there is fedspzo privacy attack" in (
        capsys.readouterr().err
    )


def test_a_log_file_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["device", "b", "--state", "s", "--data", "d", "--log-file", str(tmp_path / "none" / "x.log")])
    assert f"{tmp_path / 'none' / 'x.log'} cannot be written (No such file or directory); check the path" in (
        capsys.readouterr().err
    )


def test_interrupting_is_quiet(bundle_folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fedspzo", "broker"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("broker at mqtt://127.0.0.1:")
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert process.communicate()[1] == ""


def test_what_is_stopped_half_way_has_not_succeeded(
    bundle_folder: Path, tmp_path: Path, write_examples: Callable[[Path, int], Path]
) -> None:
    """A script that goes on with the output must know; a server that is asked to end has done well."""
    data = write_examples(tmp_path / "data.jsonl", 30)
    options = ["--data", data, "--state", tmp_path / "state", "--devices", "4", "--rounds", "1000000", "--json"]
    command = [sys.executable, "-m", "fedspzo", "simulate", bundle_folder, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def test_inspect(capsys: pytest.CaptureFixture[str], bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = said(capsys, "inspect", bundle_folder, "--fanouts", "1,4")
    assert "task: requests, similarity: 'please {text}'" in text
    assert all(
        word in text
        for word in (
            "embedding",
            "layer 2",
            "head",
            "litert: delegated",
            "100%, ",
            "GFLOP a token",
            "MB in all, executorch",
        )
    )
    assert "block 1 = stages 0 to 2, fan-out 1; block 2 = stages 3 to 4, fan-out 4" in text
    assert "[bundle.not-a-bundle]" in refused(capsys, "inspect", bundle_folder.parent)


def test_evaluate_and_predict(
    capsys: pytest.CaptureFixture[str],
    bundle_folder: Path,
    bundle: Bundle,
    tmp_path: Path,
    write_examples: Callable[[Path, int], Path],
    make_plan: Callable[..., Plan],
) -> None:
    data = write_examples(tmp_path / "d.jsonl", 9)
    text = said(capsys, "evaluate", bundle_folder, "--data", data)
    assert text.startswith("before: loss ")
    assert "accuracy" in text
    assert "9 examples" in text
    run = tmp_path / "run"
    run.mkdir()
    (run / "bundle").symlink_to(bundle_folder)
    store = ServerStore(run / "server", bundle.identity)
    blocks = (Block(3, 1, 1.0, 0.05), Block(5, 1, 1.0, 0.05))
    entry = Entry(make_plan(blocks=blocks), (Contribution("", 1.0, (3.0,)),))
    store.close_round(entry, ClosedRound(1, 1.0, ("a",), 1.0, 1.0))
    found = json.loads(said(capsys, "evaluate", run, "--data", data, "--json"))
    assert found["examples"] == 9
    assert found["before"]["loss"] != found["after 1 rounds"]["loss"]
    for folder in (bundle_folder, run):
        lines = said(capsys, "predict", folder, "call mum now").splitlines()
        assert {line.split()[1] for line in lines} == {"alarm", "music", "call"}
    assert "give one each for text [option.texts]" in refused(capsys, "predict", run, "a", "b")
    assert "[state.not-a-run]" in refused(capsys, "evaluate", tmp_path, "--data", data)


def test_answers_on_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama-3.2")
    out = ("--engine", "torch", "--batch", "2", "--max-length", "24,48", "--out", tmp_path / "b")
    options = ("--task", "squad", "--answer-tokens", "6", "--train", "*proj*", "--freeze", "*layers.0.*")
    said(capsys, "export", checkpoint, *options, "--least", "groups", "--enrolment-key", "07" * 32, *out)
    data = tmp_path / "d.csv"
    data.write_text("title,context,question,answers\nRome,Rome is a city.,what is Rome?,a city\n")
    text = said(capsys, "evaluate", tmp_path / "b", "--data", data, "--engine", "torch")
    assert "exact match" in text
    assert "f1" in text
    assert (
        len(said(capsys, "predict", tmp_path / "b", "Rome", "a city", "what?", "--engine", "torch").splitlines()) <= 1
    )
    asked = ("predict", tmp_path / "b", "Rome", "a city", "what?", "--engine", "torch", "--temperature")
    assert said(capsys, *asked, "0.9", "--seed", "4") == said(capsys, *asked, "0.9", "--seed", "4")
    assert "[option.sampling]" in refused(capsys, *asked, "-1")
    shown = said(capsys, "inspect", tmp_path / "b", "--split", "2")
    assert "answers as ' {answers}\\n'" in shown
    assert f"devices: mode groups or a stricter one, summed only with those that {'07' * 32} certifies\n" in shown
    assert "[plan.nothing-to-train]" in refused(capsys, "inspect", tmp_path / "b", "--split", "3")
    assert "export it with --engine litert [bundle.no-graphs]" in refused(
        capsys, "evaluate", tmp_path / "b", "--data", data
    )
    assert "[option.numbers]" in refused(
        capsys, "export", checkpoint, "--task", "squad", "--batch", "x", "--out", tmp_path / "c"
    )
