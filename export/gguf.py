"""Checkpoints in llama.cpp's format (GGUF): each is turned once into a folder of the usual kind, in the user's cache.

Names, config, tokenizer and numbers are those that transformers makes of the file (``from_pretrained(folder,
gguf_file=…)``): blocks of few bits are widened to float32, one tensor at a time.
"""

from __future__ import annotations

import importlib.metadata
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.files import cache_folder, make_folder, scratch_folder
from fedspzo.device_runtime.model.tensor_file import TensorFile, write_tensors
from fedspzo.export.quiet import quiet

SUFFIX = ".gguf"
#: The converted folder's weights.
WEIGHTS = "model.safetensors"


def find_file(model: Path) -> Path | None:
    """The GGUF file that a path means: the file itself, or the only one in a folder without other weights.

    Raises:
        ExportError: there are several.
    """
    if os.path.isfile(model) and model.suffix == SUFFIX:
        return model
    if not os.path.isdir(model):  # or its name is too long for any folder
        return None
    found = sorted(model.glob(f"*{SUFFIX}")) if not any(model.glob("*.safetensors*")) else []
    if len(found) > 1:
        raise ExportError(
            "model.several-gguf",
            f"{model} has {len(found)} GGUF files ({found[0].name}, {found[1].name}, …); give the path of one of them",
        )
    return found[0] if found else None


def architecture(file: Path) -> str:
    """What kind of model a file says that it holds, "" where that is not the first thing that it says."""
    with file.open("rb") as stream:
        start = stream.read(1 << 10)
    key = b"general.architecture"
    try:
        if start[:4] != b"GGUF" or start[32 : 32 + len(key)] != key:
            return ""
        (size,) = struct.unpack_from("<Q", start, 36 + len(key))
        return start[44 + len(key) :][:size].decode()
    except (struct.error, UnicodeDecodeError):
        return ""


def converted(file: Path, content: str) -> Path:
    """The folder with config, tokenizer and float32 weights of a GGUF file; it is made where the cache lacks it.

    Args:
        file: the file.
        content: its SHA-256.

    Raises:
        ExportError: the file is damaged, or transformers does not read all of it; or the cache cannot be written.
    """
    try:
        cache = cache_folder() / "gguf"
    except RuntimeError:
        raise ExportError(
            "model.no-cache",
            "there is no home folder to convert GGUF files in; set XDG_CACHE_HOME to a writable folder",
        ) from None
    folder = cache / f"{content[:32]}-transformers-{importlib.metadata.version('transformers')}"
    if folder.is_dir():
        return folder
    try:
        make_folder(cache)
        with scratch_folder(cache) as partial:
            _convert(file, partial / "model")
            if not folder.is_dir():
                (partial / "model").rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have made it
            raise ExportError(
                "model.cache-unwritable",
                f"{cache} cannot be written ({error.strerror or error}), and {file.name} is converted there; set"
                " XDG_CACHE_HOME to a writable folder with space for the weights in float32",
            ) from None
    return folder


def weight_types(folder: Path) -> str:
    """How the matrices of a converted file were stored, as in ``Q4_1, Q8_0``."""
    return TensorFile(folder / WEIGHTS).metadata["gguf"]


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ExportError(
            "model.gguf-damaged", f"{file} is not a readable GGUF file ({error}); get the model again"
        ) from None


def _convert(file: Path, folder: Path) -> None:
    """Write everything to a new folder."""
    reader = _reader(file)
    _check_whole(file, reader)
    import torch  # these take long, and the file may be refused before
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor
            from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map as names_by_gguf_name

            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            processor = TENSOR_PROCESSORS.get(architecture(file), TensorProcessor)(config=config.to_dict())
            names = names_by_gguf_name(model, processor)
    except (ValueError, OSError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, ImportError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise ExportError(
            "model.gguf-unsupported",
            f"transformers does not read {file} ({reason}); give the model's folder with safetensors",
        ) from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    missing = {name for name, _ in model.named_parameters()} - {names.get(name) for name in tensors}
    unread = sorted({*(tensors.keys() - names.keys()), *missing})
    if unread:
        raise ExportError(
            "model.gguf-differs",
            f"{file} has not the tensors that transformers reads ({', '.join(unread[:3])}), so that it would compute"
            " something else; give the model's folder with safetensors",
        )
    folder.mkdir(0o700)
    with quiet():
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    state = model.state_dict()
    shapes = {names[name]: tuple(state[names[name]].shape) for name in tensors}
    types = ", ".join(sorted({tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}))
    write_tensors(folder / WEIGHTS, shapes, _widened(reader, processor), {"format": "pt", "gguf": types})


def _check_whole(file: Path, reader: Any) -> None:
    """Raise ExportError when a file says what transformers overlooks."""
    parts, scaling = (
        reader.get_field(f"{name}") for name in ("split.count", f"{architecture(file)}.rope.scaling.type")
    )
    if parts is not None and parts.contents() > 1:
        raise ExportError(
            "model.gguf-split",
            f"{file} is one of {parts.contents()} parts of a model; join them with llama-gguf-split --merge",
        )
    if scaling is not None and scaling.contents() != "none":
        raise ExportError(
            "model.gguf-rope",
            f"{file} scales its rotary embedding ({scaling.contents()}), which transformers does not read; give the"
            " model's folder with safetensors",
        )


def _widened(reader: Any, processor: Any) -> Iterator[np.ndarray]:
    """The tensors in the file's order, as transformers has them in float32."""
    from gguf import dequantize

    for tensor in reader.tensors:
        apart: dict[str, dict[str, Any]] = {"tensors": {}}  # where GPT-2's puts its output table
        values = dequantize(tensor.data, tensor.tensor_type)
        found = processor.process(weights=values, name=tensor.name, tensor_key_mapping={}, parsed_parameters=apart)
        array = found.weights if found.name is not None else apart["tensors"].popitem()[1].numpy()
        yield np.ascontiguousarray(array, np.float32)
