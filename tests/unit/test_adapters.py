"""Adapters against peft, unmodified, on transformers' models; branches that share one run of the base; the way back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from models import ENCODERS, ENGINES, MOST_DIFFERENT, cases, five_examples, make_checkpoint
from peft import AutoPeftModel, AutoPeftModelForCausalLM, AutoPeftModelForFeatureExtraction, PeftModel
from references import ALPHA, RANK, Case, make_case, read_labels, reference_losses, trained
from refusals import raises
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

import fedspzo
from fedspzo.broker.rounds.recommend import last_layer
from fedspzo.device_runtime.directions.format import Direction, NumpyKernel
from fedspzo.device_runtime.engines.protocol import Engine, create_engine
from fedspzo.device_runtime.model.bundle import SOURCE
from fedspzo.device_runtime.model.manifest import StageSpec
from fedspzo.device_runtime.model.task import Task
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import draw_examples, measure
from fedspzo.device_runtime.step.runner import Batch, Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.device_runtime.step.stage_pass import partition
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.materialize import write_adapter, write_checkpoint
from fedspzo.export.network.adapters import LowRank, OutputScales
from fedspzo.export.network.target import Target
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Sequence[str]], Case]:
    folder = tmp_path_factory.mktemp("adapters")

    @cache
    def make(name: str, engines: Sequence[str]) -> Case:
        groups = (2, 4) if name == "qwen2" else (4,)  # of one model, stacks of several sizes
        return make_case(folder / engines[-1], name, "float32", engines, groups)

    return make


#: Every way to store maps; those of other models are stored as these are, and quantised ones are tested of all.
NAMES = (
    *("roberta", "bert", "deberta-v3", "modernbert", "opt", "gpt2", "gpt-neox", "llama-3.2", "mistral", "qwen2"),
    *("qwen3", "phi3"),
)
CASES = cases(
    dict.fromkeys(NAMES, ("float32",)),
    {("roberta", "float32"): ENGINES, ("qwen2", "float32"): ENGINES[:1]},
    dict.fromkeys(MOST_DIFFERENT, ENGINES[:1]),
)


@pytest.mark.parametrize(("name", "_", "engines"), CASES)
def test_adapters_are_pefts(
    name: str,
    _: str,
    engines: Sequence[str],
    case: Callable[[str, Sequence[str]], Case],
    make_plan: Callable[..., Plan],
) -> None:
    found = case(name, engines)
    manifest = found.bundle.manifest
    stages = len(manifest.stages)
    blocks = (Block(last_layer(manifest), 1, 0.5, 1.0), Block(stages, 3, 1.0, 1.0))
    plan = make_plan(batch=2, epsilon=1e-2, blocks=blocks)
    drawn = draw_examples(plan, found.store, "a", 0)
    kernel = NumpyKernel(plan.distribution)
    for engine in engines:
        replica = Replica(found.bundle)
        *adapters, labels = (manifest.tensors[index].name for index in sorted(replica.trainable))
        assert all(".lora_" in name for name in adapters)
        assert labels == "labels"
        forward = Forward(create_engine(engine), replica)
        weights = trained(replica)
        everything = np.arange(len(found.store))
        np.testing.assert_allclose(
            predict(forward, found.store)[0], reference_losses(found, weights, everything), atol=1e-4
        )
        expected = []
        for path in plan.paths(1):
            losses = []
            for sign in (1, -1):
                moved = dict(weights)
                for depth, (block, start) in enumerate(zip(plan.blocks, (0, plan.blocks[0].stop), strict=True)):
                    direction = Direction(plan.seed("", 0, path[: depth + 1]), sign * plan.epsilon * block.scale)
                    for index in replica.trainable_in(range(start, block.stop)):
                        out = np.empty_like(replica.tensor(index))
                        kernel.shift({index: replica.tensor(index)}, [direction], {index: out})
                        moved[manifest.tensors[index].name] = out
                losses.append(reference_losses(found, moved, drawn).mean())
            expected.append((losses[0] - losses[1]) / (2 * plan.epsilon))
        measured = measure(forward, found.store, plan, "a").scalars
        np.testing.assert_allclose(measured, expected, atol=0.01 * np.abs(expected).max())
    assert all(share == 1.0 for check in manifest.checks for share in check.delegated.values())


@pytest.mark.parametrize("sides", [1, 2])
def test_branches_together_and_one_by_one(
    case: Callable[[str, Sequence[str]], Case], make_plan: Callable[..., Plan], sides: int
) -> None:
    """The same scalars and the same FLOPs, in fewer runs."""
    found = case("qwen2", ENGINES[:1])
    stages = len(found.bundle.manifest.stages)
    blocks = (Block(1, 2, 0.5, 1.0), Block(stages, 3 if sides == 2 else 7, 1.0, 1.0))
    plan = make_plan(batch=2, blocks=blocks, steps=2, sides=sides)
    scalars, flops, runs = [], [], []
    for groups in ([1], [1, 2], [1, 2, 4]):
        forward = Counting(create_engine("litert"), Replica(found.bundle), groups)
        trained(forward.weights)
        scalars.append(measure(forward, found.store, plan, "a").scalars)
        flops.append(forward.flops)
        runs.append(forward.runs)
    np.testing.assert_allclose(scalars[1], scalars[0], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(scalars[2], scalars[0], rtol=1e-2, atol=1e-2)
    assert flops[0] == flops[1] == flops[2]
    assert runs[0] > 1.5 * runs[1] > 1.5 * runs[2]


class Counting(Forward[Replica]):
    """Uses some of the graphs only, and counts its runs."""

    def __init__(self, engine: Engine, replica: Replica, allowed: list[int]) -> None:
        super().__init__(engine, replica)
        self.allowed, self.runs = allowed, 0

    def groups(self, batch: Batch) -> list[int]:
        return [size for size in super().groups(batch) if size in self.allowed]

    def run(
        self,
        stage: StageSpec,
        batch: Batch,
        hidden: np.ndarray | None,
        weights: Mapping[int, np.ndarray],
        packed: bool = False,
        alike: bool = False,
        kept: list[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        self.runs += 1
        return super().run(stage, batch, hidden, weights, packed, alike, kept)


@pytest.mark.parametrize(
    ("name", "engines"),
    [
        *(("roberta", ENGINES), ("gpt2", ENGINES[:1])),
        pytest.param("phi3", ENGINES[:1], marks=pytest.mark.slow),
        *(pytest.param(name, ENGINES[:1], marks=pytest.mark.matrix) for name in ("gemma2", "gpt-neox")),
    ],
)
def test_the_way_back(
    name: str, engines: Sequence[str], case: Callable[[str, Sequence[str]], Case], tmp_path: Path
) -> None:
    """As an adapter that peft loads over the original, and merged into a checkpoint: the replica's own losses."""
    found = case(name, engines)
    replica = Replica(found.bundle)
    trained(replica)
    expected, _ = predict(Forward(create_engine("litert"), replica), found.store)
    write_adapter(replica, tmp_path / "adapter")
    write_checkpoint(replica, tmp_path / "merged")
    factory = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM
    base = factory.from_pretrained(found.bundle.source, dtype=torch.float32)
    over = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = factory.from_pretrained(tmp_path / "merged").eval()
    everything = np.arange(len(found.store))
    automatic = AutoPeftModel if name in ENCODERS else AutoPeftModelForCausalLM
    for model in (over, merged, automatic.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32).eval()):
        read_labels(model, tmp_path / "merged", found.words)
        losses = reference_losses(Case(found.bundle, found.store, found.words, model), {}, everything)
        np.testing.assert_allclose(losses, expected, atol=1e-4)
    text = "the film was good"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert tokenizer(text).input_ids == AutoTokenizer.from_pretrained(found.bundle.source)(text).input_ids


