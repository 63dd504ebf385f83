# SPDX-License-Identifier: Apache-2.0
"""Forwarding, over real sockets: stand-ins on one side, clients of all manners on the other."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from controller.live import Raw, eventually, post, run, serving
from controller.relay import COMPLETIONS, Relay, odd_engine, plain, read_request, relayed
from controller.standins.answers import answer_text, chat, completion, stream_text, whole_text
from controller.standins.server import KEEP_ALIVE_S as ENGINES_KEEP_ALIVE_S
from controller.standins.server import Behaviour, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from kvcached.controller.proxy import (
    KEEP_ALIVE_S,
    REQUEST_ID,
    Answer,
    Failed,
    Limits,
    NotSent,
    connect_session,
)

# What passes.


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
            async with session.post(relay.address, data=_pieces(sent)) as response:
                assert response.headers["Content-Length"] == str(len(sent))
                assert hashlib.sha256(await response.read()).digest() == hashlib.sha256(sent).digest()
            assert relay.done[0].n_bytes == len(sent)
        await runner.cleanup()

    run(main())
    assert seen == [hashlib.sha256(sent).hexdigest()]


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 16):
        yield data[start : start + (1 << 16)]


# Clients that go, or don't read.


@pytest.mark.parametrize("hold_at", [0, 2])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["abort", "close"])
def test_a_disconnect_reaches_the_engine_within_a_second(hold_at: int, stream: bool, how: str) -> None:
    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(hold_at=hold_at))
        async with relayed(stand_in) as (relay, _):
            bodies = [completion("m", str(i), stream=stream) for i in range(20)]
            raws = [await plain(relay, COMPLETIONS, body) for body in bodies]
            await eventually(lambda: stand_in.counters.in_flight == 20)
            if stream and hold_at:
                for i, raw in enumerate(raws):
                    await raw.reader.readuntil(f"<{i}:1>".encode())
            for raw in raws[1:]:
                raw.abort() if how == "abort" else await raw.close()
            await eventually(lambda: stand_in.counters.in_flight == 1, within=1)
            await eventually(lambda: relay.gone == 19, within=1)
            stand_in.release()
            await raws[0].reader.readuntil(b"<0:3>")
            await eventually(lambda: stand_in.counters.finished == 1)
            await raws[0].close()
        assert (stand_in.counters.aborted, len(relay.done)) == (19, 1)

    run(main())


async def stalled(url: str, body: Any) -> socket.socket:
    """A client that has asked and reads nothing."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.setblocking(False)
    host, _, port = url.removeprefix("http://").partition(":")
    await loop.sock_connect(client, (host, int(port)))
    data = json.dumps(body).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    await loop.sock_sendall(client, f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return client


async def until_it_stands_still(progress: Any) -> int:
    """Returns what progress() comes to, when it is the same a hundred times."""
    before, same = -1, 0
    while same < 100:
        now = progress()
        same, before = (same + 1, before) if now == before and now else (0, now)
        await asyncio.sleep(0.002)
    return int(before)


def test_a_client_that_does_not_read_slows_the_engine_down() -> None:
    """What it could have had is 64 MiB. Sockets hold some megabytes on either side; the proxy, little."""

    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(n_chunks=1024, chunk_bytes=1 << 16))
        stand_in.said = {}
        async with relayed(stand_in) as (relay, _):
            client = await stalled(relay.address, completion("m", "x"))

            def said() -> int:
                assert stand_in.said is not None
                return sum(len(data) for data in stand_in.said.get("x", []))

            written = await until_it_stands_still(said)
            assert written < 32 << 20
            transport = relay.requests[0].transport
            assert transport is not None
            assert transport.get_write_buffer_size() < 1 << 20
            loop, got = asyncio.get_running_loop(), 0
            while got < 100 << 20:
                data = await loop.sock_recv(client, 1 << 20)
                got += len(data)
                if data.endswith(b"0\r\n\r\n"):
                    break
            assert got > 64 << 20
            assert relay.done[0].complete
            assert relay.done[0].n_bytes == said()
            client.close()

    run(main(), limit=60)


def test_a_client_that_takes_nothing_for_too_long_is_cut_off() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(n_chunks=4096, chunk_bytes=1 << 16))
        async with relayed(stand_in, Limits(idle=0.3)) as (relay, _):
            client = await stalled(relay.address, completion("m", "x"))
            await eventually(lambda: relay.gone == 1)
            await eventually(lambda: stand_in.counters.aborted == 1)
            client.close()

    run(main())


def test_a_client_that_is_found_gone_in_writing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the handler is cancelled: nobody's error."""

    async def write(self: Answer, data: Any) -> None:
        if b"<x:2>" in data:
            raise ConnectionResetError("Cannot write to closing transport")
        await web.StreamResponse.write(self, data)

    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(hold_at=2))
        async with relayed(stand_in) as (relay, _):
            raw = await plain(relay, COMPLETIONS, completion("m", "x"))
            await raw.reader.readuntil(b"<x:1>")
            monkeypatch.setattr(Answer, "write", write)
            stand_in.behaviour.chunk_s = 0.01
            stand_in.release()
            assert not (await raw.rest()).endswith(b"0\r\n\r\n")
            await raw.close()
            (done,) = relay.done
            assert (done.gone, done.complete, done.broken) == (True, False, "the client has gone")
            await eventually(lambda: stand_in.counters.aborted == 1)

    run(main())
    assert not caplog.records


# Engines that are slow, silent or dead.


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


# Connections that are used again.


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
            async with session.post(relay.address, data=_pieces(bytes(32 << 20))) as response:
                assert response.status in (502, 504)
            assert [type(fault) for fault in relay.faults] == [Failed]

    run(main())
