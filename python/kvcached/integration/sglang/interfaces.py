# SPDX-License-Identifier: Apache-2.0
"""What SGLang needs of kvcached.

init_kvcached(tp_rank=0, tp_size=1, device="cuda:0", async_sched=True)
k, v = alloc_kv_cache((num_tokens, 8, 128), torch.float16, "cuda", num_layers=32, page_size=1)
manager = get_kv_cache_manager(num_blocks, 1, 8 * 128 * 2, 32)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvcached import _native, runtime, tensors
from kvcached.integration import arguments, caches
from kvcached.integration.managers import Managers
from kvcached.kv_cache_manager import KVCacheManager
from kvcached.layout import product, row_major
from kvcached.utils import align_up, whole_number

if TYPE_CHECKING:
    import torch

ENGINE = "SGLang"
MAMBA_ALIGNMENT = 256  # bytes
_managers = Managers(ENGINE)


def init_kvcached(
    tp_rank: int = 0,
    tp_size: int = 1,
    pp_rank: int = 0,
    device: Any = None,
    async_sched: bool = True,
    *,
    is_worker: bool = True,
    world_size: int | None = None,
) -> None:
    """Connects to kvcachedd. Each of SGLang's ranks schedules for itself, so each is an engine of its own at
    the daemon of its GPU. Also with is_worker, a bool, in pp_rank's place, as it once was."""
    stage, is_worker = (0, pp_rank) if isinstance(pp_rank, bool) else (pp_rank, is_worker)
    runtime.init(
        arguments.role(
            ENGINE,
            tp_rank=tp_rank,
            world_size=tp_size if world_size is None else world_size,
            tp_size=None if tp_size == 1 else tp_size,
            pp_rank=stage,
            is_worker=is_worker,
            separate=False,
            device=device,
            async_sched=async_sched,
        )
    )


def alloc_kv_cache(
    kvcache_shape: Sequence[int],
    dtype: torch.dtype,
    device: Any,
    num_layers: int,
    page_size: int = 1,
    attention_type: str = "MHA",
    kv_layout: str = "NHD",
    group_id: int = 0,
    *,
    holes: str | None = None,
) -> Any:
    """K and V tensors for each layer, without memory behind them.

    kvcache_shape: (tokens, heads, head_dim) of one layer's K; page_size: tokens of a block. Returns two lists
    of tensors of that shape; with attention_type "MLA" (tokens, 1, dim) one list. holes: what reading what is
    not mapped does, "fault" or "zero"; default KVCACHED_HOLES, else fault. `tokens` is rounded up to whole
    blocks.
    """
    runtime.get()
    caches.check(attention_type, kv_layout)
    kind = tensors.dtype_of(dtype)
    tokens, *rest = caches.sizes(kvcache_shape, 2, "(tokens, heads, head_dim)")
    page_size = whole_number(page_size, "page_size", 1)
    n_blocks = -(-tokens // page_size)
    buffers = 1 if attention_type == "MLA" else 2
    shape = [buffers, n_blocks * page_size, *rest]
    block_bytes = page_size * caches.block_bytes(shape, (1, 0), kind)
    with caches.pool_of(device, num_layers, buffers, n_blocks, block_bytes, group_id, holes) as pool:
        layers = caches.views(pool, kind, shape, (1, 0))
        if buffers == 1:
            return [layer[0] for layer in layers]
        return [layer[0] for layer in layers], [layer[1] for layer in layers]


def alloc_mamba_states(
    *,
    num_slots: int,
    num_mamba_layers: int,
    cache_params: Any,
    device: Any,
    group_id: int,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """States of Mamba layers, without memory behind them: (convolution states, temporal states).

    num_slots: requests that have one; slot 0 is for padding, so there are num_slots + 1. cache_params:
    SGLang's, of which shape.conv (a list of shapes), shape.temporal, dtype.conv and dtype.temporal count.
    Each tensor is (num_mamba_layers, num_slots + 1, *shape), with gaps: a slot's states of one layer lie
    together, and with KVCACHED_CONTIGUOUS_LAYOUT those of all layers. The blocks to map are slots:
    get_kv_cache_manager(num_slots + 1, 1, mamba_slot_bytes(cache_params), num_mamba_layers, 1, group_id);
    a slot that would lie in two pages is never handed out, so there may be a few less than num_slots.
    KVCachedConfigError: a slot does not fit into a page.
    """
    runtime.get()
    parts = _mamba_parts(cache_params)
    slot_bytes = mamba_slot_bytes(cache_params)
    num_slots = whole_number(num_slots, "num_slots", 1)
    with caches.pool_of(
        device, num_mamba_layers, 1, num_slots + 1, slot_bytes, group_id, flags=_native.ZERO_ON_MAP
    ) as pool:
        layer_stride, _, slot_stride = pool.layout.strides(pool.region.stride_bytes)
        flat = tensors.whole(pool.region)
        states, offset = [], 0
        for shape, dtype in parts:
            strides = [layer_stride, slot_stride, *(n * dtype.itemsize for n in row_major(shape))]
            full_shape = (num_mamba_layers, num_slots + 1, *shape)
            states.append(tensors.strided(flat, dtype, full_shape, strides, offset))
            offset += _mamba_part_bytes(shape, dtype)
        return states[:-1], states[-1]


def mamba_slot_bytes(cache_params: Any) -> int:
    """Of a slot's states in one layer."""
    return sum(_mamba_part_bytes(shape, dtype) for shape, dtype in _mamba_parts(cache_params))


def _mamba_parts(cache_params: Any) -> list[tuple[Sequence[int], torch.dtype]]:
    shape, dtype = cache_params.shape, cache_params.dtype
    return [*((conv, dtype.conv) for conv in shape.conv), (shape.temporal, dtype.temporal)]


def _mamba_part_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Aligned, so that each state begins where kernels like it to."""
    return align_up(product(shape) * dtype.itemsize, MAMBA_ALIGNMENT)


def get_kv_cache_manager(
    num_blocks: int,
    block_size: int,
    cell_size: int,
    num_layers: int,
    num_kv_buffers: int = 2,
    group_id: int = 0,
    pool_name: str | None = None,
    *,
    reserve_null_block: bool = True,
) -> KVCacheManager:
    """The group's blocks. Block 0 is never handed out and always mapped: SGLang writes padding there."""
    return _managers.make(
        num_blocks,
        block_size,
        cell_size,
        num_layers,
        num_kv_buffers,
        group_id,
        pool_name,
        reserve_null_block=reserve_null_block,
    )


# As for every engine.
shutdown_kvcached = _managers.shutdown_kvcached
observability_snapshot = _managers.observability_snapshot
observability_snapshot_dict = _managers.observability_snapshot_dict
kv_cache_pool_snapshot = _managers.kv_cache_pool_snapshot
kv_cache_pool_snapshots = _managers.kv_cache_pool_snapshots
kv_cache_pool_snapshot_dicts = _managers.kv_cache_pool_snapshot_dicts
