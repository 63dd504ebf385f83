# SPDX-License-Identifier: Apache-2.0
"""Two models share a GPU. Each has a KV cache as large as the whole GPU, of which it uses three quarters, one
after the other: neither could if the other had reserved its half."""

from __future__ import annotations

import os
import sys
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection

BLOCK_SIZE, HEADS, HEAD_DIM, LAYERS = 16, 8, 64, 4


def serve(name: str, scheduler: Connection) -> None:
    """A model: takes orders "grow", "shrink" and "end", and says how many bytes it has mapped."""
    os.environ["KVCACHED_IPC_NAME"] = name
    import torch

    from kvcached import runtime
    from kvcached.integration.vllm import interfaces as kvi

    kvi.init_kvcached(device="cuda:0")
    budget = runtime.get().client().status()["limit_bytes"]
    cell = HEADS * HEAD_DIM * torch.float16.itemsize
    num_blocks = budget // (BLOCK_SIZE * cell * LAYERS * 2)
    shape = (2, num_blocks, BLOCK_SIZE, HEADS, HEAD_DIM)
    tensors = kvi.alloc_kv_cache(shape, BLOCK_SIZE, torch.float16, "cuda", LAYERS)
    manager = kvi.get_kv_cache_manager(num_blocks, BLOCK_SIZE, cell, LAYERS)
    blocks: list[int] = []
    for order in iter(scheduler.recv, "end"):
        if order == "grow":
            blocks = manager.alloc(num_blocks * 3 // 4) or []  # None: there is not so much now
            for tensor in tensors if blocks else []:
                tensor[:, blocks[-1]] = 1
        else:
            manager.free(blocks)
            manager.trim()
        scheduler.send((len(blocks) if order == "grow" else 0, manager.get_mapped_memory_size("mb")))
    kvi.shutdown_kvcached()


def main() -> int:
    context = get_context("spawn")
    models = {}
    for name in ("first", "second"):
        ours, theirs = Pipe()
        models[name] = ours, context.Process(target=serve, args=(name, theirs))
        models[name][1].start()
    complete = True
    for name, order in (("first", "grow"), ("first", "shrink"), ("second", "grow"), ("second", "shrink")):
        models[name][0].send(order)
        blocks, megabytes = models[name][0].recv()
        print(f"{name}: {order}: {blocks} blocks, {megabytes:.0f} MiB mapped")
        complete = complete and (order == "shrink" or blocks > 0)
    for pipe, process in models.values():
        pipe.send("end")
        process.join()
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
