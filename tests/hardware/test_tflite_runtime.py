"""tflite-runtime 2.14 in an environment of its own, installed as its user would: the same .tflite bundles, slower."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import make_checkpoint
from patience import PATIENCE_S
from refusals import raises

from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.codec import encode
from fedspzo.device_runtime.protocol.plan import Block, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.generation import generate
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.scores import predict
from fedspzo.export.network.target import Target
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task

_ASK = """
import json, sys
from pathlib import Path
import numpy
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.generation import generate
from fedspzo.device_runtime.step.scores import predict
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.protocol.codec import decode

bundle = Bundle(sys.argv[1])
store = load_data(sys.argv[2], bundle)
forward = Forward(create_engine("tflite"), Replica(bundle))
losses, _ = predict(forward, store)
scalars = measure(forward, store, decode(bytes.fromhex(sys.argv[3])), "a").scalars
answers = generate(forward, store) if bundle.manifest.decoder else []
print(json.dumps({"numpy": numpy.__version__, "losses": losses.tolist(), "scalars": scalars, "answers": answers}))
"""


def test_it_says_how_to_install_it() -> None:
    with raises("engine.not-installed", "tflite-runtime", "pip install '.[tflite]'"):
        create_engine("tflite")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with ``fedspzo[tflite]`` alone."""
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime 2.14 has wheels for Python 3.9 to 3.11")
    folder = tmp_path_factory.mktemp("tflite") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    source = Path(__file__).parents[2]
    subprocess.run([folder / "bin" / "pip", "install", "--quiet", f"{source}[tflite]"], check=True)
    return folder / "bin" / "python"


@pytest.mark.parametrize(
    ("name", "task"),
    [
        pytest.param("llama-3.2", "squad", marks=pytest.mark.slow),
        pytest.param("roberta", "sst2", marks=pytest.mark.matrix),
    ],
)
def test_the_same_bundle(
    environment: Path, name: str, task: str, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / name, name)
    target = Target(["litert"], [3], [48], answer_tokens=8 if task == "squad" else None)
    bundle = Bundle(export_bundle(str(checkpoint), load_task(task), target, tmp_path / "bundle").folder)
    data = tmp_path / "data.jsonl"
    records = (
        [
            {"title": "Rome", "context": text, "question": "what?", "answers": "a city"}
            for text in ("Rome is", "one two")
        ]
        if task == "squad"
        else [{"sentence": text, "label": i % 2} for i, text in enumerate(("the film was good", "dull", "one two"))]
    )
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    stages = len(bundle.manifest.stages)
    plan = make_plan(batch=2, epsilon=1e-2, blocks=(Block(stages - 2, 1, 0.5, 1.0), Block(stages, 3, 1.0, 1.0)))
    done = subprocess.run(
        [environment, "-c", _ASK, bundle.folder, data, encode(plan).hex()],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["numpy"].startswith("1.")
    store = load_data(data, bundle)
    forward = Forward(create_engine("litert"), Replica(bundle))
    np.testing.assert_allclose(found["losses"], predict(forward, store)[0], atol=1e-4)
    scalars = np.array(measure(forward, store, plan, "a").scalars)
    np.testing.assert_allclose(found["scalars"], scalars, atol=0.01 * np.abs(scalars).max())
    assert found["answers"] == (generate(forward, store) if task == "squad" else [])
