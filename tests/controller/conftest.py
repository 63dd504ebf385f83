# SPDX-License-Identifier: Apache-2.0
"""The controller is tested where it lies, in python/: it needs nothing that is built."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))


@pytest.fixture
def seed() -> int:
    """KVCACHED_TEST_SEED, else one of its own for each test; printed."""
    chosen = int(os.environ.get("KVCACHED_TEST_SEED") or random.randrange(1 << 32))
    print(f"KVCACHED_TEST_SEED={chosen}")
    return chosen
