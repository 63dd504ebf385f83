# SPDX-License-Identifier: Apache-2.0
"""A scheduler that maps pages in its workers by hand. (KVCacheManager does so by itself.)

There are no sockets between scheduler and workers, and nothing is pickled: the scheduler asks the daemon of
each worker's GPU, and that worker's library does what it is told. Who is who was said to init_kvcached().
"""

from __future__ import annotations

from collections.abc import Iterable

from kvcached import _native, runtime
from kvcached.errors import DaemonTimeoutError, Error
from kvcached.utils import get_kvcached_logger, whole_number, whole_numbers


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
    if whole_number(pp_rank, "pp_rank") >= role.pp_size:
        raise ValueError(f"pp_rank is {pp_rank}, and init_kvcached() was told of {role.pp_size} stages")
    return range(pp_rank * tp_size, (pp_rank + 1) * tp_size)


def _regions(tp_size: int, pp_rank: int, group_id: int) -> list[_native.Region]:
    """Of the workers of one stage; they are waited for."""
    ranks = _stage(tp_size, pp_rank)
    pool = runtime.get().attach_pool(group_id)
    return [pool.regions[rank] for rank in ranks]


def broadcast_kv_tensors_created(tp_size: int, pp_rank: int = 0, group_id: int = 0) -> bool:
    """Waits until all workers have their tensors. False: they don't within KVCACHED_IPC_TIMEOUT."""
    try:
        return len(_regions(tp_size, pp_rank, group_id)) == tp_size
    except DaemonTimeoutError:
        return False


def _pages(region: _native.Region, offsets: list[int], page_bytes: int) -> list[int]:
    """page_bytes: of a segment; 0: as the region has it."""
    page_bytes = page_bytes or region.page_bytes // region.segments
    for offset in offsets:
        if offset % page_bytes:
            raise ValueError(f"Offset {offset} is not a multiple of {page_bytes}, the bytes of a page")
    return [offset // page_bytes for offset in offsets]


def _named(
    tp_size: int, offsets: Iterable[int], pp_rank: int, group_id: int, page_bytes: int
) -> list[tuple[_native.Region, list[int]]]:
    """Each worker's region, and what the offsets are there."""
    page_bytes, listed = whole_number(page_bytes, "page_bytes"), whole_numbers(offsets, "offsets")
    regions = _regions(tp_size, pp_rank, group_id)
    return [(region, _pages(region, listed, page_bytes)) for region in regions]


def broadcast_map_to_kv_tensors(
    tp_size: int, offsets: Iterable[int], pp_rank: int = 0, group_id: int = 0, *, page_bytes: int = 0
) -> None:
    """Maps pages at all workers of a stage, or at none: where one cannot, the others undo it, and its error
    is raised. page_bytes: what an offset counts a page with; by default as vmm_ops does, a page of all layers
    with the contiguous layout, else of one layer's K or V."""
    done: list[tuple[_native.Region, list[int]]] = []
    try:
        for region, pages in _named(tp_size, offsets, pp_rank, group_id, page_bytes):
            region.map(pages)
            done.append((region, pages))
    except BaseException:
        _undo(done)
        raise


def _undo(done: list[tuple[_native.Region, list[int]]]) -> None:
    """One that cannot is no reason to leave the others, nor to forget why it is done."""
    for region, pages in done:
        try:
            region.unmap(pages)
        except Error as error:
            get_kvcached_logger().warning("Pages %s stay mapped at a worker: %s", pages, error)


def broadcast_unmap_from_kv_tensors(
    tp_size: int, offsets: Iterable[int], pp_rank: int = 0, group_id: int = 0, *, page_bytes: int = 0
) -> None:
    """Unmaps pages at all workers of a stage. One that cannot doesn't keep the others from it; its error is
    raised at the end. page_bytes: as for mapping."""
    failed: BaseException | None = None
    for region, pages in _named(tp_size, offsets, pp_rank, group_id, page_bytes):
        try:
            region.unmap(pages)
        except BaseException as error:  # also a KeyboardInterrupt: it is raised when all is done
            failed = failed or error
    if failed is not None:
        raise failed
