# SPDX-License-Identifier: Apache-2.0
"""Which managers there are in this process, by the engine that made them. They are not kept alive."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcached.kv_cache_manager import KVCacheManager

_lock = threading.Lock()
_pools: dict[str, list[weakref.ref[KVCacheManager]]] = {}


def register_kv_cache_pool(manager: KVCacheManager, *, integration: str) -> None:
    with _lock:
        known = _pools.setdefault(integration, [])
        known[:] = [ref for ref in known if ref() not in (None, manager)]
        known.append(weakref.ref(manager))


def clear_kv_cache_pools(*, integration: str | None = None) -> None:
    """Forgets those of one engine, or all."""
    with _lock:
        if integration is None:
            _pools.clear()
        else:
            _pools.pop(integration, None)


def get_kv_cache_pools(*, integration: str | None = None) -> list[KVCacheManager]:
    """Of one engine, or of all; in the order in which they were made."""
    with _lock:
        known = _pools.items()
        refs = [ref for name, of_name in known if integration in (None, name) for ref in of_name]
    return [manager for manager in (ref() for ref in refs) if manager is not None]


def _begin_anew() -> None:
    """In a forked child: the managers are its parent's, and the lock may be held for ever."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_begin_anew)
