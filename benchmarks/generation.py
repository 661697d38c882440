"""Tokens a second with keys and values kept, and with the whole text computed for each token, in one run.

The likeliest tokens continue random prompts. Then some of these tokens are computed from the whole text and must be the
same. The seconds with keys and values include the pass over the prompt.

    fedspzo export smollm2 --task squad --max-length 128 --out bundle
    python benchmarks/generation.py bundle --tokens 100
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.engines.protocol import create_engine
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step.generation import WholeTexts
from fedspzo.device_runtime.step.key_values import KeyValues
from fedspzo.device_runtime.step.runner import Forward


def timed(compute: Callable[[], np.ndarray], seconds: list[float]) -> np.ndarray:
    """What it gives; how long it took is added to the list."""
    start = time.perf_counter()
    found = compute()
    seconds.append(time.perf_counter() - start)
    return found


def main() -> None:
    """Generate, and print tokens a second and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", help="of a task that generates")
    parser.add_argument("--engine", default="litert")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=1, help="texts at a time, at most the bundle's batch")
    parser.add_argument("--prompt", type=int, default=20, help="tokens of each prompt, drawn at random")
    parser.add_argument("--tokens", type=int, default=100, help="tokens to generate")
    parser.add_argument("--every", type=int, default=10, help="one of N tokens is computed from the whole text too")
    options = parser.parse_args()
    forward = Forward(create_engine(options.engine, options.threads), Replica(Bundle(options.bundle)))
    texts, room = np.arange(options.texts), options.prompt + options.tokens
    ids = np.zeros((options.texts, forward.manifest.length), np.int32)
    if ids.shape[1] < room:
        raise SystemExit(f"the bundle takes {ids.shape[1]} tokens, not {room}; export it with a larger --max-length")
    ids[:, : options.prompt] = np.random.default_rng(0).integers(5, 500, (options.texts, options.prompt))
    lengths = np.full(options.texts, options.prompt, np.int32)
    store = DataStore(ids, lengths, lengths - 1, np.zeros(options.texts, np.int32))
    whole = WholeTexts(forward)
    # Loads the graphs, and lets both kinds of passes meet their arrays for the first time.
    warm, _ = KeyValues(forward, options.texts), whole.read(store, texts)
    warm.read(store, texts)
    warm.add(store, texts)
    warm.release()
    kept = KeyValues(forward, options.texts)
    read: list[float] = []
    added: list[float] = []
    computed: list[float] = []
    scores = timed(lambda: kept.read(store, texts), read)
    for number in range(options.tokens):
        ids[texts, lengths] = scores.argmax(axis=1)
        lengths += 1
        if number + 1 < options.tokens:
            scores = timed(lambda: kept.add(store, texts), added)
    whole.read(store, texts)  # loads graphs with constants again
    for number in range(0, options.tokens, options.every):
        lengths[:] = options.prompt + number
        chosen = timed(lambda: whole.read(store, texts), computed).argmax(axis=1)
        if not np.array_equal(chosen, ids[texts, lengths]):
            raise SystemExit(f"token {number} is {ids[texts, lengths]}, and {chosen} from the whole text")
    with_cache = options.texts * options.tokens / (sum(read) + sum(added))
    without = options.texts / statistics.mean(computed)
    print(f"prompt of {options.prompt} tokens, {options.tokens} more, texts at a time: {options.texts}")
    first, each, other = sum(read), 1e3 * statistics.median(added), 1e3 * statistics.median(computed)
    print(f"keys and values kept   {with_cache:7.2f} tokens/s (prompt {first:.2f} s, then {each:.0f} ms)")
    print(f"whole text each time   {without:7.2f} tokens/s ({other:.0f} ms)")
    print(f"ratio                  {with_cache / without:7.1f}")


if __name__ == "__main__":
    main()
