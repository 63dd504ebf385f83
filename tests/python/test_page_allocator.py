# SPDX-License-Identifier: Apache-2.0
"""PageAllocator without torch: whom it tells of its pages, and when."""

from __future__ import annotations

from typing import Any

from kvcached import runtime, vmm_ops
from kvcached.layout import Layout

PAGE = 2 << 20
LAYERS = 2
COMPOUND = PAGE * LAYERS * 2  # of all layers together


def test_callbacks(kvcached_environment: Any) -> None:
    """After a page was mapped; before pages are unmapped, while their owner may still use them."""
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "false")
    vmm_ops.init_kvcached("cuda:0", contiguous_layout=True)
    runtime.get().open_pool(0, Layout(LAYERS, 2, PAGE, PAGE, True), 4)
    pages = vmm_ops.PageAllocator(LAYERS, 4 * PAGE, PAGE, contiguous_layout=True)
    told: list[tuple[str, list[int], int]] = []
    pages.set_broadcast_map_callback(
        lambda offsets: told.append(("mapped", list(offsets), pages.get_num_inuse_pages()))
    )
    pages.set_broadcast_unmap_callback(
        lambda offsets: told.append(("to unmap", list(offsets), pages.get_num_inuse_pages()))
    )
    assert [pages.alloc_page().page_id for _ in range(2)] == [0, 1]
    pages.free_pages([1, 0])
    assert told == [("mapped", [0], 1), ("mapped", [COMPOUND], 2), ("to unmap", [COMPOUND, 0], 2)]
    pages.close()
