# SPDX-License-Identifier: Apache-2.0
"""A scheduler that maps pages in its workers by hand. (KVCacheManager does so by itself.)

There are no sockets between scheduler and workers, and nothing is pickled: the scheduler asks the daemon of
each worker's GPU, and that worker's library does what it is told. Who is who was said to init_kvcached().
"""

from __future__ import annotations

from collections.abc import Sequence

from kvcached import _native, runtime
from kvcached.errors import Error
from kvcached.layout import Layout
from kvcached.utils import page_size


def start_worker_listener_thread(rank: int, pp_rank: int = 0) -> None:
    """Does nothing but check that this process is that worker: the library's thread listens already."""
    role = runtime.get().role
    if role.native_role != _native.ROLE_WORKER or (role.tp_rank, role.pp_rank) != (rank, pp_rank):
        raise RuntimeError(
            f"This process is not worker {rank} of stage {pp_rank}; init_kvcached() says who it is"
        )


def _stage(tp_size: int, pp_rank: int) -> range:
    role = runtime.get().role
    if role.native_role != _native.ROLE_SCHEDULER:
        raise RuntimeError("This process has no workers: init_kvcached() was told so")
    if tp_size != role.world_size:
        raise ValueError(f"tp_size is {tp_size}, and init_kvcached() was told {role.world_size}")
    return range(pp_rank * tp_size, (pp_rank + 1) * tp_size)


def _regions(tp_size: int, pp_rank: int, group_id: int) -> list[_native.Region]:
    """Of the workers of one stage; they are waited for."""
    ranks = _stage(tp_size, pp_rank)
    size = page_size()
    pool = runtime.get().attach_pool(group_id, Layout(1, 1, size, size, False))
    return [pool.regions[rank] for rank in ranks]


def broadcast_kv_tensors_created(tp_size: int, pp_rank: int = 0, group_id: int = 0) -> bool:
    """Waits until all workers of the stage have their tensors."""
    return len(_regions(tp_size, pp_rank, group_id)) == tp_size


def _pages(region: _native.Region, offsets: Sequence[int], page_bytes: int) -> list[int]:
    for offset in offsets:
        if offset % page_bytes:
            raise ValueError(f"Offset {offset} is not a multiple of {page_bytes}, the bytes of a page")
    return [offset // page_bytes for offset in offsets]


def broadcast_map_to_kv_tensors(
    tp_size: int, offsets: Sequence[int], pp_rank: int = 0, group_id: int = 0, *, page_bytes: int = 0
) -> None:
    """Maps pages at all workers of a stage, or at none: where one cannot, the others undo it, and its error
    is raised. page_bytes: what an offset counts a page with; 0: KVCACHED_PAGE_SIZE_MB."""
    done: list[_native.Region] = []
    pages: list[int] = []
    try:
        for region in _regions(tp_size, pp_rank, group_id):
            pages = _pages(region, offsets, page_bytes or page_size())
            region.map(pages)
            done.append(region)
    except Error:
        for region in done:
            region.unmap(pages)
        raise


def broadcast_unmap_from_kv_tensors(
    tp_size: int, offsets: Sequence[int], pp_rank: int = 0, group_id: int = 0, *, page_bytes: int = 0
) -> None:
    """Unmaps pages at all workers of a stage. One that cannot doesn't keep the others from it; its error is
    raised at the end."""
    failed: Error | None = None
    for region in _regions(tp_size, pp_rank, group_id):
        try:
            region.unmap(_pages(region, offsets, page_bytes or page_size()))
        except Error as error:
            failed = error
    if failed is not None:
        raise failed
