"""The app's Java shell, built without Gradle: resources linked with its libraries', R classes, compiled Java."""

from __future__ import annotations

import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from android_framework import ROOT, Framework
from android_jep import jep_jar
from android_sdk import aapt2_command, rename_unless_there

PROJECT = ROOT / "android_demo"
MAIN = PROJECT / "app" / "src" / "main"
TEST = MAIN.with_name("test")
RULES = "manifest-rules.pro"
_STRICT = ("--release", "8", "-Xlint:all,-options,-processing,-classfile")


class BuildError(Exception):
    """A tool refused; what it said."""


@dataclass(frozen=True)
class Library:
    """An Android library: its package, names of its resources by type, and what there is of it.

    Attributes:
        symbols: lines of its ``R.txt`` without values: ``int attr colorPrimary``.
        resources: compiled by aapt2, or None where it has none.
    """

    package: str
    symbols: tuple[str, ...]
    classes: Path
    resources: Path | None


@dataclass(frozen=True)
class Built:
    """What came of it.

    Attributes:
        apk: resources and manifest, linked.
        manifest: as aapt2 took it, with the package.
        rules: for R8, to keep what manifest and layouts name.
        classes: folder of the app's own classes.
        r_classes: folder of all R classes.
        chaquopy: folder of the classes that stand for Chaquopy's.
        jars: the libraries' classes.
    """

    apk: Path
    manifest: Path
    rules: Path
    classes: Path
    r_classes: Path
    chaquopy: Path
    jars: tuple[Path, ...]


def run(*command: object) -> str:
    """What a tool said. Raises BuildError when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def setting(name: str) -> str:
    """A number or text that is given once in the module's build file."""
    (found,) = re.findall(rf"\b{name} = \"?([\w.]+)\"?", (PROJECT / "app/build.gradle.kts").read_text())
    return str(found)


def build(framework: Framework, out: Path) -> Built:
    """Build the shell into an empty folder. Raises BuildError, also where javac warns of something."""
    libraries, jars = unpack_libraries(framework)
    apk, manifest, symbols = link(framework, libraries, out)
    generated = out / "generated"
    write_r(generated, setting("namespace"), own_symbols(MAIN / "res"), symbols)
    for library in libraries:
        if library.symbols:
            write_r(generated, library.package, set(library.symbols), symbols)
    r_classes, chaquopy, classes = out / "r", out / "chaquopy", out / "classes"
    compile_java(generated.rglob("*.java"), r_classes, [])
    compile_java((TEST / "java/com/chaquo").rglob("*.java"), chaquopy, [framework.stubs, jep_jar()])
    jars = (*jars, *(library.classes for library in libraries))
    said = compile_java((MAIN / "java").rglob("*.java"), classes, [framework.stubs, r_classes, chaquopy, *jars])
    if said:
        raise BuildError(f"the app's Java compiles with warnings:\n{said}")
    return Built(apk, manifest, out / RULES, classes, r_classes, chaquopy, jars)


def unpack_libraries(framework: Framework) -> tuple[list[Library], tuple[Path, ...]]:
    """Archives of Android, unpacked and their resources compiled once into the cache, and the plain jars."""
    unpacked = framework.folder.with_name(f"{framework.folder.name}-libraries")
    if not unpacked.exists():
        with tempfile.TemporaryDirectory(dir=unpacked.parent) as made:
            for archive in framework.libraries:
                if archive.suffix == ".aar":
                    folder = Path(made) / "all" / archive.stem
                    with zipfile.ZipFile(archive) as file:
                        file.extractall(folder)
                    if any((folder / "res").rglob("*.*")):
                        run(*aapt2_command(), "compile", "--dir", folder / "res", "-o", folder / "compiled.zip")
            rename_unless_there(Path(made) / "all", unpacked)
    found = [_library(folder) for folder in sorted(unpacked.iterdir())]
    return found, tuple(file for file in framework.libraries if file.suffix == ".jar")


