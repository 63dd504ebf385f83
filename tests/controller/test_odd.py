# SPDX-License-Identifier: Apache-2.0
"""Requests and answers that HTTP permits, or that somebody sends all the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from controller.live import Raw, eventually, run
from controller.relay import COMPLETIONS, Relay, odd_engine, plain, read_request
from controller.standins.answers import answer_text, completion, stream_text, whole_text
from controller.standins.engine import Behaviour
from controller.standins.vllm import VllmStandIn
from controller.whole import attached, running
from kvcached.controller.config import parse
from kvcached.controller.proxy import Failed, Limits

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "


def request(**more: Any) -> bytes:
    data = json.dumps(completion("a", "x", **more)).encode()
    return HEAD + b"%d\r\n\r\n" % len(data) + data


# ---- Requests ----


@pytest.mark.parametrize("target", ["http://any.example/v1/completions", "internal://y/v1/completions"])
def test_a_target_with_a_host_goes_nowhere_else(target: str) -> None:
    """Servers must accept it (RFC 9112, 3.2.2); the engine is who is configured."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}) as whole:
            raw = await Raw.open(whole.address)
            await raw.send("POST", target, completion("a", "x"), "Connection: close")
            assert (await raw.head())[0] == 200
            await raw.rest()
            assert stand_in.counters.ids == ["x"]
            await raw.close()

    run(main())


@pytest.mark.parametrize("keep", [(), ("Connection: keep-alive",)], ids=["close", "keep-alive"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_to_http_1_0_ends(keep: tuple[str, ...], stream: bool) -> None:
    """With its connection: it has no chunks that could say so."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            raw = await Raw.open(whole.address)
            data = request(stream=stream).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
            raw.writer.write(data.replace(b"Host: x", "\r\n".join(("Host: x", *keep)).encode(), 1))
            status, headers = await raw.head()
            answer = await raw.rest()
            assert status == 200
            assert "transfer-encoding" not in headers
            assert (stream_text if stream else answer_text)(answer) == whole_text("x", 4)
            await raw.close()

    run(main())


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_a_client_that_asks_and_goes_at_once(turns: int, asleep: bool) -> None:
    """As many turns of the event loop later. It is noticed, wherever its request is by then."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(hold_at=0, wake_s=0.3))
        async with running({"a": stand_in}) as whole:
            if asleep:
                assert (await whole.act("sleep", "a")).status == 200
            data = request()
            for _ in range(20):
                raw = await Raw.open(whole.address)
                raw.writer.write(data[:-5])
                await asyncio.sleep(0.001)
                raw.writer.write(data[-5:])
                for _ in range(turns):
                    await asyncio.sleep(0)
                raw.abort()
            model = whole.model("a")
            await eventually(lambda: whole.controller.service.n_handlers == 0, 10)
            await eventually(lambda: not model.lifecycle.in_flight and not model.lifecycle.queued, 10)
            await eventually(lambda: stand_in.counters.in_flight == 0, 10)

    run(main())


# ---- Answers ----


def test_an_engine_that_switches_protocols() -> None:
    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello")
        await writer.drain()

    async def main() -> None:
        async with odd_engine(switch) as url, Relay(url, limits=Limits(idle=5)).serving() as relay:
            raw = await plain(relay, COMPLETIONS, completion("a", "x"))
            assert (await raw.head())[0] == 502
            (fault,) = relay.faults
            assert isinstance(fault, Failed)
            assert fault.code == "engine_broke_off"
            await raw.close()

    run(main())


@pytest.mark.parametrize("where", ["reason", "header", "of chunks"])
def test_a_head_that_no_client_may_get(where: str) -> None:
    """It is the engine's fault, and the client is told so in an answer that is whole."""
    reason = b"O\x01K" if where == "reason" else b"OK"
    more = b"Transfer-Encoding: chunked" if where == "of chunks" else b"Content-Length: 2"
    more += b"\r\nX: a\x7fb" if where != "reason" else b""
    body = b"2\r\n{}\r\n0\r\n\r\n" if where == "of chunks" else b"{}"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await read_request(reader)
            if asked.startswith(b"POST"):
                writer.write(b"HTTP/1.1 200 %b\r\n%b\r\n\r\n%b" % (reason, more, body))
            else:
                said = b'{"is_sleeping": false}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))

    async def main() -> None:
        async with odd_engine(serve) as url:
            text = {"router": {"router_port": 0}, "instances": [{"model": "a", "engine": "vllm", "url": url}]}
            async with attached(parse(json.dumps(text), "test.yaml")) as whole:
                raw = await Raw.open(whole.address)
                for _ in range(2):
                    await raw.send("POST", COMPLETIONS, completion("a", "x"))
                    status, headers = await raw.head()
                    said = json.loads(await raw.reader.readexactly(int(headers["content-length"])))
                    assert (status, said["error"]["code"]) == (502, "engine_broke_off")
                    assert "its answer's head has control characters" in said["error"]["message"]
                await raw.close()

    run(main())


def test_a_name_that_is_looked_up_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a connection that takes too long: another replica may be asked."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def slow(host: Any, *words: Any, **more: Any) -> Any:
            if host == "slow.test":
                await asyncio.Event().wait()
            return await real(host, *words, **more)

        monkeypatch.setattr(loop, "getaddrinfo", slow)
        async with Relay("http://slow.test:80", limits=Limits(connect=0.2)).serving() as relay:
            raw = await plain(relay, COMPLETIONS, completion("a", "x"))
            assert (await raw.head())[0] == 502
            assert [fault.code for fault in relay.faults] == ["engine_unreachable"]
            await raw.close()

    run(main())
