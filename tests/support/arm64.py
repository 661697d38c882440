"""A 64-bit ARM board without the board: qemu's user mode over Debian's own Python and the wheels of the index.

What is not this project's is unpacked once into a cache (``$XDG_CACHE_HOME/fedspzo`` or ``~/.cache/fedspzo``) and kept
until its list or constraints.txt changes. apt brings Debian's packages from the mirror that this machine uses, in
folders of its own, and checks them; nothing is installed here, and no right is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONSTRAINTS = REPOSITORY / "constraints.txt"
DEVICE = REPOSITORY / "deploy" / "device-litert.txt"
EMULATOR, COMPILER, CXX_COMPILER = "qemu-aarch64-static", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TOOLS = (EMULATOR, COMPILER, CXX_COMPILER, "apt-get", "dpkg-deb")
_SUITE, _PACKAGES = "bookworm", ("python3.11", "libstdc++6", "libgomp1")
#: For the suite, and ExecuTorch's libraries, of which the engine needs no dependency.
_TEST_WHEELS = ("pytest", "pytest-timeout", "hypothesis", "psutil", "safetensors")
#: Libraries of LiteRT's wheel that no device loads; docs/embedded-linux.md says how to delete them.
UNLOADED = ("libLiteRtWebGpuAccelerator.so", "libpywrap_litert_common.so")
#: LiteRT asks which processor it runs on, and would read this machine's file.
_CPUINFO = {
    "processor": "0",
    "Features": "fp asimd crc32 cpuid",
    "CPU implementer": "0x41",
    "CPU architecture": "8",
    "CPU part": "0xd08",
}


@dataclass(frozen=True)
class Board:
    """An emulated board.

    Attributes:
        python: runs the board's Python; a script of this machine's.
        wheel: this checkout's, for the board.
        device: folders with all that a device has installed besides Python.
        downloads: bytes that were fetched for it, by kind.
    """

    python: Path
    wheel: Path
    device: tuple[Path, ...]
    downloads: dict[str, int]


def missing() -> str:
    """Why there can be no board here, in one sentence; empty if there can."""
    absent = [tool for tool in _TOOLS if not shutil.which(tool)] + [str(_KEYRING)] * (not _KEYRING.exists())
    return f"an emulated ARM board needs {', '.join(absent)}: see docs/embedded-linux.md" if absent else ""


def make_board(folder: Path) -> Board:
    """A board in a new folder, with this checkout's package built for it."""
    wheel = build_wheel(folder / "dist")
    root, sites = _third_party()
    own = folder / "site"
    install(own, wheel)
    # ExecuTorch's interface is compiled on the board: by this machine's compiler for it.
    (folder / "bin").mkdir()
    (folder / "bin" / "c++").symlink_to(str(shutil.which(CXX_COMPILER)))
    python = folder / "bin" / "python"
    python.write_text(
        "#!/bin/sh\n"
        f"export PATH={folder / 'bin'}:$PATH PYTHONPATH={':'.join(map(str, [own, *sites]))} PYTHONSAFEPATH=1\n"
        f"export XDG_CACHE_HOME={folder / 'cache'}\n"
        f'exec {EMULATOR} -L {root} -cpu cortex-a72 {root}/usr/bin/python3.11 "$@"\n'
    )
    python.chmod(0o755)
    return Board(python, wheel, (own, sites[0]), json.loads((root.parent / "downloads.json").read_text()))


def build_wheel(folder: Path) -> Path:
    """This checkout's wheel for 64-bit ARM Linux, with the direction kernel compiled; as ``make wheel-arm64`` does."""
    environment = {**os.environ, "CC": COMPILER, "_PYTHON_HOST_PLATFORM": "linux-aarch64"}
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, REPOSITORY, env=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def platform_options(python: str = "3.11") -> list[str]:
    """Has pip choose wheels, and wheels alone, for a Debian 12 or newer on 64-bit ARM."""
    names = ("linux", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 37)))
    platforms = [f"--platform={name}_aarch64" for name in names]
    return [*platforms, f"--python-version={python}", "--implementation=cp", "--only-binary=:all:", f"-c{CONSTRAINTS}"]


def download(folder: Path, *wanted: object) -> list[Path]:
    """Fetch wheels for the board."""
    _run(sys.executable, "-m", "pip", "download", "--quiet", *platform_options(), "-d", folder, *wanted)
    return sorted(folder.iterdir())


def resolve(wanted: str, python: str) -> list[str]:
    """The files that pip would install on a board with that version of Python."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--quiet", "--dry-run", "--ignore-installed", "--target", folder, *platform_options(python))
        report = _run(sys.executable, "-m", "pip", "install", *options, "--report", "-", wanted)
    return [item["download_info"]["url"].rsplit("/", 1)[1] for item in json.loads(report)["install"]]


def install(folder: Path, *wheels: Path) -> None:
    """Unpack wheels as a board's pip does, and nothing else."""
    options = ("--quiet", "--no-deps", "--target", folder, *platform_options())
    _run(sys.executable, "-m", "pip", "install", *options, *wheels)


def _third_party() -> tuple[Path, list[Path]]:
    """Debian's root and the folders of wheels; fetched if the cache does not have them."""
    key = sha256(Path(__file__).read_bytes() + CONSTRAINTS.read_bytes() + DEVICE.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedspzo"
    board = cache / f"arm64-{key}"
    if not board.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            partial = Path(temporary, "board")
            downloads = {"debian": _unpack_debian(Path(temporary), partial / "root")}
            wanted = {
                "device": ["--no-deps", "-r", DEVICE],
                "suite": _TEST_WHEELS,
                "executorch": ["--no-deps", "executorch"],
            }
            for name, names in wanted.items():
                fetched = download(Path(temporary, name), *names)
                install(partial / name, *fetched)
                for library in UNLOADED:
                    (partial / name / "ai_edge_litert" / library).unlink(missing_ok=True)
                downloads[name] = sum(file.stat().st_size for file in fetched)
            (partial / "downloads.json").write_text(json.dumps(downloads))
            try:
                partial.rename(board)
            except OSError:  # another process was quicker
                assert board.exists()
    return board / "root", [board / name for name in ("device", "suite", "executorch")]


def _unpack_debian(temporary: Path, root: Path) -> int:
    folder = temporary / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {_SUITE} main\n")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": folder / "none",
        "Dir::Etc::preferencesparts": folder / "none",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    said = _run("apt-get", *options, "update")
    said += _run("apt-get", *options, "install", "-y", "--no-install-recommends", "--download-only", *_PACKAGES)
    (root / "proc").mkdir(parents=True)
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        _run("dpkg-deb", "-x", package, root)
    (root / "proc" / "cpuinfo").write_text("".join(f"{name}\t: {value}\n" for name, value in _CPUINFO.items()))
    units = {"": 1, "k": 1_000, "M": 1_000_000}
    fetched = re.findall(r"^Fetched ([\d.,]+) (k|M|)B", said, re.MULTILINE)
    return round(sum(float(number.replace(",", "")) * units[unit] for number, unit in fetched))


def _mirror() -> str:
    """Where this machine gets Debian from; Debian's own servers if it is not a Debian."""
    indexes = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=False
    ).stdout.split()
    return next((uri for uri in indexes if uri.rstrip("/").endswith("/debian")), "http://deb.debian.org/debian")


def _run(*command: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=env or {**os.environ, "LC_ALL": "C"}
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:4]))} … failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout
