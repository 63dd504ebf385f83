# SPDX-License-Identifier: Apache-2.0
"""A scheduler and its workers in different processes, through the interfaces."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

import pytest

from harness.broker import eventually
from kvcached import DaemonTimeoutError, DisconnectedError, Error, runtime, tp_ipc_util, vmm_ops
from kvcached.integration.vllm import interfaces as kvi

MIB = 1 << 20
PAGE_BYTES = 2 * MIB * 2 * 2

WORKER = """
    import sys
    from kvcached import runtime, tp_ipc_util
    from kvcached.integration.vllm import interfaces as kvi
    from kvcached.layout import Layout

    rank, size, group = map(int, sys.argv[1:])
    kvi.init_kvcached(tp_rank=rank, world_size=size, is_worker=True, device="cuda:0", separate=True)
    tp_ipc_util.start_worker_listener_thread(rank)
    layout = Layout(2, 2, 16384, 2 << 20, True)
    runtime.get().open_pool(group, layout, layout.pages_for(1024))
    print("ready", flush=True)
    sys.stdin.readline()
    kvi.shutdown_kvcached()
"""


class Worker:
    def __init__(self, environment: dict[str, str], rank: int, size: int, group: int) -> None:
        command = [sys.executable, "-c", textwrap.dedent(WORKER), str(rank), str(size), str(group)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        stdout: IO[str] | None = self.process.stdout
        assert stdout is not None
        assert stdout.readline() == "ready\n"

    def end(self) -> None:
        """By closing its input; a worker that was killed is gone already."""
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(site: Any, daemon: Any, kvcached_environment: Any) -> Iterator[Any]:
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "false")
    kvcached_environment.setenv("KVCACHED_IPC_NAME", "group")
    workers: list[Worker] = []

    def start(size: int, group: int = 0) -> list[Worker]:
        settings = {
            "KVCACHED_SOCKET": str(daemon.socket),
            "KVCACHED_IPC_NAME": "group",
            "KVCACHED_PAGE_PREALLOC_ENABLED": "false",
        }
        begun = [Worker(site.environment(**settings), rank, size, group) for rank in range(size)]
        workers.extend(begun)
        return begun

    yield start
    runtime.shutdown()
    for worker in workers:
        worker.end()


@pytest.mark.parametrize("size", [1, 2])
def test_blocks_over_workers(start: Any, kvctl: Any, size: int) -> None:
    workers = start(size)
    kvi.init_kvcached(world_size=size, separate=True)
    assert kvi.should_use_worker_ipc()
    assert kvi.get_world_size() == size
    manager = kvi.get_kv_cache_manager(1024, 16, 1024, 2)
    ids = manager.alloc(300)
    assert ids is not None
    assert manager.get_mapped_memory_size("bytes") == 3 * size * PAGE_BYTES
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] == 3 * size * PAGE_BYTES
    manager.free(ids)
    manager.trim()
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] == size * PAGE_BYTES  # of block 0
    with pytest.raises(ValueError, match="A scheduler has no GPU"):
        runtime.get().open_pool(1, manager.layout, 1)
    assert all(worker.process.poll() is None for worker in workers)


def test_scheduler_knows_no_layers(start: Any) -> None:
    """How blocks lie in pages follows from the workers' regions."""
    start(1)
    kvi.init_kvcached(separate=True)
    manager = kvi.get_kv_cache_manager(1024, 16, 1024, 7)
    assert manager.alloc(383) is not None
    assert manager.status()["mapped_pages"] == 3
    assert manager.status()["page_blocks"] == 128


def test_scheduler_with_other_pages(start: Any, kvcached_environment: Any) -> None:
    start(1)
    kvcached_environment.setenv("KVCACHED_PAGE_SIZE_MB", "6")
    kvi.init_kvcached(separate=True)
    manager = kvi.get_kv_cache_manager(1024, 16, 1024, 2)
    with pytest.raises(ValueError, match="KVCACHED_PAGE_SIZE_MB differs"):
        manager.alloc(1)


def test_all_ranks_or_none(start: Any, kvctl: Any) -> None:
    start(2)
    kvi.init_kvcached(world_size=2, separate=True)
    manager = kvi.get_kv_cache_manager(1024, 16, 1024, 2)
    assert manager.alloc(1) is not None
    kvctl("limit", "group", str(3 * PAGE_BYTES))  # not enough for a second page in both
    assert manager.alloc(128) is None
    assert manager.status()["mapped_pages"] == 1
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] <= 3 * PAGE_BYTES  # what one rank has set aside may stay so
    kvctl("limit", "group", str(4 * PAGE_BYTES))
    assert manager.alloc(128) is not None


