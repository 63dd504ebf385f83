# SPDX-License-Identifier: Apache-2.0
"""Several controllers that serve the same engines, and know of each other only by how they find these."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from controller.live import Raw, eventually, run, serving
from controller.standins.answers import completion, stream_text, whole_text
from controller.standins.engine import Behaviour, StandIn
from controller.standins.vllm import VllmStandIn
from controller.storm import N_CHUNKS, Request, Storm
from controller.whole import Answer, Whole, attached, config_of
from kvcached.controller.actions import State

COMPLETIONS = "/v1/completions"
# As soon as tests want it that others' deeds are noticed.
SETTINGS = {"check_interval_seconds": 0.2, "queue_deadline_seconds": 60}
SLEEPER = {**SETTINGS, "auto_sleep_enabled": True, "idle_threshold_seconds": 0.3}


@asynccontextmanager
async def controllers(
    stand_ins: dict[str, StandIn], *settings: dict[str, Any]
) -> AsyncIterator[tuple[Whole, ...]]:
    """One for each of the settings."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(*stand_ins.values()))
        found = []
        for one in settings:
            config = config_of({**stand_ins}, one)
            found.append(await stack.enter_async_context(attached(config)))
        yield tuple(found)


async def is_served(whole: Whole, identity: str, model: str = "a") -> None:
    answer = await whole.ask("POST", COMPLETIONS, completion(model, identity))
    assert (answer.status, stream_text(answer.data)) == (200, whole_text(identity, 4))


def state_of(whole: Whole, model: str = "a") -> State:
    return whole.model(model).lifecycle.state


def test_a_request_that_comes_before_it_is_noticed_that_the_model_sleeps() -> None:
    """It waits in the engine, and is no reason to wait for another one."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with controllers({"a": stand_in}, SETTINGS, SETTINGS) as (first, second):
            assert (await first.act("sleep", "a")).status == 200
            assert (state_of(first), state_of(second)) == (State.ASLEEP, State.AWAKE)
            await is_served(second, "x")
            assert (stand_in.counters.while_asleep, stand_in.counters.wakes) == (1, 1)
            await eventually(lambda: state_of(first) is State.AWAKE)

    run(main())


@pytest.mark.parametrize("leaves", [False, True])
def test_a_sleep_while_another_controllers_requests_run(leaves: bool) -> None:
    """They end first. Who comes meanwhile is served when it has slept; if he has not gone by then."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(hold_at=2))
        async with controllers({"a": stand_in}, SETTINGS, SETTINGS) as (first, second):
            running = asyncio.create_task(is_served(second, "running"))
            await eventually(lambda: stand_in.counters.in_flight == 1)
            asleep = asyncio.create_task(first.act("sleep", "a"))
            await eventually(stand_in.is_asleep)
            late = await Raw.open(second.address)
            await late.send("POST", COMPLETIONS, completion("a", "late"), "Connection: close")
            await eventually(lambda: stand_in.counters.in_flight == 2)
            probe = asyncio.create_task(second.model("a").probe())
            await probe
            assert state_of(second) is State.AWAKE
            if leaves:
                late.abort()
                await eventually(lambda: stand_in.counters.in_flight == 1)
            stand_in.release()
            await running
            assert (await asleep).status == 200
            if leaves:
                await eventually(lambda: state_of(second) is State.ASLEEP)
                await is_served(first, "next")
            else:
                assert (await late.head())[0] == 200
                assert b"[DONE]" in await late.rest()
                await late.close()
            assert (stand_in.counters.sleeps, stand_in.counters.wakes) == (1, 1)
            assert stand_in.counters.deaths == 0

    run(main())


