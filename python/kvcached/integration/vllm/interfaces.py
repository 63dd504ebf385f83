# SPDX-License-Identifier: Apache-2.0
"""What vLLM needs of kvcached.

init_kvcached(tp_rank=0, tp_size=1, is_worker=True, device="cuda:0")
tensors = alloc_kv_cache((2, num_blocks, 16, 8, 128), 16, torch.float16, "cuda", num_layers=32)
manager = get_kv_cache_manager(num_blocks, 16, 8 * 128 * 2, 32)
blocks = manager.alloc(4)
manager.free(blocks)
shutdown_kvcached()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvcached import runtime
from kvcached.integration import caches
from kvcached.integration.managers import Managers
from kvcached.kv_cache_manager import KVCacheManager

if TYPE_CHECKING:
    import torch

ENGINE = "vLLM"
_managers = Managers(ENGINE)


def init_kvcached(
    tp_rank: int = 0,
    world_size: int = 1,
    pp_rank: int = 0,
    is_worker: bool = False,
    device: Any = None,
    async_sched: bool = False,
    *,
    tp_size: int | None = None,
    pp_size: int = 1,
    separate: bool | None = None,
) -> None:
    """Connects to kvcachedd. Again in the same process: does nothing.

    tp_rank, world_size (or tp_size), pp_rank, pp_size: which worker this is, and of how many; of a scheduler
    (is_worker false) only the numbers count. device: "cuda:0", a torch.device, an ordinal. separate:
    scheduler and workers are different processes; by default they are when there are several workers.
    async_sched: accepted; what is freed while a step runs is the caller's to free when the step has ended.
    """
    size = tp_size or world_size
    runtime.init(
        runtime.Role(
            engine=ENGINE,
            tp_rank=tp_rank,
            world_size=size,
            pp_rank=pp_rank,
            pp_size=max(pp_size, pp_rank + 1),
            is_worker=is_worker,
            separate=size * max(pp_size, pp_rank + 1) > 1 if separate is None else separate,
            device=runtime.device_index(device),
        )
    )


def get_world_size() -> int:
    return runtime.get().role.world_size


def should_use_worker_ipc() -> bool:
    """Whether blocks are mapped by workers in other processes."""
    return runtime.get().role.separate


def alloc_kv_cache(
    kvcache_shape: Sequence[int],
    block_size: int,
    dtype: torch.dtype,
    device: Any,
    num_layers: int,
    attention_type: str = "MHA",
    kv_layout: str = "NHD",
    group_id: int = 0,
    kernel_block_size: int | None = None,
    return_meta: bool = False,
    *,
    holes: str | None = None,
) -> Any:
    """One tensor of `kvcache_shape` for each layer, without memory behind it.

    kvcache_shape: (2, N, B, H, D) or (N, 2, B, H, D), of N blocks of B tokens, or (N, B, D) with
    attention_type "MLA". Their last dimensions lie without gaps; strides between layers, K and V, and blocks
    are those of the layout in use (KVCACHED_CONTIGUOUS_LAYOUT). kernel_block_size: of what the attention
    kernel calls a block, where the shape counts those; block_size is what the scheduler hands out, a multiple
    of it. holes: what reading what is not mapped does, "fault" or "zero"; default KVCACHED_HOLES, else fault.
    return_meta: also a dict with block_bytes, page_bytes, contiguous and kv_buffers.
    """
    runtime.get()
    caches.check(attention_type, kv_layout)
    shape = list(kvcache_shape)
    axes = caches.find_axes(shape, attention_type)
    blocks_at, buffers_at = axes
    kernel_block_size = kernel_block_size or block_size
    if block_size % kernel_block_size:
        raise ValueError(
            f"A block of {block_size} tokens is not made of kernel blocks of {kernel_block_size}"
        )
    per_block = block_size // kernel_block_size
    buffers = 1 if buffers_at is None else 2
    pool = caches.open_pool(
        device,
        num_layers,
        buffers,
        shape[blocks_at] // per_block,
        caches.block_bytes(shape, axes, dtype) * per_block,
        group_id,
        holes,
    )
    tensors = caches.views(pool, dtype, shape, axes)
    if not return_meta:
        return tensors
    meta = {
        "block_bytes": pool.layout.block_bytes,
        "page_bytes": pool.layout.page_bytes,
        "contiguous": pool.layout.contiguous,
        "kv_buffers": buffers,
    }
    return tensors, meta


def get_kv_cache_manager(
    num_blocks: int,
    block_size: int,
    cell_size: int,
    num_layers: int,
    num_kv_buffers: int = 2,
    group_id: int = 0,
    pool_name: str | None = None,
) -> KVCacheManager:
    """The group's blocks; block 0 is never handed out and always mapped, as vLLM wants it. cell_size: bytes
    of a token in one layer's K or V."""
    return _managers.make(
        num_blocks,
        block_size,
        cell_size,
        num_layers,
        num_kv_buffers,
        group_id,
        pool_name,
        reserve_null_block=True,
    )


# As for every engine.
shutdown_kvcached = _managers.shutdown_kvcached
observability_snapshot = _managers.observability_snapshot
observability_snapshot_dict = _managers.observability_snapshot_dict
kv_cache_pool_snapshot = _managers.kv_cache_pool_snapshot
kv_cache_pool_snapshots = _managers.kv_cache_pool_snapshots
kv_cache_pool_snapshot_dicts = _managers.kv_cache_pool_snapshot_dicts
