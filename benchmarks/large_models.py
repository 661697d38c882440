"""Memory and time of export and of federated rounds, for the paper's models by their true configs.

No weights can be had without a network, so they are random; sizes, graphs and memory are those of the real models.

    python benchmarks/large_models.py --models roberta-large,opt-1.3b --engine litert --json
    python benchmarks/large_models.py --models llama-3.2-3b --weights int4
    python benchmarks/large_models.py --models llama-3.2-3b --weights int4 --memory 300MB --json
    python benchmarks/large_models.py --models llama-3.2-3b --weights int4 --memory 300MB --task completion --json
    python benchmarks/large_models.py --models qwen2.5-0.5b --weights int4 --length 256 --memory 160MB --json

With --memory, one-sided steps of 1 and 8 perturbations under it, by a device and by `fedspzo bench memory`: their peak,
and their seconds beside all in memory.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PORT = 18831
FEDSPZO = [sys.executable, "-m", "fedspzo"]
TEXTS = ["the film was good. It was great.", "a dull end. It was terrible.", "Yes No Maybe one two three four five six"]
CONFIGS: dict[str, dict[str, Any]] = {
    "roberta-large": {
        "model_type": "roberta", "vocab_size": 50265, "hidden_size": 1024, "num_hidden_layers": 24,
        "num_attention_heads": 16, "intermediate_size": 4096, "max_position_embeddings": 514, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    },
    "opt-1.3b": {
        "model_type": "opt", "vocab_size": 50272, "hidden_size": 2048, "num_hidden_layers": 24,
        "num_attention_heads": 32, "ffn_dim": 8192, "word_embed_proj_dim": 2048, "max_position_embeddings": 2048,
        "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
    },
    "llama-3.2-3b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 0,
        "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    **{
        f"qwen2.5-{size}": {
            "model_type": "qwen2", "vocab_size": 151936, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": 2, "intermediate_size": intermediate,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "bos_token_id": 0,
            "eos_token_id": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        }
        for size, hidden, layers, heads, intermediate in (
            ("0.5b", 896, 24, 14, 4864), ("1.5b", 1536, 28, 12, 8960), ("3b", 2048, 36, 16, 11008),
        )
    },
}  # fmt: skip
#: Models of which exact gradients of adapters are published at 1 × 256 (MeSP, arXiv 2602.13069) → the bar in MB:
#: theirs, and for the smallest, where Python and the engine are a third, 160 in place of 136.
MESP = {"qwen2.5-0.5b": 160.0, "qwen2.5-1.5b": 263.0, "qwen2.5-3b": 368.0}


def make_checkpoint(name: str, folder: Path, **changes: Any) -> None:
    """Save a model of that config with random weights, and a byte-level tokenizer of its size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    settings = {**CONFIGS[name], **changes}
    kind = settings.pop("model_type")
    factory = AutoModelForMaskedLM if kind == "roberta" else AutoModelForCausalLM
    dtype = torch.bfloat16 if kind in ("llama", "qwen2") else torch.float32  # as the hub has them
    torch.manual_seed(0)
    factory.from_config(AutoConfig.for_model(kind, **settings), dtype=dtype).save_pretrained(folder)
    save_tokenizer(folder, settings["vocab_size"], closes=kind == "roberta")


def save_tokenizer(folder: Path, size: int, closes: bool) -> None:
    """A byte-level tokenizer of the model's size, trained on a few words; one that closes texts has a mask too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    tokenizer.model = models.BPE(**grown(trained["vocab"], [tuple(merge) for merge in trained["merges"]], size))
    end = " </s>" if closes else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<mask>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def grown(vocabulary: dict[str, int], merges: list[tuple[str, str]], size: int) -> dict[str, Any]:
    """A vocabulary with random tokens, and their merges, up to a size; a tenth of them have two."""
    draw = random.Random(0)
    letters = [token for token in vocabulary if len(token) == 1 and token.isascii() and token.isalpha()]
    halves = [first + second for first in letters for second in letters]
    for token in halves:
        if token not in vocabulary and len(vocabulary) < size:
            vocabulary[token] = len(vocabulary)
            merges.append((token[0], token[1]))
    while len(vocabulary) < size:
        first, second, third = draw.choice(halves), draw.choice(letters), draw.choice(halves)
        for left, right in ((first, second), (first + second, third)):
            if left + right not in vocabulary and len(vocabulary) < size:
                vocabulary[left + right] = len(vocabulary)
                merges.append((left, right))
    known = {*merges}
    for token in (token for token in vocabulary if len(token) == 5):
        pair = token[:2], token[2:]
        if len(merges) < 1.1 * size and pair not in known and pair[1] in vocabulary:
            merges.append(pair)
    return {"vocab": vocabulary, "merges": merges}


def watch(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command; seconds and peak resident bytes of its process."""
    started = time.monotonic()
    peak = 0
    with (folder / "command.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, _peak_rss(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {(folder / 'command.log').read_text()[-2000:]}")
    return time.monotonic() - started, peak


