# SPDX-License-Identifier: Apache-2.0
"""Limits that a process sets for itself, and what it says of itself."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest

from kvcached import control, locks, observability, pool_registry, runtime, vmm_ops
from kvcached.integration.sglang import interfaces as sgi
from kvcached.integration.vllm import interfaces as kvi
from kvcached.kv_cache_manager import KVCacheManager
from kvcached.layout import Layout

MIB = 1 << 20
PAGE_BYTES = 2 * MIB * 2 * 2  # two layers


@pytest.fixture
def engine(kvcached_environment: Any) -> None:
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "false")
    kvi.init_kvcached()


def make(group_id: int, n_blocks: int) -> Any:
    layout = Layout(2, 2, 16384, 2 * MIB, True)
    runtime.get().open_pool(group_id, layout, layout.pages_for(n_blocks))
    return kvi.get_kv_cache_manager(n_blocks, 16, 1024, 2, group_id=group_id)


def test_limit_over_two_pools(engine: None) -> None:
    small, large = make(0, 256), make(1, 768)
    ids = large.alloc(600)
    state = control.set_instance_memory_limit(4 * PAGE_BYTES, revision=1)
    assert state.status == "deferred"
    assert [pool.limit_bytes for pool in state.pools] == [PAGE_BYTES, 3 * PAGE_BYTES]
    assert state.reason == "blocks above the limit are in use"
    assert state.overage_bytes == 2 * PAGE_BYTES
    large.free(ids)
    large.trim()
    state = control.instance_memory_limit_state()
    assert (state.status, state.effective_limit_bytes) == ("applied", 4 * PAGE_BYTES)
    assert small.alloc(128) is None  # block 0 has its page
    assert len(small.alloc(127)) == 127
    assert large.alloc(3 * 128) is None
    assert len(large.alloc(3 * 128 - 1)) == 3 * 128 - 1
    state = control.set_instance_memory_limit(None, revision=2)
    assert (state.status, state.limit_bytes) == ("applied", None)
    assert large.alloc(200) is not None


def test_limit_holds_for_pools_that_are_made_later(engine: None) -> None:
    small = make(0, 256)
    assert control.set_instance_memory_limit(2 * PAGE_BYTES, revision=1).status == "applied"
    large = make(1, 768)
    assert large.alloc(2 * 128) is None
    ids = large.alloc(100)
    state = control.instance_memory_limit_state()
    assert [pool.limit_bytes for pool in state.pools] == [PAGE_BYTES // 2, 3 * PAGE_BYTES // 2]
    assert (state.status, state.mapped_bytes, state.overage_bytes) == ("deferred", 2 * PAGE_BYTES, PAGE_BYTES)
    assert small.alloc(128) is None
    large.free(ids)
    assert control.set_instance_memory_limit(4 * PAGE_BYTES, revision=1).status == "conflict"
    state = control.set_instance_memory_limit(2 * PAGE_BYTES, revision=1)
    assert [pool.limit_bytes for pool in state.pools] == [PAGE_BYTES // 2, 3 * PAGE_BYTES // 2]
    assert control.set_instance_memory_limit(4 * PAGE_BYTES, revision=2).status == "applied"
    assert large.alloc(3 * 128 - 1) is not None


def test_managers_of_one_s_own_have_a_share(engine: None) -> None:
    """Each one, and once, whoever made it and however often it is registered."""
    first = make(0, 256)
    pool_registry.register_kv_cache_pool(first, integration="mine")
    layout = first.layout
    runtime.get().open_pool(1, layout, layout.pages_for(256))
    second = KVCacheManager(256, 16, 1024, 2, group_id=1)
    assert second.alloc(1) is not None
    state = control.set_instance_memory_limit(2 * PAGE_BYTES, revision=1)
    assert [pool.limit_bytes for pool in state.pools] == [PAGE_BYTES, PAGE_BYTES]
    assert second.memory_limit_state().limit_bytes == PAGE_BYTES


def test_a_second_manager_of_a_group_is_in_nobody_s_way(engine: None) -> None:
    first = make(0, 256)
    assert first.alloc(200) is not None
    second = kvi.get_kv_cache_manager(256, 16, 1024, 2)
    state = control.set_instance_memory_limit(PAGE_BYTES, revision=1)
    assert (state.status, len(state.pools)) == ("deferred", 1)
    assert not second.is_open


def test_wrong_limits_change_nothing(engine: None) -> None:
    kept = make(0, 256)
    assert control.set_instance_memory_limit(2 * PAGE_BYTES, revision=1).status == "applied"
    for limit, revision in ((1.5, 2), ("5G", 2), (PAGE_BYTES, None), (PAGE_BYTES, 2.0)):
        with pytest.raises(TypeError):
            control.set_instance_memory_limit(limit, revision=revision)  # type: ignore[arg-type]
    assert control.instance_memory_limit_state().revision == 1
    assert control.set_instance_memory_limit(PAGE_BYTES, revision=2).status == "applied"
    kept.close()
    assert control.set_instance_memory_limit(PAGE_BYTES, revision=3).status == "unavailable"


def test_revisions(engine: None) -> None:
    kept = make(0, 256)
    assert control.set_instance_memory_limit(2 * PAGE_BYTES, revision=5).status == "applied"
    older = control.set_instance_memory_limit(PAGE_BYTES, revision=4)
    assert (older.status, older.reason) == ("stale", "revision 5 is in force")
    other = control.set_instance_memory_limit(PAGE_BYTES, revision=5)
    assert (other.status, other.reason) == ("conflict", "revision 5 has another limit")
    assert control.set_instance_memory_limit(2 * PAGE_BYTES, revision=5).status == "applied"
    assert control.instance_memory_limit_state().limit_bytes == 2 * PAGE_BYTES
    with pytest.raises(ValueError, match="less than nothing"):
        control.set_instance_memory_limit(-1, revision=6)
    json.dumps(other.to_dict())
    kept.close()


def test_limit_zero_and_back(engine: None) -> None:
    manager = make(0, 256)
    assert control.set_instance_memory_limit(0, revision=1).effective_limit_bytes == 0
    assert manager.alloc(128) is None
    control.set_instance_memory_limit(2 * PAGE_BYTES, revision=2)
    assert manager.alloc(128) is not None


def test_unavailable(kvcached_environment: Any) -> None:
    state = control.set_instance_memory_limit(1, revision=1)
    assert (state.status, state.pools) == ("unavailable", [])
    assert "not initialized" in state.reason
    kvi.init_kvcached()
    assert control.set_instance_memory_limit(1, revision=1).reason == "there are no KV caches yet"
    assert control.instance_memory_limit_state().status == "unavailable"


def test_limit_ends_with_the_instance(engine: None) -> None:
    kept = [make(0, 256)]
    control.set_instance_memory_limit(PAGE_BYTES, revision=9)
    kvi.shutdown_kvcached()
    kvi.init_kvcached()
    kept.append(make(0, 256))
    assert control.set_instance_memory_limit(2 * PAGE_BYTES, revision=1).status == "applied"


def test_runtime_snapshot(kvcached_environment: Any, kvctl: Any) -> None:
    before = observability.build_runtime_snapshot()
    assert (before.initialized, before.instance, before.connected) == (False, None, False)
    kvcached_environment.setenv("KVCACHED_IPC_NAME", "an engine")
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "false")
    kvi.init_kvcached()
    manager = make(0, 256)
    manager.alloc(100)
    snapshot = kvi.observability_snapshot()
    (row,) = kvctl("list", "--json").json()
    assert snapshot.instance == row["ipc"] == "an_engine"
    assert (snapshot.role, snapshot.initialized, snapshot.connected) == ("engine", True, True)
    assert snapshot.used_bytes == row["used_bytes"] == PAGE_BYTES
    assert snapshot.limit_bytes == row["limit_bytes"]
    assert json.loads(json.dumps(kvi.observability_snapshot_dict())) == snapshot.to_dict()
    assert snapshot.schema == "kvcached.observability.v1" == observability.get_capabilities()["schema"]


def test_pool_snapshots(engine: None) -> None:
    assert kvi.kv_cache_pool_snapshot() is None
    manager, other = make(0, 256), make(3, 128)
    first, second = kvi.kv_cache_pool_snapshots()
    assert (first.ready, first.total_blocks, first.mapped_bytes) == (False, 0, 0)
    manager.alloc(100)
    first, second = kvi.kv_cache_pool_snapshots()
    assert (first.group_id, first.integration, first.ready) == (0, "vLLM", True)
    assert (first.total_blocks, first.used_blocks, first.free_blocks) == (255, 100, 27)
    assert (first.mapped_pages, first.mapped_bytes, first.page_bytes) == (1, PAGE_BYTES, PAGE_BYTES)
    assert (first.block_bytes, first.num_layers, first.available_blocks) == (16384, 2, 27)
    assert (second.group_id, second.ready) == (3, False)
    assert kvi.kv_cache_pool_snapshot() == first == manager.observability_snapshot(integration="vLLM")
    assert kvi.kv_cache_pool_snapshot_dicts()[0] == manager.observability_snapshot_dict(integration="vLLM")
    assert sgi.kv_cache_pool_snapshots() == []
    del other, manager
    gc.collect()
    assert kvi.kv_cache_pool_snapshots() == []


def test_registry_ends_with_the_runtime(engine: None) -> None:
    manager = make(0, 256)
    assert pool_registry.get_kv_cache_pools() == [manager]
    vmm_ops.shutdown_kvcached()
    assert pool_registry.get_kv_cache_pools() == []


def test_registry(engine: None) -> None:
    manager = make(0, 128)
    pool_registry.register_kv_cache_pool(manager, integration="vLLM")
    pool_registry.register_kv_cache_pool(manager, integration="mine")
    assert pool_registry.get_kv_cache_pools(integration="vLLM") == [manager]
    assert pool_registry.get_kv_cache_pools() == [manager, manager]
    pool_registry.clear_kv_cache_pools(integration="mine")
    assert pool_registry.get_kv_cache_pools() == [manager]
    pool_registry.clear_kv_cache_pools()
    assert pool_registry.get_kv_cache_pools() == []


def test_locks_that_are_none() -> None:
    with locks.NoOpLock() as held:
        assert held
    condition = locks.NoOpCondition(locks.NoOpLock())
    with condition:
        condition.notify()
        condition.notify_all()
        assert condition.wait(0)
    assert condition.acquire()
    assert not condition.locked()
    condition.release()
