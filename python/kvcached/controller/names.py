# SPDX-License-Identifier: Apache-2.0
"""Names in DNS, looked up in threads of their own, for the C library asks as long as it likes: a server that
is silent keeps neither other names waiting, nor what else is done in threads, nor the end of the process.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

log = logging.getLogger("kvcached.controller")

# There is no such name; there is one, without addresses, as of a service without engines.
_NO_ADDRESS = (socket.EAI_NONAME, socket.EAI_NODATA)
LOOKUP_SECONDS = 5.0  # that somebody waits for
THREADS = 32

Name = tuple[str, int]  # and a port


class Names:
    """`known`: URLs at the addresses that a name had when it was looked up last. `failed` is called for each
    lookup that nobody answers, or not in time; `ask` is getaddrinfo()."""

    def __init__(self, failed: Callable[[], None], ask: Callable[..., Any] = socket.getaddrinfo) -> None:
        self._failed, self._ask = failed, ask
        self.known: dict[Name, tuple[str, ...]] = {}
        self._free = asyncio.Semaphore(THREADS)
        # One for each name, so that no answer comes after a later one.
        self._lookups: dict[Name, asyncio.Task[None]] = {}

    async def look_up(self, names: Iterable[Name]) -> None:
        """Returns when `known` has their answers, or after LOOKUP_SECONDS; an answer that comes later counts
        then."""
        names = set(names)
        for name in names - self._lookups.keys():
            self._lookups[name] = asyncio.get_running_loop().create_task(self._look_up(name))
        if names:
            _, late = await asyncio.wait([self._lookups[name] for name in names], timeout=LOOKUP_SECONDS)
            for _ in late:
                self._failed()

    def forget_all_but(self, names: Iterable[Name]) -> None:
        self.known = {name: self.known[name] for name in names if name in self.known}

    async def close(self) -> None:
        tasks = list(self._lookups.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, name: Name) -> None:
        try:
            async with self._free:
                answer = await self._in_thread(name)
        except (OSError, UnicodeError):
            self._failed()  # what was known stays
        except Exception:
            log.exception("%s:%s could not be looked up", *name)
            self._failed()
        else:
            self.known[name] = answer
        finally:
            del self._lookups[name]

    async def _in_thread(self, name: Name) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[str, ...]] = loop.create_future()

        def tell(set_it: Callable[[Any], None], what: object) -> None:
            if not answer.done():
                set_it(what)

        def ask() -> None:
            done: tuple[Callable[[Any], None], object]
            try:
                done = answer.set_result, self._urls(*name)
            except Exception as fault:
                done = answer.set_exception, fault
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, *done)

        # No executor: the interpreter waits for its threads when it ends.
        threading.Thread(target=ask, name="lookup", daemon=True).start()
        return await answer

    def _urls(self, name: str, port: int) -> tuple[str, ...]:
        """A name that is there, and has no address, has no engine."""
        try:
            found = self._ask(name, port, type=socket.SOCK_STREAM)
        except socket.gaierror as fault:
            if fault.errno in _NO_ADDRESS:
                return ()
            raise
        hosts = sorted({str(address[0]) for *_, address in found})
        return tuple(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts)
