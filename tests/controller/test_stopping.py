# SPDX-License-Identifier: Apache-2.0
"""Who stops, or is no longer configured, finishes what was accepted: also what waits for room, for which
others still give way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from controller.live import eventually, run
from controller.lives import SETTINGS, asleep, awake, calling_wake, forwarded, refusals, where
from controller.standins.answers import completion
from controller.standins.engine import StandIn
from controller.test_room import COMPLETIONS, MIB, Gpu, ask, models
from controller.whole import Whole, config_of, running
from kvcached.controller.actions import (
    Answer,
    Forward,
    Found,
    Look,
    Phase,
    Refuse,
    Reserve,
    Sleep,
    State,
    Why,
)
from kvcached.controller.node import is_short

# ---- One model ----


def test_stop_finishes_what_was_accepted() -> None:
    life = awake(replace(SETTINGS, auto_sleep_enabled=True))
    life.came(1, "a")
    assert life.stop(2) == []
    assert life.came(3, "b") == [Refuse("b", "shutting_down", 1)]
    assert not life.quiet
    life.ended(4, "a")
    assert life.quiet
    assert life.due() is None
    assert life.tick(10000) == []


def test_stop_drops_a_drain() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(2, Why.ADMIN, "ask", firm=True)
    life.came(3, "b")
    assert life.stop(4) == [
        Answer("ask", False, "it stays awake: the controller is shutting down"),
        Forward("b"),
    ]


def test_stop_while_it_wakes() -> None:
    life = asleep()
    wake = calling_wake(life, 0, "a")
    assert life.stop(1) == []
    assert refusals(life.came(2, "b")) == [("b", "shutting_down")]
    assert forwarded(life.woken(3, wake)) == ["a"]
    assert life.ended(4, "a") == []
    assert life.quiet


def test_stop_while_it_is_put_to_sleep() -> None:
    life = awake()
    life.sleep_asked(100, Why.ADMIN, "ask")
    life.came(101, "a")
    life.stop(102)
    assert not life.quiet
    assert life.slept(103, 2) == [Answer("ask", True, "it is asleep")]
    assert life.tick(163) == [Look(3)]


def test_asks_after_stop() -> None:
    life = awake()
    life.stop(1)
    no = [Answer("ask", False, "the controller is shutting down")]
    assert life.sleep_asked(2, Why.ADMIN, "ask") == life.wake_asked(2, "ask") == no


def test_gives_way_while_it_stops() -> None:
    life = awake()
    life.stop(1)
    assert life.sleep_asked(29, Why.ROOM) == []
    assert life.sleep_asked(30, Why.ROOM) == [Sleep(2)]
    assert not life.quiet
    assert life.slept(31, 2) == []
    assert where(life) == (State.ASLEEP, Phase.NONE)
    assert life.quiet
    assert life.due() is None


def test_has_its_turn_while_it_stops() -> None:
    life = awake()
    life.came(1, "a")
    life.stop(2)
    assert life.sleep_asked(50, Why.ROOM) == []
    assert life.sleep_asked(50, Why.TURN) == []
    assert where(life) == (State.DRAINING, Phase.EMPTYING)
    assert life.ended(60, "a") == [Sleep(2)]


def test_a_turn_that_has_ended_stays_so() -> None:
    """Who waits for the next one is served then."""
    life = awake()
    life.came(1, "a")
    life.sleep_asked(50, Why.TURN)
    life.came(51, "b")
    assert life.stop(52) == []
    assert life.ended(60, "a") == [Sleep(2)]
    life.slept(61, 2)
    assert life.due() == 121
    assert life.tick(121) == [Look(3)]


def test_an_administrators_sleep_is_no_turn() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(50, Why.TURN)
    life.sleep_asked(51, Why.ADMIN, "ask")
    life.came(52, "b")
    assert life.stop(53) == [
        Answer("ask", False, "it stays awake: the controller is shutting down"),
        Forward("b"),
    ]


@pytest.mark.parametrize("why", [Why.ROOM, Why.TURN])
def test_one_that_is_ours_no_more_does_not_give_way(why: Why) -> None:
    life = awake()
    life.stop(1, disowned=True)
    assert life.sleep_asked(50, why) == []
    assert where(life) == (State.AWAKE, Phase.NONE)


def test_the_turn_of_one_that_is_ours_no_more_goes_on() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(50, Why.TURN)
    life.came(51, "b")
    assert life.stop(52, disowned=True) == [Forward("b")]
    assert where(life) == (State.AWAKE, Phase.NONE)


def test_wakes_while_it_stops() -> None:
    life = asleep()
    life.came(0, "a")
    life.stop(1)
    (reserve,) = life.looked(2, 2, Found.ASLEEP)
    assert isinstance(reserve, Reserve)
    life.room_refused(3, reserve.call)
    (again,) = life.room_changed(4)
    assert isinstance(again, Reserve)


# ---- All of them ----


@asynccontextmanager
async def waiting() -> AsyncIterator[tuple[Whole, StandIn, asyncio.Task[None]]]:
    """a has a request, which its engine holds, and b waits for its room. Also a's engine, and b's request."""
    stand_ins = models(60, 60)
    gpu = Gpu(100 * MIB, stand_ins)
    every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
    async with running(every, {"turn_seconds": 600, "queue_deadline_seconds": 5}, reserver=gpu) as whole:
        await whole.act("sleep", "b")
        stand_ins["a"].behaviour.hold_at = 1
        busy = asyncio.create_task(ask(whole, "a", "busy"))
        await eventually(lambda: stand_ins["a"].counters.in_flight == 1)
        waits = asyncio.create_task(ask(whole, "b", "waits"))
        await eventually(lambda: is_short(whole.model("b")))
        yield whole, stand_ins["a"], waits
        stand_ins["a"].release()
        await busy
        await waits
        assert gpu.reserved == {}


def test_who_waits_for_room_when_it_stops() -> None:
    """Is answered, for others give way when they can; who comes is refused."""

    async def main() -> None:
        async with waiting() as (whole, a, waits):
            whole.controller.node.stop()
            late = await whole.ask("POST", COMPLETIONS, completion("b", "late"))
            assert (late.status, late.code) == (503, "shutting_down")
            a.release()
            await waits
            assert (await whole.state("a"), await whole.state("b")) == ("asleep", "awake")

    run(main())


def test_who_waits_for_room_when_it_is_removed() -> None:
    async def main() -> None:
        async with waiting() as (whole, a, waits):
            only_a = config_of({"a": a}, {"turn_seconds": 600})
            whole.controller.node.apply(only_a, only_a.instances, {})
            unknown = await whole.ask("POST", COMPLETIONS, completion("b", "late"))
            assert (unknown.status, unknown.code) == (404, "model_not_found")
            a.release()
            await waits
            assert await whole.state("a") == "asleep"

    run(main())


def test_who_was_removed_is_not_put_to_sleep() -> None:
    """Its engine may be somebody else's now: it is nobody's victim, also when it has nothing to do."""

    async def main() -> None:
        stand_ins = models(60, 60)
        gpu = Gpu(100 * MIB, stand_ins)
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        settings = {"queue_deadline_seconds": 1, "check_interval_seconds": 60}
        async with running(every, settings, reserver=gpu) as whole:
            await whole.act("sleep", "b")
            only_b = config_of({"b": stand_ins["b"]}, settings)
            whole.controller.node.apply(only_b, only_b.instances, {})
            answer = await whole.ask("POST", COMPLETIONS, completion("b", "x"))
            assert (answer.status, answer.code) == (503, "no_room")
            assert gpu.refusals
            assert stand_ins["a"].counters.sleeps == 0

    run(main())