def test_one_that_is_killed_takes_only_its_own_along() -> None:
    """And the next one finds out how the engines are."""

    async def main() -> None:
        stand_ins: dict[str, StandIn] = {name: VllmStandIn(model=name) for name in ("a", "b")}
        stand_ins["a"].behaviour.hold_at = 2
        async with controllers(stand_ins, SETTINGS) as (stays,):
            async with attached(config_of({**stand_ins}, SETTINGS)) as killed:
                assert (await killed.act("sleep", "b")).status == 200
                other = asyncio.create_task(is_served(stays, "other"))
                own = await Raw.open(killed.address)
                await own.send("POST", COMPLETIONS, completion("a", "own"))
                await eventually(lambda: stand_ins["a"].counters.in_flight == 2)
                killed.controller.kill()
                await killed.controller.stop()
                await killed.controller.close()
                assert b"[DONE]" not in await own.rest()
                await own.close()
                await eventually(lambda: stand_ins["a"].counters.aborted == 1)
            async with attached(config_of({**stand_ins}, SETTINGS)) as anew:
                assert (state_of(anew, "a"), state_of(anew, "b")) == (State.AWAKE, State.ASLEEP)
                stand_ins["a"].release()
                await other
                await is_served(anew, "x", "b")
                await eventually(lambda: state_of(stays, "b") is State.AWAKE)

    run(main())


# ---- All of it at once ----


N_REQUESTS = 1000


class StormOnSeveral(Storm):
    """Clients ask any controller that is there, and administrators do with models what they like."""

    def __init__(self, stand_ins: dict[str, StandIn], seed: int) -> None:
        super().__init__(stand_ins, seed, N_REQUESTS)
        self.there: list[Whole] = []
        self.asking: Counter[int] = Counter()  # by the controllers' identities

    async def ask(self, request: Request, chance: random.Random) -> Answer:
        """Who is told that his was not accepted asks another one."""
        while True:
            async with self.one_of_them(chance) as whole:
                answer = await whole.ask("POST", request.path, request.body)
            if answer.status != 503 or answer.code != "shutting_down":
                return answer

    async def trouble(self, chance: random.Random) -> None:
        name = chance.choice(list(self.stand_ins))
        async with self.one_of_them(chance) as whole:
            await whole.act(chance.choice(["sleep", "wakeup"]), f"{name}?firm=true")
        await asyncio.sleep(chance.random() * 0.2)

    @asynccontextmanager
    async def one_of_them(self, chance: random.Random) -> AsyncIterator[Whole]:
        whole = chance.choice(self.there)
        self.asking[id(whole)] += 1
        try:
            yield whole
        finally:
            self.asking[id(whole)] -= 1

    async def leave_out(self, whole: Whole) -> None:
        """Nobody asks it any more; what it was asked it has."""
        self.there.remove(whole)
        await eventually(lambda: self.asking[id(whole)] == whole.controller.service.n_handlers)


@pytest.mark.timeout(200)
def test_each_request_is_answered_once_whoever_is_asked(seed: int) -> None:
    """One of them is stopped and begins anew in the middle, again and again."""

    async def main() -> None:
        behaviour = {"n_chunks": N_CHUNKS, "sleep_s": 0.01, "wake_s": 0.02, "chunk_s": 0.002}
        stand_ins: dict[str, StandIn] = {
            name: VllmStandIn(model=name, behaviour=Behaviour(**behaviour))  # type: ignore[arg-type]
            for name in ("a", "b", "c", "d")
        }
        storm = StormOnSeveral(stand_ins, seed)
        async with controllers(stand_ins, SLEEPER, SETTINGS) as wholes:
            storm.there += wholes
            raging = asyncio.create_task(storm.rage(24))
            restarts = 0
            while not raging.done():
                async with attached(config_of({**stand_ins}, SETTINGS)) as third:
                    storm.there.append(third)
                    await asyncio.wait([raging], timeout=1)
                    await storm.leave_out(third)
                restarts += 1
            await raging
            assert restarts > 1
            for whole in wholes:
                for name in stand_ins:
                    await eventually(lambda n=name, w=whole: agrees(w, n, stand_ins[n]))  # type: ignore[misc]
        storm.check()
        for name, stand_in in stand_ins.items():
            counters = stand_in.counters
            assert storm.seen[name].outcomes == {"ok": len(counters.ids)}
            assert (counters.aborted, counters.failed, counters.deaths, counters.in_flight) == (0, 0, 0, 0)

    run(main(), limit=180)


def agrees(whole: Whole, name: str, stand_in: StandIn) -> bool:
    return state_of(whole, name) is (State.ASLEEP if stand_in.is_asleep() else State.AWAKE)
