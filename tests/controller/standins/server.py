# SPDX-License-Identifier: Apache-2.0
"""What both stand-ins are: an HTTP server that generates text of its own, as it is told to: slowly, failing,
dying.

A test has it in its event loop (StandIn.start()) and sets `behaviour` or a field of it at any time, or runs
it as a process ("python -m controller.standins.vllm") and does the same over the admin address, /standin/...;
that is another port, so that it can be told to accept connections again.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from controller.standins.answers import text_of
from controller.standins.routes import Route

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")
HOST = "127.0.0.1"
BACKLOG = 2048  # uvicorn's
KEEP_ALIVE_S = 5.0  # uvicorn's, with both engines


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


class StandIn:
    """`routes` is what is mounted, `model` the served name."""

    engine = ""
    routes: tuple[Route, ...] = ()

    def __init__(
        self, model: str = "m", behaviour: Behaviour | None = None, *, api_key: str | None = None
    ) -> None:
        self.model = model
        self.behaviour = behaviour or Behaviour()
        self.api_key = api_key
        self.counters = Counters()
        self.said: dict[str, list[bytes]] | None = None
        """Set to {}: bytes of the streams' bodies, by id."""
        self.dies_with_process = False
        self.dead = False
        self.address = ""
        self.admin_address = ""
        self._generations: list[Generation] = []
        self._released = asyncio.Event()
        self._changed = asyncio.Condition()
        self._numbers = itertools.count()
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._admin: web.AppRunner | None = None
        self._operations: set[asyncio.Task[Any]] = set()
        self._at_death: asyncio.Task[None] | None = None

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

    def begin_anew(self) -> None:
        """Of a server that has died and is started again: awake."""
        raise NotImplementedError

    # Life.

    async def start(self, port: int = 0, *, admin: bool = False) -> None:
        app = web.Application(middlewares=[self._middleware], client_max_size=1 << 30)
        handlers = self.handlers()
        for route in self.routes:
            for method in route.methods:
                # With a HEAD beside each GET the table would not be what is mounted.
                app.router.add_route(method, route.path, handlers[route.path])
        app.router.add_get("/metrics", self.metrics)
        self._runner = _runner(app)
        await self._runner.setup()
        self._port = port
        await self.accept()
        if admin:
            self._admin = _runner(self._admin_app())
            await self._admin.setup()
            site = web.TCPSite(self._admin, HOST, 0, backlog=BACKLOG)
            await site.start()
            self.admin_address = f"http://{HOST}:{self._admin.addresses[0][1]}"

    async def stop(self) -> None:
        for operation in [*self._operations]:
            operation.cancel()
        if self._at_death is not None:
            await self._at_death
        self.abort_connections()
        for runner in (self._runner, self._admin):
            if runner is not None:
                await runner.cleanup()
        self._runner = self._admin = None

    async def accept(self) -> None:
        """On the same port as before."""
        assert self._runner is not None
        self._site = web.TCPSite(self._runner, HOST, self._port, reuse_address=True, backlog=BACKLOG)
        await self._site.start()
        self._port = self._runner.addresses[0][1]
        self.address = f"http://{HOST}:{self._port}"

    async def refuse(self) -> None:
        """New connections; those that are there stay."""
        if self._site is not None:
            site, self._site = self._site, None
            await site.stop()

    def connections(self) -> int:
        return 0 if self._runner is None else len(_protocols(self._runner))

    def close_idle_connections(self) -> int:
        """As a server does that kept them alive long enough. Call it while none has a request."""
        return self._end_connections("close")

    def abort_connections(self) -> int:
        return self._end_connections("abort")

    def _end_connections(self, how: str) -> int:
        n = 0
        for protocol in [] if self._runner is None else _protocols(self._runner):
            transport = protocol.transport
            if transport is not None:
                getattr(transport, how)()
                n += 1
        return n

    def die(self) -> None:
        """The whole server, at once: nobody is answered, and nothing listens any more."""
        if self.dies_with_process:
            os._exit(3)
        if not self.dead:
            self.dead = True
            self.counters.deaths += 1
            for generation in self._generations:
                generation.died = True
            self._at_death = asyncio.ensure_future(self.refuse())
            self.abort_connections()

    async def restart(self) -> None:
        """After die(): another process on the same port."""
        if self._at_death is not None:
            await self._at_death
            self._at_death = None
        self.dead = False
        self.begin_anew()
        await self.changed()
        await self.accept()

    def release(self) -> None:
        """Those that are held at a chunk go on, and later ones aren't held."""
        self._released.set()

    async def changed(self) -> None:
        """Wakes up whoever waits for a condition."""
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Of this stand-in's state."""
        async with self._changed:
            await self._changed.wait_for(condition)

    async def operate(self, operation: Awaitable[T]) -> T:
        """To its end, also if the client goes away meanwhile: the engines don't cancel these."""
        task = asyncio.ensure_future(operation)
        self._operations.add(task)
        task.add_done_callback(self._operations.discard)
        return await asyncio.shield(task)

    def is_at_it(self) -> bool:
        """Falling asleep or waking."""
        return bool(self._operations)

    # HTTP.

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

    @staticmethod
    def _kill(request: web.Request) -> None:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError

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

    # The admin address.

    def _admin_app(self) -> web.Application:
        async def behave(request: web.Request) -> web.Response:
            self.behaviour = dataclasses.replace(self.behaviour, **await request.json())
            return web.json_response(dataclasses.asdict(self.behaviour))

        async def counters(request: web.Request) -> web.Response:
            del request
            return web.json_response(dataclasses.asdict(self.counters) | {"held_bytes": self.held_bytes()})

        def act(action: Callable[[], Any]) -> Handler:
            async def handler(request: web.Request) -> web.StreamResponse:
                del request
                done = action()
                if asyncio.iscoroutine(done):
                    await done
                return web.json_response({})

            return handler

        app = web.Application()
        app.router.add_post("/standin/behaviour", behave)
        app.router.add_get("/standin/counters", counters)
        actions: dict[str, Callable[[], Any]] = {
            "accept": self.accept,
            "refuse": self.refuse,
            "release": self.release,
            "die": self.die,
        }
        for name, action in actions.items():
            app.router.add_post(f"/standin/{name}", act(action))
        return app


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


def _runner(app: web.Application) -> web.AppRunner:
    return web.AppRunner(
        app, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE_S, shutdown_timeout=0.1, access_log=None
    )


def _protocols(runner: web.AppRunner) -> list[Any]:
    return [] if runner.server is None else list(runner.server.connections)


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


def serve(make: Callable[[], StandIn], port: int) -> None:
    """Until SIGTERM or SIGINT. Prints the address, and the admin address, in one line each."""

    async def run() -> None:
        stand_in = make()
        stand_in.dies_with_process = True
        await stand_in.start(port, admin=True)
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        sys.stdout.write(f"{stand_in.address}\n{stand_in.admin_address}\n")
        sys.stdout.flush()
        await stopped.wait()
        await stand_in.stop()

    asyncio.run(run())