def _library(folder: Path) -> Library:
    package = ElementTree.parse(folder / "AndroidManifest.xml").getroot().get("package")
    assert package
    lines = (folder / "R.txt").read_text().splitlines()
    compiled = folder / "compiled.zip"
    symbols = tuple(" ".join(line.split()[:3]) for line in lines)
    return Library(package, symbols, folder / "classes.jar", compiled if compiled.exists() else None)


def link(framework: Framework, libraries: Iterable[Library], out: Path) -> tuple[Path, Path, dict[str, str]]:
    """The linked package, the manifest, and the value of each symbol: ``int attr colorPrimary`` → ``0x7f030108``."""
    manifest, apk, own, symbols = (out / name for name in ("AndroidManifest.xml", "linked.apk", "app.zip", "R.txt"))
    # Gradle's plugin puts the namespace there; a manifest of its project must not have it.
    package = f'<manifest package="{setting("namespace")}" '
    manifest.write_text((MAIN / "AndroidManifest.xml").read_text().replace("<manifest ", package, 1))
    run(*aapt2_command(), "compile", "--dir", MAIN / "res", "-o", own)
    compiled = [*(library.resources for library in libraries if library.resources), own]
    said = run(
        *aapt2_command(), "link", "-I", framework.resources, "--manifest", manifest, "--auto-add-overlay",
        "--min-sdk-version", setting("minSdk"), "--target-sdk-version", setting("targetSdk"),
        "--version-code", setting("versionCode"), "--version-name", setting("versionName"),
        "--output-text-symbols", symbols, "--proguard", out / RULES, "-o", apk,
        *(part for file in compiled for part in ("-R", file)),
    )  # fmt: skip
    if re.findall("error|warn", said.replace("aapt2 W", "")):
        raise BuildError(said)
    lines = (line.split(maxsplit=3) for line in symbols.read_text().splitlines())
    return apk, manifest, {" ".join(parts): value for *parts, value in lines}


def own_symbols(res: Path) -> set[str]:
    """What the app's own R class has: names that its resources give, as ``int string app_name``."""
    found = set()
    for file in res.rglob("*.*"):
        kind = file.parent.name.split("-")[0]
        if kind != "values":
            found.add((kind, file.stem))
        elif file.suffix == ".xml":
            for entry in ElementTree.parse(file).getroot():
                kind = entry.get("type") or entry.tag
                found.add(("array" if kind.endswith("-array") else kind, entry.get("name", "").replace(".", "_")))
        if file.suffix == ".xml":
            found |= {("id", name) for name in re.findall(r"@\+id/(\w+)", file.read_text(encoding="utf-8"))}
    return {f"int {kind} {name}" for kind, name in found}


def write_r(folder: Path, package: str, wanted: set[str], values: dict[str, str]) -> None:
    """A library's R class, with its own names alone, as Gradle makes it with ``android.nonTransitiveRClass``."""
    kinds: dict[str, list[str]] = {}
    for symbol in sorted(wanted & set(values)):
        java_type, kind, name = symbol.split()
        kinds.setdefault(kind, []).append(f"public static final {java_type} {name} = {values[symbol]};")
    body = "\n".join(
        f"public static final class {kind} {{\n" + "\n".join(lines) + "\n}" for kind, lines in kinds.items()
    )
    file = folder / package.replace(".", "/") / "R.java"
    file.parent.mkdir(parents=True)
    file.write_text(f"package {package};\npublic final class R {{\n{body}\n}}\n")


def compile_java(sources: Iterable[Path], out: Path, class_path: Iterable[Path], *options: str) -> str:
    """Compile for Java 8, as the app's Gradle does; what javac warned of. Raises BuildError."""
    out.mkdir(exist_ok=True)
    return run(
        "javac", "-encoding", "UTF-8", "-proc:none", *(options or _STRICT),
        "-cp", ":".join(map(str, class_path)) or out, "-d", out, *sorted(sources),
    )  # fmt: skip
