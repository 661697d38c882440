"""Weights stored in 16 bits: widened to float32 where they are used, rounded at random when they are changed.

A step is often smaller than the spacing of 16-bit numbers; rounded to the nearest it would vanish. Rounding up or down
at random, in proportion to what is left over, keeps every step on average. The random bits come from the directions'
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
_FLOAT16_SCALE = np.float32(2.0**112)
_SMALLEST = np.array([2.0**-136], np.float32)
#: Bits of a float32 beyond those of a 16-bit number of the same range.
_EXTRA_BITS = {np.dtype("<f2"): 13, np.dtype("<u2"): 16}


def widen(stored: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Stored weights as float32, in ``out`` (same shape); exact."""
    if stored.dtype == DTYPES["bfloat16"]:
        bits = out.view(np.uint32)
        bits[...] = stored
        np.left_shift(bits, 16, out=bits)
    elif stored.dtype == DTYPES["float16"] and _all_finite(stored) and _keeps_subnormals():
        # Seven times faster than numpy's cast: the sign stays on top, what lies below it becomes a float32 2⁻¹¹² times
        # too small, and a product with a power of two is exact, for subnormal numbers as well.
        signed = out.view(np.int32)
        signed[...] = stored.view(np.int16)
        np.left_shift(signed, 13, out=signed)
        np.bitwise_and(signed, np.int32(-0x70000001), out=signed)
        np.multiply(out, _FLOAT16_SCALE, out=out)
    else:
        out[...] = stored
    return out


def _all_finite(stored: np.ndarray) -> bool:
    """Whether float16 numbers are: their bits as integers, which are ordered as they are, stay below infinity's."""
    return bool(stored.view(np.int16).max() < 0x7C00 and stored.view(np.uint16).max() < 0xFC00)


def _keeps_subnormals() -> bool:
    """Whether this thread computes with subnormal numbers, which some library may have switched off."""
    return bool((_SMALLEST * _FLOAT16_SCALE)[0] != 0)


def narrow(exact: np.ndarray, random: np.ndarray, out: np.ndarray) -> None:
    """Round float32 to a 16-bit type, up or down at random; unbiased except float16 below 2⁻¹⁴: to nearest.

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
