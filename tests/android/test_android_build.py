"""What of the Android project can be checked without an SDK, Gradle or a phone: see android_demo/README.md.

The slow tests take zipalign, apksigner and a JDK from the system, aapt2 and Python 3.13 from ``android_sdk``, and D8,
R8 and the libraries from ``android_framework``.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from android_build import MAIN, PROJECT, Built, build, setting
from android_framework import ROOT, Framework, NoFramework, find_framework
from android_jep import jep_jar
from android_sdk import aapt2_command, fetch, missing_tools, pinned, python_command
from dex import dex_members

PYTHON_SOURCES = [*(MAIN / "python").rglob("*.py"), *(ROOT / "device_runtime").rglob("*.py")]
JAVA = MAIN / "java/org/fedspzo/app"

needs_tools = pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}")


def test_archives_have_the_versions_of_the_wheels() -> None:
    wheels = pinned(ROOT / "constraints.txt")
    archives = dict(re.findall(r"^(\w+)Version=(\S+)", (PROJECT / "gradle.properties").read_text(), re.MULTILINE))
    assert archives == {"litert": wheels["ai-edge-litert"], "executorch": wheels["executorch"]}


def test_gradle_takes_the_libraries_that_the_tests_have() -> None:
    listed = (ROOT / "tests/support/android_artifacts.txt").read_text()
    versions = set(re.findall(r" (\S+:\S+:[\d.]+)", listed))
    build_file = (PROJECT / "app/build.gradle.kts").read_text()
    taken = set(re.findall(r"mplementation\(\"([\w.]+:[\w.-]+:[\d.]+)\"\)", build_file))
    assert len(taken) >= 6
    assert taken <= versions


def test_the_app_carries_versions_that_the_runtime_allows() -> None:
    from packaging.requirements import Requirement

    declared = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert declared
    needed = {r.name: r for r in map(Requirement, re.findall(r'^    "([^"]*)",', declared[1], re.MULTILINE))}
    carried = pinned(PROJECT / "requirements.txt")
    assert set(needed) - set(carried) == {"tokenizers", "cryptography", "tomli"}  # without a wheel, or not needed there
    for name, version in carried.items():
        assert needed[name].specifier.contains(version), name
    assert carried["paho-mqtt"] == pinned(ROOT / "constraints.txt")["paho-mqtt"]


def test_the_native_library_is_compiled_as_the_wheel_s() -> None:
    (stated,) = re.findall(r"^FLAGS = (\(.*\))$", (ROOT / "hatch_build.py").read_text(), re.MULTILINE)
    flags = set(ast.literal_eval(stated))
    cmake = (MAIN / "cpp/CMakeLists.txt").read_text()
    assert "C_STANDARD 11" in cmake
    assert "C_EXTENSIONS ON" in cmake
    assert {flag for flag in flags if flag in cmake} == flags - {"-std=gnu11", "-fPIC", "-shared"}
    source = re.search(r"directions SHARED \$\{CMAKE_CURRENT_SOURCE_DIR\}/(\S+)\)", cmake)
    assert source
    assert (MAIN / "cpp" / source[1]).resolve() == ROOT / "device_runtime" / "directions" / "kernel.c"


def test_java_asks_for_commands_that_there_are() -> None:
    from fedspzo_app.app import App

    java = "".join(file.read_text() for file in JAVA.glob("*.java"))
    commands = {name for name in vars(App) if not name.startswith("_")}
    assert commands - set(re.findall(r"\"([a-z_]+)\"", java)) == {"digest"}  # which tests ask for
    fields = set(re.findall(r"status\.(?:opt\w+|isNull)\(\"(\w+)\"", java))
    status = ast.unparse(ast.parse((MAIN / "python/fedspzo_app/app.py").read_text()))
    assert all(f"'{name}':" in status for name in fields)


def test_every_class_in_the_manifest_is_there() -> None:
    manifest = ElementTree.parse(MAIN / "AndroidManifest.xml").getroot()
    name = "{http://schemas.android.com/apk/res/android}name"
    classes = {e.get(name) for e in manifest.iter() if e.tag in ("activity", "service", "provider", "receiver")}
    own = {"MainActivity", "SettingsActivity", "TrainingService", "TrainingJob"}
    assert classes == {f"org.fedspzo.app.{found}" for found in own}
    for found in classes:
        assert (MAIN / "java" / f"{str(found).replace('.', '/')}.java").exists()


def test_backups_take_nothing_along() -> None:
    """Neither examples nor reactions: all is in one folder, which no backup and no move to another phone takes."""
    host = (JAVA / "Host.java").read_text()
    assert '"create", context.getNoBackupFilesDir()' in host
    android = "{http://schemas.android.com/apk/res/android}"
    application = ElementTree.parse(MAIN / "AndroidManifest.xml").getroot().find("application")
    assert application is not None
    assert application.get(f"{android}allowBackup") == "false"
    assert application.get(f"{android}dataExtractionRules") == "@xml/data_extraction_rules"
    rules = ElementTree.parse(MAIN / "res/xml/data_extraction_rules.xml").getroot()
    for way in ("cloud-backup", "device-transfer"):
        left_out = {rule.get("domain") for rule in rules.findall(f"{way}/exclude")}
        assert left_out == {"root", "file", "database", "sharedpref", "external"}


@pytest.mark.skipif(find_spec("android-stubs") is None, reason="chaquopy-stubs-android is not installed")
def test_no_java_takes_classes_that_android_lacks() -> None:
    """Gradle compiles the tests, too, against Android's ``java`` packages alone: it has no ``java.awt.image``, say."""
    android = Android36(stubs_folder())
    java = "".join(file.read_text() for file in (PROJECT / "app/src").rglob("*.java"))
    taken = set(re.findall(r"\b(javax?(?:\.[a-z]\w*)+(?:\.[A-Z]\w*[a-z]\w*)+)", java))
    assert {"java.util.List", "javax.crypto.Cipher"} <= taken
    assert {name for name in taken if not android.knows(name)} == set()
    assert not android.knows("java.awt.image.BufferedImage")


