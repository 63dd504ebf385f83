# SPDX-License-Identifier: Apache-2.0
"""A stand-in's life as a server, whatever it answers: it listens, refuses, dies and is started again.

A test has it in its event loop (Server.start()) and calls its methods, or runs it as a process ("python -m
controller.standins.vllm") and tells it the same over the admin address, /standin/...; that is another port,
so that it can be told to accept connections again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")
HOST = "127.0.0.1"
BACKLOG = 2048  # uvicorn's
KEEP_ALIVE_S = 5.0  # uvicorn's, with both engines


class Server:
    def __init__(self) -> None:
        self.dies_with_process = False
        self.dead = False
        self.address = ""
        self.admin_address = ""
        self._changed = asyncio.Condition()
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._admin: web.AppRunner | None = None
        self._operations: set[asyncio.Task[Any]] = set()
        self._at_death: asyncio.Task[None] | None = None

    # What it serves.

    def app(self) -> web.Application:
        raise NotImplementedError

    def admin_app(self) -> web.Application:
        """What it is told as a process."""
        app = web.Application()
        for action in (self.accept, self.refuse, self.die):
            app.router.add_post(f"/standin/{action.__name__}", order(action))
        return app

    def lose_work(self) -> None:
        """Of a server that dies: nobody will have an answer."""
        raise NotImplementedError

    def begin_anew(self) -> None:
        """Of a server that has died and is started again: awake."""
        raise NotImplementedError

    # Life.

    async def start(self, port: int = 0, *, admin: bool = False) -> None:
        self._runner = _runner(self.app())
        await self._runner.setup()
        self._port = port
        await self.accept()
        if admin:
            self._admin = _runner(self.admin_app())
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
            self.lose_work()
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

    @staticmethod
    def _kill(request: web.Request) -> None:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError


def order(action: Callable[[], Any]) -> Handler:
    """Of the admin address."""

    async def handler(request: web.Request) -> web.StreamResponse:
        del request
        done = action()
        if asyncio.iscoroutine(done):
            await done
        return web.json_response({})

    return handler


def _runner(app: web.Application) -> web.AppRunner:
    return web.AppRunner(
        app, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE_S, shutdown_timeout=0.1, access_log=None
    )


def _protocols(runner: web.AppRunner) -> list[Any]:
    return [] if runner.server is None else list(runner.server.connections)


def serve(make: Callable[[], Server], port: int) -> None:
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
