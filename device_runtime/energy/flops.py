"""An estimate: counted operations of matrix products at a stated price. Not a measurement, and never called one."""

from __future__ import annotations

from collections.abc import Callable

from fedspzo.device_runtime.energy.source import COUNTER, Facts

NAME = "estimate"


class Estimate:
    """Joules by a price. See :class:`fedspzo.device_runtime.energy.source.Source`."""

    name = NAME

    def __init__(self, flops: Callable[[], int], joules_per_flop: float) -> None:
        """Price what ``flops`` counts. It is all that is certain: the uncertainty is as large as the figure."""
        self._flops, self._price = flops, joules_per_flop
        self.facts = Facts(
            COUNTER, 0.0, 0.0, 1.0, "matrix products alone",
            (f"AN ESTIMATE, no measurement: operations of matrix products at {joules_per_flop:g} J each, as stated",),
            measured=False,
        )  # fmt: skip

    def read(self) -> float:
        """See ``Source``."""
        return self._flops() * self._price
