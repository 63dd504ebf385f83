# SPDX-License-Identifier: Apache-2.0
"""Models on several GPUs, and on several machines: only those give way that make the room that is lacking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from controller.live import eventually, run
from controller.standins.answers import completion
from controller.standins.engine import Behaviour, StandIn
from controller.standins.vllm import VllmStandIn
from controller.test_room import COMPLETIONS, MIB, ask
from controller.whole import Whole, config_of, running
from kvcached.controller.config import Instance
from kvcached.controller.reservation import Held, NoRoom, is_local

SIZE = 100 * MIB
SETTINGS = {"turn_seconds": 600}
QUICK = {**SETTINGS, "queue_deadline_seconds": 1}


class Books:
    """A Reserver for this machine's GPUs, of 100 MiB each: what engines there hold, and what was reserved."""

    def __init__(self, stand_ins: Mapping[str, StandIn], knows: bool) -> None:
        self.stand_ins, self.knows = stand_ins, knows
        self.instances: tuple[Instance, ...] = ()
        self.reserved: set[str] = set()
        self.refusals: list[NoRoom] = []

    def used(self, gpu: int) -> int:
        return sum(
            instance.weight_bytes or 0
            for instance in self.instances
            if is_local(instance) and gpu in instance.gpu
            if instance.name in self.reserved or self.holds(self.stand_ins[instance.url or ""])
        )

    def holds(self, engine: StandIn) -> bool:
        return not engine.dead and not engine.is_asleep()

    async def reserve(self, instance: Instance, limit: float) -> Held:
        assert limit > 0
        if not is_local(instance):
            return Room(self, "")
        over = {gpu: self.used(gpu) + (instance.weight_bytes or 0) - SIZE for gpu in instance.gpu}
        missing = {gpu: n_bytes if self.knows else None for gpu, n_bytes in over.items() if n_bytes > 0}
        if missing:
            self.refusals.append(NoRoom(f"{missing} is missing", missing))
            raise self.refusals[-1]
        return Room(self, instance.name)


@dataclass
class Room:
    books: Books
    name: str

    def __post_init__(self) -> None:
        if self.name:
            self.books.reserved.add(self.name)

    async def release(self) -> None:
        self.books.reserved.discard(self.name)


def stand_in(model: str, megabytes: int) -> StandIn:
    return VllmStandIn(model=model, behaviour=Behaviour(weight_bytes=megabytes * MIB))


@asynccontextmanager
async def placed(
    every: dict[str, StandIn | list[StandIn]],
    gpus: Mapping[str, tuple[int, ...]],
    elsewhere: Iterable[str] = (),
    knows: bool = True,
    settings: Mapping[str, Any] = SETTINGS,
) -> AsyncIterator[tuple[Whole, Books]]:
    """gpus: by instance, which is the model's name, -, and a number."""
    books = Books({}, knows)
    async with running(every, dict(settings), reserver=books) as whole:
        config = config_of(every, dict(settings))
        addresses: dict[tuple[str, int], tuple[str, ...]] = {}
        instances = []
        for instance in config.instances:
            there = replace(instance, gpu=gpus[instance.name])
            if instance.name in elsewhere:
                # By another name than this machine's.
                there = replace(there, url=None, dns=("elsewhere", len(addresses)))
                addresses["elsewhere", len(addresses)] = (instance.url or "",)
            instances.append(there)
        lists = [of if isinstance(of, list) else [of] for of in every.values()]
        books.stand_ins = {one.address: one for of_model in lists for one in of_model}
        books.instances = tuple(instances)
        whole.controller.node.apply(config, books.instances, addresses)
        yield whole, books
        assert books.reserved == set()


@asynccontextmanager
async def busy(whole: Whole, name: str, engine: StandIn) -> AsyncIterator[None]:
    """A request of its is under way meanwhile."""
    engine.behaviour.hold_at = 1
    request = asyncio.create_task(ask(whole, name, "busy"))
    await eventually(lambda: engine.counters.in_flight == 1)
    yield
    engine.release()
    await request


async def refused(whole: Whole, name: str) -> None:
    answer = await whole.ask("POST", COMPLETIONS, completion(name, "x"))
    assert (answer.status, answer.code) == (503, "no_room")


@pytest.mark.parametrize("knows", [True, False])
def test_one_on_another_machine_is_left_alone(knows: bool) -> None:
    """Although its GPU has the same number, and nobody else can give way."""

    async def main() -> None:
        a, b, c = (stand_in(name, 60) for name in "abc")
        gpus = {"a-0": (0,), "b-0": (0,), "c-0": (0,)}
        async with placed({"a": a, "b": b, "c": c}, gpus, ["a-0"], knows, QUICK) as (whole, books):
            await whole.act("sleep", "b")
            async with busy(whole, "c", c):
                await refused(whole, "b")
                assert books.refusals
                assert await whole.state("a") == "awake"
                assert a.counters.sleeps == 0

    run(main())


