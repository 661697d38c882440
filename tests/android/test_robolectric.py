"""The app's JUnit tests on Android's own framework, as ``make test-android`` runs them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from android_framework import ROOT, NoFramework, find_framework
from android_sdk import missing_tools


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}")
def test_the_app_on_androids_framework() -> None:
    try:
        find_framework()
    except NoFramework as error:
        pytest.skip(str(error))
    command = [sys.executable, ROOT / "tests" / "support" / "android_robolectric.py"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
