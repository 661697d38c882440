"""The way back: a replica's weights as a Hugging Face checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from device_runtime.bundle import TOKENIZER, file_hash
from device_runtime.errors import ExportError
from device_runtime.replica import Replica
from device_runtime.tensors import write_tensors
from export.checkpoint import CONFIG, Checkpoint

#: Endings of what old checkpoints hold besides weights: indices that transformers makes by itself.
_NOT_WEIGHTS = ("position_ids", "token_type_ids")
#: What goes with the weights as it is: configs, vocabularies, chat templates.
_BESIDE = (".json", ".txt", ".model", ".jinja")


def write_checkpoint(replica: Replica, out: Path, source: str | None = None) -> None:
    """Write the original checkpoint with the trained tensors in their places, in float32, one tensor at a time.

    Args:
        replica: the trained weights.
        out: the folder; it must not exist, and appears only when it is whole.
        source: the original model, by default where it was at the export.

    Raises:
        ExportError: the folder exists, or the original is not there or is another model.
    """
    if out.exists():
        raise ExportError(f"{out} exists already; remove it or choose another --out")
    model = replica.bundle.manifest.model
    try:
        checkpoint = Checkpoint(source or model["source"])
    except ExportError as error:
        raise ExportError(f"the original model is needed ({error}); say where it is with --source") from None
    if checkpoint.hash != model["hash"] or file_hash(checkpoint.folder / CONFIG) != model["config"]:
        raise ExportError(f"{checkpoint.folder} is not the model that the bundle came from; give that one by --source")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(checkpoint, replica, partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(checkpoint: Checkpoint, replica: Replica, folder: Path) -> None:
    for file in checkpoint.folder.iterdir():
        if file.is_file() and file.suffix in _BESIDE and not file.name.startswith("model."):
            shutil.copyfile(file, folder / file.name)
    if not (folder / TOKENIZER).exists():
        shutil.copyfile(replica.bundle.folder / TOKENIZER, folder / TOKENIZER)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    (folder / CONFIG).write_text(json.dumps({**config, "dtype": "float32"}, indent=2), encoding="utf-8")
    shapes = {name: checkpoint.shape(name) for name in checkpoint.files if not name.endswith(_NOT_WEIGHTS)}
    arrays = (_tensor(checkpoint, replica, name) for name in shapes)
    write_tensors(folder / "model.safetensors", shapes, arrays, {"format": "pt"})


def _tensor(checkpoint: Checkpoint, replica: Replica, name: str) -> np.ndarray:
    """A tensor of the checkpoint, from the replica where that trains it."""
    for index, weights in replica.trainable.items():
        spec = replica.bundle.manifest.tensors[index]
        if checkpoint.stored_name(spec.source) == name:
            restored = weights[0].T if spec.transposed else weights
            return np.ascontiguousarray(restored.reshape(checkpoint.shape(name)))
    return checkpoint.tensor(name)
