"""A device's process up to its first steps, or one that only infers; prints what it took as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

import fedspzo.device_runtime.device.agent  # noqa: F401  what a device has loaded when it takes its first step
from fedspzo.bench.workload import Setting, generate, open_forward, take_step
from fedspzo.device_runtime.errors import FedSPZOError
from fedspzo.device_runtime.model.stored import stored_bytes
from fedspzo.device_runtime.platform.memory import peak_rss_bytes
from fedspzo.device_runtime.protocol.plan import Block


def main(kind: str, fields: str) -> None:
    """Take two steps, or infer twice."""
    described = json.loads(fields)
    described["blocks"] = tuple(Block(**block) for block in described["blocks"])
    described |= {"bundle": Path(described["bundle"]), "shape": tuple(described["shape"])}
    setting = Setting(**described)
    forward = open_forward(setting)
    store = generate(forward.manifest, setting.shape)
    ends = [time.time()]
    for _ in range(2):
        if kind == "step":
            take_step(forward, store, setting.plan)
        else:
            batch = forward.batch(store, np.arange(len(store)))
            forward.release(forward.run_all(forward.manifest.stages, batch))
        ends.append(time.time())
    specs = forward.manifest.tensors
    tensors = {index for stage in forward.manifest.stages for index in (*stage.tensors, *stage.constants)}
    found = {
        "first_step_done_s": ends[1] - _started(),
        "first_step_s": ends[1] - ends[0],
        "second_step_s": ends[2] - ends[1],
        "streamed": forward.streams,
        "peak_rss_mb": peak_rss_bytes() / 1e6,
        "weights_mb": sum(stored_bytes(specs[index].shape, specs[index].dtype) for index in tensors) / 1e6,
    }
    print(json.dumps(found))


def _started() -> float:
    """When this process began, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except FedSPZOError as refusal:
        sys.exit(str(refusal))
