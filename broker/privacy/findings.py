"""What all attacks find on one dictionary: a table, beside what chance and the noise's promise allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedspzo.broker.privacy import trials
from fedspzo.broker.privacy.audit import lower_bound, observe_canary
from fedspzo.broker.privacy.dictionary import Dictionary
from fedspzo.broker.privacy.trials import Rate
from fedspzo.device_runtime.privacy.budget import guess_rate, rho_within
from fedspzo.device_runtime.privacy.quantise import Grid

#: Devices that a sum of whole numbers is made to fit: so that their steps are far below any noise.
FIT = 1 << 15
#: Devices whose shares of noise make up the sum that is audited.
SHARES = 4


@dataclass(frozen=True)
class Settings:
    """What is attacked.

    Attributes:
        groups: sizes of sums.
        budgets: ε of noise over all rounds; 0 for none.
        delta: of the promise.
        clip: largest L2 norm of a device's scalars under noise; 0 for the candidates' median.
        trials: of each attack.
        devices: those that take part where groups change each round.
        held: examples of a device that draws batches, and how many it draws.
        batch: see ``held``.
    """

    groups: Sequence[int] = (4, 8, 32, 128)
    budgets: Sequence[float] = (0.0, 8.0, 2.0, 1.0)
    delta: float = 1e-5
    clip: float = 0.0
    trials: int = 200
    devices: int = 32
    held: int = 40
    batch: int = 8


@dataclass(frozen=True)
class Finding:
    """What one attack finds.

    Attributes:
        attack: what it is, in words.
        rounds: that the attacker saw.
        budget: ε of the noise over these rounds; 0 for none.
        rate: how often it is right.
        chance: how often a guess is right.
        allowed: how often anybody can be right, by the noise's promise; 1 without noise.
    """

    attack: str
    rounds: int
    budget: float
    rate: Rate
    chance: float
    allowed: float = 1.0


def attack(dictionary: Dictionary, settings: Settings, chance: np.random.Generator) -> Iterator[Finding]:
    """All attacks on sums, in one round and in all rounds that the dictionary has.

    Sums are of devices with one example each, all of them candidates: the worst case. The mean of a batch is such a
    sum, too.
    """
    for rounds in sorted({1, len(dictionary.scalars)}):
        seen = dictionary.first(rounds)
        if settings.held < dictionary.candidates and rounds > 1:
            name = f"what a device holds, {settings.batch} of {settings.held} a round"
            rate = trials.find_drawn(seen, settings.held, settings.batch, max(settings.trials // 20, 5), chance)
            yield Finding(name, rounds, 0.0, rate, 1 / dictionary.candidates)
        for budget in settings.budgets:
            yield from _attack_sums(seen, settings, budget, chance)


def _attack_sums(seen: Dictionary, settings: Settings, budget: float, chance: np.random.Generator) -> Iterator[Finding]:
    rounds, count = len(seen.scalars), seen.candidates
    rho = rho_within(budget, settings.delta) if budget else 0.0
    grid = _grid(seen, settings, budget)
    variance = rounds * grid.steps**2 / (2 * rho) if budget else 0.0
    words = trials.sent_words(seen, grid)
    for size in (size for size in settings.groups if size < count):
        rate = trials.find_members(words, size, settings.trials, chance, variance)
        yield Finding(f"who is in a sum of {size}", rounds, budget, rate, size / count)
        if rounds == 1 and not budget:
            rate = trials.attribute_masked(words[0], size, 10 * settings.trials, chance)
            yield Finding(f"whose a known sentence is, in a masked group of {size}", rounds, budget, rate, 1 / size)
    for size in (size for size in settings.groups if size < settings.devices < count):
        name = f"whose it is, in changing groups of {size} of {settings.devices}"
        rate = trials.link_rounds(words, settings.devices, size, max(settings.trials // 20, 5), chance, variance)
        yield Finding(name, rounds, budget, rate, 1 / count)
    if budget:
        rate = trials.pick_known(words, 10 * settings.trials, chance, variance)
        yield Finding("a device's, all others known", rounds, budget, rate, 1 / count, guess_rate(rho, count))


def audit(dictionary: Dictionary, settings: Settings, budget: float) -> float:
    """The ε that a canary proves of one release with all the noise of a budget: the largest candidate, or none."""
    grid = _grid(dictionary, settings, budget)
    words = trials.sent_words(dictionary.first(1), grid)[0]
    canary = words[np.argmax((words**2).sum(axis=1))]
    variance = round(grid.steps**2 / (2 * rho_within(budget, settings.delta) * SHARES))
    inside, outside = observe_canary(canary, variance, SHARES, 5 * settings.trials)
    return lower_bound(inside, outside, settings.delta)


def _grid(dictionary: Dictionary, settings: Settings, budget: float) -> Grid:
    """Under noise, a clip that half of the candidates reach; without it, one that none reaches."""
    sizes = np.linalg.norm(dictionary.scalars, axis=2)
    clip = (settings.clip or float(np.median(sizes))) if budget else 2 * float(sizes.max())
    return Grid(clip, 1, FIT)
