# SPDX-License-Identifier: Apache-2.0
"""An end that finishes what was accepted, down to the last byte."""

from __future__ import annotations

import asyncio
import json
import socket

from controller.live import Raw, eventually, run
from controller.relay import COMPLETIONS, odd_engine, read_request
from controller.standins.answers import completion
from controller.standins.vllm import VllmStandIn
from controller.whole import running
from kvcached.controller import config as configs
from kvcached.controller.access import Keys
from kvcached.controller.actions import State
from kvcached.controller.app import Locks
from kvcached.controller.main import QUIET_SECONDS, Controller

PIECE = b"x" * (1 << 14)
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"


async def slow_client(address: str) -> socket.socket:
    """It has asked, and reads nothing so far."""
    host, _, port = address.rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (host.removeprefix("http://"), int(port)))
    body = json.dumps(completion("a", "x")).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    await loop.sock_sendall(client, head.encode() + body)
    return client


async def everything(client: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while piece := await loop.sock_recv(client, 1 << 20):
        data += piece
        if data.endswith(b"\r\n0\r\n\r\n"):
            break
    return data


def test_half_a_body_is_not_waited_for() -> None:
    """Its request has not been accepted, and it is told so."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            raw = await Raw.open(whole.address)
            raw.writer.write(
                f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
            )
            service = whole.controller.service
            await eventually(lambda: service.n_handlers == 1)
            await asyncio.wait_for(whole.controller.stop(), 10)
            status, headers = await raw.head()
            said = json.loads(await raw.reader.readexactly(int(headers["content-length"])))
            assert (status, said["error"]["code"]) == (503, "shutting_down")
            assert await raw.rest() == b""
            await raw.close()

    run(main())


def test_a_client_that_is_slow_gets_all_of_its_answer() -> None:
    """Its request is over; what waits in the connection for its reading leaves before the end."""

    async def main() -> None:
        sent = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            while True:
                request = await read_request(reader)
                if not request.startswith(b"POST"):
                    data = b'{"is_sleeping": false}'
                    writer.write(PLAIN + b"%d\r\n\r\n" % len(data) + data)
                    continue
                writer.write(ANSWER)
                while port.has_nothing:  # until something waits in the controller's connection
                    writer.write(PIECE)
                    sent += len(PIECE)
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.close()
                return

        async with odd_engine(serve) as url:
            text = {"router": {"router_port": 0}, "instances": [{"model": "a", "engine": "vllm", "url": url}]}
            controller = Controller(configs.parse(json.dumps(text), "test.yaml"), Locks(Keys(), Keys()))
            await controller.start()
            (port,) = controller._ports
            try:
                await eventually(lambda: controller.node.models["a"].lifecycle.state is State.AWAKE)
                client = await slow_client(controller.addresses["user"])
                await eventually(lambda: sent > 0 and controller.service.n_handlers == 0)
                assert not port.has_nothing
                end = asyncio.ensure_future(controller.stop())
                done, _ = await asyncio.wait({end}, timeout=5 * QUIET_SECONDS)
                assert not done
                assert (await everything(client)).count(b"x") >= sent
                await asyncio.wait_for(end, 10)
                client.close()
            finally:
                await controller.close()

    run(main())
