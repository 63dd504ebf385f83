# SPDX-License-Identifier: Apache-2.0
"""kvcached._native.Client: opening, what it tells, closing."""

from __future__ import annotations

import pytest

from harness.broker import Daemon
from kvcached import _native


def test_opens(kvcached_environment: pytest.MonkeyPatch, daemon: Daemon) -> None:
    client = _native.Client(instance="a")
    region = client.open_region(64, 2 << 20)
    region.map([1])
    client.close()
