"""ExecuTorch through its C interface: what it does where nothing has been compiled, and that it lets Python go on."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from refusals import raises

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines import executorch_python
from fedspzo.device_runtime.engines.executorch_build import find_compiler
from fedspzo.device_runtime.engines.protocol import Constants, create_engine
from fedspzo.device_runtime.model.arrays import aligned_empty
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.graphs import load_graph
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")

_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as where it is not installed
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.step.graphs import load_graph
try:
    engine = create_engine("executorch")
except EngineError as error:
    sys.exit(str(error))
bundle = Bundle(sys.argv[1])
for graph in bundle.manifest.shapes[0].graphs.values():
    load_graph(bundle, engine, graph)
"""


def start(bundle: Path, **environment: str) -> subprocess.Popen[str]:
    """A process without torch that loads a bundle's graphs."""
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(bundle)]
    return subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)


@needs_compiler
def test_processes_that_start_together_compile_side_by_side(bundle_folder: Path, tmp_path: Path) -> None:
    processes = [start(bundle_folder, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 2
    (library,) = (tmp_path / "fedspzo").iterdir()
    made = library.stat().st_mtime_ns
    later = start(bundle_folder, XDG_CACHE_HOME=str(tmp_path), PATH="")
    assert (later.communicate()[1], later.returncode) == ("", 0), "what is compiled needs no compiler"
    assert library.stat().st_mtime_ns == made


def test_without_compiler_and_torch_it_says_what_to_install(bundle_folder: Path, tmp_path: Path) -> None:
    process = start(bundle_folder, XDG_CACHE_HOME=str(tmp_path), PATH="")
    assert process.communicate()[1] == (
        "ExecuTorch needs a C++ compiler once, and found none; install g++, or for its Python API "
        "in a clone of FedSPZO, run: pip install '.[executorch,torch]'\n"
    )
    assert process.returncode == 1


@needs_compiler
def test_a_cache_that_cannot_be_written(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fedspzo").write_text("a file")
    error = start(bundle_folder, XDG_CACHE_HOME=str(tmp_path)).communicate()[1]
    assert error.startswith(f"{tmp_path / 'fedspzo'} cannot be written")
    assert "set XDG_CACHE_HOME to a writable folder, or for its Python API" in error
    assert error.count("\n") == 1


def test_without_compiler_its_python_api_serves(
    bundle: Bundle,
    store: DataStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    usual = predict(Forward(create_engine("executorch"), Replica(bundle)), store)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        engine = create_engine("executorch")
    assert isinstance(engine, executorch_python.ExecuTorchEngine)
    assert "install g++; until then it runs through its Python API" in caplog.text
    for found, expected in zip(predict(Forward(engine, Replica(bundle)), store), usual, strict=True):
        np.testing.assert_array_equal(found, expected)


@needs_compiler
def test_other_threads_go_on_while_a_graph_runs(bundle: Bundle) -> None:
    manifest = bundle.manifest
    head, shape = manifest.stages[-1], manifest.shapes[0]
    spec = shape.graphs[head.graph]
    graph = load_graph(bundle, create_engine("executorch"), spec)
    feeds = {**shape.feeds, "hidden": shape.graphs[manifest.stages[0].graph].outputs[0]}
    inputs = [aligned_empty(feeds[name]) for name in spec.feeds]
    inputs += [aligned_empty(manifest.tensors[index].shape) for index in head.tensors]
    outputs = [aligned_empty(dimensions) for dimensions in spec.outputs]
    for array in inputs:
        array.fill(0.1)
    gate, went_on = threading.Lock(), []
    gate.acquire()
    other = threading.Thread(target=lambda: went_on.append(gate.acquire()))
    other.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(300)  # from here on no thread is made to give up the interpreter
    try:
        gate.release()
        runs = 0
        while not went_on and runs < 10_000:
            graph.run(inputs, outputs)
            runs += 1
        assert went_on
    finally:
        sys.setswitchinterval(interval)
        other.join()


@needs_compiler
def test_constants_that_are_missing(bundle: Bundle, tmp_path: Path) -> None:
    """Also where ExecuTorch's Python API, which takes the errors for itself, is loaded after the engine."""
    graph = bundle.folder / bundle.manifest.shapes[0].graphs["layer"].files["executorch"]
    engine = create_engine("executorch")
    importlib.import_module("executorch.extension.pybindings.portable_lib")
    with raises("engine.load-failed", "No such file or directory", "export the bundle again"):
        engine.load(graph, Constants(tmp_path / "none.ptd", ()))
