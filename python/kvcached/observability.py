# SPDX-License-Identifier: Apache-2.0
"""What this process has, as data: for an engine's own metrics and for debugging.

Snapshots are frozen dataclasses, and dicts of plain JSON values by to_dict(); `schema` names their fields. A
snapshot sends nothing: it reads counters that libkvclient keeps, and the instance's status page.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvcached import _native, pool_registry, runtime

if TYPE_CHECKING:
    from kvcached.kv_cache_manager import KVCacheManager

SCHEMA = "kvcached.observability.v1"
_ROLES = {
    _native.ROLE_ENGINE: "engine",
    _native.ROLE_WORKER: "worker",
    _native.ROLE_SCHEDULER: "scheduler",
}


@dataclass(frozen=True)
class RuntimeSnapshot:
    """This process as an instance of the daemon's. Bytes are the instance's, over all of its processes."""

    schema: str
    initialized: bool
    instance: str | None
    role: str | None  # engine, worker, scheduler
    pid: int
    limit_bytes: int
    used_bytes: int
    over_limit: bool
    connected: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class KVCachePoolSnapshot:
    """One KVCacheManager. Blocks and pages are counts; a page is one over all layers and workers."""

    schema: str
    integration: str | None
    pool_name: str
    instance: str
    group_id: int
    ready: bool  # its tensors exist, and blocks can be asked for
    num_layers: int
    num_kv_buffers: int
    block_size: int
    cell_size: int
    block_bytes: int  # of one layer's K or V
    page_bytes: int  # over all layers and workers
    contiguous: bool
    total_blocks: int
    used_blocks: int
    free_blocks: int
    reserved_blocks: int
    available_blocks: int
    mapped_pages: int
    free_pages: int
    partly_pages: int
    full_pages: int
    waiting_pages: int
    pinned_pages: int
    doubt_pages: int
    mapped_bytes: int
    mapped_total: int
    unmapped_total: int
    refused_total: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_COUNTERS = (
    "total_blocks", "used_blocks", "free_blocks", "reserved_blocks", "mapped_pages", "free_pages",
    "partly_pages", "full_pages", "waiting_pages", "pinned_pages", "doubt_pages", "mapped_total",
    "unmapped_total", "refused_total",
)  # fmt: skip


def get_capabilities() -> dict[str, Any]:
    """What this build can do, for whoever asks before using it."""
    return {
        "schema": SCHEMA,
        "version": _native.version,
        "runtime_snapshot": True,
        "kv_cache_pool_snapshot": True,
        "instance_memory_limit": True,
        "leases": True,
        "reclaim": True,
        "page_census": True,
    }


def build_runtime_snapshot() -> RuntimeSnapshot:
    """Also before init_kvcached(): then `initialized` is False, and nothing is known."""
    current = runtime.get_or_none()
    if current is None:
        return RuntimeSnapshot(SCHEMA, False, None, None, os.getpid(), 0, 0, False, False)
    states = [client.status() for client in current.clients()]
    return RuntimeSnapshot(
        schema=SCHEMA,
        initialized=True,
        instance=current.instance,
        role=_ROLES[current.role.native_role],
        pid=os.getpid(),
        limit_bytes=sum(state["limit_bytes"] for state in states),
        used_bytes=sum(state["used_bytes"] for state in states),
        over_limit=any(state["over_limit"] for state in states),
        connected=all(state["connected"] for state in states),
    )


def build_kv_cache_pool_snapshot(
    manager: KVCacheManager, *, integration: str | None = None
) -> KVCachePoolSnapshot:
    ready = manager.is_open
    counters = manager.status() if ready else dict.fromkeys(_COUNTERS, 0)
    layout = manager.layout
    return KVCachePoolSnapshot(
        schema=SCHEMA,
        integration=integration,
        pool_name=manager.pool_name,
        instance=manager.instance,
        group_id=manager.group_id,
        ready=ready,
        num_layers=layout.layers,
        num_kv_buffers=layout.kv_buffers,
        block_size=manager.block_size,
        cell_size=manager.cell_size,
        block_bytes=layout.block_bytes,
        page_bytes=manager.page_bytes,
        contiguous=layout.contiguous,
        available_blocks=manager.promised_size() if ready else 0,
        mapped_bytes=counters["mapped_pages"] * manager.page_bytes,
        **{name: counters[name] for name in _COUNTERS},
    )


def get_registered_kv_cache_pool_snapshots(*, integration: str | None = None) -> list[KVCachePoolSnapshot]:
    """Of all managers that an engine's interfaces have made in this process."""
    return [
        build_kv_cache_pool_snapshot(manager, integration=integration)
        for manager in pool_registry.get_kv_cache_pools(integration=integration)
    ]


def get_registered_kv_cache_pool_snapshot(*, integration: str | None = None) -> KVCachePoolSnapshot | None:
    """The first one; None: there is none."""
    snapshots = get_registered_kv_cache_pool_snapshots(integration=integration)
    return snapshots[0] if snapshots else None


def get_registered_kv_cache_pool_snapshot_dicts(*, integration: str | None = None) -> list[dict[str, Any]]:
    return [
        snapshot.to_dict() for snapshot in get_registered_kv_cache_pool_snapshots(integration=integration)
    ]
