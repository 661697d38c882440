"""What a job's server may see of results: named by a bundle, a device and a plan. See docs/trust.md."""

from __future__ import annotations

#: Each device's result (robust), sums of groups of devices (groups), or one sum (secure); the weakest secrecy first.
MODES = ("robust", "groups", "secure")
#: Those in which devices mask what they send, and the fewest devices whose sum the server may see.
MASKED, LEAST_SUMMED = MODES[1:], 4
