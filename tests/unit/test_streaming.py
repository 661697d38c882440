"""Constants from packed files in place of a copy in memory: the same bits, whatever happens to the files."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import five_examples, make_checkpoint, wide
from refusals import raises

from fedspzo.bench.figures import measure_memory
from fedspzo.bench.workload import Setting
from fedspzo.cli import main
from fedspzo.device_runtime.engines.external_buffers import read_references
from fedspzo.device_runtime.engines.packed_files import PackedFile, PackedFiles
from fedspzo.device_runtime.engines.protocol import StreamedGraph, StreamingEngine, create_engine
from fedspzo.device_runtime.engines.watched import WatchedEngine
from fedspzo.device_runtime.errors import EngineError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.manifest import BASE
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.budget import streams_within
from fedspzo.device_runtime.step.cost import forecast_inference, forecast_memory
from fedspzo.device_runtime.step.estimator import Measurement, measure
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.device_runtime.step.streamed import FOLDER
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

LAYERS = 2
#: Bytes that a step of this bundle stays below.
PLENTY = 10**9


@pytest.fixture(scope="module", params=["int4", pytest.param("int8", marks=pytest.mark.slow)])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("streaming")
    changes = {**wide("llama-3.2"), "num_hidden_layers": LAYERS}
    checkpoint = make_checkpoint(folder / "model", "llama-3.2", **changes)
    target = Target(batches=[2], lengths=[32], adapters=LowRank(4), groups=[2], weights=request.param)
    export_bundle(str(checkpoint), load_task("sst2"), target, folder / "bundle")
    return Bundle(folder / "bundle")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fedspzo" / FOLDER


@pytest.fixture
def step(bundle: Bundle, make_plan: Callable[..., Plan]) -> Callable[..., Measurement]:
    blocks = (Block(len(bundle.manifest.stages), 4, 1.0, 1.0),)
    plan = make_plan(batch=2, epsilon=1e-2, blocks=blocks, steps=2, sides=1)

    def take(engine: StreamingEngine | None = None) -> Measurement:
        forward = Forward(engine or create_engine("litert", within=PLENTY), Replica(bundle))
        return measure(forward, five_examples(bundle), plan, "a")

    return take


class Counting:
    """A streaming engine that counts what it is asked for."""

    name = format = "litert"
    takes_constants = True

    def __init__(self, within: int = PLENTY) -> None:
        self.within = within
        engine = create_engine("litert", within=PLENTY)
        assert isinstance(engine, StreamingEngine)
        self._engine, self.packs_as, self.load = engine, engine.packs_as, engine.load
        self.packed = self.loaded = 0
        self.took: Callable[[PackedFile], object] = id

    def pack(self, path: Path, file: Path) -> None:
        self.packed += 1
        self._engine.pack(path, file)

    def load_streamed(self, path: Path, packed: PackedFile) -> StreamedGraph:
        self.loaded += 1
        self.took(packed)
        graph = self._engine.load_streamed(path, packed)
        take = graph.take
        graph.take = lambda other: (self.took(other), take(other))[1]  # type: ignore[method-assign]
        return graph


def test_streaming_changes_no_bit(step: Callable[..., Measurement], cache: Path) -> None:
    """All layers share the graphs of one, one for a branch and one for two, and all shapes a layer's file."""
    expected = step(create_engine("litert"))
    assert not cache.exists()
    engines = [Counting(), Counting()]
    assert [step(engine) for engine in engines] == [expected] * 2
    assert [(engine.packed, engine.loaded) for engine in engines] == [(LAYERS, 2), (0, 2)]
    assert sorted(file.suffix for file in cache.iterdir()) == [".packed"] * LAYERS + [".parts"] * LAYERS
    ran: list[int] = []
    assert step(WatchedEngine(create_engine("litert", within=PLENTY), lambda: ran.append(1))) == expected
    assert ran


