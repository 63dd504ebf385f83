# SPDX-License-Identifier: Apache-2.0
"""kvcached: GPU memory for KV caches that is there when it is needed, and with others when it is not.

An engine reserves addresses for its KV cache and has them backed page by page with memory that belongs to a
daemon, kvcachedd. This package is the engine's side of it:

    kvcached.integration.vllm, kvcached.integration.sglang   plug-ins, and the functions that they stand on
    kvcached.kv_cache_manager                                blocks: allocate, free, how many there are
    kvcached.vmm_ops                                         pages: create tensors, map, unmap
    kvcached.control, kvcached.observability                 limits and counters of this process
    kvcached.Reservation                                     memory for an engine that is about to wake

and, beside the engines, kvcached.controller: one address for many models. The extension is loaded by the
first who needs it, and the controller needs none but to reserve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcached._native import version as __version__
    from kvcached.errors import (
        DaemonNotFoundError,
        DaemonTimeoutError,
        DisconnectedError,
        Error,
        InvalidError,
        KVCachedConfigError,
        KVCachePoolExhausted,
        OutOfMemoryError,
    )
    from kvcached.reservation import Reservation
else:
    _HOMES = {"Reservation": ("reservation", "Reservation"), "__version__": ("_native", "version")}

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module, attribute = _HOMES.get(name, ("errors", name))
        found = getattr(import_module(f"kvcached.{module}"), attribute)
        globals()[name] = found
        return found


__all__ = [
    "DaemonNotFoundError",
    "DaemonTimeoutError",
    "DisconnectedError",
    "Error",
    "InvalidError",
    "KVCachePoolExhausted",
    "KVCachedConfigError",
    "OutOfMemoryError",
    "Reservation",
    "__version__",
]