def test_one_on_another_machine_does_not_wait() -> None:
    """For others have waited longer for room here, which is nothing to it."""

    async def main() -> None:
        a, b, c = (stand_in(name, 60) for name in "abc")
        gpus = {"a-0": (0,), "b-0": (0,), "c-0": (0,)}
        async with placed({"a": a, "b": b, "c": c}, gpus, ["a-0"]) as (whole, books):
            await whole.act("sleep", "a")
            await whole.act("sleep", "b")
            async with busy(whole, "c", c):
                waits = asyncio.create_task(ask(whole, "b", "waits"))
                await eventually(lambda: bool(books.refusals))
                await ask(whole, "a", "does not")
                assert not waits.done()
            await waits

    run(main())


@pytest.mark.parametrize("knows", [True, False])
def test_only_where_room_is_lacking(knows: bool) -> None:
    """b is on two GPUs and lacks room on one of them, where c works: a, on the other, is left alone."""

    async def main() -> None:
        a, b, c = stand_in("a", 30), stand_in("b", 60), stand_in("c", 60)
        gpus = {"a-0": (0,), "b-0": (0, 1), "c-0": (1,)}
        async with placed({"a": a, "b": b, "c": c}, gpus, knows=knows, settings=QUICK) as (whole, books):
            await whole.act("sleep", "b")
            async with busy(whole, "c", c):
                await refused(whole, "b")
                assert books.refusals
                assert await whole.state("a") == "awake"
            await ask(whole, "b", "now")
            assert (await whole.state("a"), await whole.state("c")) == ("awake", "asleep")

    run(main())


@pytest.mark.parametrize("knows", [True, False])
def test_nobody_sleeps_before_there_is_room_on_all(knows: bool) -> None:
    """b lacks room on both of its GPUs. a, on one, has nothing to do, but gives way only when c can, too."""

    async def main() -> None:
        a, b, c = (stand_in(name, 60) for name in "abc")
        gpus = {"a-0": (0,), "b-0": (0, 1), "c-0": (1,)}
        async with placed({"a": a, "b": b, "c": c}, gpus, knows=knows, settings=QUICK) as (whole, books):
            await whole.act("sleep", "b")
            async with busy(whole, "c", c):
                await refused(whole, "b")
                assert all(set(refusal.missing_bytes) == {0, 1} for refusal in books.refusals)
                assert a.counters.sleeps == 0
            await ask(whole, "b", "now")
            assert (await whole.state("a"), await whole.state("c")) == ("asleep", "asleep")

    run(main())


def test_replicas_make_room_each_on_its_own_gpu() -> None:
    """What a's replicas have together would be enough for b, but is on two GPUs."""

    async def main() -> None:
        b, c = stand_in("b", 70), stand_in("c", 40)
        gpus = {"a-0": (0,), "a-1": (1,), "b-0": (1,), "c-0": (1,)}
        every: dict[str, StandIn | list[StandIn]] = {
            "a": [stand_in("a", 30), stand_in("a", 30)],
            "b": b,
            "c": c,
        }
        async with placed(every, gpus, settings=QUICK) as (whole, books):
            await whole.act("sleep", "b")
            async with busy(whole, "c", c):
                await refused(whole, "b")
                assert books.refusals[0].missing_bytes == {1: 40 * MIB}
                assert await whole.state("a") == "awake"
            await ask(whole, "b", "now")

    run(main())


def test_a_dead_replica_makes_no_room() -> None:
    """On its GPU, where b lacks it."""

    async def main() -> None:
        a, dead, b, c = stand_in("a", 30), stand_in("a", 50), stand_in("b", 60), stand_in("c", 60)
        gpus = {"a-0": (0,), "a-1": (1,), "b-0": (1,), "c-0": (1,)}
        every: dict[str, StandIn | list[StandIn]] = {"a": [a, dead], "b": b, "c": c}
        async with placed(every, gpus, settings=QUICK) as (whole, books):
            await whole.act("sleep", "b")
            dead.die()
            await eventually(lambda: whole.model("a").replicas[dead.address].alive is False)
            async with busy(whole, "c", c):
                await refused(whole, "b")
                assert books.refusals[0].missing_bytes == {1: 20 * MIB}
                assert (await whole.state("a"), a.counters.sleeps) == ("awake", 0)

    run(main())


def test_replicas_lack_room_each_on_its_own_gpu() -> None:
    """Nobody makes room for one of b's replicas while there can be none for the other."""

    async def main() -> None:
        a, c = stand_in("a", 60), stand_in("c", 60)
        gpus = {"a-0": (0,), "b-0": (0,), "b-1": (1,), "c-0": (1,)}
        every: dict[str, StandIn | list[StandIn]] = {
            "a": a,
            "b": [stand_in("b", 60), stand_in("b", 60)],
            "c": c,
        }
        async with placed(every, gpus, settings=QUICK) as (whole, books):
            await whole.act("sleep", "b")
            async with busy(whole, "c", c):
                await refused(whole, "b")
                assert books.refusals
                assert a.counters.sleeps == 0
            await ask(whole, "b", "now")
            assert (await whole.state("a"), await whole.state("c")) == ("asleep", "asleep")

    run(main())
