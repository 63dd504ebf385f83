# SPDX-License-Identifier: Apache-2.0
"""What deciding needs to be loaded: neither the extension nor anything that reaches outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tree import PURE_PYTHON

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", PURE_PYTHON)
def test_loads_little(path: str) -> None:
    name = path.removeprefix("python/").removesuffix(".py").replace("/", ".")
    program = f"import sys, json, {name}; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(done.stdout))
    assert name in loaded
    assert not loaded & {
        "kvcached._native",
        "kvcached.runtime",
        "asyncio",
        "aiohttp",
        "socket",
        "prometheus_client",
    }