def test_adapters_name_their_base_as_others_can_find_it(
    checkpoint: Path, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedding model's are for feature extraction. No file that leaves the machine has a path of it."""
    (tmp_path / "ours").symlink_to(checkpoint.parent)
    monkeypatch.chdir(tmp_path)
    target = Target(["torch"], [2], [12], adapters=LowRank(2))
    bundle = export_bundle(f"ours/{checkpoint.name}", {task.form: task}, target, tmp_path / "bundle")
    assert bundle.manifest.model["name"] == checkpoint.name
    replica = Replica(bundle)
    trained(replica)
    fedspzo.materialize_model(replica, tmp_path / "adapter", peft=True, source=f"ours/{checkpoint.name}")
    fedspzo.materialize_model(replica, tmp_path / "named", peft=True, base_model="someone/tiny-bert")
    for published in (
        *map(bundle.folder.joinpath, ("manifest.json", *bundle.manifest.files)),
        *tmp_path.glob("*/*.json"),
    ):
        content = published.read_bytes()
        assert not any(
            str(path).encode() in content for path in (checkpoint.parent, tmp_path, Path(fedspzo.__path__[0]))
        )
    configs = {name: json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("adapter", "named")}
    assert configs["adapter"]["base_model_name_or_path"] == f"ours/{checkpoint.name}"
    assert configs["named"]["base_model_name_or_path"] == "someone/tiny-bert"
    over = PeftModel.from_pretrained(AutoModel.from_pretrained(checkpoint), tmp_path / "adapter").eval()
    loaded = AutoPeftModelForFeatureExtraction.from_pretrained("adapter").eval()
    ids = torch.arange(5, 11)[None]
    with torch.no_grad():
        expected, found = over(ids).last_hidden_state, loaded(ids).last_hidden_state
        assert not torch.equal(expected, AutoModel.from_pretrained(checkpoint)(ids).last_hidden_state)
    torch.testing.assert_close(found, expected)
    (bundle.folder / SOURCE).unlink()  # as on another machine
    with raises("export.no-source", "--source"):
        write_adapter(replica, tmp_path / "elsewhere")


def test_the_hubs_name_is_kept(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path) -> None:
    """Of a model that was got by it, or that a package carries."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: checkpoint)
    assert Checkpoint("someone/tiny-bert").hub == "someone/tiny-bert"
    assert Checkpoint(str(checkpoint)).hub == ""
    assert Checkpoint("minilm").hub == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("name", "engines"),
    [
        ("qwen2", ENGINES[:1]),
        pytest.param("gpt2", ENGINES[:1], marks=pytest.mark.slow),
        *(pytest.param(name, ENGINES, marks=pytest.mark.matrix) for name in ("qwen2", "gpt2")),
    ],
)
def test_output_scales_are_pefts(
    name: str, engines: Sequence[str], tmp_path: Path, make_plan: Callable[..., Plan]
) -> None:
    """Factors on outputs: peft's (IA)³ on transformers' model has the same losses, loaded and merged."""
    checkpoint = make_checkpoint(tmp_path / "model", name)
    target = Target(engines, [2], [24], adapters=OutputScales(), groups=[4])
    bundle = export_bundle(str(checkpoint), load_task("sst2"), target, tmp_path / "bundle")
    store, words = five_examples(bundle), label_tokens(Checkpoint(str(checkpoint)), bundle.manifest.task)
    replica = Replica(bundle)
    *scales, _ = (replica.trainable[index] for index in sorted(replica.trainable))  # the labels' vectors come last
    assert all((weights == 1).all() for weights in scales)
    trained(replica)
    losses = [predict(Forward(create_engine(engine), replica), store)[0] for engine in engines]
    write_adapter(replica, tmp_path / "adapter")
    write_checkpoint(replica, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    over = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    for model in (over, merged):
        read_labels(model, tmp_path / "adapter", words)
        expected = reference_losses(Case(bundle, store, words, model), {}, np.arange(len(store)))
        for found in losses:
            np.testing.assert_allclose(found, expected, atol=1e-4)
    plan = make_plan(batch=2, blocks=(Block(len(bundle.manifest.stages), 4, 1.0, 1.0),))
    alone = Counting(create_engine("litert"), replica, [1])
    together = Counting(create_engine("litert"), replica, [1, 4])
    scalars = [measure(forward, store, plan, "a").scalars for forward in (alone, together)]
    np.testing.assert_allclose(scalars[0], scalars[1], rtol=1e-2, atol=1e-2)
    assert alone.runs > together.runs


def test_adapters_on_one_layer_alone(tmp_path: Path) -> None:
    """Layers with adapters and layers without compute different things, and so have graphs of their own."""
    model = make_checkpoint(tmp_path / "model", "bert")
    adapters = LowRank(4, 8.0, targets=("bert.encoder.layer.1.attention.self.query",))
    target = Target(["torch"], [2], [24], adapters=adapters)
    bundle = export_bundle(str(model), load_task("sst2"), target, tmp_path / "bundle")
    manifest = bundle.manifest
    trained = [stage.name for stage in manifest.stages if any(manifest.tensors[i].trainable for i in stage.tensors)]
    assert trained == ["layer 1", "head"]
    graphs = {stage.name: stage.graph for stage in manifest.stages}
    assert graphs["layer 1"] != graphs["layer 0"]
    losses, _ = predict(Forward(create_engine("torch"), Replica(bundle)), five_examples(bundle))
    full = export_bundle(str(model), load_task("sst2"), Target(["torch"], [2], [24]), tmp_path / "full")
    expected, _ = predict(Forward(create_engine("torch"), Replica(full)), five_examples(full))
    np.testing.assert_allclose(losses, expected, rtol=1e-6)  # adapters start by doing nothing


def test_branches_share_a_first_factor_that_is_not_trained(tmp_path: Path, make_plan: Callable[..., Plan]) -> None:
    """A stack of branches measures what they measure one by one."""
    checkpoint = make_checkpoint(tmp_path / "model", "qwen2", num_hidden_layers=1)
    target = Target(["torch"], [2], [24], adapters=LowRank(RANK, ALPHA, train_down=False), groups=[4])
    bundle = export_bundle(str(checkpoint), load_task("sst2"), target, tmp_path / "bundle", check=False)
    plan = make_plan(batch=2, epsilon=1e-2, blocks=(Block(len(bundle.manifest.stages), 4, 1.0, 1.0),))
    scalars = []
    for allowed in ([1], [1, 4]):
        forward = Counting(create_engine("torch"), Replica(bundle), allowed)
        trained(forward.weights)
        scalars.append(measure(forward, five_examples(bundle), plan, "a").scalars)
    np.testing.assert_allclose(scalars[0], scalars[1], rtol=1e-2, atol=1e-3)


def test_stacks_of_branches() -> None:
    assert [len(run) for run in partition(8, [1])] == [1] * 8
    assert [len(run) for run in partition(14, [1, 2, 8])] == [8, 2, 2, 2]
    assert [len(run) for run in partition(6, [1, 4])] == [4, 1, 1]
    assert partition(6, [1, 4]) == [range(4), range(4, 5), range(5, 6)]


def test_what_gets_an_adapter(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "llama-3.2")

    def export(name: str, **settings: object) -> set[str]:
        target = Target(["torch"], [1], [16], adapters=LowRank(2, **settings))  # type: ignore[arg-type]
        bundle = export_bundle(str(checkpoint), load_task("sst2"), target, tmp_path / name)
        return {spec.name.split(".", 3)[-1] for spec in bundle.manifest.tensors if spec.trainable}

    assert export("qv", targets=["q_proj", "v_proj"]) == {
        "labels",
        *(f"self_attn.{map_}_proj.lora_{factor}.weight" for map_ in "qv" for factor in "AB"),
    }
    assert export("b", targets=["mlp.up_proj"], train_down=False) == {"labels", "mlp.up_proj.lora_B.weight"}
    with raises("export.targets-unmatched", "model.layers"):
        export("none", targets=["query"])
    with raises("export.rank-too-large", "'model.layers.0.self_attn.q_proj'", "33", "--lora-rank"):
        export_bundle(
            str(checkpoint), load_task("sst2"), Target(["torch"], [1], [16], adapters=LowRank(33)), tmp_path / "r"
        )
    with raises("export.odd-groups"):
        Target(["torch"], [1], [16], adapters=LowRank(), groups=[3])
    with raises("export.groups-without-adapters"):
        Target(["torch"], [1], [16], groups=[2])
    for batch, length, groups in ((10**30, 16, 2), (1, 10**30, 2), (1, 16, 10**30)):
        with raises("export.shape-too-large"):
            Target(["torch"], [batch], [length], adapters=LowRank(), groups=[groups])
    for wrong in ({"rank": 0}, *({"alpha": alpha} for alpha in (0.0, -1.0, 1e-60, 1e38, 1e300, math.inf, math.nan))):
        with raises("export.adapter-settings"):
            LowRank(**wrong)  # type: ignore[arg-type]
