"""Make a bundle: forward-only graphs, weights, tokenizer and task of a Hugging Face model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.device_runtime.model.modes import MODES

if TYPE_CHECKING:
    from fedspzo.device_runtime.model.task import Task
    from fedspzo.progress import Step


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("model", metavar="MODEL", help="a model's folder, a GGUF file, a hub id, 'minilm' or 'smollm2'")
    parser.add_argument("--task", required=True, help="a task that comes with the project, or a .toml file")
    parser.add_argument("--engine", default="litert", help="comma-separated: litert, executorch, torch (%(default)s)")
    parser.add_argument("--batch", default="8", help="examples in a batch, comma-separated for several (%(default)s)")
    parser.add_argument("--max-length", default="64", help="tokens in an example, comma-separated too (%(default)s)")
    parser.add_argument("--train", default="*", help="patterns of tensors to train, comma-separated (%(default)s)")
    parser.add_argument("--freeze", default="", help="patterns of tensors among these to keep frozen")
    parser.add_argument("--answer-tokens", type=int, help="most tokens of a generated answer (default: the task's)")
    parser.add_argument("--lora-rank", type=int, help="train adapters of this rank and nothing else")
    parser.add_argument(
        "--lora-alpha", type=float, default=16.0, help="adapters are scaled by alpha/rank (%(default)s)"
    )
    parser.add_argument("--lora-fixed-a", action="store_true", help="train the adapters' second factor only")
    parser.add_argument("--output-scales", action="store_true", help="train factors on outputs and nothing else")
    parser.add_argument("--targets", default="all", help="linear maps for either, as q_proj,v_proj (%(default)s)")
    parser.add_argument(
        "--weights", default="float32", help="float32, bfloat16, float16; with adapters int8, int4 (%(default)s)"
    )
    parser.add_argument(
        "--rounding",
        choices=("compensated", "nearest"),
        default="",
        help="of int4: so that outputs stay, or each weight by itself (default: nearest from a billion weights on)",
    )
    parser.add_argument(
        "--calibration", type=Path, nargs="+", default=(), metavar="FILE", help="texts to keep the outputs for"
    )
    parser.add_argument(
        "--groups", default="", help="with adapters: branches that go through a graph together, as 2,16"
    )
    parser.add_argument(
        "--least", choices=MODES, default=MODES[0], help="have devices take part in no weaker mode (%(default)s)"
    )
    parser.add_argument(
        "--enrolment-key", metavar="KEY",
        help="have devices be summed with devices only whose keys this key has certified: what fedspzo certify prints,"
        " or a file with it",
    )  # fmt: skip
    parser.add_argument("--no-check", action="store_true", help="do not compare the bundle with transformers")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")


def run(options: argparse.Namespace) -> None:
    """Export, showing progress and a table of the stages."""
    from fedspzo.export.supported import check_model_type
    from fedspzo.export.tasks import load_task
    from fedspzo.progress import steps

    tasks = load_task(options.task)
    check_model_type(options.model)
    with steps("loading PyTorch and the converters") as progress:
        _export(options, tasks, progress)


def _export(options: argparse.Namespace, tasks: Mapping[str, Task], progress: Step) -> None:
    from fedspzo.device_runtime.errors import ExportError
    from fedspzo.device_runtime.protocol.signing import KEY_BYTES
    from fedspzo.export.network.adapters import Adapters, LowRank, OutputScales
    from fedspzo.export.network.target import Target
    from fedspzo.export.pipeline import export_bundle
    from fedspzo.options.hexadecimal import read_hex
    from fedspzo.tables import format_comparison, format_stages

    enrolment_key = b""
    if options.enrolment_key is not None:
        enrolment_key = b"".join(read_hex("--enrolment-key", options.enrolment_key, KEY_BYTES))
    targets = _split(options.targets)
    adapters: Adapters | None = OutputScales(targets=targets) if options.output_scales else None
    if options.lora_rank is not None:
        if adapters is not None:
            raise ExportError(
                "option.two-adapters", "--lora-rank and --output-scales exclude each other; leave one out"
            )
        trained = not options.lora_fixed_a
        adapters = LowRank(options.lora_rank, options.lora_alpha, targets=targets, train_down=trained)
    target = Target(
        formats=_split(options.engine),
        batches=_numbers("--batch", options.batch),
        lengths=_numbers("--max-length", options.max_length),
        train=_split(options.train),
        freeze=_split(options.freeze),
        answer_tokens=options.answer_tokens,
        adapters=adapters,
        weights=options.weights,
        rounding=options.rounding,
        calibration=options.calibration,
        groups=_numbers("--groups", options.groups),
        least=options.least,
        enrolment_key=enrolment_key,
    )
    bundle = export_bundle(options.model, tasks, target, options.out, progress, check=not options.no_check)
    print(f"{format_stages(bundle.manifest)}\n{format_comparison(bundle.manifest)}")
    if rounding := bundle.manifest.model.get("rounding"):
        print(f"rounding to 4 bits: {rounding}")
    if stored := bundle.manifest.model.get("gguf"):
        print(f"the GGUF file's weights ({stored}) were widened to float32")
    print(f"bundle written to {options.out}")


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str) -> list[int]:
    from fedspzo.device_runtime.errors import ExportError

    try:
        return [int(number) for number in _split(text)]
    except ValueError:
        raise ExportError("option.numbers", f"{option} is '{text}'; give whole numbers separated by commas") from None