@pytest.fixture(scope="module")
def sdk() -> None:
    fetch()


@pytest.fixture(scope="module")
def framework() -> Framework:
    try:
        return find_framework()
    except NoFramework as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shell(sdk: None, framework: Framework, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(framework, tmp_path_factory.mktemp("shell"))


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    return str(done.stdout + done.stderr)


def dex(framework: Framework, shell: Built, tool: str, out: Path, *options: object) -> tuple[Path, str]:
    """The app's own classes as a dex file, by D8 or R8, and what the tool said."""
    java_home = Path(shutil.which("javac") or "").resolve().parent.parent
    jars = []
    for folder in (shell.classes, shell.r_classes):
        jars.append(out / f"{folder.name}.jar")
        run("jar", "cf", jars[-1], "-C", folder, ".")
    beside = [part for path in (*shell.jars, shell.chaquopy, jep_jar()) for part in ("--classpath", path)]
    said = run(
        "java", "-XX:TieredStopAtLevel=1", "-cp", framework.r8, f"com.android.tools.r8.{tool}", "--release",
        "--min-api", setting("minSdk"), "--lib", framework.stubs, "--lib", java_home, *beside, "--output", out,
        *options, *jars,
    )  # fmt: skip
    return out / "classes.dex", said


@pytest.mark.slow
@needs_tools
def test_the_shell_becomes_a_signed_apk(framework: Framework, shell: Built, tmp_path: Path) -> None:
    """Linked with Material's resources, compiled against API 35, dexed, packaged, aligned, signed, verified."""
    classes, said = dex(framework, shell, "D8", tmp_path)
    assert said == ""
    package = Path(shutil.copy(shell.apk, tmp_path / "package.apk"))
    with zipfile.ZipFile(package, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.write(classes, "classes.dex")
    aligned, signed, keys = tmp_path / "aligned.apk", tmp_path / "signed.apk", tmp_path / "keys.p12"
    run("zipalign", "-p", "4", package, aligned)
    run("zipalign", "-c", "-p", "4", aligned)
    run(
        "keytool", "-genkeypair", "-keystore", keys, "-storetype", "PKCS12", "-storepass", "password", "-alias", "test",
        "-keyalg", "EC", "-dname", "CN=test", "-validity", "30",
    )  # fmt: skip
    run("apksigner", "sign", "--ks", keys, "--ks-pass", "pass:password", "--out", signed, aligned)
    said = run("apksigner", "verify", "--verbose", "--min-sdk-version", setting("minSdk"), signed)
    assert said.startswith("Verifies\n")
    assert "v2 scheme (APK Signature Scheme v2): true" in said
    with zipfile.ZipFile(signed, "a") as archive:
        archive.writestr("more", "")
    tampered = subprocess.run(["apksigner", "verify", str(signed)], capture_output=True, text=True)
    assert tampered.returncode != 0

    described = run(*aapt2_command(), "dump", "badging", aligned)
    assert "package: name='org.fedspzo.app'" in described
    assert f"sdkVersion:'{setting('minSdk')}'" in described
    assert f"targetSdkVersion:'{setting('targetSdk')}'" in described
    assert "launchable-activity: name='org.fedspzo.app.MainActivity'" in described
    permissions = set(re.findall(r"uses-permission: name='android\.permission\.(\w+)'", described))
    assert permissions == {
        "INTERNET", "ACCESS_NETWORK_STATE", "FOREGROUND_SERVICE", "FOREGROUND_SERVICE_DATA_SYNC", "POST_NOTIFICATIONS",
        "WAKE_LOCK", "RECEIVE_BOOT_COMPLETED",
    }  # fmt: skip


#: What Python asks of the app's own classes, which it finds by name.
PYTHON_REACHES = {
    "org.fedspzo.app.News": {"changed"},
    "org.fedspzo.app.Vault": {"seal", "open"},
    "org.fedspzo.app.Buffers": {"over"},
}


@pytest.mark.slow
@needs_tools
def test_r8_keeps_what_is_reached_by_name(framework: Framework, shell: Built, tmp_path: Path) -> None:
    """By Python and by the manifest; all else has other names, where it is there at all."""
    manifest = ElementTree.parse(shell.manifest).getroot()
    name = "{http://schemas.android.com/apk/res/android}name"
    declared = {e.get(name) for e in manifest.iter() if e.tag in ("activity", "service", "provider", "receiver")}
    # The stubs to compile against have members of hidden classes, which an SDK's have not.
    stubs = tmp_path / "stubs.pro"
    stubs.write_text("-dontwarn com.android.internal.**\n")
    rules = (shell.rules, PROJECT / "app/proguard-rules.pro", stubs)
    classes, _ = dex(framework, shell, "R8", tmp_path, *(part for file in rules for part in ("--pg-conf", file)))
    members = dex_members(classes.read_bytes())
    assert declared <= set(members)
    for reached, names in PYTHON_REACHES.items():
        assert names <= members[reached], reached
    assert not {"org.fedspzo.app.Text", "org.fedspzo.app.Host"} & set(members)


def test_python_reaches_no_other_class_of_the_app() -> None:
    python = "".join(file.read_text() for file in (MAIN / "python").rglob("*.py"))
    named = set(re.findall(r"org\.fedspzo\.app[. ]+(?:import )?(\w+)", python))
    assert named == {"Buffers"}, "besides the objects that Java hands over"
    handed = set(re.findall(r"new (\w+)\((?:this)?\)", (JAVA / "Host.java").read_text()))
    assert {name.rsplit(".", 1)[1] for name in PYTHON_REACHES} - named <= handed


def members(classes: Path) -> Iterator[tuple[str, str, int | None]]:
    """(class, member, arguments or None for a field) of Android's that the compiled classes refer to."""
    parents: dict[str, str] = {}
    own: set[tuple[str, str]] = set()
    found: set[tuple[str, str, int | None]] = set()
    for text in run("javap", "-v", "-p", *classes.rglob("*.class")).split("\nClassfile "):
        this, parent = (re.search(rf"{kind}_class: #\d+ +// ([\w/$]+)", text) for kind in ("this", "super"))
        assert this
        assert parent
        parents[this[1]] = parent[1]
        own |= {(this[1], name) for name in re.findall(r"^  [^#(\n]*?\b([\w$]+)(?:\(|;$)", text, re.MULTILINE)}
        for kind, owner, name, signature in re.findall(
            r"= (Method|InterfaceMethod|Field)ref +\S+ +// ([\w/$]+)\.\"?([\w<>$]+)\"?:(\S+)", text
        ):
            count = None if kind == "Field" else len(re.findall(r"\[*(?:L[^;]+;|[A-Z])", signature[1:].split(")")[0]))
            found.add((owner, name, count))
    for owner, name, count in found:
        while owner in parents and (owner, name) not in own:  # what the app's own classes inherit
            owner = parents[owner]
        if owner.startswith("android/"):
            yield owner, name, count


def stubs_folder() -> Path:
    """That of chaquopy-stubs-android."""
    spec = find_spec("android-stubs")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).parent


class Android36:
    """Android's classes at API 36, as the stubs of chaquopy-stubs-android describe them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: dict[str, dict[str, ast.ClassDef]] = {}

    def knows(self, name: str) -> bool:
        """Whether there is a class, by its name in Java's sources."""
        return self._class(self._path(name, "")) is not None

    def has(self, owner: str, name: str, count: int | None) -> bool:
        found = self._class(owner)
        if found is None:
            return False
        for statement in found.body:
            if isinstance(statement, ast.AnnAssign) and count is None and ast.unparse(statement.target) == name:
                return True
            if isinstance(statement, ast.FunctionDef) and statement.name == name.replace("<init>", "__init__"):
                arguments = statement.args
                static = any(ast.unparse(d) == "staticmethod" for d in statement.decorator_list)
                if len(arguments.posonlyargs + arguments.args) - (not static) + bool(arguments.vararg) == count:
                    return True
        package = owner.rsplit("/", 1)[0].replace("/", ".")
        bases = (re.sub(r"\[.*", "", ast.unparse(base)) for base in found.bases)
        return any(self.has(self._path(base, package), name, count) for base in bases)

    def _path(self, base: str, package: str) -> str:
        """A class as Java has it inside: ``android.app.Activity`` → ``android/app/Activity``."""
        parts = base.split(".") if base[0].islower() else [*package.split("."), *base.split(".")]
        first = next((i for i, part in enumerate(parts) if part[0].isupper()), len(parts))
        return "/".join([*parts[:first], "$".join(parts[first:])])

    def _class(self, owner: str) -> ast.ClassDef | None:
        package, _, names = owner.rpartition("/")
        if package not in self._modules:
            first, *rest = package.split("/")
            file = self._folder.joinpath(f"{first}-stubs", *rest, "__init__.pyi")
            body = ast.parse(file.read_text()).body if file.exists() else []
            self._modules[package] = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
        outer, *inner = names.split("$")
        found = self._modules[package].get(outer)
        for name in inner:
            found = next(
                (n for n in (found.body if found else []) if isinstance(n, ast.ClassDef) and n.name == name), None
            )
        return found


@pytest.mark.slow
@needs_tools
@pytest.mark.skipif(find_spec("android-stubs") is None, reason="chaquopy-stubs-android is not installed")
def test_all_that_java_calls_is_in_api_36(shell: Built) -> None:
    """Compiled against API 35, which is the newest that runs on a JVM here."""
    android = Android36(stubs_folder())
    used = set(members(shell.classes))
    assert ("android/content/Context", "startForegroundService", 1) in used
    assert len(used) > 100
    assert not {member for member in used if not android.has(*member)}
    assert not android.has("android/app/Activity", "finish", 3)
    assert not android.has("android/app/Activity", "launch", 0)


@pytest.mark.slow
@needs_tools
def test_python_sources_compile_for_the_embedded_version(sdk: None, tmp_path: Path) -> None:
    version = setting("version")
    for source in PYTHON_SOURCES:
        shutil.copy(source, tmp_path / f"{len(list(tmp_path.iterdir()))}-{source.name}")
    assert run(*python_command(), "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip() == version
    script = "import sys; [compile(open(f, 'rb').read(), f, 'exec', dont_inherit=True) for f in sys.argv[1:]]"
    run(*python_command(), "-W", "error", "-c", script, *sorted(tmp_path.iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("javac") is None, reason="no gcc or no JDK here")
def test_the_jni_function_gives_a_buffer_over_memory(sdk: None, tmp_path: Path) -> None:
    """In this machine's JVM: the C file and the Java class as they are."""
    java_home = Path(shutil.which("javac") or "").resolve().parent.parent
    include = java_home / "include"
    run(
        "gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{include}", f"-I{include}/linux",
        "-o", tmp_path / "libbuffers.so", MAIN / "cpp/buffers.c",
    )  # fmt: skip
    probe = tmp_path / "org/fedspzo/app/Probe.java"
    probe.parent.mkdir(parents=True)
    probe.write_text(
        "package org.fedspzo.app;\n"
        "import java.nio.ByteOrder;\n"
        "public class Probe {\n"
        "    public static void main(String[] arguments) throws Exception {\n"
        '        var field = Class.forName("sun.misc.Unsafe").getDeclaredField("theUnsafe");\n'
        "        field.setAccessible(true);\n"
        "        var unsafe = (sun.misc.Unsafe) field.get(null);\n"
        "        long address = unsafe.allocateMemory(12);\n"
        "        var floats = Buffers.over(address, 12).order(ByteOrder.nativeOrder()).asFloatBuffer();\n"
        "        floats.put(new float[] {1, 2, 3});\n"
        '        System.out.println(floats.isDirect() + " " + unsafe.getFloat(address + 8));\n'
        "    }\n"
        "}\n"
    )
    run("javac", "-d", tmp_path, probe, MAIN / "java/org/fedspzo/app/Buffers.java")
    said = run("java", f"-Djava.library.path={tmp_path}", "-cp", tmp_path, "org.fedspzo.app.Probe")
    assert said.endswith("true 3.0\n")
