"""The 256 normal quantiles of gaussian directions, as bits: libraries disagree in the last place, so none is used.

Entry i is Φ⁻¹((i + ½)/256), scaled so that the mean of the squares is one, rounded to float32. The upper half is
stored as little-endian float32; the lower half mirrors it.
"""

from __future__ import annotations

import numpy as np

_UPPER_HALF = np.frombuffer(
    bytes.fromhex(
        "2dd4a03b3d40713c280ec93c90c00c3d83fd343de83e5d3de0c2823d85e9963de313ab3d7c42bf3dd175d33d65aee73d"
        "bbecfb3dac18083e613e123ec0671c3e0d95263e8cc6303e83fc3a3e3a37453ef5764f3effbb593ea006643e22576e3e"
        "d1ad783e7d85813e74b7863ef6ec8b3e2b26913e3c63963e53a49b3e9ae9a03e3d33a63e6781ab3e47d4b03e092cb63e"
        "de88bb3ef5eac03e8152c63eb3bfcb3ec132d13edeabd63e422bdc3e25b1e13ec13de73e50d1ec3e116cf23e420ef83e"
        "24b8fd3efcb4013f0392043f4a73073ff5580a3f2a430d3f1232103fd425133f9a1e163f901c193fe41f1c3fc5281f3f"
        "6237223ff04b253fa266283fb0872b3f52af2e3fc6dd313f4813353f1a50383f80943b3fc1e03e3f2835423f0292453f"
        "a2f7483f5e664c3f90de4f3f9760533fd8ec563fbd835a3fb4255e3f35d3613fbc8c653fce52693ff6256d3fcb06713f"
        "ecf5743f00f4783fbf017d3ff48f803fa4a7823f61c8843fa0f2863fe326893fb3658b3fa7af8d3f6105903f9167923f"
        "f8d6943f6754973fc4e0993f0c7d9c3f542a9f3fd2e9a13fd9bca43fe8a4a73fa8a3aa3ff9baad3ff9ecb03f103cb43f"
        "ffaab73ff03cbb3f91f5be3f2dd9c23fd5ecc63f9436cb3fb3bdcf3f168bd43fc7a9d93fb227df3fc916e53fc08eeb3f"
        "d9aff23fafa7fa3ff1dc0140b128074090930d40cdd41540e5b721404b253940"
    ),
    dtype="<f4",
).astype(np.float32)

#: float32[256], ascending, symmetric about zero, unit variance.
NORMAL = np.concatenate([-_UPPER_HALF[::-1], _UPPER_HALF])
