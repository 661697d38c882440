"""Rounds a bundle's matrices of 4 bits so that outputs stay: a calibration text goes through the layers, one at a time.

The matrices are rounded in the order in which the text reaches them, so that each makes up for those before it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.manifest import WEIGHTS
from fedspzo.device_runtime.model.stored import view, widened
from fedspzo.device_runtime.model.tensor_file import TensorFile
from fedspzo.device_runtime.step.inputs import Examples, fill
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Family
from fedspzo.export.layout import Tensor, find_constant
from fedspzo.export.modules.stage_module import Weights
from fedspzo.export.rounding import Inputs, compensate

#: The text that comes with the project: prose on many subjects, some 5,000 tokens.
TEXT = Path(__file__).with_name("calibration.txt")
#: Most tokens of the text that are used, and how many go through the model as one example.
TOKENS, LENGTH = 8192, 256
#: The least that says something of the inputs of a matrix.
_FEWEST = 512


def compensate_base(
    checkpoint: Checkpoint,
    family: Family,
    tensors: Mapping[str, Tensor],
    folder: Path,
    texts: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> None:
    """Choose codes and scales again for the matrices of 4 bits that have been written to a bundle's folder.

    Args:
        checkpoint, family: the model.
        tensors: of the bundle, by their names.
        folder: the bundle's, with its tensor files.
        texts: calibration texts of your own, instead of the project's.
        progress: told what is being done.

    Raises:
        ExportError: a text cannot be read, or there is too little.
    """
    limit = family.describe(checkpoint, 4).limit
    ids = _examples(checkpoint, texts or (TEXT,), min(limit, LENGTH))
    architecture = family.describe(checkpoint, ids.shape[1])
    feeds = {"rows": np.empty((*ids.shape, tensors[architecture.embedding].spec.shape[-1]), np.float32)}
    feeds["mask"] = np.empty(ids.shape, np.float32)
    spec = tensors[architecture.embedding].spec
    table = view(TensorFile(folder / WEIGHTS), spec.name, spec.dtype)
    whole = np.full(len(ids), ids.shape[1], np.int32)
    for name, feed in feeds.items():
        fill(name, feed, Examples(ids, whole, whole - 1, 0 * whole, table, table))
    hidden = torch.from_numpy(feeds.pop("rows"))
    known = {"rows": hidden, "mask": torch.from_numpy(feeds["mask"])}
    for stage in architecture.stages:
        progress(f"rounding the matrices of '{stage.name}'")
        weights = _Rounding(
            stage.prefix, {name: tensors[stage.full_name(name)] for name in stage.module.tensors}, folder
        )
        inputs = [hidden if name == "hidden" else known[name] for name in stage.module.feeds]
        with torch.inference_mode():
            outputs = stage.module.compute(weights, *inputs)
        hidden = outputs if isinstance(outputs, torch.Tensor) else outputs[0]


class _Rounding(Weights):
    """A stage's weights; each matrix of 4 bits is rounded, and written, when its inputs are known."""

    def __init__(self, prefix: str, tensors: Mapping[str, Tensor], folder: Path) -> None:
        super().__init__({name: torch.from_numpy(np.ascontiguousarray(t.load())) for name, t in tensors.items()})
        self._left = {name: tensor.spec for name, tensor in tensors.items() if tensor.spec.dtype == "int4"}
        self._prefix, self._folder = prefix, folder
        self._latest: tuple[torch.Tensor, Inputs] | None = None

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """See :class:`fedspzo.export.modules.stage_module.Weights`."""
        spec = self._left.pop(f"{name}.weight", None)
        if spec is not None:
            if self._latest is None or self._latest[0] is not x:  # several matrices may take the same inputs
                self._latest = x, Inputs.of(x)
            matrix = compensate(self[f"{name}.weight"].numpy(), self._latest[1])
            constant = find_constant(self._folder, spec)
            with (self._folder / constant.file).open("r+b") as file:
                for start, array in ((constant.codes_at, matrix.codes), (constant.scales_at, matrix.scales)):
                    file.seek(start)
                    file.write(np.ascontiguousarray(array).data)
            self._tensors = {**self._tensors, f"{name}.weight": torch.from_numpy(widened(matrix))}
        return super().linear(name, x)


def _examples(checkpoint: Checkpoint, texts: Sequence[Path], length: int) -> np.ndarray:
    """Token ids int32 [examples, length], from all over the texts, line by line."""
    ids: list[int] = []
    for path in texts:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ExportError(
                "export.calibration-unreadable",
                f"the calibration text {path} cannot be read ({reason}); give text files in UTF-8",
            ) from None
        ids += [token for line in lines if line.strip() for token in checkpoint.tokenizer.encode(line).ids]
    if len(ids) < max(_FEWEST, length):
        raise ExportError(
            "export.calibration-short",
            f"the calibration text has only {len(ids)} tokens, fewer than {max(_FEWEST, length)}; give more of it, or"
            " choose --rounding nearest",
        )
    count = min(TOKENS, len(ids)) // length
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return np.array([ids[start : start + length] for start in starts], np.int32)
