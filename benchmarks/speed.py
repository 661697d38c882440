"""FedSPZO's step against two forwards with static weights, MeZO, DeComFL and backpropagation, in turn in one process.

RoBERTa-large's layer shapes with random weights; the ratios are a layer's, so that a few layers tell as much as all 24.
Every step counts with its update of the weights; a "± pair" is a measurement alone. The machine should be quiet:
PyTorch's threads spin while they wait for each other, and suffer from neighbours more than engines do.

    python benchmarks/speed.py --layers 6 --repeats 5 --decomfl ~/DeComFL
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from setting import FANOUT, THREADS, Figure, OurDevice, export, make_model, print_figures, random_store, time_in_turn

from fedspzo.device_runtime.model.bundle import Bundle

LENGTH = 64
#: The names of what is timed.
FORWARDS, PAIR, ONE, OURS = "two static forwards", "± pair", "FedSPZO, P = 1", f"FedSPZO, K = {FANOUT}"
MEZO, DECOMFL, KEEPING = "MeZO", f"DeComFL, P = {FANOUT}", f"DeComFL, P = {FANOUT}, z kept"
AUTHORS, RECOMMENDED = f"authors' DeComFL, P = {FANOUT}", f"authors' DeComFL, P = {FANOUT}, as in its README"
ADAM, LORA = "Adam", "LoRA + Adam"
#: Batch → a ± pair takes at most this many static forwards' time, and is at least this many times faster than MeZO.
BARS = {8: (1.08, 2.2), 1: (1.40, 5.0)}
DECOMFL_BAR = 6.5


def prepare(
    checkpoint: Path, bundle: Bundle, engine: str, batch: int, decomfl: Path | None
) -> dict[str, Callable[[], object]]:
    """All that is timed for a batch size.

    Args:
        decomfl: folder with the program of DeComFL's authors, to be timed beside the others.

    Raises:
        SystemExit: two of them do not compute the same loss.
    """
    import torch
    from peers import (
        Authors,
        adam,
        add_lora,
        backpropagation_step,
        decomfl_step,
        decomfl_step_keeping,
        load_peer,
        mezo_step,
    )  # fmt: skip
    from static import StaticModel

    torch.set_num_threads(THREADS)
    store = random_store(bundle, batch, LENGTH)
    ours = OurDevice(bundle, engine, store)
    fed = ours.forward.batch(store, store.sample(0, batch))
    static = StaticModel(checkpoint, bundle, engine, THREADS, fed)
    peer = load_peer(checkpoint, bundle, store)
    with torch.inference_mode():
        losses = ours.loss(), static.forward(), float(peer.loss())
    if max(losses) - min(losses) > 1e-4:
        raise SystemExit(f"our runtime, static graphs and PyTorch disagree on the loss: {losses}")
    lora = copy.deepcopy(peer)
    add_lora(lora.model)
    lora_optimizer, optimizer = adam(lora.trained), adam(peer.trained)
    authors: dict[str, Callable[[], object]] = {}
    if decomfl is not None:
        for name, recommended in ((AUTHORS, False), (RECOMMENDED, True)):
            client = Authors(decomfl, copy.deepcopy(peer), FANOUT, recommended)
            authors[name] = functools.partial(client.step, 7)
    return {
        FORWARDS: lambda: (static.forward(), static.forward()),
        PAIR: lambda: ours.measure(ours.whole()),
        ONE: lambda: ours.step(ours.whole()),
        MEZO: lambda: mezo_step(peer.loss, peer.trained, 7),
        OURS: lambda: ours.step(ours.cut()),
        DECOMFL: lambda: decomfl_step(peer.loss, peer.trained, FANOUT, 7),
        KEEPING: lambda: decomfl_step_keeping(peer.loss, peer.trained, FANOUT, 7),
        **authors,
        ADAM: lambda: backpropagation_step(peer.loss, optimizer),
        LORA: lambda: backpropagation_step(lora.loss, lora_optimizer),
    }


def figures_of(seconds: dict[str, float], batch: int) -> list[Figure]:
    """What the times say, held to the bars."""
    shape = f"{batch} × {LENGTH}"
    most, least = BARS[batch]
    return [
        Figure(f"± pair / two static forwards, {shape}", seconds[PAIR] / seconds[FORWARDS], most),
        Figure(f"MeZO / ours, one ± pair with its update, {shape}", seconds[MEZO] / seconds[ONE], least, True),
        Figure(f"{DECOMFL} / {OURS}, {shape}", seconds[DECOMFL] / seconds[OURS], DECOMFL_BAR, True),
        Figure(f"{KEEPING} / {OURS}, {shape}", seconds[KEEPING] / seconds[OURS], DECOMFL_BAR, True),
        *(
            Figure(f"{name} / {OURS}, {shape}", seconds[name] / seconds[OURS])
            for name in (AUTHORS, RECOMMENDED, ADAM, LORA)
            if name in seconds
        ),
    ]


def main() -> int:
    """Time everything, and exit with 1 when a figure is beyond its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="litert", choices=("litert", "executorch"))
    parser.add_argument("--layers", type=int, default=6, help="a multiple of 6: block 2 is the last sixth of them")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BARS), choices=BARS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decomfl", type=Path, metavar="FOLDER", help="also time its authors' program, cloned there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.layers < 6 or options.layers % 6:
        parser.error(f"block 2 is the last sixth of the layers: give a multiple of 6, not {options.layers}")
    batches = options.batches
    figures: list[Figure] = []
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        checkpoint = make_model(Path(name), options.layers)
        bundle = export(checkpoint, options.engine, batches, [LENGTH])
        for batch in batches:
            seconds = time_in_turn(prepare(checkpoint, bundle, options.engine, batch, options.decomfl), options.repeats)
            found[f"{batch} × {LENGTH}"] = {key: round(median, 4) for key, median in seconds.items()}
            figures += figures_of(seconds, batch)
    if options.json:
        said = {"engine": options.engine, "layers": options.layers, "repeats": options.repeats, "seconds": found}
        print(json.dumps({**said, "figures": [figure.as_dict() for figure in figures]}, ensure_ascii=False))
    else:
        print(f"{options.layers} layers of RoBERTa-large, {options.engine}, {THREADS} threads; medians in seconds:")
        for shape, seconds in found.items():
            print(f"{shape}: " + ", ".join(f"{key} {median:.3f}" for key, median in seconds.items()))
        print_figures(figures)
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
