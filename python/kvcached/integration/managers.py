# SPDX-License-Identifier: Apache-2.0
"""The managers that an engine's interfaces make, by the engine's name, and snapshots of them.

Shared by the engines' interfaces: most of the methods are functions there, under the same names.
"""

from __future__ import annotations

from typing import Any

from kvcached import observability, pool_registry, runtime
from kvcached.kv_cache_manager import KVCacheManager
from kvcached.observability import KVCachePoolSnapshot, RuntimeSnapshot


class Managers:
    """Of one engine, in this process."""

    def __init__(self, engine: str) -> None:
        self._engine = engine

    def make(
        self,
        num_blocks: int,
        block_size: int,
        cell_size: int,
        num_layers: int,
        num_kv_buffers: int,
        group_id: int,
        pool_name: str | None,
        reserve_null_block: bool,
    ) -> KVCacheManager:
        role = runtime.get().role
        manager = KVCacheManager(
            num_blocks,
            block_size,
            cell_size,
            num_layers,
            world_size=role.world_size,
            pp_rank=role.pp_rank,
            reserve_null_block=reserve_null_block,
            num_kv_buffers=num_kv_buffers,
            group_id=group_id,
            pool_name=pool_name,
        )
        pool_registry.register_kv_cache_pool(manager, integration=self._engine)
        return manager

    def shutdown_kvcached(self) -> None:
        """Returns all memory and disconnects; tensors that are left fault when they are touched."""
        runtime.shutdown()
        pool_registry.clear_kv_cache_pools(integration=self._engine)

    def observability_snapshot(self) -> RuntimeSnapshot:
        return observability.build_runtime_snapshot()

    def observability_snapshot_dict(self) -> dict[str, Any]:
        return self.observability_snapshot().to_dict()

    def kv_cache_pool_snapshot(self) -> KVCachePoolSnapshot | None:
        """Of the first manager that was made here; None: there is none."""
        return observability.get_registered_kv_cache_pool_snapshot(integration=self._engine)

    def kv_cache_pool_snapshots(self) -> list[KVCachePoolSnapshot]:
        return observability.get_registered_kv_cache_pool_snapshots(integration=self._engine)

    def kv_cache_pool_snapshot_dicts(self) -> list[dict[str, Any]]:
        return observability.get_registered_kv_cache_pool_snapshot_dicts(integration=self._engine)
