"""How often the attacks succeed: trials in which some candidates are what devices hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedspzo.broker.privacy.attacks import Explainer, attribute, find_bits, find_subset, likeliest, searchable
from fedspzo.broker.privacy.dictionary import Dictionary
from fedspzo.device_runtime.privacy.masks import Purpose, hash_group, mask
from fedspzo.device_runtime.privacy.quantise import Grid, quantise

#: Trials whose words share a message.
_SIDE_BY_SIDE = 100


@dataclass(frozen=True)
class Rate:
    """Successes of some tries."""

    hits: int
    tries: int

    @property
    def value(self) -> float:
        """The share of successes."""
        return self.hits / self.tries

    @property
    def error(self) -> float:
        """One standard error of it."""
        return math.sqrt(max(self.value * (1 - self.value), 1 / self.tries) / self.tries)

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} %"


def sent_words(dictionary: Dictionary, grid: Grid) -> np.ndarray:
    """What a device that draws one candidate adds to a sum: int64 [rounds, candidates, scalars + 1]."""
    rows = [
        [quantise(scalars, loss, 1, grid) for scalars, loss in zip(*measured, strict=True)]
        for measured in zip(dictionary.scalars, dictionary.losses, strict=True)
    ]
    return np.array(rows)


def stack_rounds(vectors: np.ndarray) -> np.ndarray:
    """From [rounds, candidates, width] to [rows, candidates]."""
    return np.moveaxis(vectors, 1, 2).reshape(-1, vectors.shape[1])


def find_members(
    vectors: np.ndarray, size: int, trials: int, chance: np.random.Generator, variance: float = 0.0
) -> Rate:
    """Which candidates are in a sum of ``size`` of them: how many of as many guesses are right.

    Without noise all subsets are searched, as far as :func:`searchable` goes: those of the candidates with the best
    scores. By chance the rate is ``size`` of the candidates.

    Args:
        vectors: int64 [rounds, candidates, width]; the members are the same in all rounds.
        variance: of the noise in each coordinate of the sum.
    """
    rows = stack_rounds(vectors)
    candidates = rows.shape[1]
    explainer = Explainer(rows, size, variance)
    looked_at = 0 if variance else searchable(candidates, size)
    hits = 0
    for _ in range(trials):
        members = chance.choice(candidates, size, replace=False)
        total = rows[:, members].sum(axis=1)
        if variance:
            total = total + _noise(variance, total.shape, chance)
        best = np.argsort(-explainer.scores(total), kind="stable")
        guessed = best[:size]
        if looked_at > size and not np.array_equal(rows[:, guessed].sum(axis=1), total):
            near = best[:looked_at]
            found = find_subset(total, rows.T[near], size)
            guessed = guessed if found is None else near[list(found)]
        hits += len(np.intersect1d(guessed, members))
    return Rate(hits, size * trials)


def attribute_masked(words: np.ndarray, size: int, trials: int, chance: np.random.Generator) -> Rate:
    """Which device of a group sent a known sentence, from what all of the group sent under masks.

    By chance the rate is 1 / ``size``. Each message has the words of some trials side by side, which masks do not tell
    from those of one: so a pair of devices needs fewer of them.

    Args:
        words: int64 [candidates, width], what each candidate adds to the sum.
    """
    names = [number.to_bytes(16, "big") for number in range(size)]
    group = hash_group(names)
    keys: list[dict[bytes, bytes]] = [{} for _ in names]
    for one in range(size):
        for other in range(one):
            keys[one][names[other]] = keys[other][names[one]] = chance.bytes(32)
    hits = 0
    for start in range(0, trials, _SIDE_BY_SIDE):
        count = min(_SIDE_BY_SIDE, trials - start)
        held = np.argsort(chance.random((count, len(words))), axis=1)[:, :size]
        purpose = Purpose("job", b"", start.to_bytes(8, "big"), group)
        rows = [words[held[:, own]].ravel() for own in range(size)]
        sent = np.array([mask(row, names[own], keys[own], purpose) for own, row in enumerate(rows)], np.int64)
        sent = sent.reshape(size, count, words.shape[1])
        for trial, own in enumerate(chance.integers(0, size, count)):
            hits += attribute(sent[:, trial], words[held[trial, own]], 1 << 32, chance) == own
    return Rate(hits, trials)


def find_drawn(dictionary: Dictionary, held: int, batch: int, trials: int, chance: np.random.Generator) -> Rate:
    """Which candidates a device holds, from the means of batches that it draws of them by published seeds.

    Args:
        held: candidates that the device holds, of which it draws ``batch`` a round.
    """
    vectors = np.concatenate([dictionary.scalars, dictionary.losses[..., None]], axis=2)
    rounds, candidates, width = vectors.shape
    rows = stack_rounds(vectors)
    centred = rows - rows.mean(axis=1, keepdims=True)
    hits = 0
    for _ in range(trials):
        members = chance.choice(candidates, held, replace=False)
        drawn = np.argsort(chance.random((rounds, held)), axis=1)[:, :batch]
        places = (members[drawn][:, None, :] + np.zeros((1, width, 1), int)).reshape(rounds * width, batch)
        sent = np.take_along_axis(centred, places, axis=1).mean(axis=1).astype(np.float32)
        # Unknown: of each place in the device's store, each candidate; known: which places a round draws.
        scores = np.zeros((held, candidates))
        for round in range(rounds):
            own = slice(round * width, (round + 1) * width)
            scores[drawn[round]] += sent[own] @ _whitened(centred[own])
        hits += int((scores.argmax(axis=1) == members).sum())
    return Rate(hits, held * trials)


def pick_known(vectors: np.ndarray, trials: int, chance: np.random.Generator, variance: float) -> Rate:
    """Which candidate one device holds, for an attacker who knows all else that is in the sum but the noise."""
    rows = stack_rounds(vectors)
    members = chance.integers(0, rows.shape[1], trials)
    sent = rows[:, members].T + _noise(variance, (trials, len(rows)), chance)
    return Rate(int((likeliest(sent.astype(np.float64), rows.astype(np.float64)) == members).sum()), trials)


def link_rounds(
    vectors: np.ndarray, devices: int, group: int, trials: int, chance: np.random.Generator, variance: float = 0.0
) -> Rate:
    """Which device holds which sentence, when groups change each round: how many are named right.

    A device's sentence is in its group in every round, and others' only now and then.

    Args:
        vectors: [rounds, candidates, width].
        devices: how many there are, each in one group of ``group`` a round.
    """
    rounds, candidates, _ = vectors.shape
    explainers = [Explainer(vectors[round].T, group, variance) for round in range(rounds)]
    hits = 0
    for _ in range(trials):
        held = chance.choice(candidates, devices, replace=False)
        scores = np.zeros((devices, candidates))
        for round, explainer in enumerate(explainers):
            for members in chance.permutation(devices)[: devices // group * group].reshape(-1, group):
                total = vectors[round, held[members]].sum(axis=0)
                if variance:
                    total = total + _noise(variance, total.shape, chance)
                scores[members] += explainer.scores(total)
        hits += int((scores.argmax(axis=1) == held).sum())
    return Rate(hits, devices * trials)


def find_alone(dictionary: Dictionary, labelled: Dictionary, labels: np.ndarray) -> tuple[Rate, Rate]:
    """Whether each candidate's scalars, as a device sends those of one example, are found in a dictionary bit by bit.

    Args:
        labelled: the candidates with every label, see :func:`fedspzo.broker.privacy.dictionary.every_label`.
        labels: int [candidates], the right ones.

    Returns:
        How many sentences are named, and how many with their label.
    """
    known = labelled.scalars[0].astype(np.float32)
    count = len(known) // dictionary.candidates
    found = [find_bits(sent.astype(np.float32), known) for sent in dictionary.scalars[0]]
    sentences = sum(set(rows // count) == {own} for own, rows in enumerate(found))
    both = sum(rows.tolist() == [own * count + labels[own]] for own, rows in enumerate(found))
    return Rate(sentences, len(found)), Rate(both, len(found))


def _noise(variance: float, shape: tuple[int, ...], chance: np.random.Generator) -> np.ndarray:
    """Rounded Gaussian noise, which no attack tells from the devices' exact one, and which is fast to draw."""
    return np.rint(chance.normal(0.0, math.sqrt(variance), shape)).astype(np.int64)


def _whitened(vectors: np.ndarray) -> np.ndarray:
    """Vectors [width, candidates] times the inverse of their covariance."""
    covariance = vectors @ vectors.T / vectors.shape[1]
    covariance += np.eye(len(vectors)) * (np.trace(covariance) * 1e-9 / len(vectors))
    return np.asarray(np.linalg.solve(covariance, vectors))
