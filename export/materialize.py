"""The way back: a replica's weights as a Hugging Face checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from device_runtime.errors import ExportError
from device_runtime.replica import Replica
from export.checkpoint import Checkpoint


def write_checkpoint(replica: Replica, out: Path, source: str | None = None) -> None:
    """Write the original checkpoint with the trained tensors in their places, in float32.

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
    if checkpoint.hash != model["hash"]:
        raise ExportError(f"{checkpoint.folder} is not the model that the bundle came from; give that one by --source")
    tensors = {name: torch.from_numpy(checkpoint.tensor(name)) for name in checkpoint.files}
    for index, weights in replica.trainable.items():
        spec = replica.bundle.manifest.tensors[index]
        restored = weights[0].T if spec.transposed else weights
        tensors[spec.source] = torch.from_numpy(np.array(restored, np.float32, order="C"))
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in checkpoint.folder.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt", ".model") and not file.name.startswith("model."):
            shutil.copyfile(file, partial / file.name)
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    partial.rename(out)