def _peak_rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def write_data(folder: Path) -> Path:
    """A few examples, which have what each task asks for."""
    data = folder / "data.jsonl"
    records = [
        {"sentence": f"{text} number {i}", "label": i % 2, "prompt": text, "completion": f" number {i}"}
        for i, text in enumerate(TEXTS * 3)
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    return data


def first_step(bundle: Path, data: Path, engine: str, memory: str) -> None:
    """Take two steps in this process and print how long after its start it was ready for the first, and its memory."""
    import psutil

    from fedspzo.device_runtime.data.store import load_data
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.protocol.plan import Block, Plan
    from fedspzo.device_runtime.replica.weights import Replica
    from fedspzo.device_runtime.step.budget import open_engine
    from fedspzo.device_runtime.step.estimator import measure as take_step
    from fedspzo.device_runtime.step.runner import Forward

    opened = Bundle(bundle)
    stages = len(opened.manifest.stages)
    blocks = (Block(split_stage(stages), 1, 1.0, 1e-3), Block(stages, 8, 1.0, 1e-3))
    sides = 2 if memory == "all" else 1  # as in the rounds
    plan = Plan(1, 7, True, "rademacher", 1, 1, 1e-3, blocks, 60.0, False, sides=sides)
    store = load_data(data, opened)
    forward = Forward(open_engine(opened.manifest, engine, 2, memory), Replica(opened, threads=2))
    this = psutil.Process()
    resident = this.memory_info().rss / 1e6
    take_step(forward, store, plan, "a")
    first = time.time() - this.create_time()
    started = time.time()
    take_step(forward, store, plan, "a")
    print(json.dumps({"ready_seconds": first - (time.time() - started), "ready_rss_mb": resident}))


def split_stage(stages: int) -> int:
    """Where block 2 starts: the last sixth of the layers, and the head."""
    return stages - 1 - (stages - 2) // 6


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A `fedspzo` command that runs while its caller does, and not longer."""
    started = subprocess.Popen([*FEDSPZO, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.terminate()
        started.wait()


def run_rounds(bundle: Path, folder: Path, engine: str, memory: str | None) -> dict[str, Any]:
    """Rounds with a broker, a server and one device as processes; what the server and the device say of them."""
    from fedspzo.broker.server.state_folder import pin_bundle

    data = write_data(folder)
    pin_bundle(bundle, folder / "server")  # the device starts beside the server
    url = ["--broker", f"mqtt://127.0.0.1:{PORT}"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    stages = len(manifest["stages"])
    serve = ["server", str(bundle), *url, "--state", str(folder / "server"), "--engine", engine, "--json", "--rounds",
             "3", "--split", str(split_stage(stages)), "--fanouts", "1,8", "--deadline", "900",
             "--cohort", "1", "--serve-after", "0"]  # fmt: skip
    device = [*FEDSPZO, "device", str(bundle), *url, "--state", str(folder / "device"), "--data", str(data),
              "--engine", engine, "--threads", "2"]  # fmt: skip
    if memory:
        serve += ["--sides", "1"]
        device += ["--memory", memory]
    with process("broker", "--port", str(PORT)) as broker:
        assert broker.stdout is not None
        broker.stdout.readline()  # it listens
        with process(*serve) as server:
            _, peak = watch(device, folder)
            said = [json.loads(line) for line in server.communicate()[0].splitlines()]
    steps = [event["step_seconds"] for event in said if "step_seconds" in event]
    ready = subprocess.run(
        [sys.executable, __file__, "--ready", str(bundle), str(data), engine, memory or "all"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        "device_peak_rss_mb": peak / 1e6,
        "seconds_of_first_step": steps[0],
        "seconds_per_step": min(steps),
        **json.loads(ready.stdout.splitlines()[-1]),
        "digests_equal": said[-1]["server_digest"] == next(iter(said[-1]["devices"].values()))["digest"],
    }


def measure_budget(bundle: Path, memory: str, engine: str) -> dict[str, Any]:
    """What `fedspzo bench memory` finds of a one-sided step."""
    stages = len(json.loads((bundle / "manifest.json").read_text())["stages"])
    command = [*FEDSPZO, "bench", "memory", str(bundle), "--memory", memory, "--engine", engine, "--threads", "2",
               "--sides", "1", "--split", str(split_stage(stages)), "--fanouts", "1,8", "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    sys.stderr.write(done.stderr)  # what is not measured, and why
    found: dict[str, Any] = {}
    for figure in map(json.loads, done.stdout.splitlines()):
        match figure["name"], figure["bound_is"]:
            case "peak memory of a step", "inference by the same runtime":
                found |= {"step_peak_mb": figure["value"], "inference_peak_mb": figure["bound"]}
            case "peak memory of a step", "all in memory":
                found |= {"step_peak_in_memory_mb": figure["bound"]}
            case "a step", _:
                found |= {"warm_step_seconds": figure["value"], "in_memory_step_seconds": figure["bound"],
                          "warm_to_in_memory": figure["ratio"]}  # fmt: skip
            case "the first step, files not in memory", _:
                found |= {"cold_step_seconds": figure["value"]}
    return found


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures of one model, with the bars that they are held to."""
    from fedspzo.device_runtime.model.bundle import Bundle
    from fedspzo.device_runtime.step.budget import parse_memory, streams_within

    checkpoint, bundle = folder / name, folder / "bundle"
    subprocess.run([sys.executable, __file__, "--make", name, str(checkpoint)], check=True, capture_output=True)
    checkpoint_mb = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 1e6
    export = [*FEDSPZO, "export", str(checkpoint), "--task", options.task, "--engine", options.engine, "--batch",
              str(options.batch), "--max-length", str(options.length), "--weights", options.weights]  # fmt: skip
    if options.weights in ("int8", "int4"):
        export += ["--lora-rank", "8", "--targets", "q_proj,v_proj"]
    if options.memory:
        export += ["--groups", "2,8"]
    seconds, peak = watch([*export, "--out", str(bundle)], folder)
    found = {
        "model": name,
        **{option: getattr(options, option) for option in ("task", "engine", "batch", "length", "weights")},
        "checkpoint_mb": checkpoint_mb,
        "bundle_mb": sum(path.stat().st_size for path in bundle.iterdir()) / 1e6,
        "export_seconds": seconds,
        "export_peak_rss_mb": peak / 1e6,
        **run_rounds(bundle, folder, options.engine, options.memory),
    }
    if options.memory:
        found |= {"memory": options.memory, **measure_budget(bundle, options.memory, options.engine)}
    found["tokens_per_second"] = options.batch * options.length / found["seconds_per_step"]
    if name == "llama-3.2-3b":
        bars = {"export_peak_rss_mb": 12_000.0, "bundle_mb": 2_400.0}
        bars |= {"device_peak_rss_mb": 3_000.0, "ready_seconds": 20.0}
    else:
        stored = checkpoint_mb / (1 if options.weights == "float32" else 2)
        bars = {"export_peak_rss_mb": checkpoint_mb + 2000, "device_peak_rss_mb": 1.10 * stored + 250}
    if options.memory:
        bars["step_peak_mb"] = bars["device_peak_rss_mb"] = (parse_memory(options.memory) or math.inf) / 1e6
        if name in MESP and options.length == 256:
            bars["step_peak_mb"] = bars["device_peak_rss_mb"] = MESP[name]
        if streams_within(Bundle(bundle).manifest, options.engine, options.memory):
            bars |= {"warm_to_in_memory": 1.5, "ready_seconds": 3.0, "ready_rss_mb": 120.0}
    found["bars"] = bars
    found["passed"] = all(found.get(key, math.inf) <= bar for key, bar in bars.items()) and found["digests_equal"]
    return found


def main() -> int:
    """Measure, and exit with 1 when a figure is beyond its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="roberta-large,opt-1.3b", help=", ".join(CONFIGS))
    parser.add_argument("--task", default="sst2", help="sst2, or completion, which scores all tokens")
    parser.add_argument("--engine", default="litert")
    for name, default in (("--batch", 1), ("--length", 64)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--weights", default="float32", help="as the bundle stores them; int8, int4 under adapters")
    parser.add_argument("--memory", help="also measure steps under it, as 300MB")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", nargs=2, metavar=("MODEL", "FOLDER"), help="only make a checkpoint")
    parser.add_argument("--ready", nargs=4, metavar=("BUNDLE", "DATA", "ENGINE", "MEMORY"), help="only take two steps")
    options = parser.parse_args()
    if options.ready:
        bundle, data, engine, memory = options.ready
        first_step(Path(bundle), Path(data), engine, memory)
        return 0
    if options.make:
        make_checkpoint(options.make[0], Path(options.make[1]))
        return 0
    passed = True
    for name in options.models.split(","):
        folder = Path(tempfile.mkdtemp(prefix="large-models-"))
        try:
            found = measure(name, options, folder)
        finally:
            shutil.rmtree(folder)
        passed = passed and found["passed"]
        lines = (
            f"{key:>20}  {value:,.1f}" if isinstance(value, float) else f"{key:>20}  {value}"
            for key, value in found.items()
        )
        print(json.dumps(found) if options.json else "\n".join(lines), flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
