# SPDX-License-Identifier: Apache-2.0
"""Room for a model that is to wake, held until the model has taken it.

Where it is reserved is a Reserver's affair: kvcachedd's books, or nobody's (Unreserved), for engines whose
GPU has no daemon, or of which the configuration does not say how much they need.
"""

from __future__ import annotations

from typing import Protocol

from kvcached.controller.config import Instance


class Held(Protocol):
    """Room that is reserved until release(), which may be called again."""

    async def release(self) -> None: ...


class NoRoom(Exception):
    """There is none now; one sentence. `missing_bytes`: how much is lacking, None where nobody knows."""

    def __init__(self, sentence: str, missing_bytes: int | None = None) -> None:
        super().__init__(sentence)
        self.missing_bytes = missing_bytes


class Reserver(Protocol):
    async def reserve(self, instance: Instance, limit: float) -> Held:
        """What the instance needs to wake, within `limit` seconds. NoRoom, also where the one who is asked
        does not answer."""
        ...


class _Nothing:
    async def release(self) -> None:
        pass


class Unreserved:
    """Grants everything: whether there is room, the engine finds out when it wakes."""

    async def reserve(self, instance: Instance, limit: float) -> Held:
        return _Nothing()
