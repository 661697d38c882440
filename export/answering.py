"""What goes with a checkpoint so that it answers as its bundle does: the labels' vectors, and a script for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.stored import widened
from fedspzo.device_runtime.model.task import SIMILARITY
from fedspzo.device_runtime.model.tensor_file import write_tensors
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.export.checkpoint import CONFIG
from fedspzo.export.modules.heads import LABEL_AXIS, LABELS, TEMPERATURE
from fedspzo.export.sentence import MODULES

#: The labels' vectors, which no model of transformers has a place for; the task; and the script.
LABELS_FILE, TASK, SCRIPT = "labels.safetensors", "task.json", "classify.py"


def write_labels(replica: Replica, folder: Path) -> None:
    """Write the labels' vectors, where they were trained or are not found in the checkpoint."""
    manifest = replica.bundle.manifest
    for index, spec in enumerate(manifest.tensors):
        if spec.name == LABELS and (spec.trainable or manifest.task.form == SIMILARITY):
            rows = np.ascontiguousarray(counted_labels(replica.bundle, widened(replica.tensor(index))[0]).T)
            metadata = {"format": "pt", "names": json.dumps([label.name for label in manifest.task.labels])}
            write_tensors(folder / LABELS_FILE, {LABELS: rows.shape}, [rows], metadata)


def counted_labels(bundle: Bundle, labels: np.ndarray) -> np.ndarray:
    """What labels' vectors [width, labels] count as in a bundle's network, see :class:`heads.LabelWords`."""
    places = {spec.name: index for index, spec in enumerate(bundle.manifest.tensors)}
    if LABEL_AXIS not in places:
        return labels
    axis = widened(bundle.tensor(places[LABEL_AXIS]))
    learned = labels - widened(bundle.tensor(places[LABELS]))[0]
    return labels - np.outer(axis, axis @ learned)


def write_classifier(replica: Replica, root: Path, is_sentence_model: bool) -> None:
    """Write the task, the script, and how a text's vector is made where the folder does not say it yet.

    Args:
        is_sentence_model: the folder is one of sentence-transformers already.
    """
    manifest = replica.bundle.manifest
    task = manifest.task
    said = {
        "name": task.name, "template": task.template, "kind": task.kind, "target": task.target,
        "labels": [label.name for label in task.labels], "scale": TEMPERATURE, "length": manifest.length,
    }  # fmt: skip
    _write(root / TASK, said)
    shutil.copyfile(Path(__file__).with_name(SCRIPT), root / SCRIPT)
    if is_sentence_model:
        return
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    width = next(spec.shape[1] for spec in manifest.tensors if spec.name == LABELS)
    _write(root / MODULES, modules)
    (root / "1_Pooling").mkdir()
    _write(root / "1_Pooling" / CONFIG, {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
