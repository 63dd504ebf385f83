# SPDX-License-Identifier: Apache-2.0
"""PageAllocator without torch: whom it tells of its pages, and when."""

from __future__ import annotations

from typing import Any

import pytest

from harness.broker import eventually
from kvcached import KVCachedConfigError, runtime, vmm_ops
from kvcached.layout import Layout

PAGE = 2 << 20
LAYERS = 2
COMPOUND = PAGE * LAYERS * 2  # of all layers together


@pytest.fixture
def tensors(kvcached_environment: Any) -> Any:
    """Four pages' worth."""
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "false")
    kvcached_environment.setenv("KVCACHED_IPC_NAME", "pages")
    vmm_ops.init_kvcached("cuda:0")
    return runtime.get().open_pool(0, Layout(LAYERS, 2, PAGE, PAGE, True), 4)


def test_callbacks(tensors: Any) -> None:
    """After a page was mapped; before pages are unmapped, while their owner may still use them."""
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


def test_nobody_is_told_of_pages_that_stay(tensors: Any) -> None:
    pages = vmm_ops.PageAllocator(LAYERS, 4 * PAGE, PAGE)
    told: list[list[int]] = []
    pages.set_broadcast_unmap_callback(lambda offsets: told.append(list(offsets)))
    taken = [pages.alloc_page().page_id for _ in range(2)]
    for wrong in ([3], [0, 0], [0, 3], [9]):
        with pytest.raises(ValueError, match=r"."):
            pages.free_pages(wrong)
    assert told == []
    assert pages.get_num_inuse_pages() == 2
    pages.free_pages(page for page in taken)
    assert told == [[0, COMPOUND]]
    assert pages.get_num_inuse_pages() == 0
    pages.close()


def test_a_callback_that_fails_costs_no_page(tensors: Any) -> None:
    pages = vmm_ops.PageAllocator(LAYERS, 4 * PAGE, PAGE)

    def fail(offsets: Any) -> None:
        raise KeyError(offsets[0])

    pages.set_broadcast_map_callback(fail)
    with pytest.raises(KeyError):
        pages.alloc_page()
    assert pages.get_num_inuse_pages() == 0
    pages.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((LAYERS, 4 * PAGE, 0), "page_size is 0, and must be at least 1"),
        ((LAYERS, PAGE - 1, PAGE), f"mem_size_per_layer is {PAGE - 1}, and must be at least {PAGE}"),
        ((LAYERS, -PAGE, PAGE), "mem_size_per_layer is"),
        ((0, 4 * PAGE, PAGE), "num_layers is 0"),
    ],
)
def test_no_sizes(tensors: Any, arguments: Any, text: str) -> None:
    with pytest.raises(KVCachedConfigError, match=text):
        vmm_ops.PageAllocator(*arguments)


def test_pages_that_are_not_the_tensors(tensors: Any) -> None:
    for arguments, options in (
        ((LAYERS, 4 * PAGE, 2 * PAGE), {}),
        ((7, 4 * PAGE, PAGE), {}),
        ((LAYERS, 4 * PAGE, PAGE), {"num_kv_buffers": 1}),
        ((LAYERS, 4 * PAGE, PAGE), {"contiguous_layout": False}),
    ):
        pages = vmm_ops.PageAllocator(*arguments, **options)
        with pytest.raises(KVCachedConfigError, match="are not the pages of group 0, of 8388608 bytes in 1"):
            pages.alloc_page()


def test_resize_targets(tensors: Any, kvctl: Any) -> None:
    pages = vmm_ops.PageAllocator(LAYERS, 4 * PAGE, PAGE)
    assert pages.get_resize_target() == -1
    assert pages.check_and_get_resize_target(3 * PAGE) == 4 * PAGE
    kvctl("limit", "pages", str(3 * COMPOUND))
    eventually(lambda: pages.get_resize_target() == 3 * PAGE)
    assert pages.check_and_get_resize_target(3 * PAGE) == -1
    pages.set_use_worker_ipc(True)
    pages.close()


def test_blocks_of_a_page() -> None:
    page = vmm_ops.InternalPage(0, PAGE)
    page.init(PAGE // 4)
    with pytest.raises(KVCachedConfigError, match="num_blocks is -3"):
        page.alloc(-3)
    blocks = page.alloc(3)
    page.free_batch(block for block in blocks)
    assert page.empty()
