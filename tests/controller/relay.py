# SPDX-License-Identifier: Apache-2.0
"""forward() in a server of its own, engines that say what they like, and a client that says what it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from controller.live import Raw, serving
from controller.standins.engine import StandIn
from kvcached.controller.proxy import Forwarded, Limits, NotSent, ProxyError, connect_session, forward

COMPLETIONS = "/v1/completions"
LIMITS = Limits(connect=5, idle=10)


class Relay:
    """A server that passes everything on to the first of `urls` that can be sent it."""

    def __init__(self, *urls: str, limits: Limits = LIMITS) -> None:
        self.urls, self.limits = list(urls), limits
        self.headers: dict[str, str | None] = {}
        self.done: list[Forwarded] = []
        self.faults: list[ProxyError] = []
        self.gone = 0
        self.requests: list[web.Request] = []
        self.session = connect_session()
        self.address = ""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append(request)
        try:
            for url in self.urls:
                try:
                    done = await forward(
                        self.session,
                        request,
                        body,
                        url + request.raw_path,
                        self.limits,
                        request_id=f"id-{len(self.requests)}",
                        headers=self.headers,
                    )
                except ProxyError as fault:
                    self.faults.append(fault)
                    if isinstance(fault, NotSent):
                        continue
                    break
                self.done.append(done)
                self.gone += done.gone
                return done.response
        except asyncio.CancelledError:
            self.gone += 1
            raise
        code = self.faults[-1].code
        return web.json_response({"error": {"code": code}}, status=504 if code == "engine_timeout" else 502)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Relay]:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await self._runner.cleanup()
            await self.session.close()


@asynccontextmanager
async def relayed(
    stand_in: StandIn, limits: Limits = LIMITS
) -> AsyncIterator[tuple[Relay, aiohttp.ClientSession]]:
    """A relay in front of it, and a client's session without bounds."""
    async with (
        serving(stand_in),
        Relay(stand_in.address, limits=limits).serving() as relay,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        yield relay, session


@asynccontextmanager
async def odd_engine(handler: Any) -> AsyncIterator[str]:
    """An engine that is one handler of connections' bytes."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Head and body of one that has a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    n = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(n)


async def plain(relay: Relay, path: str, body: Any) -> Raw:
    """A request that was made on a connection of its own."""
    raw = await Raw.open(relay.address)
    await raw.send("POST", path, body)
    return raw


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """Of a large body, which is sent without its length being said."""
    for start in range(0, len(data), 1 << 16):
        yield data[start : start + (1 << 16)]
