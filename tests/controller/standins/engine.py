# SPDX-License-Identifier: Apache-2.0
"""What both stand-ins are: engines that generate text of their own, as they are told to: slowly, failing,
dying. A test sets `behaviour` or a field of it at any time.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import random
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from controller.standins.answers import text_of
from controller.standins.routes import Route
from controller.standins.server import Handler, Server, order


@dataclass
class Behaviour:
    """Times in seconds. Chunks are counted from 0; None: never."""

    n_chunks: int = 4
    chunk_bytes: int = 0
    """Text of a chunk is filled up to so many."""
    first_byte_s: float = 0.0
    chunk_s: float = 0.0
    cuts: int | None = None
    """A seed: a stream's bytes leave in pieces that are cut anywhere."""
    hold_at: int | None = None
    """Before this chunk a generation waits for release(). With 0 not even headers are sent."""
    fail_status: int | None = None
    fail_times: int | None = None
    """So many requests are failed; None: all."""
    die_at: int | None = None
    """Instead of this chunk; -1: with no byte answered."""
    die_how: str = "abort"
    """"abort": reset the connection, "close": end it in order, "exit": the whole server."""
    sleep_s: float = 0.0
    wake_s: float = 0.0
    sleep_fails: bool = False
    wake_fails: bool = False
    health_fails: bool = False
    silent: int = 0
    """So many questions about its health are not answered, for vLLM's server is busy."""
    weight_bytes: int = 1 << 30
    kv_bytes: int = 1 << 29


@dataclass
class Counters:
    """`aborted`: requests whose client went away. `while_asleep`: those that came where a real engine has no
    memory for them. `sleeps`, `wakes`: done ones. `deaths`: of the whole server."""

    ids: list[str] = field(default_factory=list)
    in_flight: int = 0
    max_in_flight: int = 0
    finished: int = 0
    failed: int = 0
    aborted: int = 0
    while_asleep: int = 0
    sleeps: int = 0
    wakes: int = 0
    deaths: int = 0


@dataclass
class Generation:
    """One request that is answered with text."""

    identity: str
    body: dict[str, Any]
    chat: bool
    request_id: str
    abort: asyncio.Event = field(default_factory=asyncio.Event)
    """The engine's own: sleep with mode "abort"."""
    begun: bool = False
    died: bool = False

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


