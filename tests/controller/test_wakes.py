# SPDX-License-Identifier: Apache-2.0
"""Wakes that fail half-way, or take too long: nothing of the GPU's memory stays with an engine that doesn't
use it, or is promised twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from controller.live import eventually, run, serving
from controller.standins.answers import completion
from controller.standins.engine import Behaviour, RefusedError, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, running
from kvcached.controller.actions import State
from kvcached.controller.config import Instance
from kvcached.controller.engines import KINDS, TIMEOUT, EngineError
from kvcached.controller.proxy import connect_session
from kvcached.controller.reservation import Held, NoRoom

COMPLETIONS = "/v1/completions"
MIB = 1 << 20
SIZE = 60 * MIB


class Half(VllmStandIn):
    """Has memory for its weights, and none for the KV cache."""

    async def _wake(self, tags: list[str]) -> bool:
        if "kv_cache" in tags and self.behaviour.wake_fails:
            raise RefusedError(500, "CUDA out of memory", "InternalServerError")
        fails, self.behaviour.wake_fails = self.behaviour.wake_fails, False
        try:
            return await super()._wake(tags)
        finally:
            self.behaviour.wake_fails = fails


class PausedSglang(SglangStandIn):
    """Doesn't go on once its memory is there."""

    async def continue_generation(self, request: web.Request) -> web.StreamResponse:
        if self.behaviour.wake_fails:
            raise RefusedError(400, "told to fail", "BadRequestError")
        return await super().continue_generation(request)

    async def _resume(self, tags: set[str], request: web.Request) -> None:
        fails, self.behaviour.wake_fails = self.behaviour.wake_fails, False
        try:
            await super()._resume(tags, request)
        finally:
            self.behaviour.wake_fails = fails


class Gpu:
    """A Reserver with room for one of them."""

    def __init__(self, stand_ins: Mapping[str, StandIn]) -> None:
        self.stand_ins, self.reserved = stand_ins, dict.fromkeys(stand_ins, 0)

    async def reserve(self, instance: Instance, limit: float) -> Held:
        del limit
        name = str(instance.name)[0]
        others = [other for other in self.stand_ins if other != name]
        if any(self.stand_ins[other].held_bytes() or self.reserved[other] for other in others):
            raise NoRoom("another one has it", {0: SIZE})
        assert not self.reserved[name]
        self.reserved[name] = SIZE
        return Room(self, name)


class Room:
    def __init__(self, gpu: Gpu, name: str) -> None:
        self.gpu, self.name = gpu, name

    async def release(self) -> None:
        self.gpu.reserved[self.name] = 0


def stand_ins_of(kind: type[StandIn], names: str = "ab") -> dict[str, StandIn]:
    return {name: kind(model=name, behaviour=Behaviour(weight_bytes=SIZE, kv_bytes=1)) for name in names}


async def ask(whole: Whole, model: str) -> tuple[int, str | None]:
    answer = await whole.ask("POST", COMPLETIONS, completion(model, "x"))
    return answer.status, None if answer.status == 200 else answer.code


@pytest.mark.parametrize("kind", [Half, PausedSglang])
def test_one_that_has_woken_in_part_sleeps_again(kind: type[StandIn]) -> None:
    """So that others have room, and it can be woken later."""

    async def main() -> None:
        stand_ins = stand_ins_of(kind)
        gpu = Gpu(stand_ins)
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        async with running(every, reserver=gpu) as whole:
            await whole.act("sleep", "b")
            await whole.act("sleep", "a")
            stand_ins["a"].behaviour.wake_fails = True
            assert await ask(whole, "a") == (503, "wake_failed")
            assert stand_ins["a"].held_bytes() == 0
            assert await ask(whole, "b") == (200, None)
            stand_ins["a"].behaviour.wake_fails = False
            assert (await whole.act("wakeup", "a")).status == 200
            assert await ask(whole, "a") == (200, None)
            assert sum(stand_in.counters.deaths for stand_in in stand_ins.values()) == 0

    run(main())


@asynccontextmanager
async def overdue(wake_s: float, names: str = "a") -> AsyncIterator[tuple[Whole, dict[str, StandIn], Gpu]]:
    """All sleep, but a goes on waking though its time is over; its request was refused. wake_s: for its
    weights, and again for the KV cache."""
    stand_ins = stand_ins_of(VllmStandIn, names)
    gpu = Gpu(stand_ins)
    every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
    async with running(every, {"wake_timeout_seconds": 0.1}, reserver=gpu) as whole:
        for name in reversed(names):
            await whole.act("sleep", name)
        stand_ins["a"].behaviour.wake_s = wake_s
        assert await ask(whole, "a") == (503, "wake_failed")
        yield whole, stand_ins, gpu


def test_what_is_reserved_stays_while_an_engine_goes_on_waking() -> None:
    """Who needs the same memory waits until it is awake, and gives way."""

    async def main() -> None:
        async with overdue(0.7, "ab") as (whole, stand_ins, gpu):
            assert stand_ins["a"].is_at_it()
            assert gpu.reserved["a"]
            assert not whole.model("a").quiet
            other = asyncio.ensure_future(ask(whole, "b"))
            await eventually(lambda: not stand_ins["a"].is_asleep())
            assert stand_ins["b"].is_asleep()
            assert await other == (200, None)
            assert stand_ins["a"].held_bytes() == 0
            assert gpu.reserved == {"a": 0, "b": 0}

    run(main())


def test_one_that_wakes_late_is_awake() -> None:
    async def main() -> None:
        async with overdue(0.3) as (whole, _, gpu):
            await eventually(lambda: whole.model("a").lifecycle.state is State.AWAKE)
            await eventually(lambda: not gpu.reserved["a"])
            assert await ask(whole, "a") == (200, None)

    run(main())


def test_one_that_dies_while_it_goes_on_waking_keeps_nothing() -> None:
    async def main() -> None:
        async with overdue(60) as (_, stand_ins, gpu):
            assert gpu.reserved["a"]
            stand_ins["a"].die()
            await eventually(lambda: not gpu.reserved["a"])

    run(main())


@pytest.mark.parametrize("kind", [VllmStandIn, SglangStandIn])
def test_a_wake_goes_on_after_its_limit(kind: type[StandIn]) -> None:
    """Nothing else is asked of the engine meanwhile."""

    async def main() -> None:
        stand_in = kind(behaviour=Behaviour(wake_s=0.3))
        async with serving(stand_in), connect_session() as session:
            driver = KINDS[stand_in.engine](session, stand_in.address)
            await driver.settled(None)
            await driver.sleep(5)
            for call in (driver.wake, driver.settled, driver.wake, driver.sleep):
                with pytest.raises(EngineError) as caught:
                    await call(0.05)
                assert caught.value.kind == TIMEOUT
            await driver.settled(None)
            assert not await driver.is_sleeping()
            assert (stand_in.counters.wakes, stand_in.counters.sleeps, stand_in.counters.deaths) == (1, 1, 0)

    run(main())
