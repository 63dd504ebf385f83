# SPDX-License-Identifier: Apache-2.0
"""Many requests for many models, that sleep, wake and die meanwhile, from clients of whom some go away."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import pytest

from controller.live import Raw, run
from controller.standins.answers import answer_text, chat, completion, stream_text, whole_text
from controller.standins.engine import Behaviour, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, running

REQUESTS = 10_000
CLIENTS = 64
N_CHUNKS = 6
# What a request may get for which an engine had no time to live.
OF_DEATHS = {"engine_unreachable", "engine_broke_off", "engine_dead", "wake_failed"}


@dataclass
class Seen:
    """What came of the requests."""

    asked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def eight() -> dict[str, StandIn]:
    made: dict[str, StandIn] = {}
    for i in range(8):
        kind = SglangStandIn if i % 2 else VllmStandIn
        behaviour = Behaviour(n_chunks=N_CHUNKS, cuts=i, sleep_s=0.01, wake_s=0.02)
        made[f"org/m{i}"] = kind(model=f"org/m{i}", behaviour=behaviour)
    return made


async def ask_once(whole: Whole, identity: str, model: str, chance: random.Random, seen: Seen) -> None:
    streamed = chance.random() < 0.7
    path, make = ("/v1/completions", completion) if chance.random() < 0.5 else ("/v1/chat/completions", chat)
    body = make(model, identity, stream=streamed)
    if chance.random() < 0.05:
        await go_away(whole, path, body, chance)
        seen.outcomes["gone"] += 1
        return
    answer = await whole.ask("POST", path, body)
    if answer.broken:
        seen.outcomes["broken"] += 1
    elif answer.status == 200:
        text = stream_text(answer.data) if streamed else answer_text(answer.data)
        seen.outcomes["ok"] += 1
        if text != whole_text(identity, N_CHUNKS):
            seen.faults.append(f"{identity} got {text!r}")
    else:
        seen.outcomes[answer.code] += 1


async def go_away(whole: Whole, path: str, body: object, chance: random.Random) -> None:
    """After the request, or in the middle of the answer."""
    raw = await Raw.open(whole.address)
    await raw.send("POST", path, body)
    if chance.random() < 0.5:
        await raw.reader.read(chance.randrange(1, 400))
    raw.abort()


async def make_trouble(
    whole: Whole, stand_ins: dict[str, StandIn], mortal: set[str], chance: random.Random
) -> None:
    """Until it is cancelled, and to the end of what it does by then."""
    names = list(stand_ins)
    while True:
        name = chance.choice(names)
        deed = chance.choice(["sleep", "sleep", "wakeup", "die"])
        if deed == "sleep":
            await whole.act(deed, f"{name}?firm=true")
        elif deed != "die":
            await whole.act(deed, name)
        elif name in mortal:
            stand_in = stand_ins[name]
            stand_in.die()
            await asyncio.sleep(0.05)
            await asyncio.shield(stand_in.restart())
        await asyncio.sleep(0.02)


def is_enough(stand_in: StandIn, mortal: bool) -> bool:
    return stand_in.counters.sleeps > 2 and (stand_in.counters.deaths > 0 or not mortal)


async def storm(whole: Whole, stand_ins: dict[str, StandIn], mortal: set[str], seed: int) -> dict[str, Seen]:
    """At least so many requests, and until each model has slept and, if it is mortal, died."""
    seen = {name: Seen() for name in stand_ins}
    numbers = itertools.count()

    async def client(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        for i in numbers:
            if i >= REQUESTS and all(is_enough(one, name in mortal) for name, one in stand_ins.items()):
                break
            name = chance.choice(list(stand_ins))
            seen[name].asked += 1
            await ask_once(whole, f"{name}/{i}", name, chance, seen[name])

    trouble = asyncio.create_task(make_trouble(whole, stand_ins, mortal, random.Random(seed)))
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    trouble.cancel()
    await asyncio.gather(trouble, return_exceptions=True)
    assert trouble.cancelled(), trouble.exception()
    return seen


@pytest.mark.timeout(300)
def test_each_request_is_answered_once(seed: int) -> None:
    async def main() -> None:
        stand_ins = eight()
        mortal = {"org/m6", "org/m7"}
        settings = {"min_sleep_duration": 0, "queue_deadline_seconds": 60}
        every: dict[str, StandIn | list[StandIn]] = dict(stand_ins)
        async with running(every, settings) as whole:
            seen = await storm(whole, stand_ins, mortal, seed)
        assert sum(of.asked for of in seen.values()) >= REQUESTS
        for name, stand_in in stand_ins.items():
            outcomes, counters = seen[name].outcomes, stand_in.counters
            assert seen[name].faults == []
            assert sum(outcomes.values()) == seen[name].asked
            allowed = {"ok", "gone"} | (OF_DEATHS | {"broken"} if name in mortal else set())
            assert set(outcomes) <= allowed, (name, outcomes)
            assert outcomes["ok"] > 200
            # Nobody was asked twice, and an engine that sleeps was never asked.
            assert max(Counter(counters.ids).values()) == 1
            assert counters.while_asleep == 0
            assert counters.in_flight == 0

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
