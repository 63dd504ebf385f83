# SPDX-License-Identifier: Apache-2.0
"""What tests with an event loop, servers and sockets stand on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from controller.standins.engine import StandIn

LIMIT_S = 30.0
T = TypeVar("T")
AnyStandIn = TypeVar("AnyStandIn", bound=StandIn)


def run(main: Coroutine[Any, Any, T], limit: float = LIMIT_S) -> T:
    """In a loop of its own, within the limit; what a task or a callback fails of fails the test."""
    faults: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        result = await asyncio.wait_for(main, limit)
        await no_tasks_left()
        return result

    result = asyncio.run(watched())
    assert not faults, faults
    return result


async def no_tasks_left() -> None:
    """Connections that have been closed still have a task each, for a moment."""
    for _ in range(1000):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if not others:
            return
        await asyncio.wait(others, timeout=0.005)
    raise AssertionError(f"tasks are left: {others}")


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], within: float = LIMIT_S, what: str = ""
) -> None:
    """Polls, for state that nobody tells of."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return
        assert loop.time() < end, f"not within {within:g} s: {what or condition}"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(*stand_ins: StandIn) -> AsyncIterator[None]:
    """They listen, each on a port of its own."""
    for stand_in in stand_ins:
        await stand_in.start()
    try:
        yield
    finally:
        for stand_in in stand_ins:
            stand_in.release()
            await stand_in.stop()


async def post(session: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[int, bytes]:
    """Status and body of an answer that comes in order."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with session.post(url, json=body, headers=sent) as response:
        return response.status, await response.read()


class Raw:
    """A connection of which every byte is seen."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, url: str, limit: int = 1 << 16) -> Raw:
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=limit))

    async def send(self, method: str, path: str, body: Any = None, *more: str) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        head = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *more]
        if data:
            head.append("Content-Type: application/json")
        self.writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers, names in lower case."""
        data = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = data.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines if line]
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    async def rest(self) -> bytes:
        """Until the connection ends, in order or not."""
        data = b""
        with suppress(ConnectionResetError):
            while chunk := await self.reader.read(1 << 16):
                data += chunk
        return data

    def abort(self) -> None:
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()
