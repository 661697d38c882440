"""How a device answers plans: with what it measures on its examples, or with the reason why it cannot."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.device.released import Released
from fedspzo.device_runtime.engines.protocol import Engine
from fedspzo.device_runtime.errors import BundleError, EngineError, FedSPZOError, PlanError
from fedspzo.device_runtime.platform.profiling import SILENT, TOKENISE, Recorder
from fedspzo.device_runtime.privacy.ledger import Ledger
from fedspzo.device_runtime.protocol.codec import fingerprint
from fedspzo.device_runtime.protocol.messages import Decline, Energy, Result
from fedspzo.device_runtime.protocol.plan import Plan
from fedspzo.device_runtime.replica.state import PREFIX, DeviceState
from fedspzo.device_runtime.step.estimator import measure
from fedspzo.device_runtime.step.objectives import choose_examples
from fedspzo.device_runtime.step.prefix_cache import PrefixCache
from fedspzo.device_runtime.step.runner import Forward

log = logging.getLogger(__name__)

#: Why a plan is declined, where words could tell of the examples.
UNSAID = "its own log says why"


class Measurer:
    """Measures for plans, each once.

    Attributes:
        answered: how many plans were answered.
        open: whether no plan so far had masks or noise, which hide what single answers cost, too.
        forward: runs the graphs.
        why: why the last plan that could not be carried out was declined, for this device's owner alone.
    """

    def __init__(
        self,
        engine: Engine,
        state: DeviceState,
        examples: Callable[[], DataStore],
        unwilling: Callable[[], str] = lambda: "",
        recorder: Recorder = SILENT,
        spent: Callable[[int], tuple[Energy, ...]] = lambda round: (),
        ledger: Ledger | None = None,
    ) -> None:
        """Prepare the graphs.

        Args:
            examples: gives those to measure on, asked again for each plan.
            unwilling: says why the device takes part in no round now; "" where it does.
            recorder: is told what phase of the work it is.
            spent: says what a round has taken so far, where that is known.
            ledger: keeps account of what noise has promised; None where nobody does.

        Raises:
            BundleError, EngineError: the graphs cannot run.
        """
        self.answered, self.open, self.why = 0, True, ""
        self.forward = Forward(engine, state.replica, recorder)
        self._state = state
        self._examples = examples
        self._unwilling = unwilling
        self._spent, self._ledger = spent, ledger
        self._released = Released(state)
        self._cache = PrefixCache(state.folder / PREFIX)
        self._last: tuple[Plan, Result | Decline] | None = None

    def answer(self, plan: Plan) -> Result | Decline:
        """The answer to a plan of the replica's next round; a plan that was declined is tried again.

        Raises:
            StateError: the ledger cannot be used, or the disk refuses.
        """
        self.open = self.open and not (plan.masking or plan.noise)
        if self._last is None or self._last[0] != plan or isinstance(self._last[1], Decline):
            self._last = plan, self._measure(plan)
            self.answered += 1
        return self._last[1]

    def _measure(self, plan: Plan) -> Result | Decline:
        if plan.noise and (known := self._released.known(plan)) is not None:
            return known
        if reason := self._unwilling():
            return Decline(plan.round, reason, passing=True)
        if self._ledger is not None and (reason := self._ledger.refusal(plan)):
            said = f"{reason}{self._ledger.describe(plan)}"  # the server is not told what other jobs have cost
            log.warning("this device does not answer round %d: %s", plan.round, said)
            return self._decline(plan, reason, said)
        start = time.perf_counter()
        digest = self._state.replica.digest() if plan.digest else b""
        try:
            with self.forward.recorder.phase(TOKENISE):
                examples = choose_examples(plan.objective[0] if plan.objective else None, self._examples())
            before = self._state.measured_before(plan.round) if plan.replay else 0
            measured = measure(self.forward, examples, plan, self._state.device, self._cache, before)
        except FedSPZOError as error:
            log.warning("the plan of round %d cannot be carried out: %s", plan.round, error, extra={"kind": error.kind})
            # Errors about data have words of the examples.
            unsaid = plan.noise or not isinstance(error, PlanError | EngineError | BundleError)
            return self._decline(plan, UNSAID if unsaid else str(error)[:200], str(error))
        if not all(map(math.isfinite, (measured.loss, *measured.scalars))):
            reason = "its loss is not finite: the model has diverged; lower the learning rates"
            log.warning("round %d is declined: %s", plan.round, reason)
            return self._decline(plan, UNSAID if plan.noise else reason, reason)
        if self._ledger is not None and (reason := self._ledger.spend(plan)):
            log.warning("this device does not answer round %d: %s", plan.round, reason)
            return self._decline(plan, reason, reason)
        if plan.replay:
            self._state.keep_measured(plan.round)
        seconds = 0.0 if plan.noise else time.perf_counter() - start  # which would tell of the examples' lengths
        result = Result(
            round=plan.round,
            plan=fingerprint(plan),
            scalars=measured.scalars,
            loss=measured.loss,
            examples=measured.examples,
            seconds=seconds,
            digest=digest,
            energy=self._spent(plan.round) if plan.energy else (),
        )
        if plan.noise:
            self._released.keep(plan, result)
        return result

    def _decline(self, plan: Plan, said: str, why: str) -> Decline:
        self.why = why
        return Decline(plan.round, said, passing=False)
