"""Peak memory of a step, each kind in a fresh process: FedSPZO against inference and against what people run today.

RoBERTa-large by its true config with random weights, batch 8 × 64. The peak is the whole process's; what PyTorch held
while it loaded its model does not count.

    python benchmarks/memory.py --layers 24
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setting import FANOUT, THREADS, Figure, OurDevice, export, make_model, print_figures, random_store

from fedspzo.device_runtime.model.bundle import Bundle

INFERENCE, OURS = "inference", "FedSPZO"
MEZO, DECOMFL, KEEPING, LORA, ADAM = "MeZO", "DeComFL", "DeComFL, z kept", "LoRA + Adam", "Adam"
#: Kind of step → about how much memory it needs, in multiples of the weights' bytes, to see in advance whether it fits.
NEEDS = {INFERENCE: 2, OURS: 2, MEZO: 3, DECOMFL: 3, KEEPING: 5, LORA: 5, ADAM: 8}


def status(field: str) -> float:
    """A field of this process's memory in MB: VmRSS is what it holds, VmHWM the most that it held."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def our_step(kind: str, bundle: Bundle, options: argparse.Namespace) -> Callable[[], object]:
    """Inference, FedSPZO's step, or perturbations of the whole model, in our runtime."""
    ours = OurDevice(bundle, options.engine, random_store(bundle, options.batch, options.length))
    if kind == INFERENCE:
        return ours.loss
    return lambda: ours.step(ours.whole(options.perturbations) if options.perturbations else ours.cut())


def peer_step(kind: str, checkpoint: Path, bundle: Bundle, options: argparse.Namespace) -> Callable[[], object]:
    """A peer's step; DeComFL's with two perturbations, for more of them need no more memory."""
    import torch
    from peers import adam, add_lora, backpropagation_step, decomfl_step, decomfl_step_keeping, load_peer, mezo_step

    torch.set_num_threads(THREADS)
    peer = load_peer(checkpoint, bundle, random_store(bundle, options.batch, options.length))
    if kind == LORA:
        add_lora(peer.model)
    optimizer = adam(peer.trained)
    Path("/proc/self/clear_refs").write_text("5")  # what loading held does not count
    steps = {
        MEZO: lambda: mezo_step(peer.loss, peer.trained, 7),
        DECOMFL: lambda: decomfl_step(peer.loss, peer.trained, 2, 7),
        KEEPING: lambda: decomfl_step_keeping(peer.loss, peer.trained, 2, 7),
    }
    return steps.get(kind, lambda: backpropagation_step(peer.loss, optimizer))


def job(kind: str, checkpoint: Path, options: argparse.Namespace) -> dict[str, float]:
    """Take steps in this process: memory before the model and at most, in MB, and seconds of the quickest step."""
    start = status("VmRSS")
    bundle = Bundle(checkpoint.parent / "bundle")
    ours = kind in (INFERENCE, OURS)
    step = our_step(kind, bundle, options) if ours else peer_step(kind, checkpoint, bundle, options)
    seconds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return {"start_mb": start, "peak_mb": status("VmHWM"), "seconds": min(seconds)}


def run_job(
    kind: str,
    checkpoint: Path,
    engine: str,
    batch: int,
    length: int,
    repeats: int = 2,
    perturbations: int = 0,
) -> dict[str, float]:
    """:func:`job` in a process of its own.

    Args:
        perturbations: of the whole model; 0 for FedSPZO's two blocks.

    Raises:
        SystemExit: too little memory is free, or the process failed.
    """
    import psutil

    weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    available = psutil.virtual_memory().available
    if available < NEEDS[kind] * weights:
        raise SystemExit(
            f"'{kind}' may need {NEEDS[kind] * weights / 1e9:.1f} GB and {available / 1e9:.1f} GB are free;"
            " close other programs, or give fewer --layers"
        )
    command = [sys.executable, __file__, "--job", kind, str(checkpoint), "--engine", engine, "--batch", str(batch),
               "--length", str(length), "--repeats", str(repeats), "--perturbations", str(perturbations)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"'{kind}' failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def figures_of(peaks: dict[str, float]) -> list[Figure]:
    """What the peaks say, held to the bars."""
    ours = peaks[OURS]
    return [
        Figure(f"FedSPZO's step, K = {FANOUT} / inference", ours / peaks[INFERENCE], 1.05),
        Figure("FedSPZO's step / Adam", ours / peaks[ADAM], 0.25),
        *(Figure(f"FedSPZO's step / {peer}", ours / peaks[peer]) for peer in (LORA, KEEPING, DECOMFL, MEZO)),
    ]


def main() -> int:
    """Measure one after another, and exit with 1 when a figure is beyond its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="litert", choices=("litert", "executorch"))
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--perturbations", type=int, default=0, help="of a job: 0 for FedSPZO's two blocks")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", nargs=2, metavar=("KIND", "CHECKPOINT"), help="only take steps in this process")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(job(options.job[0], Path(options.job[1]), options)))
        return 0
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        checkpoint = make_model(Path(name), options.layers)
        export(checkpoint, options.engine, [options.batch], [options.length])
        found: dict[str, dict[str, Any]] = {
            kind: run_job(kind, checkpoint, options.engine, options.batch, options.length) for kind in NEEDS
        }
    peaks = {kind: round(result["peak_mb"], 1) for kind, result in found.items()}
    figures = figures_of(peaks)
    if options.json:
        said = {"engine": options.engine, "layers": options.layers, "shape": f"{options.batch} × {options.length}"}
        print(json.dumps({**said, "peak_mb": peaks, "figures": [f.as_dict() for f in figures]}, ensure_ascii=False))
    else:
        print(f"{options.layers} layers of RoBERTa-large, {options.engine}, {options.batch} × {options.length}; peaks:")
        for kind, peak in peaks.items():
            print(f"{kind:>16}  {peak:8.0f} MB")
        print_figures(figures)
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
