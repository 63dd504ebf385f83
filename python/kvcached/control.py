# SPDX-License-Identifier: Apache-2.0
"""A limit that this process sets for its own KV caches, split over its pools. An administrator's limit
(kvctl) is the daemon's affair, holds for the instance as a whole, and both hold."""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from typing import Any

from kvcached import pool_registry, runtime
from kvcached.kv_cache_manager import KVCacheManager, LimitState, check_limit

_lock = threading.Lock()
_ORDER = ("applied", "deferred", "conflict", "stale", "unavailable")


@dataclass(frozen=True)
class InstanceLimit:
    """status, reason and bytes as in LimitState, over all pools; `pools` has each one's."""

    status: str
    reason: str
    revision: int | None
    limit_bytes: int | None
    effective_limit_bytes: int
    mapped_bytes: int
    remaining_bytes: int
    overage_bytes: int
    pools: list[LimitState]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def split(limit_bytes: int, capacities: list[int]) -> list[int]:
    """In proportion to what each could ever need; what rounding leaves goes to the first ones."""
    total = sum(capacities)
    if total == 0:
        return [0 for _ in capacities]
    limit_bytes = min(limit_bytes, total)
    shares = [limit_bytes * capacity // total for capacity in capacities]
    for i in range(limit_bytes - sum(shares)):
        shares[i % len(shares)] += 1
    return shares


def _sum_up(states: list[LimitState], limit_bytes: int | None, revision: int | None) -> InstanceLimit:
    worst = max((state.status for state in states), key=_ORDER.index)
    mapped = sum(state.mapped_bytes for state in states)
    return InstanceLimit(
        status=worst,
        reason="; ".join(
            sorted({state.reason for state in states if state.status == worst and state.reason})
        ),
        revision=revision,
        limit_bytes=limit_bytes,
        effective_limit_bytes=sum(state.effective_limit_bytes for state in states),
        mapped_bytes=mapped,
        remaining_bytes=sum(state.remaining_bytes for state in states),
        overage_bytes=max(
            sum(state.overage_bytes for state in states), 0 if limit_bytes is None else mapped - limit_bytes
        ),
        pools=states,
    )


def _managers(current: runtime.Runtime) -> list[KVCacheManager]:
    """Each once: those that an engine's interfaces have made, and whoever else has blocks."""
    others = [ref() for pool in current.each_pool() for ref in pool.managers]
    known = dict.fromkeys([*pool_registry.get_kv_cache_pools(), *others])
    return [manager for manager in known if manager is not None]


def _ready(current: runtime.Runtime) -> list[KVCacheManager]:
    return [manager for manager in _managers(current) if manager.is_ready()]


def _open(current: runtime.Runtime) -> list[KVCacheManager]:
    return [manager for manager in _managers(current) if manager.is_open]


def _share(limit_bytes: int | None, revision: int, pools: list[KVCacheManager]) -> list[LimitState]:
    capacities = [pool.capacity_bytes for pool in pools]
    shares = [None] * len(pools) if limit_bytes is None else split(limit_bytes, capacities)
    return [pool.set_share(share, revision) for pool, share in zip(pools, shares)]


def share_again(current: runtime.Runtime) -> None:
    """Of a manager that has just been opened: it gets its share of the limit, and the others less."""
    with _lock:
        if current.own_limit is not None:
            _share(*current.own_limit, _open(current))


def _unavailable(reason: str) -> InstanceLimit:
    return InstanceLimit("unavailable", reason, None, None, 0, 0, 0, 0, [])


def set_instance_memory_limit(limit_bytes: int | None, *, revision: int) -> InstanceLimit:
    """In bytes over all pools, also those that are made later; None: no limit. Revisions only grow: an older
    one is "stale" and changes nothing, the same one with another limit is a "conflict". ValueError: a limit
    below 0."""
    limit_bytes, revision = check_limit(limit_bytes, revision)
    current = runtime.get_or_none()
    if current is None:
        return _unavailable(runtime.NOT_INITIALIZED)
    _ready(current)
    with _lock:
        known, pools = current.own_limit, _open(current)
        if not pools:
            return _unavailable("there are no KV caches yet")
        if known is not None and revision < known[1]:
            return _with_status("stale", f"revision {known[1]} is in force", known, pools)
        if known is not None and revision == known[1] and limit_bytes != known[0]:
            return _with_status("conflict", f"revision {revision} has another limit", known, pools)
        states = _share(limit_bytes, revision, pools)
        current.own_limit = (limit_bytes, revision)
    return _sum_up(states, limit_bytes, revision)


def _with_status(
    status: str, reason: str, known: tuple[int | None, int], pools: list[KVCacheManager]
) -> InstanceLimit:
    found = _sum_up([pool.memory_limit_state() for pool in pools], *known)
    return InstanceLimit(**{**found.__dict__, "status": status, "reason": reason})


def instance_memory_limit_state() -> InstanceLimit:
    """What has become of the last limit."""
    current = runtime.get_or_none()
    pools = _ready(current) if current is not None else []
    if current is None or not pools:
        return _unavailable("there are no KV caches yet")
    limit, revision = current.own_limit or (None, None)
    return _sum_up([pool.memory_limit_state() for pool in pools], limit, revision)


def _begin_anew() -> None:
    """In a forked child: the lock may be held for ever."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_begin_anew)