def test_branches_part_where_a_step_would_not_fit(
    step: Callable[..., Measurement], bundle: Bundle, make_plan: Callable[..., Plan], cache: Path
) -> None:
    """They then pass a layer one by one, through the graph that the centre takes."""
    manifest = bundle.manifest
    plan = make_plan(batch=2, blocks=(Block(len(manifest.stages), 4, 1.0, 1.0),), sides=1)
    found = (forecast_memory(manifest, manifest.shapes[0], plan, "litert", True, groups) for groups in ([1], [1, 2]))
    alone, together = (memory.total + memory.frozen for memory in found)
    assert forecast_inference(manifest, "litert", True).total <= alone < together, "a bundle needs no more at least"
    engines = [Counting(within) for within in (together, together - 1, 1)]
    expected, *others = [step(engine) for engine in engines]
    assert [engine.loaded for engine in engines] == [2, 1, 1]
    for each in others:
        np.testing.assert_allclose(each.scalars, expected.scalars, rtol=1e-3, atol=1e-3)


class Apart(Counting):
    """No two layers' files are laid out alike."""

    def load_streamed(self, path: Path, packed: PackedFile) -> StreamedGraph:
        graph = super().load_streamed(path, packed)
        graph.take = lambda other: other is packed  # type: ignore[method-assign]
        return graph


def test_files_that_are_laid_out_otherwise_have_graphs_of_their_own(
    step: Callable[..., Measurement], cache: Path
) -> None:
    """Which stay loaded while the others run."""
    engine = Apart()
    assert step(engine) == step(create_engine("litert"))
    assert engine.loaded == 2 * LAYERS


def test_a_folder_that_may_not_be_written_to_ends_no_step(
    step: Callable[..., Measurement], cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "__init__.py").touch()  # the source code of a package
    assert step() == step(create_engine("litert"))
    assert "until then all weights stay in memory" in caplog.text
    assert not cache.exists()


def test_a_one_sided_step_reads_the_base_once(bundle: Bundle, cache: Path, make_plan: Callable[..., Plan]) -> None:
    """The centre and the branches of all blocks pass each layer before the next is read; nothing else changes."""
    stages = len(bundle.manifest.stages)
    blocks = (Block(1, 2, 1.0, 1.0), Block(stages - 1, 4, 0.5, 1.0), Block(stages, 2, 1.0, 1.0))
    plan = make_plan(batch=2, epsilon=1e-2, blocks=blocks, sides=1)
    engine, taken = Counting(), list[str]()
    engine.took = lambda packed: taken.append(packed.path)
    expected, found = (
        measure(Forward(each, Replica(bundle)), five_examples(bundle), plan, "a")
        for each in (create_engine("litert"), engine)
    )
    assert found == expected
    assert streams_within(bundle.manifest, "litert", "1MB")
    assert len(dict.fromkeys(taken)) == LAYERS
    assert sum(path != before for path, before in zip(taken, ["", *taken], strict=False)) == LAYERS


