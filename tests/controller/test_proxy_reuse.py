# SPDX-License-Identifier: Apache-2.0
"""Forwarding on connections that are used again, which an engine may close at any moment."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from controller.live import eventually, post, run
from controller.relay import COMPLETIONS, Relay, odd_engine, read_request, relayed
from controller.standins.answers import completion
from controller.standins.server import KEEP_ALIVE_S as ENGINES_KEEP_ALIVE_S
from controller.standins.vllm import VllmStandIn
from kvcached.controller.proxy import KEEP_ALIVE_S, Failed, NotSent, connect_session


def test_connections_are_used_again_and_closed_ones_are_not() -> None:
    async def main() -> None:
        stand_in = VllmStandIn()
        async with relayed(stand_in) as (relay, session):
            for i in range(10):
                await post(session, relay.address + COMPLETIONS, completion("m", str(i)))
            assert stand_in.connections() == 1
            stand_in.close_idle_connections()
            await eventually(lambda: stand_in.connections() == 0)
            for i in range(10, 20):
                assert (await post(session, relay.address + COMPLETIONS, completion("m", str(i))))[0] == 200
        assert stand_in.counters.ids == [str(i) for i in range(20)]

    run(main())


def test_a_connection_that_is_closed_as_it_is_used_again_fails_its_request_once() -> None:
    """The engine may have read the request, for all that is known: nobody gets it again."""
    seen: list[bytes] = []

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        seen.append(await read_request(reader))

    async def main() -> None:
        async with (
            odd_engine(answer_once) as url,
            Relay(url, url).serving() as relay,
            aiohttp.ClientSession() as session,
        ):
            assert await post(session, relay.address, {"n": 1}) == (200, b"ok")
            status, _ = await post(session, relay.address, {"n": 2})
            assert (status, [type(fault) for fault in relay.faults]) == (502, [Failed])

    run(main())
    assert [request[-8:] for request in seen] == [b'{"n": 1}', b'{"n": 2}']


def test_a_connection_that_had_ended_before_anything_was_written() -> None:
    """The moment between taking it from the pool and writing: nothing was sent, so another may be asked."""

    class Ending(aiohttp.TCPConnector):
        ending = False

        async def connect(self, *arguments: Any, **more: Any) -> Any:
            connection = await super().connect(*arguments, **more)
            if self.ending:
                self.ending = False
                assert connection.transport is not None
                connection.transport.close()
            return connection

    async def main() -> None:
        stand_in = VllmStandIn()
        async with relayed(stand_in) as (relay, session):
            await relay.session.close()
            connector = Ending()
            relay.session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
            relay.urls *= 2
            await post(session, relay.address + COMPLETIONS, completion("m", "x"))
            connector.ending = True
            assert (await post(session, relay.address + COMPLETIONS, completion("m", "y")))[0] == 200
            assert [type(fault) for fault in relay.faults] == [NotSent]
        assert stand_in.counters.ids == ["x", "y"]

    run(main())


def test_connections_are_given_up_before_the_engine_does() -> None:
    assert 0 < KEEP_ALIVE_S < ENGINES_KEEP_ALIVE_S

    async def main() -> None:
        async with connect_session() as session:
            assert session.connector is not None
            assert session.connector._keepalive_timeout == KEEP_ALIVE_S

    run(main())
