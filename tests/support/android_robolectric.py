"""Runs the app's JUnit tests (``app/src/test``) on Android's framework in one JVM: ``make test-android``.

``python tests/support/android_robolectric.py [CLASS…]``, each a test class's name without its package.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from android_build import PROJECT, BuildError, build, compile_java, run, setting
from android_framework import ROOT, Framework, NoFramework, find_framework
from android_sdk import CACHE, fetch, missing_tools, pinned, rename_unless_there

TESTS = PROJECT / "app" / "src" / "test"
_CHAQUOPY = "com/chaquo/python"


def main(names: Sequence[str]) -> int:
    """Build, run, and give JUnit's status; what is missing is said in a sentence."""
    if missing := missing_tools():
        print(f"Not installed: {', '.join(missing)}; see android_demo/README.md.", file=sys.stderr)
        return 1
    try:
        framework = find_framework()
        fetch()
        with tempfile.TemporaryDirectory() as out:
            return run_tests(framework, Path(out), names)
    except (NoFramework, BuildError) as error:
        print(error, file=sys.stderr)
        return 1


def run_tests(framework: Framework, out: Path, names: Sequence[str] = ()) -> int:
    """All tests, or those of some classes; their lines go to standard output, what the app logs to standard error."""
    jep = install_jep()
    (jar,) = jep.glob("jep/jep-*.jar")
    chaquopy, tests, config = out / "chaquopy", out / "tests", out / "config"
    compile_java((TESTS / "java" / _CHAQUOPY).rglob("*.java"), chaquopy, [framework.stubs, jar])
    built = build(framework, out, chaquopy)
    class_path = [built.classes, built.r_classes, chaquopy, *framework.test_jars, *built.jars, jar]
    sources = [file for file in (TESTS / "java").rglob("*.java") if _CHAQUOPY not in str(file)]
    compile_java(sources, tests, [*class_path, framework.stubs], "-nowarn")
    described = config / "com/android/tools/test_config.properties"
    described.parent.mkdir(parents=True)
    described.write_text(
        f"android_custom_package={setting('namespace')}\nandroid_resource_apk={built.apk}\n"
        f"android_merged_manifest={built.manifest}\n"
    )
    classes = [str(file.relative_to(TESTS / "java"))[:-5].replace("/", ".") for file in sources]
    chosen = [
        name for name in sorted(classes) if name.rsplit(".", 1)[1] in names or (not names and name.endswith("Test"))
    ]
    site, libraries = Path(sysconfig.get_path("purelib")), [jep / "jep", ROOT / "device_runtime" / "directions"]
    spec = find_spec("ai_edge_litert")
    assert spec is not None
    assert spec.submodule_search_locations
    libraries.append(Path(spec.submodule_search_locations[0]))
    python = [jep, site, ROOT, PROJECT / "app/src/main/python", TESTS / "python"]
    temporary = out / "tmp"
    temporary.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join(map(str, python)),
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        "java", "-Drobolectric.offline=true", f"-Drobolectric.dependency.dir={framework.folder / 'sdk'}",
        f"-Djava.io.tmpdir={temporary}", f"-Djava.library.path={environment['LD_LIBRARY_PATH']}", f"-Dfedspzo.python={sys.executable}",
        f"-Dfedspzo.project={ROOT}", "-XX:TieredStopAtLevel=1", "-cp",
        ":".join(map(str, [tests, config, TESTS / "resources", *class_path, framework.stubs])),
        "org.fedspzo.app.Suite", *chosen,
    ]  # fmt: skip
    return subprocess.run(command, env=environment, cwd=out).returncode


def install_jep() -> Path:
    """The bridge between JVM and Python, built once for this Python into the cache (20 s)."""
    version = pinned(ROOT / "constraints.txt")["jep"]
    target = CACHE / f"jep-{version}-{sysconfig.get_config_var('SOABI')}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        java = Path(run("java", "-XshowSettings:properties", "-version").split("java.home = ")[1].split("\n")[0])
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            folder = Path(made) / "jep"
            os.environ["JAVA_HOME"] = str(java)
            run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"--target={folder}", f"jep=={version}")
            rename_unless_there(folder, target)
    return target


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
