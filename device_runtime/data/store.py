"""A device's examples, tokenised once and kept as arrays. They never leave the device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.data.encoder import Encoder
from fedspzo.device_runtime.data.feedback import Feedback
from fedspzo.device_runtime.data.sources import Example, fingerprint, parse_examples, read_source, refuse
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.files import written_atomically
from fedspzo.device_runtime.model.bundle import Bundle

#: Changes when the encoder gives other tokens for the same text: tokens that were kept before are then made again.
ENCODING = b"2"
_FEEDBACK = tuple(field.name for field in fields(Feedback))


@dataclass(frozen=True)
class DataStore:
    """Tokenised examples.

    Attributes:
        ids: int32 [examples, length], zero after each example's end; for generation the answer's tokens come last.
        lengths: int32 [examples].
        starts: int32 [examples], the position whose output predicts the label word or the answer's first token.
        labels: int32 [examples], indices into the task's labels; 0 for generation.
        truncated: how many examples were cut to fit.
        references: for generation, the texts that count as right answers of each example.
        targets: for sets of labels and for numbers, float32 [examples, labels] that the graphs are fed, see
            :func:`fedspzo.device_runtime.model.targets.read_target`; None where labels are fed one-hot.
        feedback: reactions to what was shown; an example that has one has no label. None where all have labels.
    """

    ids: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    truncated: int = 0
    references: tuple[tuple[str, ...], ...] = ()
    targets: np.ndarray | None = None
    feedback: Feedback | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, seed: int, count: int) -> np.ndarray:
        """Indices of ``count`` examples (or all, if fewer) drawn without replacement, the same for the same seed."""
        draws = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=0).random_raw(len(self))
        return np.argsort(draws, kind="stable")[:count]


def subset(store: DataStore, indices: np.ndarray) -> DataStore:
    """Some examples of a store."""
    return replace(
        store,
        ids=store.ids[indices],
        lengths=store.lengths[indices],
        starts=store.starts[indices],
        labels=store.labels[indices],
        references=tuple(store.references[i] for i in indices) if store.references else (),
        targets=None if store.targets is None else store.targets[indices],
        feedback=None if store.feedback is None else store.feedback.at(indices),
    )


def labelled(store: DataStore) -> DataStore:
    """The examples of a store that have labels; those with reactions are left out."""
    if store.feedback is None:
        return store
    return replace(subset(store, np.flatnonzero(store.feedback.shown < 0)), feedback=None)


def load_data(
    source: Path | str, bundle: Bundle, cache: Path | None = None, skip: Callable[[DataError], None] = refuse
) -> DataStore:
    """Read and tokenise the examples of a file, or of a data set of the hub.

    Args:
        source: see :func:`fedspzo.device_runtime.data.sources.parse_examples`.
        bundle: gives the task and the tokenizer.
        cache: where to keep the tokens; reused while source and bundle stay the same.
        skip: told of each record that is not an example of the task, or cannot be made to fit; it is then left out.

    Raises:
        DataError: the source cannot be read, has no examples, or ``skip`` raises it.
    """
    source = str(source)
    content = read_source(source)
    parts = hashlib.sha256(fingerprint(source, content)).digest() + bundle.identity + ENCODING
    key = hashlib.sha256(parts).hexdigest()
    if cache is not None and (stored := _read_cache(cache, key)) is not None:
        return stored
    store = tokenise(bundle, parse_examples(source, content, bundle.manifest.task, skip), skip)
    if not len(store):
        raise DataError("data.no-examples", f"{source} has no examples; write one on each line")
    if cache is not None:
        _write_cache(cache, key, store)
    return store


def tokenise(bundle: Bundle, examples: Iterable[Example], skip: Callable[[DataError], None] = refuse) -> DataStore:
    """A store of examples; those without an answer can only be asked for one.

    Args:
        skip: told of each that cannot be made to fit the bundle's length; it is then left out.

    Raises:
        DataError: ``skip`` raises it.
    """
    encoder = Encoder(bundle)
    encoded, kept = [], []
    for number, example in enumerate(examples, start=1):
        try:
            answer = example.answers[0] if example.answers else None
            encoded.append(encoder.encode(example.fields, answer, example.turns))
            kept.append(example)
        except DataError as error:
            skip(DataError(error.kind, f"{example.where or f'example {number}'}: {error}"))
    ids = np.zeros((len(kept), bundle.manifest.length), np.int32)
    for row, example_tokens in zip(ids, encoded, strict=True):
        row[: len(example_tokens.ids)] = example_tokens.ids
    return DataStore(
        ids=ids,
        lengths=np.array([len(e.ids) for e in encoded], np.int32),
        starts=np.array([e.start for e in encoded], np.int32),
        labels=np.array([0 if example.reaction else example.label for example in kept], np.int32),
        truncated=sum(e.cut for e in encoded),
        references=tuple(() if example.reaction else tuple(map(str.strip, example.answers)) for example in kept)
        if any(e.answers for e in kept)
        else (),
        targets=np.array([example.targets for example in kept], np.float32) if any(e.targets for e in kept) else None,
        feedback=Feedback.of([example.reaction for example in kept], [example.label for example in kept]),
    )


def _read_cache(cache: Path, key: str) -> DataStore | None:
    try:
        with np.load(cache) as arrays:
            if str(arrays["key"]) != key:
                return None
            return DataStore(
                ids=arrays["ids"],
                lengths=arrays["lengths"],
                starts=arrays["starts"],
                labels=arrays["labels"],
                truncated=int(arrays["truncated"]),
                references=tuple(map(tuple, json.loads(str(arrays["references"])))),
                targets=arrays["targets"] if arrays["targets"].size else None,
                feedback=Feedback(*(arrays[name] for name in _FEEDBACK)) if "shown" in arrays else None,
            )
    except Exception:  # many libraries read it, and each has errors of its own
        return None


def _write_cache(cache: Path, key: str, store: DataStore) -> None:
    with written_atomically(cache) as file:
        np.savez(
            file,
            key=key,
            ids=store.ids,
            lengths=store.lengths,
            starts=store.starts,
            labels=store.labels,
            truncated=store.truncated,
            references=json.dumps(store.references),
            targets=np.zeros(0, np.float32) if store.targets is None else store.targets,
            **({} if store.feedback is None else vars(store.feedback)),
        )
