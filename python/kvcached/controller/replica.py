# SPDX-License-Identifier: Apache-2.0
"""One of a model's engines: what is known of it, and what comes of asking it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from kvcached.controller import engines
from kvcached.controller.actions import Found
from kvcached.controller.config import Instance

log = logging.getLogger("kvcached.controller")

MOST_SILENT = 3
"""Times in a row that an engine is silent until it is dead: before that it may be busy. One that cannot be
connected to, or says that it is not well, is dead at once."""

_T = TypeVar("_T")


@dataclass(eq=False)
class Replica:
    """`url` names it. Each call raises EngineError, whatever goes wrong."""

    url: str
    instance: Instance
    engine: engines.Engine
    alive: bool | None = None  # None: not asked so far
    reason: str = ""  # why it is not, or may not be
    n_silent: int = 0  # times that it didn't answer in time, in a row
    changed_at: float = 0.0  # when it was woken or put to sleep last, and by us
    # Of waking it alone, for others are awake.
    is_woken: bool = False
    n_failed: int = 0  # in a row
    retry_at: float = 0.0

    async def find(self) -> Found | None:
        """What it is now; `alive`, `reason` and `n_silent` say the same. None: it is silent, and may be
        alive, or it still wakes or falls asleep."""
        try:
            await self._asked(self.engine.settled(engines.PROBE_S))
        except engines.EngineError as fault:
            self.reason = str(fault)
            return None
        try:
            await self._asked(self.engine.health())
            sleeping = await self._asked(self.engine.is_sleeping())
        except engines.EngineError as fault:
            self.reason = str(fault)
            self.n_silent += 1 if fault.kind == engines.TIMEOUT else MOST_SILENT
            if self.alive and self.n_silent < MOST_SILENT:
                return None
            self.alive = False
            return Found.DEAD
        self.alive, self.reason, self.n_silent = True, "", 0
        return Found.ASLEEP if sleeping else Found.AWAKE

    async def wake(self, limit: float) -> None:
        await self._asked(self.engine.wake(limit))

    async def sleep(self, limit: float) -> None:
        await self._asked(self.engine.sleep(limit))

    async def _asked(self, call: Awaitable[_T]) -> _T:
        """An engine may be stranger than its driver expects: then that one has failed, and no other."""
        try:
            return await call
        except engines.EngineError:
            raise
        except Exception as fault:
            log.exception("Engine %s: a fault of the controller's", self.url)
            raise engines.EngineError(engines.REFUSED, f"{fault or type(fault).__name__}") from fault
