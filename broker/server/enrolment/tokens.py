"""Which invitation a token is of, and how often an address may show a wrong one."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from fedspzo.broker.server.enrolment.invitations import Offer
from fedspzo.device_runtime.errors import EnrolmentError
from fedspzo.device_runtime.protocol.enrolment import digest

#: Wrong tokens of an address before it has to wait, and the longest wait in seconds.
FREE_TRIES, LONGEST_S = 5, 60.0
#: Addresses that wrong tokens are remembered of.
MOST_ADDRESSES = 10_000


class Tries:
    """Wrong tokens by address: after some, the address is told to wait. Who has a right one never waits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address → tries, and when the next may be

    def note(self, address: str, right: bool) -> None:
        """Note a token of an address. Raises EnrolmentError where it is wrong and comes too early."""
        if right:
            return  # and clears nothing: whoever guesses may have one invitation, too
        tries, next_try = self._wrong.get(address, (0, 0.0))
        if (wait := next_try - self._clock()) > 0:
            raise EnrolmentError(
                "enrolment.too-often",
                f"too many wrong invitations came from this address; wait {wait:.0f} s, and use one of this server's",
            )
        wait = min(LONGEST_S, 2.0 ** (tries + 1 - FREE_TRIES)) if tries + 1 >= FREE_TRIES else 0.0
        self._wrong[address] = tries + 1, self._clock() + wait
        self._wrong.move_to_end(address)
        while len(self._wrong) > MOST_ADDRESSES:
            self._wrong.popitem(last=False)


def find_offer(offers: Sequence[tuple[bytes, Offer]], token: str) -> Offer | None:
    """The invitation that a token is of. All hashes are compared, each in constant time."""
    wanted, found = digest(token), None
    for hashed, offer in offers:
        if hmac.compare_digest(hashed, wanted):
            found = offer
    return found
