# SPDX-License-Identifier: Apache-2.0
"""The parts of the manual that need torch: with it, the whole page works."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.pages import Reader, read_blocks
from harness.stage import ROOT, desk, installed


@pytest.mark.parametrize("page", ["docs/TUTORIAL.md", "docs/examples/README.md"])
def test_page(torch: Any, build_dir: Path, tmp_run: Path, page: str) -> None:
    blocks = read_blocks((ROOT / page).read_text(), page)
    with installed(build_dir) as stage, desk(stage, build_dir, tmp_run) as place:
        path = f"{Path(sys.executable).parent}:{place.environment['PATH']}"
        environment = {**place.environment, "PATH": path, "PYTHONWARNINGS": "ignore"}  # torch misses numpy
        reader = Reader(place.folder, environment, has=("torch",))
        reader.follow(blocks)
    assert reader.ran == sum(block.language == "sh" and block.mark != "not run" for block in blocks)
