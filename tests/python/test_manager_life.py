# SPDX-License-Identifier: Apache-2.0
"""When there are KVCacheManagers, and whose: groups, roles, shutdown, the end of the daemon; no torch."""

from __future__ import annotations

import signal
import threading
from typing import Any, Callable

import pytest

from harness.broker import eventually
from harness.managers import BLOCK, CELL, LAYERS, PAGE_BYTES, make, seconds_of, used_bytes
from kvcached import runtime
from kvcached.integration.vllm import interfaces as kvi
from kvcached.kv_cache_manager import KVCacheManager


def test_before_init(kvcached_environment: Any) -> None:
    with pytest.raises(RuntimeError, match="kvcached is not initialized"):
        kvi.get_kv_cache_manager(16, BLOCK, CELL, LAYERS)
    with pytest.raises(RuntimeError, match="kvcached is not initialized"):
        kvi.alloc_kv_cache((2, 16, 16, 8, 64), 16, None, "cuda", 1)


def test_before_tensors(engine: None) -> None:
    manager = kvi.get_kv_cache_manager(16, BLOCK, CELL, LAYERS)
    with pytest.raises(RuntimeError, match="KV tensors of group 0 have not been created"):
        manager.alloc(1)


def test_other_blocks_than_the_tensors(engine: None) -> None:
    make()
    manager = KVCacheManager(1024, BLOCK, 2 * CELL, LAYERS)
    with pytest.raises(ValueError, match="have blocks of 16384"):
        manager.alloc(1)


def test_two_managers_of_one_group(engine: None) -> None:
    first = make()
    assert first.alloc(1) is not None
    with pytest.raises(RuntimeError, match="has a KVCacheManager already"):
        make().alloc(1)
    first.close()
    assert make().alloc(1) is not None
    with pytest.raises(RuntimeError, match="closed"):
        first.alloc(1)


def test_the_other_manager_s_group_is_not_ready(engine: None) -> None:
    first, second = make(), make()
    assert first.is_ready()
    assert not second.is_ready()
    first.close()
    assert second.is_ready()


def test_second_pool_is_a_pool_of_its_own(engine: None, kvctl: Any) -> None:
    """One instance has both; neither takes the other's place."""
    first, second = make(1024, 0), make(1024, 1)
    assert first.alloc(128) is not None
    assert second.alloc(256) is not None
    first.trim()
    second.trim()
    assert used_bytes(kvctl) == 3 * PAGE_BYTES
    second.close()
    assert used_bytes(kvctl) == PAGE_BYTES
    assert first.status()["mapped_pages"] == 1


def test_shutdown_gives_all_back(either: None, kvctl: Any) -> None:
    manager = make()
    assert manager.alloc(300) is not None
    kvi.shutdown_kvcached()
    kvi.shutdown_kvcached()
    assert kvctl("list", "--json").json() == []
    assert not manager.is_ready()
    with pytest.raises(RuntimeError, match="KVCacheManager is closed"):
        manager.alloc(1)
    kvi.init_kvcached()
    assert make().alloc(300) is not None


def test_another_role_is_refused(engine: None) -> None:
    kvi.init_kvcached(is_worker=True)
    kvi.init_kvcached(device="cuda")
    kvi.init_kvcached(is_worker=True, tp_rank=0, device="cuda:0", separate=False)
    with pytest.raises(RuntimeError, match="in another role"):
        kvi.init_kvcached(tp_size=2, is_worker=True)
    with pytest.raises(RuntimeError, match="already, device is 1, and was 0; call shutdown_kvcached"):
        kvi.init_kvcached(device="cuda:1")
    with pytest.raises(RuntimeError, match="world_size is 2, and was 1; pp_size is 3, and was 1"):
        kvi.init_kvcached(tp_size=2, pp_size=3, separate=False, is_worker=True)
    with pytest.raises(
        RuntimeError, match="already, world_size is 2, and was 1; tp_rank is 1, and was 0; call"
    ):
        kvi.init_kvcached(tp_rank=1, tp_size=2, separate=False)
    assert runtime.get().role.device == 0


