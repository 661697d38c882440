"""Weights of 16 bits at rest: widened to float32 where they are used, rounded at random when they are changed.

A step is often smaller than the spacing of 16-bit numbers; rounded to the nearest it would vanish. Rounding up or down
at random, in proportion to what is left over, keeps every step in the mean. The random bits come from the directions'
counter streams, so every replica rounds alike: this is part of their format.
"""

from __future__ import annotations

import numpy as np

#: Types of stored weights → numpy's type for an array of them; bfloat16 has none, so its bits are kept as integers.
DTYPES: dict[str, np.dtype[np.generic]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
#: Bits of a float32 beyond those of a 16-bit number of the same range.
_EXTRA_BITS = {np.dtype("<f2"): 13, np.dtype("<u2"): 16}


def widen(stored: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Stored weights as float32, in ``out`` (same shape); exact."""
    if stored.dtype == DTYPES["bfloat16"]:
        bits = out.view(np.uint32)
        bits[...] = stored
        np.left_shift(bits, 16, out=bits)
    else:
        out[...] = stored
    return out


def narrow(exact: np.ndarray, random: np.ndarray, out: np.ndarray) -> None:
    """Round float32 to a 16-bit type, up or down at random; unbiased but for float16 below 2⁻¹⁴, rounded to nearest.

    Args:
        exact: float32 [n]; overwritten.
        random: uint16 [n], uniform.
        out: float16 or bfloat16 [n].
    """
    extra = _EXTRA_BITS[out.dtype]
    bits = exact.view(np.uint32)
    np.add(bits, np.right_shift(random, 16 - extra), out=bits)
    if extra == 16:
        np.right_shift(bits, 16, out=bits)
        out[...] = bits.astype(np.uint16)
    else:
        np.bitwise_and(bits, np.uint32(0xFFFFFFFF << extra & 0xFFFFFFFF), out=bits)
        out[...] = exact
