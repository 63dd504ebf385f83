# SPDX-License-Identifier: Apache-2.0
"""vLLM's scheduler, whichever it is, with an elastic pool of blocks.

elastic_scheduler() is what --scheduler-cls is set to. It makes a subclass of the scheduler that vLLM would
have chosen. Blocks are freed when the last step that was scheduled with them has ended (vLLM's own
defer_block_free), so that a page is never unmapped under a step. Everything that the engine's thread does
with blocks is a turn of the pool's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any

from kvcached import runtime
from kvcached.errors import Error, KVCachedConfigError, KVCachePoolExhausted
from kvcached.integration.vllm import interfaces, versions
from kvcached.integration.vllm.geometry import Geometry, geometry
from kvcached.kv_cache_manager import KVCacheManager
from kvcached.utils import get_kvcached_logger, max_cached_tokens, page_size

logger = get_kvcached_logger("kvcached.vllm")

# Unless KVCACHED_MAX_CACHED_TOKENS says otherwise. What is cached is given up for a limit, not for what
# other engines need, so an engine must not keep all that it once had.
CACHED_TOKENS = 16000
LOOK_AT_WAITING = 16  # requests, of a queue that may be long


def blocks_of(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)


def check_stages(regions: Sequence[Any]) -> None:
    """Regions of all workers: blocks of one number are in pages of one number."""
    pages = sorted({region.pages for region in regions})
    if len(pages) > 1:
        raise KVCachedConfigError(
            f"The stages of this pipeline have {pages} pages for the same blocks, since they have different "
            "numbers of layers, and a block has all of them together: set VLLM_KV_CACHE_LAYOUT to one that "
            "has layers apart, such as LBNHC, or VLLM_PP_LAYER_PARTITION to equal stages"
        )


class Workers:
    """The memory of the engine's workers: a Source (see block_pool.py) and what the runtime holds. shape: of
    the first worker's; others may have more or fewer layers."""

    def __init__(self, shape: Geometry) -> None:
        self._shape = shape
        self._runtime = runtime.get()
        self.page_bytes = 0  # known when it is open
        self.page_blocks = max(shape.layout.page_bytes // shape.layout.block_bytes, 1)

    def open(self) -> KVCacheManager:
        shape = self._shape
        if self._runtime.role.separate:
            check_stages(self._runtime.attach_pool(0, shape.layout).regions)
        manager = KVCacheManager(
            shape.num_blocks,
            block_size=1,
            cell_size=shape.layout.block_bytes,
            num_layers=shape.layout.layers,
            num_kv_buffers=1,
            reserve_null_block=True,
            layout=shape.layout,
        )
        _ = manager.blocks  # maps block 0
        self.page_bytes = manager.page_bytes
        return manager

    def close(self, memory: KVCacheManager) -> None:
        with contextlib.suppress(Error):
            memory.trim()
        memory.close()

    def overage_bytes(self) -> int:
        over = 0
        for client in self._runtime.clients():
            if client.closed:
                continue
            status = client.status()
            if status["over_limit"]:
                over = max(over, status["used_bytes"] - status["limit_bytes"], 1)
        return over

    def is_lost(self) -> bool:
        return not all(client.closed or client.status()["connected"] for client in self._runtime.clients())


class Elastic:
    """Before a Scheduler in a class' bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        me: Any = self
        versions.need_attributes(
            self,
            "defer_block_free",
            "processed_step_seq",
            "kv_cache_manager",
            "waiting",
            "running",
            "num_lookahead_tokens",
            "max_num_scheduled_tokens",
            "pause_state",
        )
        me.defer_block_free = True
        self._pool = me.kv_cache_manager.block_pool
        self._groups = max(len(me.kv_cache_manager.coordinator.single_type_managers), 1)
        self._allocate = me.kv_cache_manager.allocate_slots
        me.kv_cache_manager.allocate_slots = self._allocate_slots
        self._refused = False

    # ---- How many blocks a step can take ----

    def _blocks_next(self) -> int:
        """What the next step's requests can take: those that run grow by their tokens; those that wait are
        admitted in the queue's order, the first only if it fits as a whole. 0: it is there, whatever it is.
        """
        me: Any = self
        size: int = me.block_size
        budget: int = me.max_num_scheduled_tokens
        ahead: int = me.num_lookahead_tokens
        if not me.waiting:
            most = blocks_of(budget, size) + len(me.running) * (2 + blocks_of(ahead, size))
            if self._pool.has(most * self._groups):
                return 0
        blocks = 0
        for request in me.running:
            done = request.num_computed_tokens
            due = request.num_tokens_with_spec + request.num_output_placeholders - done
            blocks += blocks_of(done + max(min(due, budget), 1) + ahead, size) - blocks_of(done, size)
        for request in islice(me.waiting, LOOK_AT_WAITING):
            if budget <= 0:
                break
            blocks += blocks_of(request.num_tokens + ahead, size) + 1
            budget -= request.num_tokens
        return blocks * self._groups

    # ---- What vLLM's scheduler does, in turns ----

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        me: Any = self
        with self._pool.turn:
            if not self._pool.asleep or me.pause_state.name == "UNPAUSED":
                self._pool.begin_step(self._blocks_next())
            self._refused = False
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
            if self._refused and not me.running:
                self._pool.check_hope()
            return output

    def _allocate_slots(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Free blocks are a promise for a while only. One that was broken is a shortage like any other."""
        me: Any = self
        managers = me.kv_cache_manager.coordinator.single_type_managers
        before = [len(m.req_to_blocks.get(request.request_id, ())) for m in managers]
        try:
            blocks = self._allocate(request, *args, **kwargs)
            self._refused |= blocks is None
            return blocks
        except KVCachePoolExhausted as error:
            logger.warning("%s", error)
            self._refused = True
            for manager, n in zip(managers, before):
                blocks = manager.req_to_blocks.get(request.request_id)
                if blocks is not None and len(blocks) > n:
                    self._pool.free_blocks(reversed(blocks[n:]))
                    del blocks[n:]
            if not any(before):
                me.kv_cache_manager.free(request)
            return None

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        with self._pool.turn:
            return super().update_from_output(*args, **kwargs)  # type: ignore[misc]

    def add_request(self, *args: Any, **kwargs: Any) -> Any:
        with self._pool.turn:
            return super().add_request(*args, **kwargs)  # type: ignore[misc]

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        with self._pool.turn:
            return super().finish_requests(*args, **kwargs)  # type: ignore[misc]

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> Any:
        """While paused, this is what vLLM does before it sleeps: nothing is needed then."""
        me: Any = self
        with self._pool.turn:
            done = super().reset_prefix_cache(*args, **kwargs)  # type: ignore[misc]
            if done and me.pause_state.name != "UNPAUSED" and self._pool.held == 0:
                self._pool.sleep()
            return done

    def set_pause_state(self, pause_state: Any) -> None:
        with self._pool.turn:
            super().set_pause_state(pause_state)  # type: ignore[misc]
            if pause_state.name == "UNPAUSED":
                self._pool.wake()

    def shutdown(self) -> None:
        super().shutdown()  # type: ignore[misc]
        if runtime.get_or_none() is not None and runtime.get().role.separate:
            # vLLM has ended the workers by now, and their memory went with them.
            for client in runtime.get().clients():
                client.close()
        interfaces.shutdown_kvcached()


@cache
def _elastic(base: type) -> type:
    return type(f"Elastic{base.__name__}", (Elastic, base), {})


@contextlib.contextmanager
def _pools_made_by(make: Any) -> Iterator[None]:
    """vLLM's coordinators make their pool by the name BlockPool of their module; there is no other way in."""
    from vllm.v1.core import kv_cache_coordinator as coordinator

    versions.check_scheduler()
    plain = coordinator.BlockPool
    coordinator.BlockPool = make
    try:
        yield
    finally:
        coordinator.BlockPool = plain


def _join(vllm_config: Any) -> None:
    """Of the process that schedules."""
    parallel = vllm_config.parallel_config
    stages = parallel.pipeline_parallel_size
    if runtime.get_or_none() is None:
        interfaces.init_kvcached(
            world_size=parallel.world_size // stages, pp_size=stages, is_worker=False, separate=True
        )


def elastic_scheduler(**kwargs: Any) -> Any:
    """vLLM calls it as it calls a scheduler's class."""
    vllm_config, kv_cache_config = kwargs["vllm_config"], kwargs["kv_cache_config"]
    if vllm_config.scheduler_config.async_scheduling:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler as Base
    else:
        from vllm.v1.core.sched.scheduler import Scheduler as Base
    if not kv_cache_config.kv_cache_tensors:
        return Base(**kwargs)

    from kvcached.integration.vllm.block_pool import ElasticBlockPool

    _join(vllm_config)
    workers = Workers(geometry(kv_cache_config, page_size()))
    tokens = max_cached_tokens(CACHED_TOKENS)
    most = None if tokens is None else tokens // kwargs["block_size"]
    pools: list[ElasticBlockPool] = []

    def make(**given: Any) -> ElasticBlockPool:
        pools.append(ElasticBlockPool(workers, most, **given))
        return pools[-1]

    with _pools_made_by(make):
        scheduler = _elastic(Base)(**kwargs)
    if len(pools) != 1:
        raise KVCachedConfigError(f"vLLM made {len(pools)} pools of blocks, and one was expected")
    runtime.get().add_reclaimer(pools[0].on_reclaim)
    return scheduler
