# SPDX-License-Identifier: Apache-2.0
"""KVCacheManagers for tests of the Python package, without torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kvcached import runtime
from kvcached.kv_cache_manager import KVCacheManager
from kvcached.layout import Layout

MIB = 1 << 20
BLOCK, CELL, LAYERS = 16, 1024, 4  # blocks of 16 KiB in each layer's K and V, 128 in a page
PAGE_BYTES = 2 * MIB * LAYERS * 2


def make(n_blocks: int = 1024, group_id: int = 0, **more: Any) -> KVCacheManager:
    """A manager with its region, in place of alloc_kv_cache(), which needs torch."""
    current = runtime.get()
    if current.pool(group_id) is None:
        layout = Layout(LAYERS, 2, BLOCK * CELL, 2 * MIB, True)
        current.open_pool(group_id, layout, layout.pages_for(n_blocks))
    return KVCacheManager(n_blocks, BLOCK, CELL, LAYERS, group_id=group_id, **more)


def used_bytes(kvctl: Any) -> int:
    return sum(row["used_bytes"] for row in kvctl("list", "--json").json())


def seconds_of(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start
