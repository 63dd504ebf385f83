# SPDX-License-Identifier: Apache-2.0
"""Locks that are none, for single-threaded integrations that are written against the reference's. The library
locks for itself, so nothing in this package needs them."""

from __future__ import annotations

from types import TracebackType


class NoOpLock:
    """A threading.Lock that is always free."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return True

    def release(self) -> None:
        """Does nothing."""

    def locked(self) -> bool:
        return False

    def __enter__(self) -> bool:
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Does nothing."""


class NoOpCondition(NoOpLock):
    """A threading.Condition on which nobody waits."""

    def __init__(self, lock: object | None = None) -> None:
        self.lock = lock

    def wait(self, timeout: float | None = None) -> bool:
        return True

    def notify(self, n: int = 1) -> None:
        """Does nothing."""

    def notify_all(self) -> None:
        """Does nothing."""
