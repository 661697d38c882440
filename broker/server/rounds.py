"""The rounds of a job's server, one open at a time: it is opened, its devices are asked again, and it is closed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from fedspzo.broker.privacy.accounting import Spent
from fedspzo.broker.rounds.adaptive import MakePlans
from fedspzo.broker.rounds.aggregate import Aggregate, ClosedRound, checked, close_round, describe_round
from fedspzo.broker.rounds.anomalies import Record, Watch
from fedspzo.broker.rounds.groups import close_sums, describe_sums, group_results, try_again
from fedspzo.broker.rounds.masked_round import MaskedRound, begin_round
from fedspzo.broker.rounds.open_round import OpenRound
from fedspzo.broker.rounds.sampling import Candidate, Sample
from fedspzo.broker.server.controls import ENDED, RUNNING, Controls
from fedspzo.broker.server.devices import Roster, credit
from fedspzo.broker.server.held_out import HeldOut
from fedspzo.broker.server.outbox import Outbox
from fedspzo.broker.server.progress import Progress
from fedspzo.broker.server.replies import Replies
from fedspzo.broker.server.standing import RECENT
from fedspzo.broker.server.store import ServerStore
from fedspzo.broker.server.summing import Summing
from fedspzo.device_runtime.errors import StateError
from fedspzo.device_runtime.log import several
from fedspzo.device_runtime.protocol.entry import Entry
from fedspzo.device_runtime.protocol.messages import OBJECTIVES, REPLAY, Energy
from fedspzo.device_runtime.protocol.objective import LOSS
from fedspzo.device_runtime.protocol.plan import Plan

log = logging.getLogger(__name__)


class Rounds:
    """Opens and closes the rounds of a job whose journal is not in doubt.

    Attributes:
        wanted: devices that must be there before a round is opened.
    """

    def __init__(
        self,
        controls: Controls,
        store: ServerStore,
        roster: Roster,
        outbox: Outbox,
        progress: Progress,
        watch: Watch,
        summing: Summing,
        replies: Replies,
        held_out: HeldOut,
        devices: int,
        aggregate: Aggregate | None,
        sample: Sample,
        plans: MakePlans,
    ) -> None:
        """Continue a job.

        Args:
            devices, aggregate, sample, plans: see :class:`fedspzo.broker.server.server.Server`.
        """
        self._controls, self._store, self._roster, self._outbox = controls, store, roster, outbox
        self._progress, self._watch, self._summing, self._replies = progress, watch, summing, replies
        self._held_out = held_out
        self._job = job = controls.job(self._next)
        self._aggregate = checked(aggregate) if aggregate else partial(close_round, votes=job.votes)
        self._sample, self._make_plans = sample, plans
        self._plans = plans(job, store.journal.entries())
        self._spent = Spent(job, store.journal.entries())
        self._unopened, self._given_up = True, False
        self._needs = frozenset((OBJECTIVES,) * (job.objective != LOSS) + (REPLAY,) * (job.replay > 0))
        self._told_of_old = False
        self._decided: list[ClosedRound] = []
        self.wanted = job.fewest if store.journal.last_round else max(devices, job.fewest)

    @property
    def unplanned(self) -> int:
        """The next round whose plan is not made yet."""
        return self._next if self._progress.round is None else self._progress.round.plan.round + 1

    @property
    def enough(self) -> bool:
        """Whether all rounds are closed, an operator has ended the job, or no patience or privacy budget is left."""
        over = self._next > self._job.rounds or self._controls.state(self._next) == ENDED
        return over or self._held_out.stalled or self.spent

    @property
    def spent(self) -> bool:
        """Whether the privacy budget has no room for a round that is left, or for another attempt of the last one."""
        last = self._store.journal.last_round
        if not self._spent.limited or last >= self._job.rounds:
            return False
        return self._given_up or not self._spent.affords(self._plans.plan(last + 1))

    @property
    def privacy(self) -> tuple[float, float] | None:
        """The ε that is spent, and the job's budget of it; None for a job without one. Any thread may ask."""
        return (self._spent.epsilon, self._job.privacy_budget) if self._spent.limited else None

    @property
    def _next(self) -> int:
        return self._store.journal.last_round + 1

    def decided(self) -> list[ClosedRound]:
        """Rounds that were closed since this was asked last."""
        decided, self._decided = self._decided, []
        return decided

    def reopen(self) -> None:
        """Open the round again that was open when the server stopped, if one was."""
        self._unopened = False
        opened = self._store.load_open_round(time.monotonic())
        if opened is not None and not self._spent.affords(opened.plan):  # planned when the budget was another
            self._give_up(opened.plan, "it")
            return
        self._progress.round = opened
        if opened is not None:
            self.wanted = self._job.fewest

    def _give_up(self, plan: Plan, what: str) -> None:
        """Close no round any more: what is open would cost more than the budget has left."""
        log.warning("round %d stays open: the privacy budget has no room for %s", plan.round, what)
        self._progress.round, self._given_up = None, True

    def settle_full(self, now: float) -> None:
        """Go on with a round that all of its cohort have answered."""
        opened = self._progress.round
        if opened is not None and opened.full(self._job):
            self._settle(opened, now)

    def advance(self, now: float) -> bool:
        """Do one thing that is due (open a round, close it, ask again) and tell whether there was one."""
        if self._unopened:  # the round that was open, of a journal that is no longer in doubt
            self.reopen()
            if (again := self._progress.round) is not None:
                for device in again.missing:
                    self._outbox.ask(device, again.plan)
        opened = self._progress.round
        if opened is None:
            if self._progress.finished or self.enough or self._controls.state(self._next) != RUNNING:
                return False
            self._follow_changes()
            if self._roster.count_ready(now, self._needs) < self.wanted:
                self._tell_of_old(now)
                return False
            self._open(now)
            return True
        left = partial(self._roster.left, now=now)
        if opened.complete(self._job, left, now):
            self._settle(opened, now)
            return True
        if isinstance(opened, MaskedRound) and opened.groups:
            self._summing.remind(opened, now)
            return False
        others = self._others(opened, now)
        if opened.overdue(now) and not others and isinstance(opened, MaskedRound) and opened.told:
            self._settle(opened, now)  # one that lies gains an attempt at a deadline, where the others do not suffice
            return True
        if opened.overdue(now) or (opened.hopeless(left) and others):
            self._extend(opened, now)
        return False

    def _follow_changes(self) -> None:
        """Plan the next round of the job as an operator has changed it."""
        job = self._controls.job(self._next)
        if job != self._job:
            self._job, self._plans = job, self._make_plans(job, self._store.journal.entries())
            self.wanted = job.fewest if self._next > 1 else max(self.wanted, job.fewest)

    def _open(self, now: float) -> None:
        plan = self._plans.plan(self._next)
        self.wanted = self._job.fewest
        self._ask(plan, self._roster.ready(now, self._needs), now)

    def _ask(self, plan: Plan, candidates: Mapping[str, Candidate], now: float) -> OpenRound:
        """Open a round, or another attempt of it, among some devices."""
        cohort = self._sample(self._job, plan.round, candidates, self._job.asked)
        self._store.save_open_round(plan, cohort)
        self._progress.round = opened = begin_round(plan, cohort, now)
        for device in cohort:
            self._outbox.ask(device, plan)
        return opened

    def _extend(self, opened: OpenRound, now: float) -> None:
        """Give those that have not answered a new deadline, and also ask as many others.

        Raises:
            StateError: most devices have declined, and it is not a matter of time.
        """
        others = self._others(opened, now)
        if not opened.missing and not others and opened.declined:
            last = self._store.journal.last_round
            known = self._roster.served_after(last - RECENT) | self._roster.there(now)
            if device := opened.refused_by(known):
                raise StateError(
                    "server.all-decline",
                    f"round {opened.plan.round} cannot continue, and most devices agree; device '{device}' says:"
                    f" {opened.declined[device].reason}",
                )
            opened.declined.clear()  # nobody else is there: they are asked again
        fewest = opened.fewest(self._job)
        wanted = max(self._job.asked, fewest) - len(opened.answered)
        fresh = self._sample(self._job, opened.plan.round, others, wanted)
        asked = opened.extend(fresh, now)
        log.warning(
            "round %d has %d of %d results; asking %s, %d of them again",
            *(
                opened.plan.round,
                len(opened.answered),
                fewest,
                several(len(asked), "device"),
                len(asked) - len(fresh),
            ),
        )
        self._store.save_open_round(opened.plan, opened.cohort)
        for device in asked:
            self._outbox.ask(device, opened.plan)

    def _others(self, opened: OpenRound, now: float) -> dict[str, Candidate]:
        """Devices that can be asked and have not been."""
        ready = self._roster.ready(now, self._needs)
        return {name: candidate for name, candidate in ready.items() if name not in opened.cohort}

    def _tell_of_old(self, now: float) -> None:
        """Say once that devices are there that no round can ask."""
        if not self._told_of_old and (old := self._roster.too_old(now, self._needs)):
            self._told_of_old = True
            asked = {OBJECTIVES: f"objective = {self._job.objective}", REPLAY: f"replay = {self._job.replay}"}
            log.warning(
                "%s not asked: %s came after their version; update the program there",
                f"{several(len(old), 'device')}, such as '{old[0]}', {'is' if len(old) == 1 else 'are'}",
                " and ".join(asked[need] for need in sorted(self._needs)),
            )

    def _settle(self, opened: OpenRound, now: float) -> None:
        """Go on with a round that waits for nothing more: form groups, try it again, or close it."""
        plan, results = opened.plan, opened.results
        if isinstance(opened, MaskedRound):
            self._settle_masked(opened, now)
            return
        entry = self._aggregate(plan, results)
        closed = describe_round(plan, results, now - opened.started)
        energies = {device: result.energy for device, result in results.items()}
        self._close(entry, closed, self._watch.close_round(plan, results), energies)

    def _settle_masked(self, opened: MaskedRound, now: float) -> None:
        plan, lost = opened.plan, opened.reached > opened.attempt
        if not opened.groups and len(opened.ready) >= self._job.fewest and not lost:
            self._summing.divide(opened, now)
            return
        sums, totals, groups = self._summing.sums(opened)
        devices = [device for group in groups for device in group]
        if len(devices) < self._job.fewest or lost:
            again = try_again(plan, self._job.seed, opened.reached)
            if not self._spent.affords(again):
                self._give_up(plan, "another attempt")
                return
            reason = f"of {sum(map(len, opened.groups))} devices that were ready, {len(devices)} were summed"
            if lost or not opened.groups:
                reason = f"{len(opened.told)} devices took part in attempts that this server does not know of"
            log.warning("round %d is tried again, along other directions: %s", plan.round, reason)
            ready = self._roster.ready(now, self._needs)
            steady = {device: found for device, found in ready.items() if device not in opened.missing}
            enough = len(steady) >= self._job.fewest
            self._ask(again, steady if enough else ready, now).started = opened.started
            return
        entry = close_sums(plan, sums, self._aggregate)
        closed = describe_sums(plan, totals, devices, now - opened.started)
        self._summing.settle(opened, devices)
        changed = self._watch.close_sums(plan, groups, group_results(plan, totals))
        self._close(entry, closed, changed, dict.fromkeys(devices, ()))

    def _close(
        self,
        entry: Entry,
        closed: ClosedRound,
        changed: Mapping[str, Record],
        energies: Mapping[str, Sequence[Energy]],
    ) -> None:
        """Write a round down.

        Args:
            changed: what was unusual in it.
            energies: device whose result counted → what it said that the round took.
        """
        opened = self._progress.round
        if opened is not None:
            came = {
                device: opened.arrived[device] - opened.started for device in closed.devices if device in opened.arrived
            }
            closed = replace(closed, arrived=came)
        self._outbox.publish(self._store.close_round(entry, closed))
        self._store.save_records(changed)
        self._replies.send_away(changed)
        for device, said in energies.items():
            member = self._roster.edit(device)
            if member is not None:
                credit(member, entry.round, said)
        self._progress.round = None
        self._plans.follow(entry)
        self._spent.follow(entry)
        self._decided.append(closed)
