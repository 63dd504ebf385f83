# SPDX-License-Identifier: Apache-2.0
"""Clients that cost next to nothing: each asks for a completion over one connection, takes it, and asks
again."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import urlsplit

from bench.web_engine import TOKEN

PAUSE_S = 1.0  # at most
_MARK = b'"text_completion"'  # once in each token
assert TOKEN.count(_MARK) == 1


_pauses = random.Random(1)


@dataclass(frozen=True)
class Load:
    """`tokens`: 0: answers in one piece. `paced`: tokens come in steps, as an engine's do, and each client
    pauses before it asks, lest all of them do so at one moment; otherwise as fast as they are taken."""

    clients: int
    requests: int  # of each
    tokens: int = 0
    paced: bool = True


@dataclass
class Found:
    """Seconds from each request to the first byte of its answer, tokens per second of each stream from
    its request to its end, and seconds that all of it took."""

    first_byte: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Found) -> None:
        self.first_byte += other.first_byte
        self.rates += other.rates
        self.seconds += other.seconds


class _Client(asyncio.Protocol):
    """Done when it has had all its answers. RuntimeError: one was not as it must be."""

    def __init__(self, load: Load, found: Found) -> None:
        self._load, self._found = load, found
        self._left = load.requests
        self.done = asyncio.get_running_loop().create_future()
        body = {"model": "model", "prompt": "Hello", "max_tokens": load.tokens}
        data = json.dumps({**body, "stream": load.tokens > 0, "paced": load.paced}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: model\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def begin(self) -> None:
        if self._load.tokens and self._load.paced:
            asyncio.get_running_loop().call_later(_pauses.uniform(0, PAUSE_S), self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        self._answer, self._first, self._began = b"", 0.0, perf_counter()
        self._tokens, self._tail = 0, b""
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if not self._first:
            self._first = now
            self._found.first_byte.append(now - self._began)
            if not data.startswith(b"HTTP/1.1 200 OK\r\n"):
                self._fail(data)
                return
        if self._load.tokens:
            self._take(data, now)
        else:
            self._answer += data
            head, end, body = self._answer.partition(b"\r\n\r\n")
            if end and len(body) == _length(head):
                self._end()

    def _take(self, data: bytes, now: float) -> None:
        """Marks may be cut in two."""
        data = self._tail + data
        self._tokens += data.count(_MARK)
        self._tail = data[-len(_MARK) + 1 :]
        if data.endswith(b"\r\n0\r\n\r\n"):
            if self._tokens != self._load.tokens:
                self._fail(data)
                return
            self._found.rates.append(self._tokens / (now - self._began))
            self._end()

    def _end(self) -> None:
        self._left -= 1
        if self._left:
            self.begin()
        else:
            self._transport.close()
            self.done.set_result(None)

    def _fail(self, data: bytes) -> None:
        self._transport.abort()
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"an answer was wrong: {data[:200]!r}"))

    def connection_lost(self, fault: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"a connection ended early: {fault}"))


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return -1


async def ask(address: str, load: Load) -> Found:
    """All clients connect first, and then begin together."""
    loop = asyncio.get_running_loop()
    host, _, port = urlsplit(address).netloc.rpartition(":")
    found = Found()
    clients = []
    for _ in range(load.clients):
        _, client = await loop.create_connection(lambda: _Client(load, found), host, int(port))
        clients.append(client)
    began = perf_counter()
    for client in clients:
        client.begin()
    await asyncio.gather(*(client.done for client in clients))
    found.seconds = perf_counter() - began
    return found
