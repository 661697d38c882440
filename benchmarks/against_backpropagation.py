"""A step of adapters over a quantised base, beside exact gradients of the same adapters: memory, seconds, a loss.

    python benchmarks/against_backpropagation.py BUNDLE CHECKPOINT --data FILE --memory 300MB --json
    python benchmarks/against_backpropagation.py BUNDLE CHECKPOINT --data FILE --batch 4 --target 0.4 --steps 1000

The bundle is an export of the checkpoint for a task whose labels are words, with LoRA on queries and values. FedSPZO
takes one-sided steps of 1 perturbation of all and 8 of the last sixth of the layers; with ``--target``, those of a job
that says nothing of its steps. Its rivals: gradients a layer at a time over the same codes (exact_gradients.py), and
LoRA with Adam in PyTorch, in float32, with gradient checkpointing. Each takes the same examples of the file, in a
process of its own; with ``--target``, until the mean of eight losses is as low. Peaks are those of the whole process;
what PyTorch held while it read a checkpoint does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedspzo.broker.rounds.job import Job, check_job, plan_round
from fedspzo.device_runtime.data.store import DataStore, load_data
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.budget import open_engine
from fedspzo.device_runtime.step.estimator import draw_examples
from fedspzo.device_runtime.step.runner import Batch, Forward
from fedspzo.energy.measure import SMOOTH
from fedspzo.energy.steps import ForwardSteps

STREAMED, KEPT, BY_LAYER, LORA = KINDS = ("streamed", "kept", "by-layer", "lora")
THREADS = 2
#: Takes a step, numbered from 1 on, and gives the loss before it.
Step = Callable[[int], float]


def make_step(kind: str, bundle: Bundle, store: DataStore, options: argparse.Namespace) -> Step:
    """What a kind of process does."""
    job = check_job(_job(bundle, options), bundle)
    if kind in (STREAMED, KEPT):
        engine = open_engine(bundle.manifest, "litert", THREADS, options.memory if kind == STREAMED else "all")
        return ForwardSteps(job, Forward(engine, Replica(bundle, threads=THREADS)), store).take
    import torch

    torch.set_num_threads(THREADS)
    batches = Batches(bundle, store, job)
    return by_layer(bundle, batches, options) if kind == BY_LAYER else lora(bundle, batches, options)


def _job(bundle: Bundle, options: argparse.Namespace) -> Job:
    common = {"rounds": options.steps, "cohort": 1, "batch": options.batch, "seed": options.seed}
    if options.target:
        return Job(**common)
    stages = len(bundle.manifest.stages)
    return Job(**common, split=(stages - 1 - (stages - 2) // 6,), fanouts=(1, 8), sides=1)


class Batches:
    """The examples that FedSPZO's device draws for each step."""

    def __init__(self, bundle: Bundle, store: DataStore, job: Job) -> None:
        self._forward = Forward(create_engine("litert"), Replica(bundle))
        self._store, self._job = store, job

    def __call__(self, number: int) -> Batch:
        """Of a step."""
        plan = plan_round(self._job, number)
        return self._forward.batch(self._store, draw_examples(plan, self._store, "energy", 0))


def by_layer(bundle: Bundle, batches: Batches, options: argparse.Namespace) -> Step:
    """Gradients a layer at a time."""
    from exact_gradients import LayerByLayer

    from fedspzo.export.checkpoint import Checkpoint

    rival = LayerByLayer(bundle, Checkpoint(options.checkpoint), options.learning_rate)

    def step(number: int) -> float:
        batch = batches(number)
        return rival.step(batch.feeds, batch.count)

    return step


def lora(bundle: Bundle, batches: Batches, options: argparse.Namespace) -> Step:
    """LoRA and the labels' vectors with Adam, as transformers and peft have them."""
    import torch
    import torch.nn.functional as F
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from fedspzo.export.checkpoint import Checkpoint

    manifest = bundle.manifest
    adapters = manifest.adapters
    assert adapters is not None
    whole = AutoModelForCausalLM.from_pretrained(Checkpoint(options.checkpoint).folder, dtype=torch.float32)
    whole.config.use_cache = False
    settings = LoraConfig(r=adapters.rank, lora_alpha=int(adapters.alpha), target_modules=["q_proj", "v_proj"])
    model = get_peft_model(whole, settings)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()  # without dropout, which LoraConfig leaves out by default
    index = next(number for number, spec in enumerate(manifest.tensors) if spec.name == "labels")
    labels = torch.nn.Parameter(torch.from_numpy(np.array(bundle.tensor(index)[0])))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad] + [labels]
    adam = torch.optim.Adam(trained, lr=options.learning_rate)
    Path("/proc/self/clear_refs").write_text("5")  # what loading held does not count

    def step(number: int) -> float:
        batch = batches(number)
        longest = batch.shape.length
        ids = torch.from_numpy(batch.ids[: batch.count, :longest]).long()
        mask = torch.arange(longest) < torch.from_numpy(batch.lengths[: batch.count])[:, None]
        hidden = model.base_model.model.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        at = torch.from_numpy(batch.feeds["select"][: batch.count]).argmax(dim=-1)[:, 0]
        logits = hidden[torch.arange(batch.count), at] @ labels
        loss = F.cross_entropy(logits, torch.from_numpy(batch.known.labels).long())
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        return float(loss)

    return step


def job(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Take steps in this process, the first of which is not timed; memory in MB, seconds of a step and to the loss."""
    bundle = Bundle(options.bundle)
    step = make_step(kind, bundle, load_data(options.data, bundle), options)
    losses, seconds = [], []
    for number in range(1, options.steps + 1):
        started = time.perf_counter()
        losses.append(step(number))
        seconds.append(time.perf_counter() - started)
        if options.target and len(losses) >= SMOOTH and statistics.fmean(losses[-SMOOTH:]) <= options.target:
            break
    found: dict[str, Any] = {"peak_mb": _status("VmHWM"), "step_seconds": statistics.median(seconds[1:] or seconds)}
    if options.target:
        reached = statistics.fmean(losses[-SMOOTH:]) <= options.target
        found |= {"steps": len(losses) if reached else None, "seconds": sum(seconds) if reached else None}
        found["last_loss"] = statistics.fmean(losses[-SMOOTH:])
    return found


def _status(field: str, process: int | str = "self") -> float:
    return int(Path(f"/proc/{process}/status").read_text().split(f"{field}:")[1].split()[0]) / 1000


def run_job(kind: str, arguments: list[str]) -> dict[str, Any]:
    """:func:`job` in a process of its own, and the most memory of its own, not of files, that it was seen to have.

    Raises:
        SystemExit: the process failed.
    """
    anonymous = 0.0
    with subprocess.Popen(
        [sys.executable, __file__, *arguments, "--job", kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            time.sleep(0.05)
            try:
                anonymous = max(anonymous, _status("RssAnon", process.pid))
            except (OSError, IndexError):  # it has ended
                break
        said, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"'{kind}' failed: {errors[-2000:]}")
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found | {"peak_anonymous_mb": anonymous}


def main() -> None:
    """Run each kind in turn, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--memory", default="auto", help="that FedSPZO's streamed step is given (%(default)s)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="at most (%(default)s)")
    parser.add_argument("--target", type=float, help="a loss")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="FedSPZO's two, then its rivals")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--job", help="only take steps in this process")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(job(options.job, options)))
        return
    for kind in options.kinds:
        found = {"kind": kind, **run_job(kind, sys.argv[1:])}
        print(json.dumps(found) if options.json else found, flush=True)


if __name__ == "__main__":
    main()
