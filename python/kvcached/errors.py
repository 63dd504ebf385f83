# SPDX-License-Identifier: Apache-2.0
"""What can go wrong.

`Error`, a RuntimeError, is the root of what the library reports; its `code` is a KVC_E_* number of
kvclient.h (0: of none), and its text one sentence. Subclasses are also what Python has for their kind:
`DaemonNotFoundError` is a FileNotFoundError that names the daemon's socket, `InvalidError` a ValueError,
`DisconnectedError` a ConnectionError, `DaemonTimeoutError` a TimeoutError; these three have an `errno`.
`OutOfMemoryError`: limit, budget or GPU cannot hold it.
"""

from __future__ import annotations

import errno

from kvcached._native import (
    DaemonNotFoundError,
    DaemonTimeoutError,
    DisconnectedError,
    Error,
    InvalidError,
    OutOfMemoryError,
)

# For OSError's attributes the text would have to be the operating system's, so these are the classes'.
_OF_CLASSES: list[tuple[type[Error], dict[str, object]]] = [
    (Error, {"code": 0}),
    # The socket that was looked for, where one was named.
    (DaemonNotFoundError, {"errno": errno.ENOENT, "filename": None}),
    (DisconnectedError, {"errno": errno.ECONNRESET}),
    (DaemonTimeoutError, {"errno": errno.ETIMEDOUT}),
]
for _kind, _attributes in _OF_CLASSES:
    for _name, _value in _attributes.items():
        setattr(_kind, _name, _value)


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
