"""A device's own account of what was given away of a data set, over all jobs, and what its owner allows.

It holds against the server: where results have no masks, the noise of other devices does not count, whatever a plan
says of them. Under masks a device sends nothing in a group of fewer than the plan counts on.

It lies beside the data, so that neither another job nor ``--afresh`` begins it again. It is on the disk before a
release is sent: one that was lost counts, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.files import locked_file, write_atomically
from fedspzo.device_runtime.privacy.budget import epsilon
from fedspzo.device_runtime.privacy.release import cost_to_server, units_within
from fedspzo.device_runtime.protocol.plan import HIDDEN, UNITS, Plan

#: The δ of what an owner allows.
DELTA = 1e-5
#: What is added to the name of a data file.
SUFFIX = ".spent.json"


class Ledger:
    """What one data set has cost so far; several processes may use it."""

    def __init__(self, file: Path, most: float = math.inf) -> None:
        """``most`` is the ε, at :data:`DELTA`, of what all releases together may cost; infinite for no limit."""
        self._file, self._most = file, most

    def refusal(self, plan: Plan) -> str:
        """Why a plan is not answered: "" where it is.

        Raises:
            StateError: the file cannot be used, or is damaged.
        """
        if math.isinf(self._most):
            return ""
        if not plan.noise:
            return "it gives nothing away without noise, and the job's plans have none"
        with self._locked():
            return self._judge(plan, self._add(plan))

    def describe(self, plan: Plan) -> str:
        """How much of the budget is spent, and the cure; for the device's own log. "" for a plan without noise."""
        if not plan.noise:
            return ""
        unit = plan.noise[0].unit
        with self._locked():
            spent = epsilon(self._read()[unit], DELTA)
        return (
            f", ε = {spent:.3g} of {self._most:g} for {HIDDEN[unit]}, and a round more costs too much; give a larger"
            " --privacy-budget, or other data"
        )

    def spend(self, plan: Plan) -> str:
        """Note a release, which may be sent afterwards; or say why not, where another process spent the rest meanwhile.

        Raises:
            StateError: as :meth:`refusal`.
        """
        if not plan.noise:
            return ""
        with self._locked():
            totals = self._add(plan)
            if not (reason := self._judge(plan, totals)):
                try:
                    write_atomically(self._file, json.dumps(totals).encode())
                except OSError as error:
                    raise self._unusable(error) from None
        return reason

    def _add(self, plan: Plan) -> dict[str, float]:
        """What the data will have cost with this release, by unit."""
        found, added = self._read(), costs(plan)
        return {unit: found[unit] + added[unit] for unit in UNITS}

    def _judge(self, plan: Plan, totals: dict[str, float]) -> str:
        """Why a release is not sent that makes these the totals; "" where it is."""
        if math.isinf(self._most) or epsilon(totals[plan.noise[0].unit], DELTA) <= self._most:
            return ""
        return "its privacy budget is spent"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            lock = locked_file(self._file.with_name(self._file.name + ".lock"))
        except OSError as error:
            raise self._unusable(error) from None
        with lock:
            yield

    def _read(self) -> dict[str, float]:
        try:
            found = (
                json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else dict.fromkeys(UNITS, 0)
            )
            spent = {unit: float(found[unit]) for unit in UNITS}
            if not all(rho >= 0 for rho in spent.values()):
                raise ValueError("a negative cost")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateError(
                "state.ledger-damaged",
                f"{self._file}, which says what was given away of the data, cannot be read ({error}); restore it, or"
                " remove it and the data with it",
            ) from None
        return spent

    def _unusable(self, error: OSError) -> StateError:
        return StateError(
            "state.ledger-unusable",
            f"{self._file}, which says what was given away of the data, cannot be written ({error.strerror}); give"
            " another place with --ledger",
        )


def costs(plan: Plan) -> dict[str, float]:
    """Unit → ρ of a release for it."""
    rho = cost_to_server(plan)
    return {unit: rho * units_within(plan, unit) ** 2 for unit in UNITS}