def test_files_that_are_not_right_are_made_again(
    step: Callable[..., Measurement], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LiteRT would take an altered file, and another layer's."""
    expected = step(create_engine("litert"))
    step()
    first, last = sorted(cache.glob("*.packed"))
    whole = last.read_bytes()
    middle = len(whole) // 2
    altered = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for wrong in (whole[:middle], altered, b"", first.read_bytes()):
        last.write_bytes(wrong)
        if wrong == first.read_bytes():  # with all that belongs to it
            last.with_suffix(".parts").write_bytes(first.with_suffix(".parts").read_bytes())
        caplog.clear()
        assert step() == expected
        assert f"{last} was altered or cut off, and is made again" in caplog.text
        assert last.read_bytes() == whole
    for gone in (last, last.with_suffix(".parts")):
        gone.unlink()
        assert step() == expected
        assert last.read_bytes() == whole


def test_an_altered_base_is_never_packed(bundle: Bundle, tmp_path: Path, cache: Path) -> None:
    """It is checked before it is read; where packed files of the true one are there, nothing of it is read."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.folder, folder)

    def losses(streamed: bool) -> list[float]:
        opened = Bundle(folder)
        forward = Forward(create_engine("litert", within=PLENTY if streamed else None), Replica(opened))
        return predict(forward, five_examples(opened))[0].tolist()

    expected = losses(True)
    content = bytearray((folder / BASE).read_bytes())
    content[-1] ^= 1
    (folder / BASE).write_bytes(content)
    assert losses(True) == expected
    with raises("bundle.file-altered", BASE):
        losses(False)
    shutil.rmtree(cache)
    with raises("bundle.file-altered", BASE):
        losses(True)
    assert not list(cache.glob("*.packed"))
    assert main(["inspect", str(folder)]) == 1, "who looks at a bundle is told"


def test_two_layers_on_one_path_are_found_out(bundle: Bundle, step: Callable[..., Measurement], cache: Path) -> None:
    """What tells layers apart is what they take from the bundle's files."""
    step()
    first, second = (cache / file.name for file in sorted(cache.glob("*.packed"))[:2])
    files = PackedFiles(cache)
    first.with_suffix(".parts").rename(second.with_suffix(".parts"))
    first.replace(second)
    made: list[Path] = []

    def make(file: Path) -> None:
        made.append(file)
        file.write_bytes(b"the second's own")

    assert os.pread(files.open(second.stem, make).descriptor, 99, 0) == b"the second's own"
    assert len(made) == 1
    shape = bundle.manifest.shapes[-1]
    graphs = [shape.graphs[stage.graph] for stage in bundle.manifest.stages if stage.constants]
    found = [read_references((bundle.folder / graph.files["litert"]).read_bytes()) for graph in graphs]
    assert len({each.template for each in found}) == 1
    assert len({each.constants for each in found}) == LAYERS


def test_where_files_cannot_be_kept_weights_stay_in_memory(
    step: Callable[..., Measurement], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("no folder")
    assert step() == step(create_engine("litert"))
    (said,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert said.startswith(f"packed weights cannot be kept in {cache} (Not a directory); check the path")


@pytest.mark.slow
def test_memory_of_a_streamed_step_is_measured_even_where_all_does_not_fit(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = (Block(len(bundle.manifest.stages), 4, 1.0, 1.0),)
    setting = Setting(bundle.folder, "litert", "1MB", 1, False, blocks, 1, (2, 32))
    names = ["peak memory of a step", "the first step, files not in memory"]
    assert [figure.name for figure in measure_memory(setting, 1)] == [*names, "peak memory of a step", "a step"]
    monkeypatch.setattr("fedspzo.bench.figures.available_bytes", lambda: 10**6)
    (cache / "making-0").mkdir()  # a process that was killed
    assert [figure.name for figure in measure_memory(setting, 1)] == names
    assert "all in memory is not measured: it takes some" in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    peak, first = measure_memory(setting, 1)
    assert [peak.name, first.name] == [f"{name}, all in memory after all" for name in names]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_damaged_graphs_are_refused(bundle: Bundle, data: st.DataObject) -> None:
    graph = next(bundle.folder.glob("layer-0-*.tflite")).read_bytes()
    cut = data.draw(st.integers(0, len(graph)))
    noise = data.draw(st.binary(max_size=8))
    with suppress(EngineError):
        read_references(graph[:cut] + noise + graph[cut + len(noise) :] if noise else graph[:cut])


def test_pages_are_let_go_of(bundle: Bundle) -> None:
    """And are as they were when they are read again."""
    index = next(iter(bundle.manifest.constants))
    stored = bundle.tensor(index)
    assert not isinstance(stored, np.ndarray)
    before = stored.codes.copy()
    bundle.let_go([index])
    np.testing.assert_array_equal(stored.codes, before)
