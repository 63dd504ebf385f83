# SPDX-License-Identifier: Apache-2.0
"""Models that do not fit together: who wakes has room first, and others give way for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import pytest

from controller.live import eventually, run
from controller.standins.answers import completion, stream_text, whole_text
from controller.standins.engine import Behaviour, StandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, running
from kvcached.controller import lifecycle
from kvcached.controller.config import Instance
from kvcached.controller.node import is_short
from kvcached.controller.reservation import Held, NoRoom

COMPLETIONS = "/v1/completions"
MIB = 1 << 20


class Gpu:
    """A Reserver whose books are what the engines hold and what was reserved. knows: whether it says how much
    is missing."""

    def __init__(self, size: int, stand_ins: Mapping[str, StandIn], knows: bool = True) -> None:
        self.size, self.stand_ins, self.knows = size, stand_ins, knows
        self.reserved: dict[str, int] = {}
        self.grants = self.refusals = 0
        self.answers = asyncio.Event()  # is set, unless a test has it wait
        self.answers.set()

    def used(self) -> int:
        awake = [s.behaviour.weight_bytes for s in self.stand_ins.values() if not s.is_asleep()]
        return sum(awake) + sum(self.reserved.values())

    async def reserve(self, instance: Instance, limit: float) -> Held:
        assert limit > 0
        wanted = instance.weight_bytes or 0
        missing = self.used() + wanted - self.size
        if missing > 0:
            self.refusals += 1
            await self.answers.wait()
            raise NoRoom(f"{missing} bytes are missing", {0: missing if self.knows else None})
        self.grants += 1
        room = Room(self, instance.name, wanted)
        await self.answers.wait()
        return room


class Room:
    def __init__(self, gpu: Gpu, name: str, n_bytes: int) -> None:
        assert name not in gpu.reserved
        self.gpu, self.name = gpu, name
        gpu.reserved[name] = n_bytes

    async def release(self) -> None:
        self.gpu.reserved.pop(self.name, None)


def models(*megabytes: int, wake_s: float = 0.02) -> dict[str, StandIn]:
    """Named by letters."""
    made: dict[str, StandIn] = {}
    for i, size in enumerate(megabytes):
        name = "abcdef"[i]
        behaviour = Behaviour(weight_bytes=size * MIB, wake_s=wake_s, sleep_s=wake_s)
        made[name] = VllmStandIn(model=name, behaviour=behaviour)
    return made


async def ask(whole: Whole, model: str, identity: str) -> None:
    answer = await whole.ask("POST", COMPLETIONS, completion(model, identity))
    assert answer.status == 200, answer
    assert stream_text(answer.data) == whole_text(identity, 4)


@pytest.mark.parametrize("knows", [True, False])
def test_an_idle_model_gives_way(knows: bool) -> None:
    async def main() -> None:
        stand_ins = models(60, 60)
        gpu = Gpu(100 * MIB, stand_ins, knows)
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        async with running(every, reserver=gpu) as whole:
            await whole.act("sleep", "a")
            await ask(whole, "a", "first")
            assert (await whole.state("a"), await whole.state("b")) == ("awake", "asleep")
            await ask(whole, "b", "second")
            assert (await whole.state("a"), await whole.state("b")) == ("asleep", "awake")
            assert gpu.reserved == {}
            text = (await whole.ask("GET", "/metrics")).data.decode()
            assert 'kvcached_controller_evictions_total{model="b",why="room"} 1.0' in text
            assert 'kvcached_controller_sleeps_total{model="b",why="room"} 1.0' in text

    run(main())


def test_nobody_sleeps_in_vain() -> None:
    """Where even all others together don't make room, they stay as they are, and who waits is told."""

    async def main() -> None:
        stand_ins = models(20, 20, 200)
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        gpu = Gpu(100 * MIB, stand_ins)
        settings = {"queue_deadline_seconds": 1}
        async with running(every, settings, reserver=gpu) as whole:
            await whole.act("sleep", "c")
            answer = await whole.ask("POST", COMPLETIONS, completion("c", "x"))
            assert (answer.status, answer.code) == (503, "no_room")
            assert (await whole.state("a"), await whole.state("b")) == ("awake", "awake")
            assert gpu.reserved == {}

    run(main())


