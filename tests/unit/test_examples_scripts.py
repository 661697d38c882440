"""The scripts and the notebook in examples/ run, small; each is short."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from refusals import raises
from tiny import BATCH, LENGTH, TASK, WORDS

import fedspzo
from fedspzo.device_runtime.protocol.signing import PIN

EXAMPLES = Path(__file__).parents[2] / "examples"
Write = Callable[[Path, int], Path]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path, write_examples: Write) -> Path:
    return write_examples(tmp_path / "data.jsonl", 60)


def test_each_is_short() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 5
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 60, script


def test_simulate(bundle_folder: Path, data: Path) -> None:
    run = load("simulate").main(str(bundle_folder), str(data), str(data), rounds=2)
    assert list(run.evaluations) == [0, 2]


def test_own_aggregation(bundle_folder: Path, data: Path) -> None:
    run = load("own_aggregation").main(str(bundle_folder), str(data), rounds=4)
    turns = [sorted(f"device-{1 + (3 * round + place) % 7}" for place in range(3)) for round in range(1, 5)]
    assert [list(closed.devices) for closed in run.rounds] == turns


def test_devices_and_server(bundle_folder: Path, write_examples: Write, tmp_path: Path) -> None:
    """Twice: what is on disk is continued."""
    copy = shutil.copytree(bundle_folder, tmp_path / "bundle", ignore=shutil.ignore_patterns(PIN))
    files = [str(write_examples(tmp_path / f"{name}.jsonl", 12)) for name in "ab"]
    example = load("devices_and_server")
    for rounds in (3, 5):
        result = example.main(str(copy), *files, str(tmp_path / "state"), rounds=rounds)
        assert result.reports.keys() == {"phone-1", "phone-2"}
    assert fedspzo.open_model(tmp_path / "state" / "server").round == 5


def test_export_and_predict(checkpoint: Path, tmp_path: Path) -> None:
    example = load("export_and_predict")
    out = tmp_path / "bundle"
    found = example.main(str(checkpoint), str(out), "call me now", lengths=(LENGTH,))
    assert found.probabilities.keys() == {"refund", "delivery"}
    assert (tmp_path / "bundle-checkpoint" / "config.json").is_file()


def test_own_family(tmp_path: Path, checkpoint: Path) -> None:
    """Its bundle answers as transformers' model does."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer, ErnieConfig, ErnieModel

    folder = tmp_path / "ernie"
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings = {"max_position_embeddings": 32, "use_task_id": True, "initializer_range": 0.3}
    model = ErnieModel(ErnieConfig(vocab_size=len(WORDS) + 5, **sizes, **settings)).eval()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder)
    family = load("own_family").Ernie()
    with raises("model.unsupported-type", "'ernie'", "bert"):
        fedspzo.export_model(folder, TASK, tmp_path / "refused")
    bundle = fedspzo.export_model(
        folder, TASK, tmp_path / "bundle", fedspzo.Target(batches=(BATCH,), lengths=(LENGTH,)), families=[family]
    )
    found = fedspzo.predict(bundle, "wake me at six").probabilities
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def embed(text: str) -> np.ndarray:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        return hidden / np.linalg.norm(hidden)

    request = embed("please wake me at six")
    nearest = max(TASK.labels, key=lambda label: float(embed(label.text) @ request))
    assert next(iter(found)) == nearest.name


def test_the_notebook(bundle_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, one after the other in one namespace."""
    import matplotlib

    matplotlib.use("Agg")
    for name, value in (("BUNDLE", bundle_folder), ("DATA", data), ("HELD_OUT", data), ("ROUNDS", 3)):
        monkeypatch.setenv(name, str(value))
    notebook = json.loads((EXAMPLES / "federation.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    space: dict[str, object] = {}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, source in enumerate(cells):
        exec(compile(source, f"cell {number}", "exec"), space)
    assert [len(run.rounds) for run in space["runs"].values()] == [3, 3]  # type: ignore[attr-defined]