def test_lowered_limit_reaches_the_scheduler(start: Any, kvctl: Any) -> None:
    """The memory is the workers', and what lies in it is the scheduler's to give."""
    start(2)
    kvi.init_kvcached(world_size=2, separate=True)
    page_blocks, asked = 128, threading.Event()

    class Engine:
        def __init__(self) -> None:
            self.manager = kvi.get_kv_cache_manager(1024, 16, 1024, 2)
            self.ids = self.manager.alloc(6 * page_blocks - 1) or []

        def give(self, n_bytes: int, deadline_ms: int) -> None:
            n = -(-n_bytes // (2 * PAGE_BYTES)) * page_blocks
            self.manager.free(self.ids[-n:])
            del self.ids[-n:]
            asked.set()

    engine = Engine()
    runtime.get().add_reclaimer(engine.give)
    kvctl("limit", "group", str(8 * PAGE_BYTES))
    assert asked.wait(30)
    eventually(lambda: kvctl("list", "--json").json()[0]["used_bytes"] <= 8 * PAGE_BYTES)
    assert len(engine.ids) == 4 * page_blocks - 1


def test_worker_dies(start: Any) -> None:
    workers = start(2)
    kvi.init_kvcached(world_size=2, separate=True)
    manager = kvi.get_kv_cache_manager(1024, 16, 1024, 2)
    ids = manager.alloc(10)
    assert ids is not None
    workers[1].kill()
    with pytest.raises(DisconnectedError):
        manager.alloc(500)
    assert manager.available_size() == 0
    manager.free(ids)


def test_workers_that_don_t_come(start: Any, kvcached_environment: Any) -> None:
    start(1)
    kvcached_environment.setenv("KVCACHED_IPC_TIMEOUT", "1")
    kvi.init_kvcached(world_size=2, separate=True)
    manager = kvi.get_kv_cache_manager(1024, 16, 1024, 2)
    with pytest.raises(DaemonTimeoutError):
        manager.alloc(1)


def test_close_does_not_wait_for_workers(start: Any, kvcached_environment: Any) -> None:
    """Nor does shutdown_kvcached(); who does wait for them is told."""
    start(1)
    kvcached_environment.setenv("KVCACHED_IPC_TIMEOUT", "3")
    kvi.init_kvcached(world_size=2, separate=True)
    manager, ended = kvi.get_kv_cache_manager(1024, 16, 1024, 2), threading.Event()

    def work() -> None:
        with pytest.raises((DaemonTimeoutError, RuntimeError)):
            manager.alloc(1)
        ended.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert not ended.wait(0.5)
    begun = time.monotonic()
    assert not manager.is_ready()
    manager.close()
    kvi.shutdown_kvcached()
    assert time.monotonic() - begun < 1.5
    assert ended.wait(20)
    thread.join()


def test_nothing_is_opened_after_shutdown(start: Any, kvctl: Any) -> None:
    start(1)
    kvi.init_kvcached(separate=True)
    manager, current = kvi.get_kv_cache_manager(1024, 16, 1024, 2), runtime.get()
    kvi.shutdown_kvcached()
    with pytest.raises(RuntimeError, match="was shut down"):
        manager.alloc(40)
    with pytest.raises(RuntimeError, match="was shut down"):
        current.client()
    assert current.clients() == []
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] == 0


def test_pages_by_hand(start: Any, kvctl: Any) -> None:
    start(2, group=5)
    kvi.init_kvcached(world_size=2, separate=True)
    assert tp_ipc_util.broadcast_kv_tensors_created(2, 0, 5)
    compound = PAGE_BYTES
    tp_ipc_util.broadcast_map_to_kv_tensors(2, [0, 2 * compound], 0, 5, page_bytes=compound)
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] == 4 * PAGE_BYTES
    kvctl("limit", "group", str(5 * PAGE_BYTES))
    with pytest.raises(RuntimeError):
        tp_ipc_util.broadcast_map_to_kv_tensors(2, [compound], 0, 5, page_bytes=compound)
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] == 4 * PAGE_BYTES
    tp_ipc_util.broadcast_unmap_from_kv_tensors(2, [0], 0, 5, page_bytes=compound)
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] == 2 * PAGE_BYTES
    pool = runtime.get().pool(5)
    assert pool is not None
    pool.regions[1].map([4])
    with pytest.raises(Error, match="not mapped") as refused:
        tp_ipc_util.broadcast_unmap_from_kv_tensors(2, [4 * compound], 0, 5, page_bytes=compound)
    (row,) = kvctl("list", "--json").json()
    assert not isinstance(refused.value, DisconnectedError)
    assert row["used_bytes"] == 2 * PAGE_BYTES  # the second worker could, and has
    with pytest.raises(ValueError, match="Offset 5 is not a multiple"):
        tp_ipc_util.broadcast_map_to_kv_tensors(2, [5], 0, 5, page_bytes=compound)
    with pytest.raises(ValueError, match="was told 2"):
        tp_ipc_util.broadcast_map_to_kv_tensors(3, [0], 0, 5)
    for stage, text in ((1, "pp_rank is 1, and init_kvcached.. was told of 1 stages"), (-1, "pp_rank is -1")):
        with pytest.raises(ValueError, match=text):
            tp_ipc_util.broadcast_map_to_kv_tensors(2, [0], stage, 5)
    with pytest.raises(RuntimeError, match="not worker 0 of stage 0"):
        tp_ipc_util.start_worker_listener_thread(0)


