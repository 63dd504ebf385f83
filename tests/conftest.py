# SPDX-License-Identifier: Apache-2.0
"""What every Python test gets: the build that it tests, and a place of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def build_dir() -> Path:
    """The build whose programs are tested: $KVCACHED_BUILD_DIR, else build/."""
    folder = Path(os.environ.get("KVCACHED_BUILD_DIR", ROOT / "build")).resolve()
    if not (folder / "build.ninja").exists():
        pytest.fail(f"{folder} is no build folder; ./dev build makes one")
    return folder


@pytest.fixture
def tmp_run() -> Iterator[Path]:
    """A folder that is gone afterwards, with a path short enough for sockets (108 bytes with their name)."""
    folder = Path(tempfile.mkdtemp(prefix="kvc-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("KVCACHED_TEST_DRIVER") != "gpu":
        return
    skip = pytest.mark.skip(reason="looks into the emulated driver, and this run is on a GPU")
    for item in items:
        if item.get_closest_marker("emulator"):
            item.add_marker(skip)
