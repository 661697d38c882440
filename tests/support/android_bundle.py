"""What the app's JUnit tests import: a small model's bundle and examples, made once for each state of the exporter.

``python tests/support/android_bundle.py`` prints their folder: ``bundle/``, ``bundle.zip``, ``server/`` (the state of
the server that the bundle names), ``examples.jsonl``.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from android_sdk import CACHE, rename_unless_there  # noqa: E402

_SOURCES = ("export", "device_runtime/model", "device_runtime/engines", "tests/support/tiny.py", "constraints.txt")


def small_bundle() -> Path:
    """The folder."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        place = HERE.parents[1] / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    target = CACHE / f"bundle-{digest.hexdigest()[:12]}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            folder = Path(made) / "all"
            _make(folder, Path(made) / "model")
            rename_unless_there(folder, target)
    return target


def _make(folder: Path, model: Path) -> None:
    from tiny import BATCH, LENGTH, TASK, make_checkpoint, write_requests

    from fedspzo.broker.server.state_folder import pin_bundle
    from fedspzo.export.network.target import Target
    from fedspzo.export.pipeline import export_bundle

    folder.mkdir()
    export_bundle(
        str(make_checkpoint(model)), {TASK.form: TASK}, Target(["litert"], [BATCH], [LENGTH]), folder / "bundle"
    )
    pin_bundle(folder / "bundle", folder / "server")
    shutil.make_archive(str(folder / "bundle"), "zip", folder / "bundle")
    write_requests(folder / "examples.jsonl", 12)


if __name__ == "__main__":
    print(small_bundle())
