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

from kvcached import runtime, tensors
from kvcached.errors import KVCachedConfigError
from kvcached.integration import arguments, caches
from kvcached.integration.managers import Managers
from kvcached.kv_cache_manager import KVCacheManager
from kvcached.layout import Layout
from kvcached.utils import contiguous_layout, page_size, whole_number

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
    Also (tp_rank, tp_size, is_worker, device, async_sched), as it once was: is_worker is a bool.
    """
    pp_rank, is_worker, device, async_sched = arguments.in_order(pp_rank, is_worker, device, async_sched)
    runtime.init(
        arguments.role(
            ENGINE,
            tp_rank=tp_rank,
            world_size=world_size,
            tp_size=tp_size,
            pp_rank=pp_rank,
            pp_size=pp_size,
            is_worker=is_worker,
            separate=separate,
            device=device,
            async_sched=async_sched,
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
    attention_type "MLA"; (2, 2, ...) is read as the first. Their last dimensions lie without gaps; strides
    between layers, K and V, and blocks are those of the layout in use (KVCACHED_CONTIGUOUS_LAYOUT).
    kernel_block_size: of what the attention kernel calls a block, where the shape counts those; block_size is
    what the scheduler hands out, a multiple of it. holes: what reading what is not mapped does, "fault" or
    "zero"; default KVCACHED_HOLES, else fault. return_meta: also a dict with block_bytes, page_bytes,
    contiguous and kv_buffers, and what build_kv_views() wants: raw_kv_tensors, num_blocks_per_layer,
    gpu_mem_bytes_per_layer_k_or_v and num_layers.
    """
    runtime.get()
    caches.check(attention_type, kv_layout)
    kind = tensors.dtype_of(dtype)
    shape, axes, per_block = _shape(kvcache_shape, block_size, attention_type, kernel_block_size)
    blocks_at, buffers_at = axes
    buffers = 1 if buffers_at is None else 2
    block_bytes = caches.block_bytes(shape, axes, kind) * per_block
    n_blocks = shape[blocks_at] // per_block
    with caches.pool_of(device, num_layers, buffers, n_blocks, block_bytes, group_id, holes) as pool:
        views = caches.views(pool, kind, shape, axes)
        if not return_meta:
            return views
        meta = {
            "block_bytes": pool.layout.block_bytes,
            "page_bytes": pool.layout.page_bytes,
            "contiguous": pool.layout.contiguous,
            "kv_buffers": buffers,
            "raw_kv_tensors": caches.raw(pool),
            "num_blocks_per_layer": n_blocks,
            "gpu_mem_bytes_per_layer_k_or_v": (
                pool.region.pages * pool.layout.page_bytes
                if pool.layout.contiguous
                else pool.region.stride_bytes
            ),
            "num_layers": pool.layout.layers,
        }
        return views, meta


def _shape(
    kvcache_shape: Sequence[int], block_size: int, attention_type: str, kernel_block_size: int | None
) -> tuple[list[int], tuple[int, int | None], int]:
    """The shape, its axes (see caches.py), and how many of its blocks the scheduler counts as one."""
    mla = attention_type == "MLA"
    shape = caches.sizes(kvcache_shape, 3, "(N, B, D)" if mla else "(2, N, B, H, D)")
    axes = caches.find_axes(shape, attention_type)
    block_size = whole_number(block_size, "block_size", 1)
    if kernel_block_size is None:
        kernel_block_size = block_size
    kernel_block_size = whole_number(kernel_block_size, "kernel_block_size", 1)
    if block_size % kernel_block_size:
        raise KVCachedConfigError(
            f"A block of {block_size} tokens is not made of kernel blocks of {kernel_block_size}"
        )
    tokens = shape[1 if mla else 2]
    if tokens != kernel_block_size:
        raise KVCachedConfigError(
            f"{tuple(shape)} has blocks of {tokens} tokens, and they were said to be of {kernel_block_size}"
        )
    per_block = block_size // kernel_block_size
    if shape[axes[0]] % per_block:
        raise KVCachedConfigError(
            f"{shape[axes[0]]} kernel blocks are no whole number of blocks of {per_block} of them each"
        )
    return shape, axes, per_block


def build_kv_views(
    raw_kv_tensors: Sequence[torch.Tensor],
    kvcache_shape: Sequence[int],
    block_size: int,
    dtype: torch.dtype,
    attention_type: str,
    num_blocks_per_layer: int,
    gpu_mem_bytes_per_layer_k_or_v: int,
    num_layers: int,
    kernel_block_size: int | None = None,
    *,
    kv_layout: str = "NHD",
) -> tuple[list[torch.Tensor], int]:
    """Other tensors over memory that alloc_kv_cache() made: for groups of layers whose blocks have another
    shape and the same bytes. The first arguments but one are from its meta, the others as for it.

    raw_kv_tensors: one with KVCACHED_CONTIGUOUS_LAYOUT, else one for each layer, K before V. Returns the
    tensors, one for each layer, and the bytes of one block's K and V in one layer.
    """
    caches.check(attention_type, kv_layout)
    kind, together = tensors.dtype_of(dtype), contiguous_layout()
    shape, axes, per_block = _shape(kvcache_shape, block_size, attention_type, kernel_block_size)
    if shape[axes[0]] > whole_number(num_blocks_per_layer, "num_blocks_per_layer") * per_block:
        raise KVCachedConfigError(f"{tuple(shape)} has more blocks than there are: {num_blocks_per_layer}")
    n_raw = 1 if together else num_layers
    if len(raw_kv_tensors) != n_raw:
        raise KVCachedConfigError(f"There are {len(raw_kv_tensors)} raw tensors, and {n_raw} were expected")
    block_bytes = caches.block_bytes(shape, axes, kind)
    layout = Layout(num_layers, 1 if axes[1] is None else 2, block_bytes, page_size(), together)
    stride = whole_number(gpu_mem_bytes_per_layer_k_or_v, "gpu_mem_bytes_per_layer_k_or_v", 1)
    layer, *_ = layout.strides(stride)
    strides = caches.strides_of(layout, stride, kind, shape, axes)
    views = [
        tensors.strided(raw_kv_tensors[0], kind, shape, strides, i * layer)
        if together
        else tensors.strided(raw_kv_tensors[i], kind, shape, strides, 0)
        for i in range(num_layers)
    ]
    return views, layout.kv_buffers * block_bytes * per_block


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
