# SPDX-License-Identifier: Apache-2.0
"""Forwarding to clients that go, or don't read: the engine notices, and little is held for them."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from aiohttp import web

from controller.live import eventually, run
from controller.relay import COMPLETIONS, plain, relayed
from controller.standins.answers import completion
from controller.standins.engine import Behaviour
from controller.standins.vllm import VllmStandIn
from kvcached.controller.proxy import Answer, Limits


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
