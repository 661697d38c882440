"""The comparisons' table and pictures for the documentation, from the results of each processor that was measured.

With ``--measure`` it runs speed, memory and growth, each in its own process, and writes this processor's results to
``benchmarks/results``, to be committed. Ratios between engines differ by a factor of three between processors. The
table has a column for each, and an empty one for each kind that nobody has measured.

    python benchmarks/report.py --measure --png docs/speed.png --growth docs/growth.png --decomfl ~/DeComFL
    python benchmarks/report.py     # docs/speed.md from the results that are there
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memory import INFERENCE
from speed import ADAM, AUTHORS, DECOMFL, FANOUT, FORWARDS, KEEPING, LORA, MEZO, ONE, OURS, PAIR, RECOMMENDED

RESULTS = Path(__file__).with_name("results")
TABLE = Path(__file__).resolve().parent.parent / "docs" / "speed.md"
#: Kinds of processors that the table is to have.
PROCESSORS = ("AMD EPYC", "Intel Xeon", "ARM")

#: What is timed, from top to bottom.
TIMED = (FORWARDS, PAIR, ONE, MEZO, OURS, DECOMFL, KEEPING, AUTHORS, RECOMMENDED, ADAM, LORA)
#: Kinds of steps → their colour, and what they are called in the picture.
KINDS = {
    "forward passes alone": ("#d0d7de", {FORWARDS: "two forward passes", INFERENCE: "inference"}),
    "FedSPZO": (
        "#1f6feb",
        {
            PAIR: "FedSPZO, no update",
            ONE: "FedSPZO, 1 perturbation",
            OURS: f"FedSPZO, {FANOUT} perturbations",
            "FedSPZO": "FedSPZO",
        },
    ),
    "other zeroth-order methods": (
        "#8c959f",
        {
            MEZO: "MeZO, 1 perturbation",
            DECOMFL: f"DeComFL, {FANOUT} perturbations",
            KEEPING: f"DeComFL, {FANOUT}, kept in memory",
            AUTHORS: "DeComFL, its authors' program",
            RECOMMENDED: "DeComFL, as in its README",
            "DeComFL": "DeComFL",
            "DeComFL, z kept": "DeComFL, kept in memory",
        },
    ),
    "backpropagation": ("#bf5b17", {ADAM: "Adam, all weights", LORA: "Adam, LoRA adapters"}),
}


def run(script: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark says. Raises SystemExit when it says nothing; a missed bar is part of what it says."""
    command = [sys.executable, str(Path(__file__).with_name(script)), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{script} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def load_results() -> dict[str, Mapping[str, Any]]:
    """Processor → its results; empty for kinds of :data:`PROCESSORS` that were not met."""
    measured = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    found = {f"{one['processor']} ({one['cores']} cores)": one for one in measured}
    known = [set(name.replace("(R)", "").split()) for name in found]
    return found | {kind: {} for kind in PROCESSORS if not any(words >= set(kind.split()) for words in known)}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All figures with their bars, then seconds and megabytes, in Markdown: a column for each processor."""
    head, rule = " | ".join(results), " ---: |" * len(results)
    measured = {name: one for name, one in results.items() if one}
    lines = [
        "# Speed and memory of a step",
        "",
        "The model has RoBERTa-large's layer shapes and random weights. All weights are trained, on 2 threads. Times"
        " include the update of the weights, except those of a ± pair, which is one perturbation with both signs and"
        " no update. P is the number of perturbations of the whole model, K that of block 2 under one of block 1."
        " Growth is the slope of the logarithms; 1 means growth in proportion. Ratios depend on the processor, so each"
        " has its own column. An empty cell was not measured.",
        "",
        "![Seconds and peak memory of a step](speed.png)",
        "",
        "All methods use the same loss and train the same tensors: all except the tables of tokens and positions, or"
        " LoRA adapters of rank 8 on queries and values. The other methods are rewritten for this comparison"
        " (`benchmarks/peers.py`), in their favour where there is a choice. The rows that say so time the program of"
        " DeComFL's authors in the same run as ours. By default it takes two-sided differences and keeps z in memory;"
        " with the command of its README it takes one-sided differences and draws z again.",
        "",
        *(_how_measured(name, one) for name, one in measured.items()),
        "",
        "To add a processor or to measure again, use an idle machine and a clone of the authors' repository:",
        "`python benchmarks/report.py --measure --png docs/speed.png --growth docs/growth.png --decomfl ~/DeComFL`.",
        "",
        f"| what | bar | {head} |",
        f"| --- | --- |{rule}",
    ]
    figures: dict[str, dict[str, str]] = {}
    for name, one in measured.items():
        for figure in (figure for part in ("speed", "memory", "growth") for figure in one[part]["figures"]):
            missed = "" if figure["passed"] else ", **missed**"
            figures.setdefault(figure["name"], {"bar": figure["bar"]})[name] = f"{figure['value']:.2f}{missed}"
    lines += [_row([what, cells["bar"], *(cells.get(name, "") for name in results)]) for what, cells in figures.items()]
    for shape in next(iter(measured.values()))["speed"]["seconds"]:
        seconds = {name: one["speed"]["seconds"][shape] for name, one in measured.items()}
        lines += ["", f"| seconds, {shape} | {head} |", f"| --- |{rule}"]
        lines += [_row([step, *(_cell(seconds.get(name, {}).get(step), ".3f") for name in results)]) for step in TIMED]
    peaks = {name: one["memory"]["peak_mb"] for name, one in measured.items()}
    lines += ["", f"| peak memory in MB | {head} |", f"| --- |{rule}"]
    for step in next(iter(peaks.values())):
        lines.append(_row([step, *(_cell(peaks.get(name, {}).get(step), ",.0f") for name in results)]))
    lines += ["", "![Time and memory of a step against layers, weights, tokens and perturbations](growth.png)"]
    return "\n".join(lines) + "\n"


def _how_measured(name: str, one: Mapping[str, Any]) -> str:
    speed, memory = one["speed"], one["memory"]
    return (
        f"* {name}: engine {speed['engine']}. Times are of {speed['layers']} layers, medians of {speed['repeats']}, in"
        f" turn in one process. Peaks are of {memory['layers']} layers, {memory['shape']}, each in a separate process."
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def processor() -> str:
    """This processor's name."""
    file = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else {"aarch64": "ARM"}.get(platform.machine(), platform.machine())


def draw(one: Mapping[str, Any], path: Path) -> None:
    """Bars of seconds for each shape and of megabytes, from one processor's results."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    speed, memory = one["speed"], one["memory"]
    panels = [
        (f"Seconds of a step\n{_texts(shape)}", {name: seconds[name] for name in TIMED if name in seconds}, "{:,.2f}")
        for shape, seconds in speed["seconds"].items()
    ]
    panels.append((f"Peak memory in MB\n{_texts(memory['shape'])}", memory["peak_mb"], "{:,.0f}"))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for panel, (title, values, form) in zip(axes, panels, strict=True):
        _bars(panel, title, values, form)
    keys = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour, _ in KINDS.values()]
    figure.suptitle(f"One step on {one['processor']}, 2 threads", fontsize=10)
    figure.legend(keys, list(KINDS), loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _texts(shape: str) -> str:
    batch, length = shape.split(" × ")
    return f"{batch} text{'s' * (batch != '1')} of {length} tokens"


def _bars(panel: Any, title: str, values: Mapping[str, float], form: str) -> None:
    known = {name: (label, colour) for colour, labels in KINDS.values() for name, label in labels.items()}
    labels, colours = zip(*(known[name] for name in values), strict=True)
    drawn = panel.barh(labels, list(values.values()), color=colours)
    panel.bar_label(drawn, [form.format(value) for value in values.values()], padding=3, fontsize=8)
    panel.invert_yaxis()
    panel.set_title(title, fontsize=10)
    panel.margins(x=0.15)
    panel.tick_params(axis="y", labelsize=9, length=0)
    panel.xaxis.set_visible(False)
    panel.spines[["top", "right", "bottom"]].set_visible(False)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all, and draw growth; returns this processor's results."""
    engine = ["--engine", options.engine]
    authors = [] if options.decomfl is None else ["--decomfl", str(options.decomfl)]
    repeats = ["--repeats", str(options.repeats)]
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "speed": run("speed.py", *engine, "--layers", str(options.layers), *repeats, *authors),
        "memory": run("memory.py", *engine, "--layers", str(options.memory_layers)),
        "growth": run("growth.py", *engine, *(["--png", str(options.growth)] if options.growth else [])),
    }


def main() -> None:
    """Measure if asked to, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure here, and write this processor's results")
    parser.add_argument("--png", type=Path, help="where to draw times and peaks, as measured or of the first results")
    parser.add_argument("--growth", type=Path, help="where to draw growth, as measured")
    parser.add_argument("--decomfl", type=Path, metavar="FOLDER", help="also time its authors' program, cloned there")
    parser.add_argument("--engine", default="litert", choices=("litert", "executorch"))
    parser.add_argument("--layers", type=int, default=6, help="of the times, a multiple of 6")
    parser.add_argument("--memory-layers", type=int, default=24, help="of the peaks")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.measure:
        found = measure(options)
        file = RESULTS / f"{re.sub('[^a-z0-9]+', '-', found['processor'].lower()).strip('-')}.json"
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    results = load_results()
    if options.png:
        draw(found if options.measure else next(one for one in results.values() if one), options.png)
    TABLE.write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
