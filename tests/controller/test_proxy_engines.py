# SPDX-License-Identifier: Apache-2.0
"""Forwarding to engines that are slow, silent or dead: what clients are told, and that no other engine is
asked once one may have got the request."""

from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest

from controller.live import eventually, post, run, serving
from controller.relay import COMPLETIONS, Relay, odd_engine, pieces, plain, read_request, relayed
from controller.standins.answers import completion, stream_text, whole_text
from controller.standins.engine import Behaviour, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from kvcached.controller.proxy import Failed, Limits, NotSent


def test_no_limit_on_the_whole() -> None:
    """A second of chunks with a limit of a fifth of one for silence."""

    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(n_chunks=50, chunk_s=0.02))
        async with relayed(stand_in, Limits(idle=0.2)) as (relay, session):
            status, data = await post(session, relay.address + COMPLETIONS, completion("m", "x"))
            assert (status, stream_text(data)) == (200, whole_text("x", 50))

    run(main())


def test_an_engine_that_says_nothing() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(hold_at=0))
        async with relayed(stand_in, Limits(idle=0.2)) as (relay, session):
            status, data = await post(session, relay.address + COMPLETIONS, completion("m", "x"))
            assert (status, json.loads(data)) == (504, {"error": {"code": "engine_timeout"}})
            assert isinstance(relay.faults[0], Failed)
            assert relay.faults[0].words["seconds"] == "0.2"
            await eventually(lambda: stand_in.counters.aborted == 1)

    run(main())


def test_an_engine_that_falls_silent() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(hold_at=2))
        async with relayed(stand_in, Limits(idle=0.2)) as (relay, _):
            raw = await plain(relay, COMPLETIONS, completion("m", "x"))
            data = await raw.rest()
            assert b"<x:1>" in data
            assert b"0\r\n\r\n" not in data
            assert relay.done[0].broken == "the engine fell silent in the middle of its answer"
            await eventually(lambda: stand_in.counters.aborted == 1)
            await raw.close()

    run(main())


@pytest.mark.parametrize("how", ["abort", "close", "exit"])
@pytest.mark.parametrize("made", [VllmStandIn, SglangStandIn])
def test_an_engine_that_dies_in_the_middle(how: str, made: type[StandIn]) -> None:
    """What came is passed on; what was cut is seen to be cut."""

    async def main() -> None:
        stand_in = made(behaviour=Behaviour(hold_at=2, die_at=2, die_how=how))
        async with relayed(stand_in) as (relay, session):
            raw = await plain(relay, COMPLETIONS, completion("m", "x"))
            await raw.reader.readuntil(b"<x:1>")
            decent = asyncio.ensure_future(post(session, relay.address + COMPLETIONS, completion("m", "y")))
            await eventually(lambda: stand_in.counters.in_flight == 2)
            stand_in.release()
            assert not (await raw.rest()).endswith(b"0\r\n\r\n")
            with pytest.raises(aiohttp.ClientPayloadError):
                await decent
            await raw.close()
            assert [done.complete for done in relay.done] == [False, False]
            for done in relay.done:
                assert done.broken.startswith("the engine broke off in the middle of its answer: ")
            assert (relay.faults, relay.gone) == ([], 0)
        assert sorted(stand_in.counters.ids) == ["x", "y"]

    run(main())


def test_an_engine_that_dies_in_an_answer_with_a_length() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 99)

    async def main() -> None:
        async with odd_engine(answer) as url, Relay(url).serving() as relay:
            raw = await plain(relay, "/", {})
            status, headers = await raw.head()
            assert (status, headers["content-length"]) == (200, "100")
            assert await raw.rest() == b"x" * 99
            await raw.close()
            assert (relay.done[0].complete, relay.done[0].n_bytes) == (False, 99)

    run(main())


@pytest.mark.parametrize("how", ["abort", "close", "exit"])
def test_an_engine_that_dies_before_it_answers_is_not_asked_twice(how: str) -> None:
    async def main() -> None:
        dying, other = (VllmStandIn(behaviour=Behaviour(die_at=-1, die_how=how)), VllmStandIn())
        async with (
            serving(dying, other),
            Relay(dying.address, other.address).serving() as relay,
            aiohttp.ClientSession() as session,
        ):
            status, data = await post(session, relay.address + COMPLETIONS, completion("m", "x"))
            assert (status, json.loads(data)) == (502, {"error": {"code": "engine_broke_off"}})
            assert [type(fault) for fault in relay.faults] == [Failed]
        assert (dying.counters.ids, other.counters.ids) == (["x"], [])

    run(main())


def test_an_engine_that_refuses_has_got_nothing() -> None:
    async def main() -> None:
        refusing, other = VllmStandIn(), VllmStandIn()
        async with (
            serving(refusing, other),
            Relay(refusing.address, other.address).serving() as relay,
            aiohttp.ClientSession() as session,
        ):
            await refusing.refuse()
            status, data = await post(session, relay.address + COMPLETIONS, completion("m", "x"))
            assert (status, stream_text(data)) == (200, whole_text("x", 4))
            assert [type(fault) for fault in relay.faults] == [NotSent]
            relay.urls = [refusing.address, "http://name.invalid:1", "http://[", "http://127.0.0.1:1"]
            status, data = await post(session, relay.address + COMPLETIONS, completion("m", "y"))
            assert (status, json.loads(data)) == (502, {"error": {"code": "engine_unreachable"}})
            assert [type(fault) for fault in relay.faults] == [NotSent] * 5
            async with session.get(relay.address + "/health") as response:
                assert response.status == 502
            assert [type(fault) for fault in relay.faults] == [NotSent] * 9
        assert (refusing.counters.ids, other.counters.ids) == ([], ["x"])

    run(main())


def test_connecting_is_limited() -> None:
    async def main() -> None:
        # A full backlog: nobody accepts, and the kernel answers no more.
        full = socket.socket()
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        async with (
            Relay(url, limits=Limits(connect=0.2)).serving() as relay,
            aiohttp.ClientSession() as session,
        ):
            assert (await post(session, relay.address, {}))[0] == 502
            assert [type(fault) for fault in relay.faults] == [NotSent]
        for opened in (full, *fillers):
            opened.close()

    run(main())


def test_an_engine_that_takes_nothing_of_a_large_request() -> None:
    async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async def main() -> None:
        async with (
            odd_engine(never_read) as url,
            Relay(url, limits=Limits(idle=0.2)).serving() as relay,
            aiohttp.ClientSession() as session,
        ):
            async with session.post(relay.address, data=pieces(bytes(32 << 20))) as response:
                assert response.status in (502, 504)
            assert [type(fault) for fault in relay.faults] == [Failed]

    run(main())