def mapped(pool: Any) -> list[set[int]]:
    """Of each worker."""
    pages: list[set[int]] = []
    for region in pool.regions:
        pages.append(set())
        for page in range(region.pages):
            try:
                region.map([page])
            except Error:
                pages[-1].add(page)
            else:
                region.unmap([page])
    return pages


def test_offsets_are_the_tensors(start: Any) -> None:
    """An offset is that of a page of all layers, as the workers' tensors have it; also from a generator."""
    start(1)
    kvi.init_kvcached(separate=True)
    tp_ipc_util.broadcast_map_to_kv_tensors(1, (i * PAGE_BYTES for i in (1, 3)))
    pool = runtime.get().pool(0)
    assert mapped(pool) == [{1, 3}]
    tp_ipc_util.broadcast_unmap_from_kv_tensors(1, iter([PAGE_BYTES]))
    assert mapped(pool) == [{3}]


def test_undoing_doesnt_stop_at_the_first(
    start: Any, kvcached_environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor hides why it is done."""
    start(3)
    kvi.init_kvcached(world_size=3, separate=True)
    assert tp_ipc_util.broadcast_kv_tensors_created(3)
    pool: Any = runtime.get().pool(0)
    pool.regions[2].map([2])

    class Stubborn:
        """The first worker's region, which can be mapped only."""

        page_bytes, segments = PAGE_BYTES, 1

        def map(self, pages: Any) -> None:
            pool.regions[0].map(pages)

        def unmap(self, pages: Any) -> None:
            raise DisconnectedError("lost")

    regions = [Stubborn(), *pool.regions[1:]]
    monkeypatch.setattr(tp_ipc_util, "_regions", lambda *arguments: regions)
    with pytest.raises(Error, match="mapped already"):
        tp_ipc_util.broadcast_map_to_kv_tensors(3, [PAGE_BYTES, 2 * PAGE_BYTES])
    assert mapped(pool) == [{1, 2}, set(), {2}]


def test_asking_whether_there_are_tensors_decides_nothing(start: Any, kvcached_environment: Any) -> None:
    """What lies in them is said by the first manager, and no one before."""
    start(1)
    kvi.init_kvcached(separate=True)
    assert vmm_ops.kv_tensors_created()
    assert tp_ipc_util.broadcast_kv_tensors_created(1)
    manager = kvi.get_kv_cache_manager(1024, 16, 1024, 2)
    assert manager.layout.block_bytes == 16384
    assert manager.alloc(4) is not None
    kvcached_environment.setenv("KVCACHED_IPC_TIMEOUT", "1")
    kvi.shutdown_kvcached()
    kvi.init_kvcached(separate=True)
    for group in (0, 9):
        created = group == 0
        assert vmm_ops.kv_tensors_created(group) is created
        assert tp_ipc_util.broadcast_kv_tensors_created(1, 0, group) is created


def test_pages_one_at_a_time(start: Any) -> None:
    """A PageAllocator in a scheduler leaves the layout to a manager, too."""
    start(1)
    kvi.init_kvcached(separate=True)
    pages = vmm_ops.PageAllocator(2, 16 * MIB, 2 * MIB)
    assert pages.alloc_page().page_id == 0
    pages.close()
    with pytest.raises(ValueError, match="are not the pages of group 0"):
        vmm_ops.PageAllocator(2, 16 * MIB, 4 * MIB).alloc_page()
    assert kvi.get_kv_cache_manager(1024, 16, 1024, 2).alloc(4) is not None


def test_engines_have_no_workers(kvcached_environment: Any) -> None:
    kvi.init_kvcached()
    assert not kvi.should_use_worker_ipc()
    with pytest.raises(RuntimeError, match="This process has no workers"):
        tp_ipc_util.broadcast_kv_tensors_created(1)