class StandIn(Server):
    """`routes` is what is mounted, `model` the served name."""

    engine = ""
    routes: tuple[Route, ...] = ()

    def __init__(
        self, model: str = "m", behaviour: Behaviour | None = None, *, api_key: str | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.behaviour = behaviour or Behaviour()
        self.api_key = api_key
        self.counters = Counters()
        self.said: dict[str, list[bytes]] | None = None
        """Set to {}: bytes of the streams' bodies, by id."""
        self._generations: list[Generation] = []
        self._released = asyncio.Event()
        self._numbers = itertools.count()

    # What an engine has of its own.

    def handlers(self) -> dict[str, Handler]:
        """By path; the routes say by which methods."""
        return {
            "/v1/models": self.models,
            "/v1/completions": self.completions,
            "/v1/chat/completions": self.chat_completions,
            "/v1/embeddings": self.embeddings,
        }

    def error(
        self, status: int, message: str, kind: str | None = None, param: str | None = None
    ) -> web.Response:
        """As the engine forms it."""
        raise NotImplementedError

    def guards(self, path: str) -> bool:
        """Whether an API key is asked for."""
        raise NotImplementedError

    def check_model(self, body: dict[str, Any]) -> None:
        """RefusedError, where the engine refuses a name that it doesn't serve."""

    def missing(self, field: str) -> RefusedError:
        """How the engine refuses a body without it."""
        return RefusedError(400, f"Field required: {field}", "Bad Request", f"body.{field}")

    def held_bytes(self) -> int:
        raise NotImplementedError

    def is_asleep(self) -> bool:
        raise NotImplementedError

    async def admit(self, generation: Generation) -> None:
        """Returns when the engine would begin with it."""
        raise NotImplementedError

    async def step(self, generation: Generation) -> None:
        """Returns when the engine would go on with it."""
        raise NotImplementedError

    def garbled(self) -> bool:
        """Whether the weights are not the model's: discarded, and not loaded again."""
        raise NotImplementedError

    # As a server.

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware], client_max_size=1 << 30)
        handlers = self.handlers()
        for route in self.routes:
            for method in route.methods:
                # With a HEAD beside each GET the table would not be what is mounted.
                app.router.add_route(method, route.path, handlers[route.path])
        app.router.add_get("/metrics", self.metrics)
        return app

    def admin_app(self) -> web.Application:
        async def behave(request: web.Request) -> web.Response:
            self.behaviour = dataclasses.replace(self.behaviour, **await request.json())
            return web.json_response(dataclasses.asdict(self.behaviour))

        async def counters(request: web.Request) -> web.Response:
            del request
            return web.json_response(dataclasses.asdict(self.counters) | {"held_bytes": self.held_bytes()})

        app = super().admin_app()
        app.router.add_post("/standin/behaviour", behave)
        app.router.add_get("/standin/counters", counters)
        app.router.add_post("/standin/release", order(self.release))
        return app

    def release(self) -> None:
        """Those that are held at a chunk go on, and later ones aren't held."""
        self._released.set()

    def lose_work(self) -> None:
        self.counters.deaths += 1
        for generation in self._generations:
            generation.died = True

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.dead:
            self._kill(request)
        known = request.headers.get("Authorization") == f"Bearer {self.api_key}"
        if self.api_key is not None and self.guards(request.path) and not known:
            return web.json_response({"error": "Unauthorized"}, status=401)
        try:
            return await handler(request)
        except RefusedError as refused:
            return self.error(refused.status, str(refused), refused.kind, refused.param)
        except web.HTTPException as fault:
            # FastAPI's own: of routes, no engine's.
            details = {404: "Not Found", 405: "Method Not Allowed"}
            return web.json_response({"detail": details.get(fault.status, fault.reason)}, status=fault.status)

    async def read_json(self, request: web.Request) -> dict[str, Any]:
        if request.content_type != "application/json":
            text = "Unsupported Media Type: Only 'application/json' is allowed"
            raise RefusedError(400, text, "Bad Request", "header.content-type")
        try:
            body = json.loads(await request.read())
        except ValueError as fault:
            raise RefusedError(400, f"JSON decode error: {fault}", "Bad Request", "body") from None
        if not isinstance(body, dict):
            raise RefusedError(400, "Input should be a valid dictionary", "Bad Request", "body")
        return body

    # What it answers.

    async def models(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response({"object": "list", "data": [self.model_card()]})

    def model_card(self) -> dict[str, Any]:
        raise NotImplementedError

    def metrics_text(self) -> str:
        raise NotImplementedError

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(text=self.metrics_text(), content_type="text/plain")

    def _begin(self, request: web.Request, body: dict[str, Any], *, chat: bool) -> Generation:
        identity = str(body.get("user", ""))
        request_id = request.headers.get("X-Request-Id") or f"{next(self._numbers):032x}"
        counters = self.counters
        counters.ids.append(identity)
        counters.while_asleep += self.is_asleep()
        counters.in_flight += 1
        counters.max_in_flight = max(counters.max_in_flight, counters.in_flight)
        generation = Generation(identity, body, chat, request_id)
        self._generations.append(generation)
        return generation

    async def _end(self, generation: Generation) -> None:
        self._generations.remove(generation)
        self.counters.in_flight -= 1
        await self.changed()

    def _fail(self) -> None:
        """RefusedError, while the behaviour says so."""
        behaviour = self.behaviour
        if behaviour.fail_status is None or behaviour.fail_times == 0:
            return
        if behaviour.fail_times is not None:
            behaviour.fail_times -= 1
        self.counters.failed += 1
        raise RefusedError(behaviour.fail_status, "told to fail", "InternalServerError")

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await self.read_json(request)
        needed = "messages" if chat else "prompt"
        if needed not in body:
            raise self.missing(needed)
        self.check_model(body)
        generation = self._begin(request, body, chat=chat)
        try:
            self._fail()
            answer = await (
                self._stream(request, generation) if generation.stream else self._whole(request, generation)
            )
            self.counters.finished += 1
            await self.changed()
            return answer
        except (asyncio.CancelledError, ConnectionError):
            if not generation.died:
                self.counters.aborted += 1
            raise
        finally:
            await asyncio.shield(self._end(generation))

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await self.read_json(request)
        self.check_model(body)
        generation = self._begin(request, body, chat=False)
        try:
            self._fail()
            await self.admit(generation)
            inputs = body["input"] if isinstance(body.get("input"), list) else [body.get("input", "")]
            vectors = [
                {"object": "embedding", "index": i, "embedding": [float(zlib.crc32(str(text).encode()))]}
                for i, text in enumerate(inputs)
            ]
            usage = {"prompt_tokens": len(vectors), "total_tokens": len(vectors), "completion_tokens": 0}
            self.counters.finished += 1
            return web.json_response(self.embedding_answer(generation, vectors, usage))
        finally:
            await asyncio.shield(self._end(generation))

    def embedding_answer(
        self, generation: Generation, vectors: list[dict[str, Any]], usage: dict[str, int]
    ) -> dict[str, Any]:
        raise NotImplementedError

    async def _texts(self, request: web.Request, generation: Generation) -> AsyncIterator[str]:
        behaviour = self.behaviour
        if behaviour.die_at == -1:
            self._die(request, generation)
        await self.admit(generation)
        await _pause(behaviour.first_byte_s)
        for number in range(behaviour.n_chunks):
            if number == behaviour.hold_at:
                await self._released.wait()
            if number:
                await _pause(behaviour.chunk_s)
            await self.step(generation)
            if generation.abort.is_set():
                return
            if number == behaviour.die_at:
                self._die(request, generation)
            text = text_of(generation.identity, number, behaviour.chunk_bytes)
            yield "\0" * len(text) if self.garbled() else text

    def _die(self, request: web.Request, generation: Generation) -> None:
        generation.died = True
        if self.behaviour.die_how == "exit":
            self.die()
        elif request.transport is not None:
            getattr(request.transport, self.behaviour.die_how)()
        raise ConnectionResetError

    def _usage(self, n_chunks: int) -> dict[str, int]:
        return {"prompt_tokens": 3, "total_tokens": 3 + n_chunks, "completion_tokens": n_chunks}

    def envelope(self, generation: Generation, *, chunk: bool) -> dict[str, Any]:
        """What each answer, and each chunk of one, begins with."""
        if generation.chat:
            prefix, kind = "chatcmpl-", "chat.completion.chunk" if chunk else "chat.completion"
        else:
            prefix, kind = "cmpl-", "text_completion"
        return {
            "id": prefix + generation.request_id,
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
        }

    def finish(self) -> dict[str, Any]:
        """Keys of a choice that say why it ended, with no reason yet."""
        raise NotImplementedError

    async def _stream(self, request: web.Request, generation: Generation) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        said = [] if self.said is None else self.said.setdefault(generation.identity, [])
        scissors = Scissors(response, self.behaviour.cuts, generation.identity, said)

        async def say(choices: list[dict[str, Any]], **more: Any) -> None:
            event = self.envelope(generation, chunk=True) | {"choices": choices} | more
            if not response.prepared:
                await response.prepare(request)
            await scissors.write(b"data: " + json.dumps(event).encode() + b"\n\n")

        def choice(text: str | None, **ending: Any) -> dict[str, Any]:
            said: dict[str, Any] = {"index": 0, "logprobs": None} | self.finish() | ending
            if not generation.chat:
                return said | {"text": text or ""}
            return said | {"delta": {} if text is None else {"content": text}}

        n_chunks = 0
        async for text in self._texts(request, generation):
            if generation.chat and n_chunks == 0:
                opening: dict[str, Any] = {"delta": {"role": "assistant", "content": ""}}
                await say([choice(None) | opening])
            await say([choice(text)])
            n_chunks += 1
        reason = "abort" if generation.abort.is_set() else "length"
        await say([choice(None, finish_reason=reason)])
        if (generation.body.get("stream_options") or {}).get("include_usage"):
            await say([], usage=self._usage(n_chunks))
        await scissors.write(b"data: [DONE]\n\n", last=True)
        await response.write_eof()
        return response

    async def _whole(self, request: web.Request, generation: Generation) -> web.StreamResponse:
        texts: list[str] = []
        async for text in self._texts(request, generation):
            texts.append(text)
        said: dict[str, Any] = {"index": 0, "logprobs": None} | self.finish() | {"finish_reason": "length"}
        text = "".join(texts)
        if generation.chat:
            said["message"] = {"role": "assistant", "content": text}
        else:
            said["text"] = text
        answer = self.envelope(generation, chunk=False)
        answer |= {"choices": [said], "usage": self._usage(len(texts))}
        return web.json_response(answer)


class Scissors:
    """Writes a stream's bytes as they come, or, with a seed, cut anywhere and put together anyhow."""

    def __init__(
        self, response: web.StreamResponse, seed: int | None, identity: str, said: list[bytes]
    ) -> None:
        self._response = response
        self._random = None if seed is None else random.Random(f"{seed} {identity}")
        self._kept = b""
        self._said = said

    async def write(self, data: bytes, *, last: bool = False) -> None:
        self._said.append(data)
        if self._random is None:
            await self._response.write(data)
            return
        self._kept += data
        while self._kept and (last or self._random.random() < 0.7):
            n = self._random.randint(1, len(self._kept))
            await self._response.write(self._kept[:n])
            self._kept = self._kept[n:]
            await asyncio.sleep(0)


async def _pause(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


def parser(engine: str) -> argparse.ArgumentParser:
    """What both commands take."""
    made = argparse.ArgumentParser(prog=f"python -m controller.standins.{engine}")
    made.add_argument("--port", type=int, default=0)
    made.add_argument("--served-model-name", default="m")
    made.add_argument("--api-key")
    made.add_argument("--behaviour", default="{}", help="a JSON object: fields of Behaviour")
    return made


def behaviour_of(arguments: argparse.Namespace) -> Behaviour:
    return Behaviour(**json.loads(arguments.behaviour))
