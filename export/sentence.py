"""Folders of sentence-transformers: where the transformer is, and what is done to texts before and after it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.bundle import file_hash
from fedspzo.export.settings import Settings, damaged, read_json, read_settings

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
#: Names that the settings of the transformer's module have had.
_TRANSFORMER = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: What a text's hidden states can become.
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
CLS, MAX, MEAN, MEAN_SQRT, WEIGHTED, LAST = MODES
#: PyTorch's names of the functions that may follow a dense layer.
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
#: How older configs name the modes of pooling, in their order.
_OLDER_MODES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
#: What a module reads and writes unless it says otherwise.
_TOKENS, _VECTOR = "token_embeddings", "sentence_embedding"
#: Arguments of loading that change no number in float32, or that are read here.
_HARMLESS = {"dtype", "torch_dtype", "attn_implementation", "padding_side", "model_max_length", "trust_remote_code"}


@dataclass(frozen=True)
class Step:
    """What happens to the pooled vector.

    Attributes:
        kind: "Dense", "LayerNorm" or "Normalize".
        name: what stands before the names of its tensors.
        tensors: endings of their names: of a dense layer ``linear.weight`` [1, in, out], ``linear.bias`` and
            ``residual.weight`` [1, in, out]; of a norm ``norm.weight`` and ``norm.bias``.
        act: the function after a dense layer, one of :data:`ACTIVATIONS`.
        residual: whether a dense layer adds what it gets, as it is where there is no ``residual.weight``.
    """

    kind: str
    name: str = ""
    tensors: tuple[str, ...] = ()
    act: str = "Identity"
    residual: bool = False


@dataclass(frozen=True)
class Pooling:
    """How a text's vector is made; by default the mean of its tokens' states.

    Attributes:
        modes: of :data:`MODES`; the vectors of several stand side by side.
        skipped: how many tokens at the start are left out: those of a prompt that is not pooled.
        steps: what follows.
        width: how many of the numbers are kept; None for all.
    """

    modes: tuple[str, ...] = (MEAN,)
    skipped: int = 0
    steps: tuple[Step, ...] = ()
    width: int | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the steps' tensors."""
        return tuple(f"{step.name}.{tensor}" for step in self.steps for tensor in step.tensors)


@dataclass(frozen=True)
class Module:
    """An entry of modules.json: its class's name in sentence-transformers, and its folder within the model's."""

    kind: str
    name: str
    folder: Path


@dataclass(frozen=True)
class SentenceModel:
    """What sentence-transformers does beside the transformer itself.

    Attributes:
        root: the folder with modules.json.
        modules: its modules, the transformer first.
        pooling: how a text's vector is made; ``skipped`` is 0 in it.
        includes_prompt: whether the prompt's tokens are pooled too.
        prompt: what stands before every text.
        limit: most tokens that are looked at; None where the tokenizer says it.
        lower_case: whether texts are lowered before the tokenizer sees them.
    """

    root: Path
    modules: tuple[Module, ...]
    pooling: Pooling
    includes_prompt: bool
    prompt: str
    limit: int | None
    lower_case: bool

    def tensor(self, name: str) -> np.ndarray:
        """A tensor of a step, float32; matrices are [1, in, out]."""
        array = self._tensors[name]
        return np.ascontiguousarray(array.T[None] if array.ndim == 2 else array)

    @property
    def hash(self) -> str:
        """SHA-256 over the files that say what is done beside the transformer, in the order of their names."""
        said = (MODULES, SETTINGS, *(f"{self.modules[0].name}/{name}" for name in _TRANSFORMER))
        files = [
            *(self.root / name for name in said),
            *(f for folder in module_folders(self.root) for f in folder.rglob("*")),
        ]
        return "+".join(file_hash(file) for file in sorted(files) if file.is_file())

    @cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        folders = {module.name: module.folder for module in self.modules}
        read = {step.name: _weights(folders[step.name]) for step in self.pooling.steps if step.tensors}
        return {f"{name}.{key}": array for name, arrays in read.items() for key, array in arrays.items()}


def transformer_folder(root: Path) -> Path:
    """The folder of a model's config, weights and tokenizer: a part of ``root`` where its modules.json says so."""
    modules = _modules(root) if (root / MODULES).is_file() else ()
    return modules[0].folder if modules and modules[0].kind == "Transformer" else root


def module_folders(root: Path) -> list[Path]:
    """Folders within ``root`` of the modules that are not the transformer."""
    return [module.folder for module in _modules(root)[1:] if module.folder != root and module.folder.is_dir()]


