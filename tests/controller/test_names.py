# SPDX-License-Identifier: Apache-2.0
"""Names that nobody resolves, while others are, and what a late answer is good for."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.discovering import put
from controller.live import eventually, run
from controller.standins.answers import completion
from controller.standins.vllm import VllmStandIn
from controller.whole import running
from kvcached.controller import config, discovery, names
from kvcached.controller.discovery import Discovery
from kvcached.controller.names import THREADS, Name, Names

ENOUGH_S = 20
NEVER_S = 60


class Dns:
    """Names that begin with "slow" are answered when it is told to."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked: list[str] = []
        self.waiting = 0
        self.gave_up = False

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host.startswith("slow"):
            self.waiting += 1
            self.released.wait()
            self.waiting -= 1
        return [(0, 1, 0, "", (f"10.0.0.{len(host)}", port))]

    def give_up(self) -> None:
        self.gave_up = True
        self.released.set()


@pytest.fixture
def dns() -> Iterator[Dns]:
    """Whoever waits for it nevertheless fails, rather than waiting for ever."""
    found = Dns()
    timer = threading.Timer(ENOUGH_S, found.give_up)
    timer.start()
    yield found
    timer.cancel()
    found.released.set()
    assert not found.gave_up


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "LOOKUP_SECONDS", 0.05)
    monkeypatch.setattr(discovery, "FILE_SECONDS", 0.001)
    monkeypatch.setattr(discovery, "DNS_SECONDS", 0.001)


def name(host: str) -> Name:
    return host, 80


def test_slow_ones_keep_nobody_waiting(dns: Dns) -> None:
    """Neither others, nor what asyncio has threads for, nor the loop's end; each is asked for once."""
    failures: list[int] = []

    async def main() -> None:
        found = Names(lambda: failures.append(1), dns.getaddrinfo)
        slow = [name(f"slow{i}") for i in range(THREADS - 1)]
        for _ in range(3):
            await found.look_up([*slow, name("quick")])
        assert found.known == {name("quick"): ("http://10.0.0.5:80",)}
        assert len(failures) == 3 * len(slow)
        assert await asyncio.get_running_loop().run_in_executor(None, lambda: 5) == 5
        await found.close()

    run(main())
    assert [dns.asked.count(host) for host in ("slow0", "quick")] == [1, 3]


def test_a_late_answer_counts_when_it_comes(dns: Dns) -> None:
    async def main() -> None:
        found = Names(lambda: None, dns.getaddrinfo)
        await found.look_up([name("slow")])
        assert not found.known
        dns.released.set()
        await eventually(lambda: bool(found.known))
        assert found.known == {name("slow"): ("http://10.0.0.4:80",)}
        await found.close()

    run(main())


def test_threads_are_bounded(dns: Dns) -> None:
    async def main() -> None:
        found = Names(lambda: None, dns.getaddrinfo)
        many = [name(f"slow{i}") for i in range(3 * THREADS)]
        await found.look_up(many)
        await eventually(lambda: len(dns.asked) == THREADS)
        dns.released.set()
        await eventually(lambda: len(found.known) == len(many))
        await found.close()

    run(main())


def test_an_engine_that_is_new_stays_while_older_names_are_looked_up(
    dns: Dns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at DNS that began before the file changed ends after it."""

    async def main() -> None:
        def has_new() -> bool:
            return bool(found.addresses.get(name("new")))

        path = tmp_path / "engines.yaml"
        old, new = ({"name": x, "model": x, "engine": "vllm", "dns": f"{x}:80"} for x in ("slow", "new"))
        put(path, old)
        seen: list[bool] = []
        found = Discovery(lambda: seen.append(has_new()), lambda _: None, dns.getaddrinfo)
        dns.released.set()
        await found.begin(config.parse(json.dumps({"router": {"discovery_file": str(path)}}), "c.yaml"))
        monkeypatch.setattr(names, "LOOKUP_SECONDS", 2 * ENOUGH_S)
        dns.released.clear()
        await eventually(lambda: dns.waiting == 1)
        put(path, old, new)
        await eventually(has_new)
        dns.released.set()
        asked = dns.asked.count("slow")
        await eventually(lambda: dns.asked.count("slow") > asked + 2)
        assert seen == [True]
        await found.close()

    run(main())


def test_large_bodies_do_not_wait_for_engines_names() -> None:
    """These are looked up in the loop's threads."""

    async def main() -> None:
        stand_in, released = VllmStandIn(model="a"), threading.Event()
        async with running({"a": stand_in}) as whole:
            loop = asyncio.get_running_loop()
            lookups = [loop.run_in_executor(None, released.wait, NEVER_S) for _ in range(100)]
            body = {**completion("a", "x"), "padding": "x" * (2 << 20)}
            try:
                answer = await asyncio.wait_for(whole.ask("POST", "/v1/completions", body), ENOUGH_S)
            finally:
                released.set()
            assert answer.status == 200
            assert all(await asyncio.gather(*lookups))

    run(main())
