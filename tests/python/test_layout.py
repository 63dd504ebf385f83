# SPDX-License-Identifier: Apache-2.0
"""Where what lies, with exact numbers."""

from __future__ import annotations

import pytest

from kvcached import KVCachedConfigError
from kvcached.control import split
from kvcached.layout import Layout, row_major

MIB = 1 << 20


def test_contiguous() -> None:
    layout = Layout(3, 2, 16384, 2 * MIB, True)
    assert (layout.segments, layout.segment_page_bytes, layout.segment_block_bytes) == (1, 12 * MIB, 98304)
    assert layout.strides(0) == (32768, 16384, 98304)


def test_per_layer() -> None:
    layout = Layout(3, 2, 16384, 2 * MIB, False)
    assert (layout.segments, layout.segment_page_bytes, layout.segment_block_bytes) == (6, 2 * MIB, 16384)
    assert layout.strides(8 * MIB) == (16 * MIB, 8 * MIB, 16384)


@pytest.mark.parametrize(("blocks", "pages"), [(0, 1), (1, 1), (128, 1), (129, 2), (1000, 8)])
def test_pages_for(blocks: int, pages: int) -> None:
    assert Layout(1, 2, 16384, 2 * MIB, True).pages_for(blocks) == pages


def test_block_range() -> None:
    layout = Layout(1, 1, 576 * 32, 2 * MIB, True)
    ranges = [range(113), range(114, 227), range(228, 341)]
    assert [layout.block_range(page) for page in range(3)] == ranges
    assert Layout(3, 2, 16384, 2 * MIB, True).block_range(2) == range(256, 384)


@pytest.mark.parametrize(("block", "megabytes"), [(2 * MIB + 1, 4), (4 * MIB, 4), (5 * MIB, 6)])
def test_large_blocks_say_which_page_would_do(block: int, megabytes: int) -> None:
    with pytest.raises(KVCachedConfigError, match=f"KVCACHED_PAGE_SIZE_MB={megabytes} "):
        Layout(1, 2, block, 2 * MIB, True)
    Layout(1, 2, block, megabytes * MIB, True)


@pytest.mark.parametrize("field", ["layers", "kv_buffers", "block_bytes"])
def test_zero(field: str) -> None:
    arguments = {"layers": 1, "kv_buffers": 1, "block_bytes": 1, "page_bytes": 1, "contiguous": True}
    with pytest.raises(KVCachedConfigError, match=f"{field} is 0"):
        Layout(**{**arguments, field: 0})  # type: ignore[arg-type]


def test_row_major() -> None:
    assert row_major([2, 3, 4]) == [12, 4, 1]
    assert row_major([]) == []


@pytest.mark.parametrize(
    ("limit", "capacities", "shares"),
    [
        (100, [50, 50], [50, 50]),
        (101, [100, 100], [51, 50]),
        (10, [100, 300], [3, 7]),
        (1000, [100, 300], [100, 300]),
        (0, [1, 2], [0, 0]),
        (5, [0, 0], [0, 0]),
    ],
)
def test_split(limit: int, capacities: list[int], shares: list[int]) -> None:
    assert split(limit, capacities) == shares
