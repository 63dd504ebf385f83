# SPDX-License-Identifier: Apache-2.0
"""kvcached: GPU memory for KV caches that is there when it is needed, and with others when it is not.

An engine reserves addresses for its KV cache and has them backed page by page with memory that belongs to a
daemon, kvcachedd. This package is the engine's side of it:

    kvcached.integration.vllm, kvcached.integration.sglang   plug-ins, and the functions that they stand on
    kvcached.kv_cache_manager                                blocks: allocate, free, how many there are
    kvcached.vmm_ops                                         pages: create tensors, map, unmap
    kvcached.control, kvcached.observability                 limits and counters of this process
    kvcached.Reservation                                     memory for an engine that is about to wake
"""

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
