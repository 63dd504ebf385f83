# SPDX-License-Identifier: Apache-2.0
"""Engines behind names, as DNS answers, or does not."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from controller.discovering import begun
from controller.live import eventually, run
from kvcached.controller.discovery import Discovery

TEXT = 'instances: [{name: a, model: m, engine: vllm, dns: "engines.ns.svc:8000"}]'
NAME = ("engines.ns.svc", 8000)


class Dns:
    """`answer`: addresses, or what is raised instead of them."""

    def __init__(self, answer: list[str] | Exception) -> None:
        self.answer = answer
        self.asked = 0
        self.failures: list[str] = []

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        assert (host, port) == NAME
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        # One for each kind of socket, as the C library has it; IPv6 has two numbers more.
        return [
            (0, kind, 0, "", (address, port, 0, 0) if ":" in address else (address, port))
            for address in self.answer
            for kind in (1, 2)
        ]


@asynccontextmanager
async def looking(dns: Dns) -> AsyncIterator[tuple[Discovery, list[int]]]:
    """And how often something has changed, as the list's length."""
    changes: list[int] = []
    found = Discovery(lambda: changes.append(1), dns.failures.append, dns.getaddrinfo)
    async with begun(found, TEXT, "DNS_SECONDS"):
        yield found, changes


def test_engines_come_and_go() -> None:
    async def main() -> None:
        dns = Dns(["10.0.0.2", "10.0.0.1"])
        async with looking(dns) as (found, changes):
            assert found.addresses == {NAME: ("http://10.0.0.1:8000", "http://10.0.0.2:8000")}
            dns.answer = ["10.0.0.2", "fd00::1"]
            await eventually(lambda: bool(changes))
            assert found.addresses == {NAME: ("http://10.0.0.2:8000", "http://[fd00::1]:8000")}
            asked = dns.asked
            await eventually(lambda: dns.asked > asked + 3)
            assert len(changes) == 1

    run(main())


@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_NODATA])
def test_a_name_without_an_address_has_no_engine(number: int) -> None:
    async def main() -> None:
        dns = Dns(["10.0.0.1"])
        async with looking(dns) as (found, changes):
            dns.answer = socket.gaierror(number, "nothing")
            await eventually(lambda: bool(changes))
            assert found.addresses == {NAME: ()}
            assert not dns.failures

    run(main())


@pytest.mark.parametrize(
    "fault",
    [
        socket.gaierror(socket.EAI_AGAIN, "later"),
        OSError("no network"),
        UnicodeError("label too long"),
        RuntimeError("what nobody expects"),
    ],
)
def test_what_was_known_stays_while_nobody_answers(fault: Exception) -> None:
    async def main() -> None:
        dns = Dns(["10.0.0.1"])
        async with looking(dns) as (found, changes):
            dns.answer = fault
            asked = dns.asked
            await eventually(lambda: dns.asked > asked + 3)
            assert found.addresses == {NAME: ("http://10.0.0.1:8000",)}
            assert not changes
            assert len(dns.failures) > 2
            assert set(dns.failures) == {"dns"}
            dns.answer = ["10.0.0.2"]
            await eventually(lambda: bool(changes))
            assert found.addresses == {NAME: ("http://10.0.0.2:8000",)}

    run(main())


def test_nobody_answers_from_the_beginning() -> None:
    async def main() -> None:
        dns = Dns(socket.gaierror(socket.EAI_AGAIN, "later"))
        async with looking(dns) as (found, changes):
            assert found.addresses == {NAME: ()}
            dns.answer = ["10.0.0.1"]
            await eventually(lambda: bool(changes))
            assert found.addresses == {NAME: ("http://10.0.0.1:8000",)}

    run(main())
