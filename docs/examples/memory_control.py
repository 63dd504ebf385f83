# SPDX-License-Identifier: Apache-2.0
"""Limits and counters from inside an engine. While it runs, "kvctl list" shows it, and "kvctl limit" takes
memory from it: then give() is called, and frees what it can spare."""

from __future__ import annotations

import torch

from kvcached import control, runtime
from kvcached.integration.vllm import interfaces as kvi

MIB = 1 << 20
BLOCK_SIZE, HEADS, HEAD_DIM, LAYERS, NUM_BLOCKS = 16, 8, 64, 4, 2048


class Engine:
    def __init__(self) -> None:
        cell = HEADS * HEAD_DIM * torch.float16.itemsize
        shape = (2, NUM_BLOCKS, BLOCK_SIZE, HEADS, HEAD_DIM)
        self.tensors = kvi.alloc_kv_cache(shape, BLOCK_SIZE, torch.float16, "cuda", LAYERS)
        self.manager = kvi.get_kv_cache_manager(NUM_BLOCKS, BLOCK_SIZE, cell, LAYERS)
        self.page_blocks = 2 * MIB // (BLOCK_SIZE * cell)
        self.blocks: list[int] = []

    def grow(self, n: int) -> None:
        self.blocks += self.manager.alloc(n) or []

    def shrink(self, n: int) -> None:
        """The youngest first, so that whole pages come free."""
        self.manager.free(self.blocks[-n:])
        del self.blocks[-n:]

    def give(self, n_bytes: int, deadline_ms: int) -> None:
        """Called by the library, on a thread of its own, when an administrator has lowered the limit."""
        pages = -(-n_bytes // self.manager.page_bytes)
        self.shrink(min(pages * self.page_blocks, len(self.blocks)))


def main() -> None:
    kvi.init_kvcached(device="cuda:0")
    engine = Engine()
    runtime.get().add_reclaimer(engine.give)
    engine.grow(1000)

    state = control.set_instance_memory_limit(64 * MIB, revision=1)
    print(f"limit 64 MiB: {state.status}, {state.overage_bytes // MIB} MiB over")
    engine.shrink(600)
    engine.manager.trim()
    state = control.instance_memory_limit_state()
    print(f"after freeing 600 blocks: {state.status}, {state.mapped_bytes // MIB} MiB mapped")
    print(f"1000 blocks more: {engine.manager.alloc(1000)}")
    state = control.set_instance_memory_limit(None, revision=2)
    print(f"no limit: {state.status}")

    pool = kvi.kv_cache_pool_snapshot()
    assert pool is not None
    print(f"{pool.instance}: {pool.used_blocks} of {pool.total_blocks} blocks in {pool.mapped_pages} pages")
    kvi.shutdown_kvcached()


if __name__ == "__main__":
    main()
