# SPDX-License-Identifier: Apache-2.0
"""A storm: clients who ask for any model, somebody who troubles engines meanwhile, and the books of it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from controller.standins.answers import answer_text, chat, completion, stream_text, whole_text
from controller.standins.engine import StandIn
from controller.whole import Answer

N_CHUNKS = 6  # of each answer


@dataclass(frozen=True)
class Request:
    identity: str
    path: str
    body: dict[str, Any]

    @classmethod
    def any_for(cls, model: str, identity: str, chance: random.Random) -> Request:
        path, make = chance.choice([("/v1/completions", completion), ("/v1/chat/completions", chat)])
        return cls(identity, path, make(model, identity, stream=chance.random() < 0.6))

    def text(self, data: bytes) -> str:
        return stream_text(data) if self.body["stream"] else answer_text(data)


@dataclass
class Seen:
    """What came of a model's requests. `outcomes`: "ok", "broken", "gone", or an error's code; `faults`: what
    was ok but for the text."""

    asked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, request: Request, answer: Answer | None) -> None:
        if answer is None:
            self.outcomes["gone"] += 1
        elif answer.broken:
            self.outcomes["broken"] += 1
        elif answer.status != 200:
            self.outcomes[answer.code] += 1
        else:
            self.outcomes["ok"] += 1
            text = request.text(answer.data)
            if text != whole_text(request.identity, N_CHUNKS):
                self.faults.append(f"{request.identity} got {text!r}")


class Storm:
    """At least n_requests, and until each model has slept a few times and, if it is mortal, died."""

    def __init__(
        self, stand_ins: Mapping[str, StandIn], seed: int, n_requests: int, mortal: Set[str] = frozenset()
    ) -> None:
        self.stand_ins, self.n_requests, self.mortal = stand_ins, n_requests, mortal
        self.seen = {name: Seen() for name in stand_ins}
        self._seed = seed
        self._over = False
        self._numbers = itertools.count()

    async def ask(self, request: Request, chance: random.Random) -> Answer | None:
        """None: the client has gone away."""
        raise NotImplementedError

    async def trouble(self, chance: random.Random) -> None:
        """One deed, with a pause after it."""
        raise NotImplementedError

    async def rage(self, n_clients: int) -> None:
        """What has begun when it is over comes to its end."""
        clients = asyncio.gather(*(self._client(number) for number in range(n_clients)))
        both: list[asyncio.Future[Any]] = [clients, asyncio.create_task(self._troubles())]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        self._over = True
        await asyncio.gather(*both)

    async def _troubles(self) -> None:
        chance = random.Random(self._seed)
        while not self._over:
            await self.trouble(chance)

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        while not self._over:
            i = next(self._numbers)
            if i >= self.n_requests and all(map(self._is_enough, self.stand_ins)):
                break
            name = chance.choice(list(self.stand_ins))
            request = Request.any_for(name, f"{name}/{i}", chance)
            self.seen[name].asked += 1
            self.seen[name].add(request, await self.ask(request, chance))

    def _is_enough(self, name: str) -> bool:
        counters = self.stand_ins[name].counters
        return counters.sleeps > 2 and (counters.deaths > 0 or name not in self.mortal)

    def check(self) -> None:
        """Each request was answered once, with what is its own, and no engine had it twice."""
        assert sum(of.asked for of in self.seen.values()) >= self.n_requests
        for name, of in self.seen.items():
            counters = self.stand_ins[name].counters
            assert of.faults == [], of.faults
            assert sum(of.outcomes.values()) == of.asked, (name, of)
            assert max(Counter(counters.ids).values()) == 1, (name, Counter(counters.ids).most_common(3))
            assert counters.in_flight == 0, (name, counters.in_flight)
