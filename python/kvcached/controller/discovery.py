# SPDX-License-Identifier: Apache-2.0
"""Where engines are: in the configuration, in a file that somebody else writes, and behind names that DNS
knows. Looked at again and again; what cannot be read or resolved leaves what was known.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from kvcached.controller.config import Config, ConfigError, Instance, parse_instances

log = logging.getLogger("kvcached.controller")

FILE_SECONDS = 1.0
DNS_SECONDS = 5.0

Addresses = dict[tuple[str, int], tuple[str, ...]]
_Stamp = Optional[tuple[int, int, int]]


class Discovery:
    """`changed` is called, in the event loop, when there is something new."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._config: Config | None = None
        self._found: tuple[Instance, ...] = ()
        self._stamp: _Stamp = None
        self._said = ""
        self.addresses: Addresses = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The configuration's, and those of the file that no other has the name of."""
        own = self._config.instances if self._config else ()
        names = {instance.name for instance in own}
        return (*own, *(instance for instance in self._found if instance.name not in names))

    async def begin(self, config: Config) -> None:
        """With another configuration, too. Returns when it has been looked at everything once."""
        self._config, self._stamp = config, None
        self._read_file()
        await self._resolve_all()
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(self._watch_file()), loop.create_task(self._watch_dns())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch_file(self) -> None:
        while True:
            await asyncio.sleep(FILE_SECONDS)
            if self._read_file():
                await self._resolve_all()
                self._changed()

    def _read_file(self) -> bool:
        """Whether it has changed, and could be read. One that is being written is read again: whoever writes
        it should put a whole one in its place."""
        path = self._config.router.discovery_file if self._config else None
        if path is None:
            changed, self._found = bool(self._found), ()
            return changed
        try:
            status = Path(path).stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return False
            found = parse_instances(Path(path).read_text(), path)
        except (OSError, UnicodeDecodeError) as fault:
            self._complain(f"{path} cannot be read: {getattr(fault, 'strerror', None) or fault}")
            return False
        except ConfigError as fault:
            self._stamp = stamp
            self._complain(str(fault))
            return False
        self._stamp, self._said = stamp, ""
        changed, self._found = found != self._found, found
        return changed

    def _complain(self, sentence: str) -> None:
        if sentence != self._said:
            log.error("What was discovered before stays: %s", sentence)
        self._said = sentence

    async def _watch_dns(self) -> None:
        while True:
            await asyncio.sleep(DNS_SECONDS)
            if await self._resolve_all():
                self._changed()

    async def _resolve_all(self) -> bool:
        names = {instance.dns for instance in self.instances if instance.dns}
        known = {name: urls for name, urls in self.addresses.items() if name in names}
        answers = await asyncio.gather(*(_resolve(*name) for name in names))
        for name, answer in zip(names, answers):
            if answer is None:
                known.setdefault(name, ())
            else:
                known[name] = answer
        changed, self.addresses = known != self.addresses, known
        return changed


async def _resolve(name: str, port: int) -> tuple[str, ...] | None:
    """None: nobody knows now. A name that is there, and has no address, has no engine."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except socket.gaierror as fault:
        return () if fault.errno == socket.EAI_NONAME else None
    except OSError:
        return None
    hosts = sorted({str(address[0]) for *_, address in found})
    return tuple(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts)
