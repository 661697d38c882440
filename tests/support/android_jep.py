"""Python inside the JVM of the app's tests: the bridge jep, and what its processes need to find.

``python tests/support/android_jep.py`` prints the paths, one ``NAME=PATH:PATH`` a line, for Gradle.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

from android_sdk import CACHE, pinned, rename_unless_there

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "android_demo" / "app" / "src"


def install_jep() -> Path:
    """Built once for this Python into the cache (20 s); its folder. Raises CalledProcessError."""
    version = pinned(ROOT / "constraints.txt")["jep"]
    target = CACHE / f"jep-{version}-{sysconfig.get_config_var('SOABI')}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["java", "-XshowSettings:properties", "-version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        environment = {**os.environ, "JAVA_HOME": said.split("java.home = ")[1].split("\n")[0]}
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"--target={made}/jep", f"jep=={version}"]
            subprocess.run(pip, env=environment, check=True)
            rename_unless_there(Path(made) / "jep", target)
    return target


def jep_jar() -> Path:
    """Its classes."""
    (jar,) = install_jep().glob("jep/jep-*.jar")
    return jar


def paths() -> dict[str, str]:
    """Environment variables that a JVM with Python in it is started with."""
    litert = find_spec("ai_edge_litert")
    assert litert is not None
    assert litert.submodule_search_locations
    jep = install_jep()
    packages = Path(sysconfig.get_path("purelib"))
    python = [jep, packages, ROOT, APP / "main" / "python", APP / "test" / "python"]
    libraries = [jep / "jep", ROOT / "device_runtime" / "directions", *litert.submodule_search_locations]
    return {"PYTHONPATH": ":".join(map(str, python)), "LD_LIBRARY_PATH": ":".join(map(str, libraries))}


if __name__ == "__main__":
    print(*(f"{name}={value}" for name, value in {**paths(), "JAR": str(jep_jar())}.items()), sep="\n")