def test_two_that_are_always_asked_take_turns() -> None:
    """Each is served, no stream is cut, and they are not switched more often than turn_seconds says."""

    async def main() -> None:
        stand_ins = models(60, 60)
        gpu = Gpu(100 * MIB, stand_ins)
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        served = dict.fromkeys("ab", 0)
        settings = {"turn_seconds": 0.5, "min_awake_seconds": 0.5}
        async with running(every, settings, reserver=gpu) as whole:
            await whole.act("sleep", "a")
            await eventually(lambda: whole.model("b").lifecycle.may_sleep_from() is not None)
            begun = time.monotonic()
            end = begun + 5

            async def client(model: str, number: int) -> None:
                while time.monotonic() < end:
                    await ask(whole, model, f"{model}{number}-{served[model]}")
                    served[model] += 1

            await asyncio.gather(*(client(model, i) for model in "ab" for i in range(4)))
            seconds = time.monotonic() - begun
            switches = sum(stand_in.counters.sleeps for stand_in in stand_ins.values()) - 1
            assert 2 <= switches <= seconds / 0.5 + 2
            assert min(served.values()) > 20, served
            assert all(stand_in.counters.while_asleep == 0 for stand_in in stand_ins.values())

    run(main())


def test_who_goes_while_there_is_no_room() -> None:
    """Nothing stays reserved, and nobody has given way for good."""

    async def main() -> None:
        stand_ins = models(60, 60)
        stand_ins["b"].behaviour.hold_at = 2
        gpu = Gpu(100 * MIB, stand_ins)
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        async with running(every, {"turn_seconds": 60}, reserver=gpu) as whole:
            await whole.act("sleep", "a")
            busy = asyncio.create_task(ask(whole, "b", "busy"))
            await eventually(lambda: stand_ins["b"].counters.in_flight == 1)
            impatient = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", "x")))
            await eventually(lambda: gpu.refusals > 0)
            impatient.cancel()
            await asyncio.gather(impatient, return_exceptions=True)
            await eventually(lambda: whole.model("a").lifecycle.queued == 0)
            stand_ins["b"].release()
            await busy
            assert await whole.state("a") == "asleep"
            assert gpu.reserved == {}

    run(main())


def waits_its_turn(whole: Whole, name: str) -> bool:
    return is_short(whole.model(name)) and whole.model(name).waits_its_turn


def test_nobody_gives_way_for_who_only_waits_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """All three fit. Two wake at once, and the second is asked to wait for the first; then it is its turn, at
    once."""
    monkeypatch.setattr(lifecycle, "ROOM_RETRY_SECONDS", 3600.0)

    async def main() -> None:
        stand_ins = models(30, 30, 30, 10)
        gpu = Gpu(100 * MIB, stand_ins)
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        async with running(every, reserver=gpu) as whole:
            for name in "abc":
                await whole.act("sleep", name)
            gpu.answers.clear()
            first = asyncio.create_task(ask(whole, "a", "first"))
            await eventually(lambda: gpu.grants == 1)
            others = [asyncio.create_task(ask(whole, name, f"then {name}")) for name in "bc"]
            await eventually(lambda: all(waits_its_turn(whole, name) for name in "bc"))
            gpu.answers.set()
            await asyncio.gather(first, *others)
            assert [await whole.state(name) for name in "abcd"] == ["awake"] * 4
            assert stand_ins["d"].counters.sleeps == 0
            assert gpu.refusals == 0

    run(main())


@pytest.mark.parametrize("knows", [True, False])
def test_nobody_gives_way_for_what_was_lacking_before(knows: bool) -> None:
    """b hears that there is no room when there is some again."""

    async def main() -> None:
        stand_ins = models(50, 50, 50)
        gpu = Gpu(100 * MIB, stand_ins, knows)
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        async with running(every, reserver=gpu) as whole:
            await whole.act("sleep", "b")
            gpu.answers.clear()
            waits = asyncio.create_task(ask(whole, "b", "waits"))
            await eventually(lambda: gpu.refusals == 1)
            await whole.act("sleep", "a")
            gpu.answers.set()
            await waits
            assert [await whole.state(name) for name in "abc"] == ["asleep", "awake", "awake"]
            assert gpu.refusals == 1

    run(main())


def test_who_cannot_have_room_keeps_nobody_waiting() -> None:
    """Others give way for whoever comes after it."""

    async def main() -> None:
        stand_ins = models(60, 60, 200)
        gpu = Gpu(100 * MIB, stand_ins)
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        # Even if somebody may sleep later.
        async with running(every, {"min_awake_seconds": 1}, reserver=gpu) as whole:
            await whole.act("sleep", "b")
            await whole.act("sleep", "c")
            await whole.act("sleep", "a")
            await ask(whole, "a", "first")
            large = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("c", "x")))
            await eventually(lambda: gpu.refusals == 1)
            await ask(whole, "b", "second")
            assert not large.done()
            large.cancel()
            await asyncio.gather(large, return_exceptions=True)

    run(main())
