# SPDX-License-Identifier: Apache-2.0
"""What tests of the manual have: the product as it is installed, and a place to follow a page in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.stage import Desk, Stage, installed
from harness.stage import desk as make_desk


@pytest.fixture(scope="session")
def stage(build_dir: Path) -> Iterator[Stage]:
    with installed(build_dir) as stage:
        yield stage


@pytest.fixture
def desk(stage: Stage, build_dir: Path, tmp_run: Path) -> Iterator[Desk]:
    with make_desk(stage, build_dir, tmp_run) as desk:
        yield desk
