# SPDX-License-Identifier: Apache-2.0
"""The examples do what their texts say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def run(site: Any, daemon: Any, name: str) -> list[str]:
    environment = site.environment(KVCACHED_SOCKET=str(daemon.socket), KVCACHED_PAGE_PREALLOC_ENABLED="false")
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_two_models(torch: Any, site: Any, daemon: Any) -> None:
    lines = run(site, daemon, "two_models.py")
    words = [line.split() for line in lines]
    grown = [int(line[2]) for line in words if line[1] == "grow:"]
    mapped = [int(line[4]) for line in words]
    assert len(grown) == 2
    assert grown[0] == grown[1] > 0
    assert all(megabytes > 512 for megabytes in mapped[::2])
    assert all(megabytes <= 16 for megabytes in mapped[1::2])


def test_memory_control(torch: Any, site: Any, daemon: Any) -> None:
    lines = run(site, daemon, "memory_control.py")
    assert lines[0] == "limit 64 MiB: deferred, 64 MiB over"
    assert lines[1] == "after freeing 600 blocks: applied, 64 MiB mapped"
    assert lines[2] == "1000 blocks more: None"
    assert lines[3] == "no limit: applied"
    assert lines[4].endswith(": 400 of 2047 blocks in 4 pages")


def test_manual_integration(torch: Any, site: Any, daemon: Any) -> None:
    lines = run(site, daemon, "manual_integration.py")
    assert lines[0] == "4 tensors of 33554432 elements, nothing mapped"
    assert lines[1] == "page 3 of each layer's K: [0, 1, 2, 3]"
    assert lines[2].startswith("mapped twice: ")
