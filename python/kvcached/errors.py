# SPDX-License-Identifier: Apache-2.0
"""What can go wrong.

`Error`, a RuntimeError, is the root of what the library reports; its `code` is a KVC_E_* number of
kvclient.h, and its text one sentence. Subclasses are also what Python has for their kind:
`DaemonNotFoundError` is a FileNotFoundError that names the daemon's socket, `InvalidError` a ValueError,
`DisconnectedError` a ConnectionError, `DaemonTimeoutError` a TimeoutError. `OutOfMemoryError`: limit, budget
or GPU cannot hold it.
"""

from __future__ import annotations

from kvcached._native import (
    DaemonNotFoundError,
    DaemonTimeoutError,
    DisconnectedError,
    Error,
    InvalidError,
    OutOfMemoryError,
)


class KVCachedConfigError(ValueError):
    """Shapes and settings that don't go together; the text says which ones would."""


class KVCachePoolExhausted(ValueError):
    """There are not so many free blocks."""


__all__ = [
    "DaemonNotFoundError",
    "DaemonTimeoutError",
    "DisconnectedError",
    "Error",
    "InvalidError",
    "KVCachePoolExhausted",
    "KVCachedConfigError",
    "OutOfMemoryError",
]
