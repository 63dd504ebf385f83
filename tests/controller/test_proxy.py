# SPDX-License-Identifier: Apache-2.0
"""Forwarding, over real sockets: what passes between stand-ins on one side and clients of all manners on the
other is what was said, as it is said."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from controller.live import Raw, eventually, post, run
from controller.relay import COMPLETIONS, Relay, odd_engine, pieces, plain, read_request, relayed
from controller.standins.answers import answer_text, chat, completion, stream_text, whole_text
from controller.standins.engine import Behaviour, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from kvcached.controller.proxy import REQUEST_ID


@pytest.mark.parametrize("made", [VllmStandIn, SglangStandIn])
def test_200_streams_at_once_arrive_byte_for_byte(made: type[StandIn], seed: int) -> None:
    async def main() -> None:
        stand_in = made(behaviour=Behaviour(n_chunks=12, chunk_bytes=200, cuts=seed, hold_at=6))
        stand_in.said = {}
        async with relayed(stand_in) as (relay, session):

            async def ask(i: int) -> None:
                path, body = (COMPLETIONS, completion) if i % 2 else ("/v1/chat/completions", chat)
                name = f"stream-{i}"
                status, data = await post(session, relay.address + path, body("m", name))
                assert status == 200
                assert stand_in.said is not None
                assert data == b"".join(stand_in.said[name])
                assert stream_text(data) == whole_text(name, 12, 200)

            asked = [asyncio.ensure_future(ask(i)) for i in range(200)]
            await eventually(lambda: stand_in.counters.in_flight == 200)
            stand_in.release()
            await asyncio.gather(*asked)
            assert sorted(stand_in.counters.ids) == sorted(f"stream-{i}" for i in range(200))
            assert stand_in.counters.finished == 200
            assert all(done.complete and not done.broken for done in relay.done)
            assert sum(done.n_bytes for done in relay.done) == sum(
                len(b"".join(said)) for said in stand_in.said.values()
            )

    run(main(), limit=100)


def test_chunks_are_passed_on_as_they_come() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(hold_at=2))
        async with relayed(stand_in) as (relay, _):
            raw = await plain(relay, COMPLETIONS, completion("m", "x"))
            status, headers = await raw.head()
            assert (status, headers["transfer-encoding"]) == (200, "chunked")
            assert headers["content-type"] == "text/event-stream; charset=utf-8"
            await raw.reader.readuntil(b"<x:1>")
            assert not relay.done
            stand_in.release()
            await raw.reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
            await raw.close()

    run(main())


def test_answers_that_are_no_streams() -> None:
    async def main() -> None:
        stand_in = VllmStandIn()
        async with relayed(stand_in) as (relay, session):
            body = completion("m", "x", stream=False)
            direct = await post(session, stand_in.address + COMPLETIONS, body, X_Request_Id="id-1")
            passed = await post(session, relay.address + COMPLETIONS, body)
            direct_answer, passed_answer = (json.loads(answer[1]) for answer in (direct, passed))
            direct_answer["created"] = passed_answer["created"]
            assert passed_answer == direct_answer
            assert answer_text(passed[1]) == whole_text("x", 4)
            said = await post(session, relay.address + "/v1/embeddings", {"model": "m", "input": "a"})
            assert json.loads(said[1])["data"][0]["object"] == "embedding"
            async with session.get(relay.address + "/v1/models") as response:
                assert (await response.json())["data"][0]["id"] == "m"

    run(main())


@pytest.mark.parametrize("made", [VllmStandIn, SglangStandIn])
def test_errors_come_through_unchanged(made: type[StandIn]) -> None:
    async def main() -> None:
        stand_in = made()
        async with relayed(stand_in) as (relay, session):
            asked: list[tuple[str, Any]] = [
                (COMPLETIONS, {"model": "m"}),
                (COMPLETIONS, completion("another", "x", stream=False, n=1) | {"prompt": None}),
                ("/nowhere", {}),
                ("/health", {}),
            ]
            for path, body in asked:
                direct = await post(session, stand_in.address + path, body)
                if direct[0] != 200:
                    assert await post(session, relay.address + path, body) == direct, path
            for status in (400, 429, 500, 503):
                stand_in.behaviour = Behaviour(fail_status=status)
                body = completion("m", "x")
                direct = await post(session, stand_in.address + COMPLETIONS, body)
                assert direct[0] == status
                assert await post(session, relay.address + COMPLETIONS, body) == direct
            assert all(done.complete for done in relay.done)

    run(main())


def test_headers() -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        packed = gzip.compress(b"hello")
        head = [
            "HTTP/1.1 207 Quite So",
            "Server: odd",
            "Date: today",
            "Set-Cookie: a=1",
            "Set-Cookie: b=2",
            "X-Request-Id: the engine's",
            "Connection: keep-alive, X-Private",
            "X-Private: 1",
            "Keep-Alive: timeout=5",
            "Content-Type: odd/thing",
            "Content-Encoding: gzip",
            "X-Latin: caf\xe9",
            f"Content-Length: {len(packed)}",
        ]
        writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + packed)
        await writer.drain()
        await reader.read()

    async def main() -> None:
        async with odd_engine(answer) as url, Relay(url).serving() as relay:
            relay.headers = {"Authorization": "Bearer engine", "X-Secret": None}
            raw = await Raw.open(relay.address)
            await raw.send(
                "POST",
                "/a%2fb%41/c?q=%20x&q=y+z",
                {"a": 1},
                "Authorization: Bearer client",
                "X-Secret: 1",
                "Connection: keep-alive, X-Hop",
                "X-Hop: 1",
                "X-Kept: 1",
                "X-Kept: 2",
                "X-Latin: caf\xe9",
                "Accept-Encoding: br",
                "TE: trailers",
                "User-Agent: me",
            )
            data = await raw.reader.readuntil(b"\r\n\r\n")
            lines = data.decode("latin-1").split("\r\n")
            assert lines[0] == "HTTP/1.1 207 Quite So"
            kept = {"Server: odd", "Date: today", "Set-Cookie: a=1", "Set-Cookie: b=2", "X-Request-Id: id-1"}
            assert kept | {"Content-Type: odd/thing", "Content-Encoding: gzip"} <= set(lines)
            names = {line.split(":")[0] for line in lines}
            assert not names & {"X-Private", "Keep-Alive", "Connection", "Transfer-Encoding"}
            n = next(int(line.split()[1]) for line in lines if line.startswith("Content-Length"))
            assert gzip.decompress(await raw.reader.readexactly(n)) == b"hello"
            await raw.close()

    run(main())
    (request,) = seen
    lines = request.decode("latin-1").split("\r\n")
    assert lines[0] == "POST /a%2fb%41/c?q=%20x&q=y+z HTTP/1.1"
    assert {"Authorization: Bearer engine", "X-Kept: 1", "X-Kept: 2", "Accept-Encoding: br"} <= set(lines)
    assert {f"{REQUEST_ID}: id-1", "User-Agent: me", "Content-Type: application/json"} <= set(lines)
    names = [line.split(":")[0].lower() for line in lines[1:-2]]
    assert names.count("host") == names.count("content-length") == 1
    assert "Host: x" not in lines
    assert not {"x-secret", "x-hop", "te", "accept", "connection", "transfer-encoding"} & set(names)
    assert lines[-1] == '{"a": 1}'


def test_nothing_is_added_and_no_redirect_is_followed() -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(b"HTTP/1.1 307 Elsewhere\r\nLocation: /else\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async def main() -> None:
        async with odd_engine(answer) as url, Relay(url).serving() as relay:
            raw = await Raw.open(relay.address)
            await raw.send("GET", "/x")
            status, headers = await raw.head()
            assert (status, headers["location"], headers["content-length"]) == (307, "/else", "0")
            await raw.close()

    run(main())
    (request,) = seen
    names = {line.split(":")[0] for line in request.decode().split("\r\n")[1:-2]}
    assert names == {"Host", REQUEST_ID}


def test_large_bodies_both_ways() -> None:
    """More than any buffer holds; in the sizes that they had."""
    sent = os.urandom(1 << 20) * 24
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(hashlib.sha256(await request.read()).hexdigest())
        return web.Response(body=sent)

    async def main() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with Relay(url).serving() as relay, aiohttp.ClientSession() as session:
            async with session.post(relay.address, data=pieces(sent)) as response:
                assert response.headers["Content-Length"] == str(len(sent))
                assert hashlib.sha256(await response.read()).digest() == hashlib.sha256(sent).digest()
            assert relay.done[0].n_bytes == len(sent)
        await runner.cleanup()

    run(main())
    assert seen == [hashlib.sha256(sent).hexdigest()]
