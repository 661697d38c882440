"""Runs the app's JUnit tests (``app/src/test``) on Android's framework in one JVM: ``make test-android``.

``python tests/support/android_robolectric.py [CLASS…]``, each a test class's name without its package.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from android_build import PROJECT, BuildError, build, compile_java, setting
from android_framework import ROOT, NoFramework, find_framework
from android_jep import jep_jar, paths
from android_sdk import fetch, missing_tools

TESTS = PROJECT / "app" / "src" / "test"
_OWN = "org/fedspzo/app"


def main(names: Sequence[str]) -> int:
    """All tests, or those of some classes; JUnit's status. What is missing is said in a sentence."""
    if missing := missing_tools():
        print(f"Not installed: {', '.join(missing)}; see android_demo/README.md.", file=sys.stderr)
        return 1
    # What the tests import is exported beside the compiler, where it is not in the cache.
    bundle = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("android_bundle.py")], stdout=subprocess.DEVNULL
    )
    try:
        with tempfile.TemporaryDirectory() as out:
            command = prepare(Path(out), names)
            if bundle.wait():
                return 1
            return subprocess.run(command, env={**os.environ, **paths(), "OMP_NUM_THREADS": "1"}, cwd=out).returncode
    except (NoFramework, BuildError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        bundle.kill()


def prepare(out: Path, names: Sequence[str]) -> list[str]:
    """Build the app and its tests into a folder; the command that runs them. Raises NoFramework, BuildError."""
    framework = find_framework()
    fetch()
    built = build(framework, out)
    tests, config, temporary = out / "tests", out / "config", out / "tmp"
    class_path = [built.classes, built.r_classes, built.chaquopy, *framework.test_jars, *built.jars, jep_jar()]
    sources = sorted((TESTS / "java" / _OWN).rglob("*.java"))
    language = ("-source", "8", "-target", "8", "-nowarn")  # as Gradle has it, with newer classes than Java 8's
    compile_java(sources, tests, [*class_path, framework.stubs], *language)
    described = config / "com/android/tools/test_config.properties"
    described.parent.mkdir(parents=True)
    described.write_text(
        f"android_custom_package={setting('namespace')}\nandroid_resource_apk={built.apk}\n"
        f"android_merged_manifest={built.manifest}\n"
    )
    temporary.mkdir()
    chosen = [s.stem for s in sources if s.stem in names or (not names and s.stem.endswith("Test"))]
    return [
        "java", "-Drobolectric.offline=true", f"-Drobolectric.dependency.dir={framework.folder / 'sdk'}",
        f"-Djava.io.tmpdir={temporary}", f"-Djava.library.path={paths()['LD_LIBRARY_PATH']}",
        f"-Dfedspzo.python={sys.executable}", f"-Dfedspzo.project={ROOT}", "-XX:TieredStopAtLevel=1",
        "-XX:ReservedCodeCacheSize=240m", "-cp",
        ":".join(map(str, [tests, config, TESTS / "resources", *class_path, framework.stubs])),
        "org.fedspzo.app.Suite", *(f"org.fedspzo.app.{name}" for name in chosen),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
