"""Make a bundle: forward-only graphs, weights, tokenizer and task of a Hugging Face model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo.device_runtime.model.modes import MODES

if TYPE_CHECKING:
    from fedspzo.device_runtime.model.task import Task
    from fedspzo.export.network.adapters import Adapters
    from fedspzo.progress import Step

#: What ``--train`` is for cores.
CORES = "cores"


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("model", metavar="MODEL", help="a model's folder, a GGUF file, a hub id, 'minilm' or 'smollm2'")
    parser.add_argument("--task", required=True, help="a task that comes with the project, or a .toml file")
    parser.add_argument("--engine", default="litert", help="comma-separated: litert, executorch, torch (%(default)s)")
    parser.add_argument("--batch", default="8", help="examples in a batch, comma-separated for several (%(default)s)")
    parser.add_argument("--max-length", default="64", help="tokens in an example, comma-separated too (%(default)s)")
    parser.add_argument(
        "--train", default="*",
        help="patterns of tensors to train, comma-separated; or cores: a small matrix between two fixed bases of each"
        " linear map, which --prior gives (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--freeze", default="", help="patterns of tensors among these to keep frozen")
    parser.add_argument("--answer-tokens", type=int, help="most tokens of a generated answer (default: the task's)")
    parser.add_argument("--rank", type=int, help="with --train cores: width of the cores (default: 64)")
    parser.add_argument(
        "--prior", nargs="+", default=(), metavar="FILE",
        help="with --train cores: public examples of other labels than the task's, or public text",
    )  # fmt: skip
    parser.add_argument("--lora-rank", type=int, help="train adapters of this rank, and the labels' vectors")
    parser.add_argument(
        "--lora-alpha", type=float, default=16.0, help="adapters are scaled by alpha/rank (%(default)s)"
    )
    parser.add_argument("--lora-fixed-a", action="store_true", help="train the adapters' second factor only")
    parser.add_argument(
        "--output-scales", action="store_true", help="train factors on outputs, and the labels' vectors"
    )
    parser.add_argument(
        "--targets",
        help="linear maps for these, as q_proj,v_proj or patterns of names, all or last (default: all; for cores last,"
        " those of the last layer)",
    )
    parser.add_argument(
        "--weights",
        default="float32",
        help="float32, bfloat16, float16; with adapters or cores int8, int4 (%(default)s)",
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
        "--groups", default="", help="with adapters or cores: branches that go through a graph together, as 2,16"
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
    from fedspzo.device_runtime.protocol.signing import KEY_BYTES
    from fedspzo.export.network.target import Target
    from fedspzo.export.pipeline import export_bundle
    from fedspzo.options.hexadecimal import read_hex
    from fedspzo.tables import format_comparison, format_stages

    enrolment_key = b""
    if options.enrolment_key is not None:
        enrolment_key = b"".join(read_hex("--enrolment-key", options.enrolment_key, KEY_BYTES))
    adapters = _adapters(options)
    target = Target(
        formats=_split(options.engine),
        batches=_numbers("--batch", options.batch),
        lengths=_numbers("--max-length", options.max_length),
        train=["*"] if options.train == CORES else _split(options.train),
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
    if prior := bundle.manifest.model.get("prior"):
        print(f"bases of the cores come from {prior}")
        left_out = bundle.manifest.model.get("left_out", "none")
        print(f"labels left out of the prior, because they mean what a label of the task means: {left_out}")
    if stored := bundle.manifest.model.get("gguf"):
        print(f"the GGUF file's weights ({stored}) were widened to float32")
    print(f"bundle written to {options.out}")


def _adapters(options: argparse.Namespace) -> Adapters | None:
    """What is trained beside linear maps, if anything is. Raises ExportError when options exclude each other."""
    from fedspzo.device_runtime.errors import ExportError
    from fedspzo.export.network.adapters import Cores, LowRank, OutputScales

    cores = options.train == CORES
    if (options.prior or options.rank is not None) and not cores:
        raise ExportError(
            "option.without-cores", "--prior and --rank are for cores; add --train cores, or leave them out"
        )
    if cores + options.output_scales + (options.lora_rank is not None) > 1:
        raise ExportError(
            "option.two-adapters",
            "--lora-rank, --output-scales and --train cores exclude each other; leave all but one out",
        )
    targets = _split(options.targets or ("last" if cores else "all"))
    if cores:
        return Cores(64 if options.rank is None else options.rank, options.prior, targets=targets)
    if options.lora_rank is not None:
        return LowRank(options.lora_rank, options.lora_alpha, train_down=not options.lora_fixed_a, targets=targets)
    return OutputScales(targets=targets) if options.output_scales else None


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str) -> list[int]:
    from fedspzo.device_runtime.errors import ExportError

    try:
        return [int(number) for number in _split(text)]
    except ValueError:
        raise ExportError("option.numbers", f"{option} is '{text}'; give whole numbers separated by commas") from None