def test_the_scheduler_s_side_has_no_rank(kvcached_environment: Any) -> None:
    """A worker's process may schedule, too, and what that side doesn't know is no difference."""
    kvi.init_kvcached(tp_rank=1, tp_size=2, is_worker=True, device="cuda:0", separate=False)
    kvi.init_kvcached(tp_size=2, is_worker=False, separate=False)
    with pytest.raises(RuntimeError, match="tp_rank is 0, and was 1"):
        kvi.init_kvcached(tp_size=2, is_worker=True, separate=False)


def test_who_named_no_device_has_the_first(kvcached_environment: Any) -> None:
    kvi.init_kvcached()
    kvi.init_kvcached(device="cuda:0", is_worker=True)
    with pytest.raises(RuntimeError, match="device is 1, and was 0"):
        kvi.init_kvcached(device="cuda:1", is_worker=True)


def test_a_second_init_after_the_daemon_s_death(kvcached_environment: Any, daemon: Any) -> None:
    kvi.init_kvcached()
    dead = runtime.get().client()
    daemon.kill()
    eventually(lambda: not dead.status()["connected"])
    with pytest.raises(FileNotFoundError):
        kvi.init_kvcached()
    kvi.shutdown_kvcached()


def test_a_second_init_with_a_new_daemon(kvcached_environment: Any, programs: Any, daemon: Any) -> None:
    kvi.init_kvcached()
    current = runtime.get()
    daemon.kill()
    eventually(lambda: not current.client().status()["connected"])
    again = programs.daemon("1G", name="gpu1")
    kvcached_environment.setenv("KVCACHED_SOCKET", str(again.socket))
    kvi.init_kvcached()
    assert runtime.get() is current
    assert current.client().status()["connected"]
    assert make().alloc(100) is not None
    again.kill()
    eventually(lambda: not current.client().status()["connected"])
    with pytest.raises(ConnectionError, match="call shutdown_kvcached"):
        kvi.init_kvcached()
    kvi.shutdown_kvcached()


def test_no_daemon(kvcached_environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was a missing segment in /dev/shm is a missing socket here."""
    monkeypatch.setenv("KVCACHED_SOCKET", "/nonexistent/kvcached.sock")
    with pytest.raises(FileNotFoundError, match=r"/nonexistent/kvcached\.sock"):
        kvi.init_kvcached()
    with pytest.raises(RuntimeError, match="not initialized"):
        runtime.get()


def test_daemon_killed(engine: None, daemon: Any) -> None:
    """What is mapped stays, and can be handed out; more cannot be had."""
    manager = make()
    ids = manager.alloc(100)
    assert ids is not None
    daemon.kill()
    with pytest.raises(ConnectionError, match="connection to kvcachedd has ended"):
        manager.alloc(900)
    manager.free(ids)
    assert len(manager.alloc(100) or []) == 100
    kvi.shutdown_kvcached()


def test_close_waits_for_nobody(engine: None, send: Callable[[int], None]) -> None:
    """Another thread's alloc() waits for the daemon, and ends when that answers."""
    manager, ended = make(1000), threading.Event()
    ids = manager.alloc(1000)
    assert ids is not None
    manager.free([i for i in ids if i < 896])
    manager.trim()
    assert manager.status()["mapped_pages"] == 1  # the last one, which has room beyond the tensors

    def work() -> None:
        manager.alloc(30)
        with pytest.raises(RuntimeError, match="closed"):
            manager.alloc(1)
        ended.set()

    thread = threading.Thread(target=work, daemon=True)
    send(signal.SIGSTOP)
    thread.start()
    assert not ended.wait(0.3)
    assert seconds_of(manager.close) < 1
    send(signal.SIGCONT)
    assert ended.wait(10)
    thread.join()
    assert make(1000).alloc(1000) is not None
