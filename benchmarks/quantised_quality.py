"""What a base of 8 or 4 bits loses: tokens of SQuAD's contexts and SST-2's label words, by transformers on the bundle.

Each base is exported, and its matrices, widened again, take the place of those of the model that transformers loads.
Data: a folder with ``squad/test.jsonl`` (field ``context``) and ``sst2/test.jsonl`` (``sentence``, ``label``).

    python benchmarks/quantised_quality.py DATA --model smollm2
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedspzo.device_runtime.data.sources import Example
from fedspzo.device_runtime.data.store import DataStore, tokenise
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.stored import widened
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.layout import restored
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import COMPENSATED, NEAREST, Target
from fedspzo.export.network.tokens import label_tokens
from fedspzo.export.pipeline import export_bundle
from fedspzo.export.tasks import load_task
from fedspzo.tables import format_table

BASES = {
    "float32": Target(["torch"], [1], [64], adapters=LowRank(8)),
    "int8": Target(["torch"], [1], [64], adapters=LowRank(8), weights="int8"),
    "int4, nearest": Target(["torch"], [1], [64], adapters=LowRank(8), weights="int4", rounding=NEAREST),
    "int4, compensated": Target(["torch"], [1], [64], adapters=LowRank(8), weights="int4", rounding=COMPENSATED),
}


def with_base(checkpoint: Checkpoint, bundle: Bundle) -> Any:
    """transformers' model with the bundle's base in place of its own weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32).eval()
    state = model.state_dict()
    for index, spec in enumerate(bundle.manifest.tensors):
        if spec.source in state:
            array, own = widened(bundle.tensor(index)), state[spec.source]
            if array.ndim == 2:  # which graphs have within, [out, in]
                array = array.T.copy() if spec.transposed else array
            else:
                array = restored(spec, array, tuple(own.shape))
            own.copy_(torch.from_numpy(array))
    return model


def token_loss(model: Any, examples: Sequence[Sequence[int]]) -> float:
    """Mean loss in nats over all tokens after the first of each example."""
    total = 0.0
    with torch.inference_mode():
        for ids in examples:
            shares = model(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
            total -= float(shares[range(len(ids) - 1), ids[1:]].sum())
    return total / sum(len(ids) - 1 for ids in examples)


def word_scores(model: Any, store: DataStore, words: Sequence[int]) -> tuple[float, float]:
    """Mean loss over the label words, and accuracy."""
    losses, right = [], []
    with torch.inference_mode():
        for index, length in enumerate(store.lengths):
            ids = torch.from_numpy(store.ids[index : index + 1, :length].astype(np.int64))
            scores = model(ids, logits_to_keep=1).logits[0, -1, words]
            losses.append(-float(scores.log_softmax(dim=0)[store.labels[index]]))
            right.append(int(scores.argmax()) == store.labels[index])
    return float(np.mean(losses)), float(np.mean(right))


def measure(model: str, data: Path, name: str, contexts: int, sentences: int) -> dict[str, float]:
    """Losses of a base, and what its export took."""
    checkpoint = Checkpoint(model)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        bundle = export_bundle(model, load_task("sst2"), BASES[name], Path(folder) / "bundle")
        seconds = time.process_time() - start
        based = with_base(checkpoint, bundle)
        texts = [json.loads(line)["context"] for line in (data / "squad" / "test.jsonl").read_text().splitlines()]
        ids = [checkpoint.tokenizer.encode(text).ids[:256] for text in list(dict.fromkeys(texts))[:contexts]]
        records = [json.loads(line) for line in (data / "sst2" / "test.jsonl").read_text().splitlines()][:sentences]
        names = [label.name for label in bundle.manifest.task.labels]
        labelled = [Example({"sentence": r["sentence"]}, names.index(str(r["label"]))) for r in records]
        loss = token_loss(based, ids)
        words, accuracy = word_scores(based, tokenise(bundle, labelled), label_tokens(checkpoint, bundle.manifest.task))
        return {"token_loss": loss, "sst2_loss": words, "sst2_accuracy": accuracy, "export_cpu_s": seconds}


def main() -> None:
    """Measure each base and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    parser.add_argument("--contexts", type=int, default=60, help="of SQuAD, the first 256 tokens of each")
    parser.add_argument("--sentences", type=int, default=300, help="of SST-2")
    options = parser.parse_args()
    found = {}
    for name in options.bases:
        found[name] = measure(options.model, options.data, name, options.contexts, options.sentences)
        print(json.dumps({"base": name, **found[name]}), flush=True)
    rows = [
        [
            name,
            f"{f['token_loss']:.3f}",
            f"{f['sst2_loss']:.3f}",
            f"{f['sst2_accuracy']:.1%}",
            f"{f['export_cpu_s']:.0f}",
        ]
        for name, f in found.items()
    ]
    print(format_table(["base", "token loss", "SST-2 loss", "SST-2 accuracy", "CPU seconds of export"], rows))


if __name__ == "__main__":
    main()
