# SPDX-License-Identifier: Apache-2.0
"""Memory that is promised to an engine before it is there to ask for it.

Who wakes a model that sleeps would otherwise look at what is free, and somebody else could have it by the
time that the engine comes. See kvc_reserve() in kvclient.h.
"""

from __future__ import annotations

import math
from types import TracebackType

from kvcached import _native

TIMEOUT_MS_MAX = (1 << 31) - 1


def _milliseconds(timeout: float | None) -> int:
    """As kvc_reserve() takes it: 0 is the client's own, negative no limit."""
    if timeout is None:
        return 0
    if not timeout > 0:
        raise ValueError(f"timeout={timeout} is not a number of seconds above 0")
    return -1 if math.isinf(timeout) else min(math.ceil(timeout * 1000), TIMEOUT_MS_MAX)


class Reservation:
    """`bytes` of the daemon's budget for what `instance` asks for next, and `foreign_bytes` of the GPU for
    what its engines take from the driver by themselves; both, or an exception.

    It is held until release(), the end of a `with`, or the last reference; what the engines have got by then
    stays theirs.

    socket: the daemon's; gpu: its UUID or number; both None: as the environment says. timeout: seconds to
    wait for it, math.inf for ever; None: KVCACHED_IPC_TIMEOUT.

    OutOfMemoryError: limit, budget or GPU cannot hold it. DaemonTimeoutError: no answer in time; nothing is
    held then. ValueError: both are 0, or a number is none.
    """

    def __init__(
        self,
        *,
        instance: str,
        bytes: int = 0,  # noqa: A002
        foreign_bytes: int = 0,
        socket: str | None = None,
        gpu: str | None = None,
        timeout: float | None = None,
    ) -> None:
        timeout_ms = _milliseconds(timeout)
        client = _native.Client(
            socket=socket,
            instance=instance,
            gpu=gpu,
            role=_native.ROLE_CONTROLLER,
            timeout_ms=timeout_ms,
            own_thread=False,
        )
        try:
            client.reserve(bytes, foreign_bytes, timeout_ms=timeout_ms)
        except BaseException:
            client.close()
            raise
        self._client = client
        self.instance = instance
        self.bytes = bytes
        self.foreign_bytes = foreign_bytes

    @property
    def released(self) -> bool:
        """Whether it was ended. One that has lost its daemon, and with it what was held, was not."""
        return self._client.closed

    def release(self) -> None:
        """Ends it: what was not used is free for others when this returns. Once more does nothing."""
        if self._client.closed:
            return
        try:
            self._client.release()
        except _native.DisconnectedError:
            pass  # what was held has ended with the connection
        finally:
            self._client.close()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = ", released" if self.released else ""
        return (
            f"Reservation({self.instance!r}, bytes={self.bytes}, foreign_bytes={self.foreign_bytes}{state})"
        )
