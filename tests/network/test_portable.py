"""A device without the packages that have no wheels for Android: it trains as the others do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from federation import Processes, assert_equal_replicas, broker, finish, processes, read_rounds
from packaging.requirements import Requirement
from patience import PATIENCE_S
from without_wheels import MISSING

from fedspzo.device_runtime.model.bundle import Bundle

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

__all__ = ["broker", "processes"]

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "support" / "without_wheels.py"
#: Files of the missing packages, as a process maps them.
_LIBRARIES = ("/tokenizers.abi3", "/_rust.abi3", "/_safetensors_rust")


def _train_beside_others(processes: Processes, bundle: Bundle, folder: Path, packages: Path, *more: str) -> None:
    devices = {
        "a": processes.device("a"),
        "b": processes.device("b", program=(sys.executable, PROGRAM, packages)),
        "c": processes.device("c", program=(sys.executable, PROGRAM, packages)),
    }
    server = processes.server("--rounds", "8")
    read_rounds(server, 2)
    maps = {name: Path(f"/proc/{device.pid}/maps").read_text() for name, device in devices.items()}
    progress, last, errors = finish(server)
    assert [event["round"] for event in progress if "results" in event][-1] == 8, errors
    assert_equal_replicas(bundle, folder, last, {"a", "b", "c"})
    for name, device in devices.items():
        assert device.wait(PATIENCE_S) == 0
        mapped = [library for library in (*_LIBRARIES, *more) if library in maps[name]]
        assert bool(mapped) == (name == "a"), (name, mapped)
    with np.load(folder / "a" / "tokens.npz") as ours, np.load(folder / "b" / "tokens.npz") as theirs:
        for array in ("ids", "lengths", "starts", "labels"):
            assert (ours[array] == theirs[array]).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_device_without_compiled_packages(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    """cbor2 excepted: which of its versions are in Python alone depends on what is installed."""
    _train_beside_others(processes, bundle, tmp_path, tmp_path)


@pytest.mark.slow
def test_a_device_with_the_packages_for_android(processes: Processes, bundle: Bundle, tmp_path: Path) -> None:
    """Those that are in Python alone are installed from the index as Android gets them."""
    packages = tmp_path / "packages"
    wanted = [str(requirement) for requirement in _requirements("android") if requirement.name != "numpy"]
    assert len(wanted) == 3
    options = [
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--platform",
        "android_24_arm64_v8a",
        "--target",
        packages,
    ]
    pip = [sys.executable, "-m", "pip", "install", *map(str, options), *wanted]
    installed = subprocess.run(pip, capture_output=True, text=True, timeout=PATIENCE_S)
    if installed.returncode:
        pytest.skip(f"there is no package index to install from: {installed.stderr[-200:]}")
    _train_beside_others(processes, bundle, tmp_path, packages, "/_cbor2.")


def _requirements(platform: str) -> list[Requirement]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = [Requirement(text) for text in tomllib.load(file)["project"]["dependencies"]]
    environment = {"sys_platform": platform, "python_version": "3.13"}
    found = [r for r in wanted if r.marker is None or r.marker.evaluate(environment)]
    return [Requirement(f"{requirement.name}{requirement.specifier}") for requirement in found]


def test_what_android_is_to_install() -> None:
    names = {requirement.name for requirement in _requirements("android")}
    assert names == {"numpy", "paho-mqtt", "cbor2", "dacite"}
    assert {requirement.name for requirement in _requirements("linux")} == {*names, "tokenizers", "cryptography"}
    assert not names & set(MISSING)
