"""What stands for the Android SDK where there is none: Debian's builds of its parts, of the releases that have them.

An ``android.jar`` is in Debian 11 alone (API 23), with the last dx; framework resources of API 33 are in Debian 13, and
the app's version of Python. The packages are fetched through apt, which checks their signatures, and unpacked into a
cache; nothing is installed. aapt2, zipalign and apksigner are those of the system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedspzo" / "android"
#: Package → the release that it is taken from.
PACKAGES = {
    "libandroid-23-java": "bullseye", "dalvik-exchange": "bullseye", "android-framework-res": "trixie",
    "python3.13-minimal": "trixie", "libpython3.13-minimal": "trixie", "libc6": "trixie", "libexpat1": "trixie",
    "zlib1g": "trixie",
}  # fmt: skip
TOOLS = ("javac", "keytool", "aapt2", "zipalign", "apksigner", "apt-get", "dpkg-deb")
_MIRROR, _KEYS = "http://deb.debian.org/debian", "/usr/share/keyrings/debian-archive-keyring.gpg"
_UNPACKED = CACHE / "unpacked"

ANDROID_JAR = _UNPACKED / "usr/share/java/com.android.android-23.jar"
DX_JAR = _UNPACKED / "usr/share/java/com.android.dx.jar"
_PYTHON = _UNPACKED / "usr/bin/python3.13"
FRAMEWORK = _UNPACKED / "usr/share/android-framework-res/framework-res.apk"


def missing_tools() -> list[str]:
    """Those that are to be installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def python_command() -> list[str]:
    """Python of the app's version, with the C library of its own release."""
    (loader,) = (_UNPACKED / "usr/lib").glob("*-linux-gnu/ld-linux-*.so.*")
    return [str(loader), "--library-path", str(loader.parent), str(_PYTHON), "-S"]


def fetch() -> None:
    """Fill the cache, the first time (some 45 MB)."""
    if all(file.exists() for file in (ANDROID_JAR, DX_JAR, FRAMEWORK, _PYTHON)):
        return
    shutil.rmtree(CACHE, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (CACHE / folder).mkdir(parents=True)
    sources = CACHE / "sources.list"
    releases = sorted(set(PACKAGES.values()))
    sources.write_text("".join(f"deb [signed-by={_KEYS}] {_MIRROR} {release} main\n" for release in releases))
    options = [
        f"-oDir::Etc::SourceList={sources}", "-oDir::Etc::SourceParts=-", f"-oDir::State::Lists={CACHE / 'lists'}",
        f"-oDir::Cache={CACHE / 'cache'}", "-oAPT::Sandbox::User=", "-oAcquire::Languages=none", "-qq",
    ]  # fmt: skip
    subprocess.run(["apt-get", *options, "update"], check=True)
    wanted = [f"{package}/{release}" for package, release in PACKAGES.items()]
    subprocess.run(["apt-get", *options, "download", *wanted], cwd=CACHE / "debs", check=True)
    for package in (CACHE / "debs").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, _UNPACKED], check=True)
    for folder in ("lists", "cache", "debs"):
        shutil.rmtree(CACHE / folder)


if __name__ == "__main__":
    fetch()
