# SPDX-License-Identifier: Apache-2.0
"""Where engines are: in the configuration, in a file that somebody else writes, and behind names that DNS
knows. Looked at again and again; what cannot be read or resolved leaves what was known.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Optional

from kvcached.controller.config import Addresses, Config, ConfigError, Instance, once_each, parse_instances

log = logging.getLogger("kvcached.controller")

# There is no such name; there is one, without addresses, as of a service without engines.
_NO_ADDRESS = (socket.EAI_NONAME, socket.EAI_NODATA)
FILE_SECONDS = 1.0
DNS_SECONDS = 5.0

_Stamp = Optional[tuple[int, int, int]]


class Discovery:
    """`changed` is called, in the event loop, when there is something new. `instances`: the configuration's,
    and those of the file that no other has the name of; `addresses`: URLs of those that have `dns`. Of both
    what is at no engine of another's."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._config: Config | None = None
        self._found: tuple[Instance, ...] = ()
        self._stamp: _Stamp = None
        self._said = ""
        self._known: Addresses = {}
        self.instances: tuple[Instance, ...] = ()
        self.addresses: Addresses = {}
        self._ignored: tuple[str, ...] = ()
        self._looking = asyncio.Lock()  # what is looked up later is newer
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, config: Config) -> None:
        """With another configuration, too, which counts when it has been looked at everything once: then this
        returns."""
        async with self._looking:
            path = config.router.discovery_file
            read = (None, ()) if path is None else self._read_file(path, None)
            stamp, found = read or (self._stamp, self._found)
            known = await self._resolve_all(_named(config, found))
            self._config, self._found, self._stamp, self._known = config, found, stamp, known
            self._settle()
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._watch(lambda: FILE_SECONDS, self._look_at_file)),
                loop.create_task(self._watch(lambda: DNS_SECONDS, self._look_at_names)),
            ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, seconds: Callable[[], float], look: Callable[[], Awaitable[bool]]) -> None:
        while True:
            await asyncio.sleep(seconds())
            try:
                async with self._looking:
                    if await look():
                        self._changed()
            except Exception:
                log.exception("Engines could not be looked for; what was discovered before stays")

    async def _look_at_file(self) -> bool:
        path = self._config.router.discovery_file if self._config else None
        read = None if path is None else self._read_file(path, self._stamp)
        if read is None:
            return False
        stamp, found = read
        known = await self._resolve_all(_named(self._config, found))
        self._found, self._stamp, self._known = found, stamp, known
        return self._settle()

    async def _look_at_names(self) -> bool:
        self._known = await self._resolve_all(_named(self._config, self._found))
        return self._settle()

    def _settle(self) -> bool:
        """Whether there is something new."""
        instances, addresses, ignored = once_each(_named(self._config, self._found), self._known)
        for sentence in ignored:
            if sentence not in self._ignored:
                log.warning("%s", sentence)
        changed = (instances, addresses) != (self.instances, self.addresses)
        self.instances, self.addresses, self._ignored = instances, addresses, ignored
        return changed

    def _read_file(self, path: str, known: _Stamp) -> tuple[_Stamp, tuple[Instance, ...]] | None:
        """None: it hasn't changed, or cannot be read. One that is being written is read again: whoever writes
        it should put a whole one in its place."""
        try:
            status = Path(path).stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == known:
                return None
            found = parse_instances(Path(path).read_text(), path)
        except (OSError, UnicodeDecodeError) as fault:
            self._complain(f"{path} cannot be read: {getattr(fault, 'strerror', None) or fault}")
            return None
        except ConfigError as fault:
            self._stamp = stamp
            self._complain(str(fault))
            return None
        self._said = ""
        return stamp, found

    def _complain(self, sentence: str) -> None:
        if sentence != self._said:
            log.error("What was discovered before stays: %s", sentence)
        self._said = sentence

    async def _resolve_all(self, instances: tuple[Instance, ...]) -> Addresses:
        names = {instance.dns for instance in instances if instance.dns}
        known = {name: urls for name, urls in self._known.items() if name in names}
        answers = await asyncio.gather(*(_resolve(*name) for name in names))
        for name, answer in zip(names, answers):
            if answer is None:
                known.setdefault(name, ())
            else:
                known[name] = answer
        return known


def _named(config: Config | None, found: tuple[Instance, ...]) -> tuple[Instance, ...]:
    own = config.instances if config else ()
    names = {instance.name for instance in own}
    return (*own, *(instance for instance in found if instance.name not in names))


async def _resolve(name: str, port: int) -> tuple[str, ...] | None:
    """None: nobody knows now. A name that is there, and has no address, has no engine."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except socket.gaierror as fault:
        return () if fault.errno in _NO_ADDRESS else None
    except (OSError, UnicodeError):
        return None
    hosts = sorted({str(address[0]) for *_, address in found})
    return tuple(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts)
