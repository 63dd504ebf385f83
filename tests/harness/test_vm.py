# SPDX-License-Identifier: Apache-2.0
"""Where no virtual machine can be, its tests are skipped, and say why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_without_tools(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": "/nowhere"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_they_are_skipped() -> None:
    done = run_without_tools("-m", "pytest", "tests/vm")
    assert done.returncode == 0, done.stdout
    assert "not on this machine: qemu-system-x86_64, mmdebstrap" in done.stdout
    assert re.fullmatch(r"=+ \d+ skipped in .*", done.stdout.splitlines()[-1])


def test_the_image_is_not_made() -> None:
    done = run_without_tools("tests/vm/image.py")
    assert done.returncode == 1
    assert done.stdout.startswith("No virtual machine: not on this machine: qemu-system-x86_64")
