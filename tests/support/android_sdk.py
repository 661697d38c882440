"""What stands for the Android SDK where there is none: Debian 13's aapt2, and Python of the app's version.

The packages are fetched through apt, which checks their signatures, and unpacked into a cache; nothing is installed.
zipalign and apksigner are those of the system; the rest is in ``android_framework``.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedspzo" / "android"
#: Debian's release, and packages of it: a Python, an aapt2 that can link Material's resources, and what both need.
RELEASE = "trixie"
PACKAGES = (
    "python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib", "libc6", "libexpat1", "zlib1g", "libssl3t64",
    "libsqlite3-0", "libffi8", "libbz2-1.0", "liblzma5", "libstdc++6", "libgcc-s1", "libuuid1", "libzstd1",
    "aapt", "android-libaapt", "android-libandroidfw", "android-libbase", "android-libutils", "android-liblog",
    "android-libziparchive", "android-libbacktrace", "android-libcutils", "libpng16-16t64", "libprotobuf32t64", "7zip",
    "libbsd0", "libmd0",
)  # fmt: skip
TOOLS = ("javac", "keytool", "zipalign", "apksigner", "apt-get", "dpkg-deb")
_MIRROR, _KEYS = "http://deb.debian.org/debian", "/usr/share/keyrings/debian-archive-keyring.gpg"
_UNPACKED = CACHE / f"debian-{hashlib.sha256(repr((RELEASE, PACKAGES)).encode()).hexdigest()[:12]}"
_PYTHON = _UNPACKED / "usr/bin/python3.13"


def pinned(file: Path) -> dict[str, str]:
    """Name → version of the lines ``name==version``."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE))


def missing_tools() -> list[str]:
    """Those that are to be installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def _with_its_libraries(program: Path, *more: str) -> list[str]:
    """A program of that release, with the C library and others of its own release."""
    (loader,) = (_UNPACKED / "usr/lib").glob("*-linux-gnu/ld-linux-*.so.*")
    folders = (loader.parent, *(loader.parent / name for name in more))
    return [str(loader), "--library-path", ":".join(map(str, folders)), str(program)]


def python_command() -> list[str]:
    """Python of the app's version."""
    return [*_with_its_libraries(_PYTHON), "-S"]


def aapt2_command() -> list[str]:
    """The aapt2 that links Material's resources, which those of older releases cannot."""
    return _with_its_libraries(_UNPACKED / "usr/bin/aapt2", "android", "../7zip")


def phone_python(wheels: dict[str, str], libraries: Path) -> tuple[list[str], Path]:
    """Python as the phone has it: the app's version, its packages and no others, and C libraries found by name alone.

    Args:
        wheels: name → version of those that the app carries, and of ``ai-edge-litert``, of which the library is taken.
        libraries: a folder with more C libraries.

    Returns:
        the command, and the folder with the packages.
    """
    fetch()
    versions = hashlib.sha256(repr(sorted(wheels.items())).encode()).hexdigest()[:12]
    packages, litert = CACHE / versions / "packages", CACHE / versions / "litert"
    if not litert.exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version=3.13",
        ]
        newest = [f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in (17, 27, 28)]
        plain = ["--platform=any", "--implementation=py", "--abi=none"]
        for name, version in wheels.items():
            target = litert if name == "ai-edge-litert" else packages
            options = newest if name in ("ai-edge-litert", "numpy") else plain
            subprocess.run([*pip, *options, f"--target={target}", f"{name}=={version}"], check=True)
    loader, option, path, *rest = python_command()
    return [loader, option, f"{path}:{litert / 'ai_edge_litert'}:{libraries}", *rest], packages


def fetch() -> None:
    """Fill the cache, the first time (some 60 MB); it appears whole or not at all."""
    if _UNPACKED.exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as made:
        folder = Path(made)
        for name in ("lists/partial", "cache/archives/partial", "debs"):
            (folder / name).mkdir(parents=True)
        sources = folder / "sources.list"
        sources.write_text(f"deb [signed-by={_KEYS}] {_MIRROR} {RELEASE} main\n")
        options = [
            f"-oDir::Etc::SourceList={sources}", "-oDir::Etc::SourceParts=-", f"-oDir::State::Lists={folder / 'lists'}",
            f"-oDir::Cache={folder / 'cache'}", "-oAPT::Sandbox::User=", "-oAcquire::Languages=none", "-qq",
        ]  # fmt: skip
        subprocess.run(["apt-get", *options, "update"], check=True)
        subprocess.run(["apt-get", *options, "download", *PACKAGES], cwd=folder / "debs", check=True)
        for package in (folder / "debs").glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked"], check=True)
        rename_unless_there(folder / "unpacked", _UNPACKED)


def rename_unless_there(made: Path, target: Path) -> None:
    """Give a finished folder its name, where no other process was faster."""
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            raise


if __name__ == "__main__":
    fetch()