def read_sentence_model(root: Path) -> SentenceModel | None:
    """What sentence-transformers does with a folder; None without modules.json.

    Raises:
        ExportError: a module, or a setting of one, is not supported; the sentence names it.
    """
    if not (root / MODULES).is_file():
        return None
    modules = _modules(root)
    kinds = [module.kind for module in modules]
    if kinds[:1] != ["Transformer"] or kinds.count("Pooling") != 1:
        raise _refused(root, f"the modules {', '.join(kinds)}")
    settings = read_settings(root / SETTINGS)
    if (other := settings.get("model_type", str, "SentenceTransformer")) != "SentenceTransformer":
        raise _refused(root, f"a {other}")
    files = [read_settings(modules[0].folder / name) for name in _TRANSFORMER]
    transformer = next((file for file in files if file.said), files[0])
    _check_transformer(root, transformer)
    at = kinds.index("Pooling")
    steps = [step for place, module in enumerate(modules[1:], 1) for step in _steps(root, module, place > at)]
    if steps and steps[-1].kind == "Normalize":
        del steps[-1]  # the vector is scaled to unit length anyway
    config = read_settings(modules[at].folder / "config.json")
    prompts, chosen = settings.part("prompts"), settings.get("default_prompt_name", str)
    if chosen is not None and chosen not in prompts.said:
        raise _refused(root, f"the default prompt '{chosen}', which is not among its prompts,")
    arguments = transformer.part("processor_kwargs" if "processor_kwargs" in transformer.said else "tokenizer_args")
    return SentenceModel(
        root=root,
        modules=modules,
        pooling=Pooling(_modes(root, config), 0, tuple(steps), settings.count("truncate_dim")),
        includes_prompt=config.get("include_prompt", bool, True),
        prompt=prompts.get(chosen, str, "") if chosen is not None else "",
        limit=arguments.count("model_max_length") or transformer.count("max_seq_length"),
        lower_case=transformer.get("do_lower_case", bool, False),
    )


def _modules(root: Path) -> tuple[Module, ...]:
    found = []
    for number, entry in enumerate(read_json(root / MODULES, list)):
        said = Settings(root / MODULES, entry if isinstance(entry, dict) else {})
        kind, name = said.get("type", str), said.get("path", str)
        try:
            (root / name).is_dir()
            within = (root / name).resolve().is_relative_to(root.resolve())
        except (OSError, TypeError, ValueError):  # no name, or one that no folder can have
            kind = None
        if kind is None:
            raise damaged(root / MODULES, f"its module {number} is {entry!r:.80}, without a type and a path")
        if not within:
            raise _refused(root, f"the module '{name}' outside its folder")
        ours = kind.startswith("sentence_transformers.")
        found.append(Module(kind.rpartition(".")[2] if ours else kind, name, root / name))
    return tuple(found)


def _steps(root: Path, module: Module, follows: bool) -> list[Step]:
    """What a module does to the pooled vector, which it should follow. Raises ExportError when it is not known."""
    if module.kind in ("Pooling", "Dropout"):  # which only training drops from
        return []
    config = read_settings(module.folder / "config.json") if module.folder != root else Settings(root / MODULES, {})
    names = {config.get("module_input_name", str, _VECTOR), config.get("module_output_name", str) or _VECTOR}
    if module.kind not in ("Dense", "LayerNorm", "Normalize") or not follows:
        raise _refused(root, f"the module '{module.name}' ({module.kind})")
    if names != {_VECTOR}:
        raise _refused(root, f"the module '{module.name}' ({module.kind}) over {', '.join(sorted(names))}")
    if module.kind == "Normalize":
        return [Step("Normalize")]
    tensors = tuple(sorted(_weights(module.folder)))
    if module.kind == "LayerNorm":
        return [Step("LayerNorm", module.name, tensors)]
    package, _, act = config.get("activation_function", str, "torch.nn.modules.activation.Tanh").rpartition(".")
    if not package.startswith("torch.nn.") or act not in ACTIVATIONS:
        raise _refused(root, f"the module '{module.name}' with the activation {package}.{act}")
    return [Step("Dense", module.name, tensors, act, config.get("use_residual", bool, False))]


def _modes(root: Path, config: Settings) -> tuple[str, ...]:
    """The modes in a pooling module's config, by today's key or the older ones."""
    said = config.get("pooling_mode", (str, list))
    if said is None:
        older = zip(MODES, (f"pooling_mode_{mode}" for mode in _OLDER_MODES), strict=True)
        said = [mode for mode, key in older if config.get(key, bool, False)]
    modes = (said,) if isinstance(said, str) else tuple(said or ["mean"])
    if not all(mode in MODES for mode in modes):
        raise _refused(root, f"the pooling {', '.join(map(str, modes))}")
    return modes


def _check_transformer(root: Path, config: Settings) -> None:
    """Refuse settings of the transformer's module that make other tokens or other states of a text."""
    task, texts = config.get("transformer_task", str, "feature-extraction"), config.get("modality_config", dict)
    plain = {"method": "forward", "method_output_name": "last_hidden_state"}
    if task != "feature-extraction" or config.get("module_output_name", str, _TOKENS) != _TOKENS:
        raise _refused(root, f"a transformer for {task}")
    if texts is not None and ("message" in texts or texts.get("text") != plain):
        raise _refused(root, "texts as messages of a chat template")
    said = {key: config.part(key).said for key in config.said if key.endswith(("_args", "_kwargs"))}
    for key, arguments in said.items():
        other = sorted(set(arguments) - _HARMLESS) if key != "processing_kwargs" else sorted(arguments)
        if other:
            raise _refused(root, f"the setting {key}.{other[0]} of its transformer")


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """A module's tensors by their names. Raises ExportError when it has none."""
    try:
        if (folder / "model.safetensors").is_file():
            tensors = load_file(folder / "model.safetensors")
        else:
            tensors = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        return {str(name): tensor.to(torch.float32).numpy() for name, tensor in tensors.items()}
    except Exception as error:  # a damaged pickle may fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExportError(
            "model.no-weights", f"{folder} has no readable weights ({reason}); get the model again"
        ) from None


def _refused(root: Path, what: str) -> ExportError:
    return ExportError(
        "model.sentence-module",
        f"{root} has {what} in sentence-transformers, which the similarity form does not do; choose a model whose"
        " modules are Transformer, Pooling, Dense, LayerNorm, Dropout and Normalize",
    )
