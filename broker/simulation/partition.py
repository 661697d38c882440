"""Which examples a virtual device holds: a file's examples split among the devices, or some drawn for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedspzo.device_runtime.data.store import DataStore, load_data, subset
from fedspzo.device_runtime.directions.format import derive_seed
from fedspzo.device_runtime.errors import DataError, PlanError
from fedspzo.device_runtime.log import several
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.protocol.objective import Objective
from fedspzo.device_runtime.step.objectives import choose_examples

#: Examples that a device holds at least when all are shared out.
LEAST = 2


class Shares:
    """The examples of each virtual device.

    Attributes:
        devices: their names, in order.
    """

    def __init__(self, devices: Sequence[str], share: Callable[[str], DataStore]) -> None:
        self.devices = tuple(devices)
        self._share = share

    def of(self, device: str) -> DataStore:
        """A device's examples; made when they are asked for, so that thousands of devices take no memory."""
        return self._share(device)


@dataclass(frozen=True)
class Skew:
    """How unlike the devices' labels are.

    Attributes:
        alpha: parameter of the Dirichlet distribution that a label's (or a device's) proportions are drawn from;
            infinity for none, all devices alike.
    """

    alpha: float

    @classmethod
    def parse(cls, text: str) -> Skew:
        """``iid``, or ``dirichlet:ALPHA``. Raises DataError for anything else."""
        kind, _, number = text.partition(":")
        try:
            alpha = float("inf") if text == "iid" else float(number)
        except ValueError:
            alpha = 0.0
        if kind not in ("iid", "dirichlet") or not alpha > 0:
            raise DataError(
                "simulation.partition",
                f"the partition '{text}' is unknown; write iid, or dirichlet:ALPHA with ALPHA above 0",
            )
        return cls(alpha)

    def __str__(self) -> str:
        """What :meth:`parse` takes."""
        return "iid" if np.isinf(self.alpha) else f"dirichlet:{self.alpha:g}"


@dataclass(frozen=True)
class Partition:
    """How examples come to virtual devices; it can be sent to another process, and makes the same shares there.

    Attributes:
        data: a file of examples, or a folder with a file for each device.
        devices: how many, where it is a file.
        skew: how unlike their labels are.
        each: examples that each draws, and others may have too; None to share all out, each to one.
        seed: of all draws.
        objective: what devices measure, None for the loss; reactions are left out where it needs labels.
    """

    data: Path
    devices: int
    skew: Skew
    each: int | None
    seed: int
    objective: Objective | None

    def __str__(self) -> str:
        """What decides who holds which examples of a file, beside the seed."""
        return f"{several(self.devices, 'device')}, {self.skew}" + (f", {self.each} examples each" if self.each else "")

    def __call__(self, bundle: Bundle) -> Shares:
        """The shares. Raises DataError when there are too few examples, PlanError when none has a label it needs."""
        if self.data.is_dir():
            return read_folder(self.data, bundle, self.objective)
        if self.devices < 1:
            raise DataError("option.devices", "devices is not positive; give at least 1")
        store = _load(self.data, bundle, self.objective)
        if self.each is None:
            return share_out(store, self.devices, self.skew, self.seed)
        return draw_each(store, self.devices, self.each, self.skew, self.seed)


def read_folder(folder: Path, bundle: Bundle, objective: Objective | None) -> Shares:
    """A device for each file of a folder, named as the file is without its suffix.

    Raises:
        DataError: there are no files, or one has no examples of the task.
        PlanError: the objective needs labels, and one has reactions alone.
    """
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.is_file()}
    if not files:
        raise DataError("simulation.no-data-files", f"{folder} has no data files; add one for each device")
    stores = {name: _load(path, bundle, objective) for name, path in files.items()}
    return Shares(list(stores), stores.__getitem__)


def _load(path: Path, bundle: Bundle, objective: Objective | None) -> DataStore:
    store = load_data(path, bundle)
    try:
        return choose_examples(objective, store)
    except PlanError as error:
        raise PlanError(error.kind, f"{path}: {error}") from None


def share_out(store: DataStore, devices: int, skew: Skew, seed: int) -> Shares:
    """Each example goes to one device, each label in Dirichlet proportions (Hsu et al., arXiv 1909.06335).

    Devices that would have fewer than :data:`LEAST` get some of the largest one's.

    Raises:
        DataError: there are too few examples.
    """
    if len(store) < LEAST * devices:
        raise DataError(
            "simulation.too-few-examples",
            f"{len(store)} examples are too few for {devices} devices, which need {LEAST * devices}; add examples, let"
            f" each device draw some (--examples-per-device N), or simulate at most {len(store) // LEAST} devices",
        )
    rng = np.random.Generator(np.random.Philox(key=derive_seed(seed, "partition", 0, 0, ())))
    held: list[list[int]] = [[] for _ in range(devices)]
    labels = _labels(store)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = (np.cumsum(_proportions(rng, skew, devices))[:-1] * len(members)).round().astype(int)
        for own, part in zip(held, np.split(members, cuts), strict=True):
            own.extend(part.tolist())
    largest = sorted(range(devices), key=lambda device: -len(held[device]))
    for own in held:
        while len(own) < LEAST:
            donor = next(device for device in largest if len(held[device]) > LEAST)
            own.append(held[donor].pop())
    indices = {name: np.array(own) for name, own in zip(device_names(devices), held, strict=True)}
    return Shares(list(indices), lambda device: subset(store, indices[device]))


def draw_each(store: DataStore, devices: int, each: int, skew: Skew, seed: int) -> Shares:
    """Each device draws ``each`` examples, without replacement, from a mixture of labels of its own."""
    if not 1 <= each <= len(store):
        raise DataError(
            "simulation.examples-per-device",
            f"a device can draw 1 to {len(store)} examples, not {each}; change --examples-per-device",
        )
    labels, codes = np.unique(_labels(store), return_inverse=True)
    counts = np.bincount(codes)

    def share(device: str) -> DataStore:
        rng = np.random.Generator(np.random.Philox(key=derive_seed(seed, f"share of {device}", 0, 0, ())))
        weights = (_proportions(rng, skew, len(labels)) / counts)[codes] + 1e-12  # so that there always are enough
        return subset(store, rng.choice(len(store), each, replace=False, p=weights / weights.sum()))

    return Shares(device_names(devices), share)


def _labels(store: DataStore) -> np.ndarray:
    """What devices differ in: labels, and of reactions the labels that were shown."""
    return store.labels if store.feedback is None else np.maximum(store.feedback.shown, store.labels)


def device_names(devices: int) -> list[str]:
    """Names of ``devices`` devices."""
    return [f"device-{number}" for number in range(1, devices + 1)]


def _proportions(rng: np.random.Generator, skew: Skew, count: int) -> np.ndarray:
    if np.isinf(skew.alpha):
        return np.full(count, 1 / count)
    return rng.dirichlet(np.full(count, skew.alpha))
