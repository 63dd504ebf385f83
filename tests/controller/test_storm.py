# SPDX-License-Identifier: Apache-2.0
"""Many requests for many models, that sleep, wake and die meanwhile, from clients of whom some go away."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest

from controller.live import Raw, run
from controller.standins.answers import completion, stream_text, whole_text
from controller.standins.engine import Behaviour, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from controller.storm import N_CHUNKS, Request, Storm
from controller.whole import Answer, Whole, running

REQUESTS = 10_000
CLIENTS = 64
# What a request may get for which an engine had no time to live.
OF_DEATHS = {"engine_unreachable", "engine_broke_off", "engine_dead", "wake_failed"}


def eight() -> dict[str, StandIn]:
    made: dict[str, StandIn] = {}
    for i in range(8):
        kind = SglangStandIn if i % 2 else VllmStandIn
        behaviour = Behaviour(n_chunks=N_CHUNKS, cuts=i, sleep_s=0.01, wake_s=0.02)
        made[f"org/m{i}"] = kind(model=f"org/m{i}", behaviour=behaviour)
    return made


async def go_away(whole: Whole, path: str, body: object, chance: random.Random) -> None:
    """After the request, or in the middle of the answer."""
    raw = await Raw.open(whole.address)
    await raw.send("POST", path, body)
    if chance.random() < 0.5:
        await raw.reader.read(chance.randrange(1, 400))
    raw.abort()


class StormOnOne(Storm):
    """Some clients go away; models are put to sleep, woken and, if they are mortal, die."""

    whole: Whole

    async def ask(self, request: Request, chance: random.Random) -> Answer | None:
        if chance.random() < 0.05:
            await go_away(self.whole, request.path, request.body, chance)
            return None
        return await self.whole.ask("POST", request.path, request.body)

    async def trouble(self, chance: random.Random) -> None:
        name = chance.choice(list(self.stand_ins))
        deed = chance.choice(["sleep", "sleep", "wakeup", "die"])
        if deed == "sleep":
            await self.whole.act(deed, f"{name}?firm=true")
        elif deed != "die":
            await self.whole.act(deed, name)
        elif name in self.mortal:
            stand_in = self.stand_ins[name]
            stand_in.die()
            await asyncio.sleep(0.05)
            await stand_in.restart()
        await asyncio.sleep(0.02)


@pytest.mark.timeout(300)
def test_each_request_is_answered_once(seed: int) -> None:
    async def main() -> None:
        stand_ins = eight()
        storm = StormOnOne(stand_ins, seed, REQUESTS, {"org/m6", "org/m7"})
        settings = {"min_sleep_duration": 0, "queue_deadline_seconds": 60}
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        async with running(every, settings) as storm.whole:
            await storm.rage(CLIENTS)
        storm.check()
        for name, stand_in in stand_ins.items():
            outcomes = storm.seen[name].outcomes
            allowed = {"ok", "gone"} | (OF_DEATHS | {"broken"} if name in storm.mortal else set())
            assert set(outcomes) <= allowed, (name, outcomes)
            assert outcomes["ok"] > 200
            assert stand_in.counters.while_asleep == 0

    run(main(), limit=280)


def test_nothing_is_left_of_clients_that_hang_up(seed: int) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(n_chunks=50, chunk_bytes=2000))
        async with running({"a": stand_in}) as whole:
            await asyncio.gather(
                *(go_away(whole, "/v1/completions", completion("a", f"r{i}"), chance) for i in range(300))
            )
            connector = whole.controller._requests.connector
            assert isinstance(connector, aiohttp.TCPConnector)
            answer = await whole.ask("POST", "/v1/completions", completion("a", "last"))
            assert stream_text(answer.data) == whole_text("last", 50, 2000)

    run(main())
