# SPDX-License-Identifier: Apache-2.0
"""Room for a model that is to wake, held until the model has taken it.

It is reserved in the books of the GPUs' daemons. Where an engine is on another machine, or the configuration
does not say how much it needs, nothing is, and whether there is room the engine finds out when it wakes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from kvcached.controller.config import Instance
    from kvcached.controller.engines import Engine

log = logging.getLogger("kvcached.controller")

LOCAL = ("127.0.0.1", "::1", "localhost")
THREADS = 64  # that wait for daemons at once

_T = TypeVar("_T")
_R = TypeVar("_R")


class Held(Protocol):
    """Room that is reserved until release(), which may be called again."""

    async def release(self) -> None: ...


class NoRoom(Exception):
    """There is none now; one sentence. `missing_bytes`: how much is lacking, by GPU; None: nobody knows how
    much. Empty where it would not help that others give way."""

    def __init__(self, sentence: str, missing_bytes: Mapping[int, int | None] | None = None) -> None:
        super().__init__(sentence)
        self.missing_bytes = dict(missing_bytes or {})


class Full(Exception):
    """A GPU's books cannot hold it now, and could if others had less there."""


class Reserver(Protocol):
    async def reserve(self, instance: Instance, limit: float) -> Held:
        """What the instance needs to wake, within `limit` seconds. NoRoom, with all of its GPUs that are
        short, or without any where the one who is asked does not answer."""
        ...


class _Nothing:
    async def release(self) -> None:
        pass


class Reservation(Protocol):
    """As kvcached.Reservation, which has it when it is made."""

    def release(self) -> None: ...


# (instance's name, GPU, KV bytes, bytes from the driver, seconds): kvcached.Reservation; Full, or another of
# its exceptions.
Make = Callable[[str, int, int, int, float], Reservation]


def make_reservation(name: str, gpu: int, kv_bytes: int, weight_bytes: int, limit: float) -> Reservation:
    # They need the extension.
    from kvcached import OutOfMemoryError, _native
    from kvcached import Reservation as Made

    try:
        return Made(
            instance=name, gpu=str(gpu), bytes=kv_bytes, foreign_bytes=weight_bytes, timeout=max(limit, 1e-3)
        )
    except OutOfMemoryError as fault:
        # An instance's own limit has nothing to do with others.
        if fault.code in (_native.E_BUDGET, _native.E_DEVICE_MEMORY):
            raise Full(str(fault)) from None
        raise


def needs_room(instance: Instance) -> bool:
    """Whether the configuration says what is to be reserved, and with whom."""
    return bool(instance.ipc_name and (instance.weight_bytes or instance.min_kv_bytes) and is_local(instance))


def is_local(instance: Instance) -> bool:
    return instance.url is not None and urlsplit(instance.url).hostname in LOCAL


def together(refusals: Collection[NoRoom]) -> NoRoom:
    """Where each of them could be helped."""
    missing: dict[int, int | None] = {}
    for refusal in refusals:
        for gpu, n_bytes in refusal.missing_bytes.items():
            before = missing.get(gpu, 0)
            missing[gpu] = None if before is None or n_bytes is None else before + n_bytes
    return NoRoom("; ".join(map(str, refusals)), missing)


async def each_of(parts: Iterable[_T], reserve: Callable[[_T], Awaitable[_R]], held: list[_R]) -> None:
    """Room for each, in their order, into `held`. NoRoom: of all that are short together, or of the first one
    where it would not help that others give way."""
    refusals = []
    for part in parts:
        try:
            held.append(await reserve(part))
        except NoRoom as fault:
            if not fault.missing_bytes:
                raise
            refusals.append(fault)
    if refusals:
        raise together(refusals)


@dataclass(eq=False)
class Room:
    """For a model that wakes: asked for, or held. engines: those that wake in it."""

    task: asyncio.Task[None] | None = None
    held: list[Held] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)

    async def release(self) -> None:
        """Also while it is still asked for."""
        if self.task:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.release_held()

    async def release_held(self) -> None:
        held, self.held = self.held, []
        for one in held:
            try:
                await one.release()
            except Exception as fault:
                log.warning("Room could not be given back: %s", fault or type(fault).__name__)


class DaemonReserver:
    """Asks the daemon of each of the instance's GPUs, in their order. Its calls wait, so threads make them;
    one that nobody waits for any more releases what it has got."""

    def __init__(self, make: Make = make_reservation) -> None:
        self._make = make
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="reserve")

    async def reserve(self, instance: Instance, limit: float) -> Held:
        if not needs_room(instance):
            return _Nothing()
        held = _Held(self._threads)
        end = asyncio.get_running_loop().time() + limit

        async def on(gpu: int) -> Reservation:
            return await self._one(instance, gpu, end - asyncio.get_running_loop().time())

        try:
            await each_of(instance.gpu, on, held.made)
        except BaseException:
            await asyncio.shield(held.release())
            raise
        return held

    async def _one(self, instance: Instance, gpu: int, limit: float) -> Reservation:
        asked = self._threads.submit(
            self._make,
            instance.ipc_name or "",
            gpu,
            instance.min_kv_bytes or 0,
            instance.weight_bytes or 0,
            limit,
        )
        try:
            return await asyncio.wrap_future(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(_release_unwanted)
            raise
        except Exception as fault:
            sentence = f"GPU {gpu} for {instance.ipc_name}: {fault or type(fault).__name__}"
            raise NoRoom(sentence, {gpu: None} if isinstance(fault, Full) else {}) from fault

    def close(self) -> None:
        self._threads.shutdown(wait=False)


class _Held:
    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self.made: list[Reservation] = []

    async def release(self) -> None:
        """One that fails to release has ended its connection, and with it what was held: it is only said."""
        made, self.made = self.made, []
        for one in made:
            try:
                await asyncio.wrap_future(self._threads.submit(one.release))
            except Exception as fault:
                log.warning("A reservation could not be released: %s", fault or type(fault).__name__)


def _release_unwanted(asked: Future[Reservation]) -> None:
    """In the thread that has made it."""
    if not asked.cancelled() and asked.exception() is None:
        asked.result().release()
