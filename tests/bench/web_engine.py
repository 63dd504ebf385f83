# SPDX-License-Identifier: Apache-2.0
"""An engine that costs next to nothing, so that what is measured is what stands before it: it answers as vLLM
does that is awake, and each completion with as many tokens as its request says.

Tokens of all streams come in steps, as those of a batch do: one for each, all STEP_S, or as soon as the last
ones have been taken. Prints its address. Ends with its standard input.

    web_engine.py
"""

from __future__ import annotations

import asyncio
import json
import sys

STEP_S = 0.05
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: "
_STREAM = _HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = {
    "id": "cmpl-0123456789abcdef0123456789abcdef",
    "object": "text_completion",
    "created": 1700000000,
    "model": "model",
    "choices": [{"index": 0, "text": " token", "logprobs": None, "finish_reason": None}],
}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


TOKEN = _chunk(b"data: " + json.dumps(_EVENT).encode() + b"\n\n")
LAST = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _whole(data: bytes, kind: bytes = b"application/json") -> bytes:
    return _HEAD + kind + b"\r\nContent-Length: %d\r\n\r\n" % len(data) + data


_ANSWERS = {
    b"/health": _whole(b""),
    b"/v1/models": _whole(b'{"object": "list", "data": [{"id": "model", "object": "model"}]}'),
    b"/is_sleeping": _whole(b'{"is_sleeping": false}'),
    b"/metrics": _whole(b"", b"text/plain"),
}
_COMPLETION = _whole(json.dumps({**_EVENT, "usage": {"prompt_tokens": 5, "completion_tokens": 1}}).encode())


class Steps:
    """Streams under way, which get their tokens together. It rests while nobody takes any."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._streams: dict[Connection, int] = {}  # and how many tokens are left
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, stream: Connection, tokens: int) -> None:
        """The first one comes at once."""
        stream.write(_STREAM + TOKEN)
        self._streams[stream] = tokens - 1
        self.go_on()

    def go_on(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._step)

    def end(self, stream: Connection) -> None:
        self._streams.pop(stream, None)

    def _step(self) -> None:
        due = self._loop.time() + self._seconds
        waiting = True
        for stream, left in list(self._streams.items()):
            if stream.full:
                continue
            waiting = False
            if left == 0:
                del self._streams[stream]
                stream.write(LAST)
            else:
                stream.write(TOKEN)
                self._streams[stream] = left - 1
        self._timer = None if waiting else self._loop.call_at(due, self._step)


class Connection(asyncio.Protocol):
    def __init__(self, steps: dict[str, Steps]) -> None:
        self._steps = steps
        self._data = b""
        self.full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.write = transport.write

    def connection_lost(self, _: Exception | None) -> None:
        for steps in self._steps.values():
            steps.end(self)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        for steps in self._steps.values():
            steps.go_on()

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            length = 0
            for line in self._data[:end].split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(self._data) < end + 4 + length:
                return
            body = self._data[end + 4 : end + 4 + length]
            path = self._data.split(b" ", 2)[1]
            self._data = self._data[end + 4 + length :]
            self._answer(path, body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if path in _ANSWERS:
            self.write(_ANSWERS[path])
            return
        asked = json.loads(body)
        if asked["stream"]:
            self._steps["paced" if asked["paced"] else "full"].begin(self, asked["max_tokens"])
        else:
            self.write(_COMPLETION)


async def main() -> None:
    loop = asyncio.get_running_loop()
    steps = {"paced": Steps(STEP_S), "full": Steps(0)}
    server = await loop.create_server(lambda: Connection(steps), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
