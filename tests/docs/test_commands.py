# SPDX-License-Identifier: Apache-2.0
"""The commands of the manual: whoever types them gets what the pages say. A page joins by being listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.pages import Reader, read_blocks
from harness.stage import Desk

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["docs/QUICKSTART.md", "docs/TUTORIAL.md"]
READ_ONLY = ["docs/KUBERNETES.md"]  # of which nothing can be run here: the syntax is checked, and the reasons

pytestmark = pytest.mark.emulator


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, desk: Desk) -> None:
    reader = Reader(desk.folder, desk.environment)
    reader.follow(read_blocks((ROOT / page).read_text(), page))
    assert reader.ran > 0


@pytest.mark.parametrize("page", READ_ONLY)
def test_page_is_read(page: str, tmp_path: Path) -> None:
    blocks = read_blocks((ROOT / page).read_text(), page)
    reader = Reader(tmp_path, {})
    reader.follow(blocks)
    assert reader.ran == 0
    assert blocks


def test_files_that_commands_name() -> None:
    """What is not run names files that are there."""
    for page in PAGES + READ_ONLY:
        for block in read_blocks((ROOT / page).read_text(), page):
            for name in re.findall(r"(?:docs|packaging)/[\w/.-]+", block.text):
                assert (ROOT / name).exists(), f"{block.where()}: {name}"
