# SPDX-License-Identifier: Apache-2.0
"""The commands of the manual: whoever types them gets what the pages say. A page joins by being listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.pages import Reader, read_blocks
from harness.stage import Desk

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["docs/QUICKSTART.md", "docs/TUTORIAL.md"]

pytestmark = pytest.mark.emulator


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, desk: Desk) -> None:
    reader = Reader(desk.folder, desk.environment)
    reader.follow(read_blocks((ROOT / page).read_text(), page))
    assert reader.ran > 0
