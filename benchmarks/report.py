"""The comparisons' table and pictures for the documentation: runs speed, memory and growth, each in its own process.

python benchmarks/report.py --table docs/speed.md --png docs/speed.png --growth docs/growth.png
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory import INFERENCE
from speed import ADAM, DECOMFL, FANOUT, FORWARDS, KEEPING, LORA, MEZO, ONE, OURS, PAIR

#: What is timed, from top to bottom.
TIMED = (FORWARDS, PAIR, ONE, MEZO, OURS, DECOMFL, KEEPING, ADAM, LORA)
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
    "other zeroth-order methods, rewritten": (
        "#8c959f",
        {
            MEZO: "MeZO, 1 perturbation",
            DECOMFL: f"DeComFL, {FANOUT} perturbations",
            KEEPING: f"DeComFL, {FANOUT}, kept in memory",
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


def table(speed: Mapping[str, Any], memory: Mapping[str, Any], growth: Mapping[str, Any], command: str) -> str:
    """All figures with their bars, then seconds and megabytes, in Markdown."""
    shapes = list(speed["seconds"])
    lines = [
        "# Speed and memory of a step",
        "",
        f"RoBERTa-large's layer shapes with random weights, full parameters, engine {speed['engine']}, 2 threads on"
        f" {machine()}. Times: {speed['layers']} layers, medians of {speed['repeats']}, in turn in one process, updates"
        f" of the weights included (a ± pair is a measurement alone). Peaks: {memory['layers']} layers,"
        f" {memory['shape']}, each in a process of its own. Growth: slope of the logarithms, 1 is in proportion.",
        "",
        "All train the same tensors (all but the tables of tokens and positions; LoRA: rank 8 on queries and values) on"
        " the same loss. The peers are written for this comparison (`benchmarks/peers.py`), where there is a choice in"
        " their favour.",
        "",
        f"Made by `{command}`.",
        "",
        "| what | figure | bar | |",
        "| --- | ---: | --- | --- |",
    ]
    for found in (speed, memory, growth):
        for figure in found["figures"]:
            verdict = ("passed" if figure["passed"] else "**missed**") if figure["bar"] else ""
            lines.append(f"| {figure['name']} | {figure['value']:.2f} | {figure['bar']} | {verdict} |")
    lines += ["", f"| seconds | {' | '.join(shapes)} |", f"| --- |{' ---: |' * len(shapes)}"]
    for name in TIMED:
        lines.append(f"| {name} | {' | '.join(format(speed['seconds'][shape][name], '.3f') for shape in shapes)} |")
    lines += ["", "| peak memory | MB |", "| --- | ---: |"]
    lines += [f"| {name} | {peak:,.0f} |" for name, peak in memory["peak_mb"].items()]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores)"


def draw(speed: Mapping[str, Any], memory: Mapping[str, Any], path: Path) -> None:
    """Bars of seconds for each shape and of megabytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (f"Seconds of a step\n{_texts(shape)}", {name: seconds[name] for name in TIMED}, "{:,.2f}")
        for shape, seconds in speed["seconds"].items()
    ]
    panels.append((f"Peak memory in MB\n{_texts(memory['shape'])}", memory["peak_mb"], "{:,.0f}"))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), layout="constrained")
    for panel, (title, values, form) in zip(axes, panels, strict=True):
        _bars(panel, title, values, form)
    keys = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour, _ in KINDS.values()]
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


def main() -> None:
    """Run all, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--png", type=Path, required=True, help="where to draw times and peaks")
    parser.add_argument("--growth", type=Path, required=True, help="where to draw growth")
    parser.add_argument("--engine", default="litert", choices=("litert", "executorch"))
    parser.add_argument("--layers", type=int, default=6, help="of the times, a multiple of 6")
    parser.add_argument("--memory-layers", type=int, default=24, help="of the peaks")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    engine = ["--engine", options.engine]
    speed = run("speed.py", *engine, "--layers", str(options.layers), "--repeats", str(options.repeats))
    memory = run("memory.py", *engine, "--layers", str(options.memory_layers))
    growth = run("growth.py", *engine, "--png", str(options.growth))
    command = f"python {Path(__file__).parent.name}/{Path(__file__).name} {' '.join(sys.argv[1:])}"
    options.table.write_text(table(speed, memory, growth, command), encoding="utf-8")
    draw(speed, memory, options.png)


if __name__ == "__main__":
    main()
