"""Which files of a model's folder hold its tensors, and which tensors are one: as transformers sees it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig

from fedspzo.device_runtime.errors import ExportError
from fedspzo.export.quiet import quiet
from fedspzo.export.settings import damaged

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
#: What a model of the hub is made of, in patterns where "*" stands for "/" as well. Weights are those that transformers
#: loads; other formats, and the same in other types, stay where they are.
WANTED = (
    *("config.json", "generation_config.json", _SINGLE, _INDEX, "model-*.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "spm.model"),
    *("sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    # Of sentence-transformers, whose modules have folders such as 1_Pooling.
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "[0-9]_*/*"),
)
#: Of these, what is still not needed.
UNWANTED = ("0_*/pytorch_model*.bin", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.md")
#: Model type → what its files call the head's own table, where transformers has given it another name.
_HEADS = {"gpt_neox": "embed_out.weight"}


def weight_files(folder: Path, named: str | None = None) -> dict[str, Path]:
    """Tensor name → the file that holds it.

    A single file counts before an index. Of an index only the names of files count: what they hold is in the files.

    Args:
        named: the file that the config names (``transformers_weights``).

    Raises:
        ExportError: there are no safetensors weights, or a file cannot be read.
    """
    first = next((name for name in ([named] if named else [_SINGLE, _INDEX]) if os.path.isfile(folder / name)), None)
    if first is None:
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pt"))
        there = f"; it has {', '.join(others[:3])}" if others else ""
        raise ExportError(
            "model.no-weights",
            f"{folder} has no weights named {named or f'{_SINGLE} or {_INDEX}'}, which transformers loads{there}; save"
            " the model with save_pretrained",
        )
    shards = _shards(folder / first) if first.endswith(".json") else [folder / first]
    found: dict[str, Path] = {}
    for shard in shards:
        found |= dict.fromkeys(_names(shard, folder), shard)
    return found


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [index.parent / name for name in names]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(
            "model.no-weights",
            f"{index} is not an index of weights ({error!r}); save the model with save_pretrained",
        ) from None
    missing = next((shard for shard in shards if not os.path.isfile(shard)), None)
    if missing is not None or not shards:
        raise ExportError(
            "model.no-weights",
            f"{index} names the weight file {missing}, which is not there; get the model again, whole",
        )
    return shards


def _names(shard: Path, folder: Path) -> list[str]:
    try:
        with safe_open(shard, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        if shard.name == _SINGLE:
            raise ExportError(
                "model.no-weights",
                f"{folder} has no readable safetensors weights ({error}); save the model with save_pretrained",
            ) from None
        raise ExportError(
            "model.tensor-unreadable", f"{shard} has no readable tensors ({error}); get the model again"
        ) from None


def check_unquantised(name: str, file: Path, config: PretrainedConfig) -> None:
    """Raise ExportError when transformers would take a model's weights for codes of some quantisation.

    Args:
        name: the model's.
        file: that of the config, which may have an odd value there.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    settings = settings.to_dict() if hasattr(settings, "to_dict") else settings
    if not isinstance(settings, dict):
        raise damaged(file, f"its quantization_config is {settings!r:.40}")
    try:
        with quiet():
            from transformers.quantizers.auto import AutoHfQuantizer  # loads torchao, which reports what it lacks

            if not AutoHfQuantizer.supports_quant_method(settings):
                return  # transformers knows no such method, and loads the weights as they are
    except (ValueError, AttributeError, TypeError, LookupError):
        pass  # nor does it load such a model
    method = settings.get("quant_method") or "no method that has a name"
    raise ExportError(
        "model.quantised",
        f"the weights of {name} are quantised by {method}, says the quantization_config in its config.json; choose the"
        " model before quantisation (fedspzo quantises a base itself: --weights int8 or int4), or remove the setting"
        " if it is a leftover",
    )


def tied(config: PretrainedConfig) -> Mapping[str, str]:
    """Name of a head's tensor → name of the tensor that transformers takes for both, where only one is stored.

    They are names in the whole model; a checkpoint's may lack what stands in front.
    """
    found: dict[str, str] = {}
    if config.tie_word_embeddings:
        for factory in (AutoModelForMaskedLM, AutoModelForCausalLM):
            with quiet():  # the model's code is loaded now
                kind = factory._model_mapping.get(type(config), None)
            names = getattr(kind, "_tied_weights_keys", None)
            found |= names if isinstance(names, dict) else {}
        if config.model_type in _HEADS and "lm_head.weight" in found:
            found[_HEADS[config.model_type]] = found["lm_head.weight"]
    return found


def partners(name: str, pairs: Mapping[str, str], stored: Mapping[str, Path]) -> Iterator[str]:
    """Names of stored tensors that are tied to a tensor."""
    for pair in pairs.items():
        for one, other in (pair, pair[::-1]):
            if _is_end(name, one):
                yield from (candidate for candidate in stored if _is_end(candidate, other))


def _is_end(one: str, other: str) -> bool:
    """Whether one name is the other, or its end."""
    return one == other or one.endswith("." + other) or other.endswith("." + one)
