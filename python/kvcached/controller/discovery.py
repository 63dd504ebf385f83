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
from typing import Any, Optional

from kvcached.controller.config import Config, Instance, parse_instances
from kvcached.controller.document import ConfigError
from kvcached.controller.names import Name, Names
from kvcached.controller.places import Addresses, once_each
from kvcached.controller.work import in_thread

log = logging.getLogger("kvcached.controller")

FILE_SECONDS = 1.0
DNS_SECONDS = 5.0

_Stamp = Optional[tuple[int, int, int]]
_Instances = tuple[Instance, ...]


class Discovery:
    """`changed` is called, in the event loop, when there is something new, and `failed` when a look has
    failed: with "file" or "dns". `instances`: the configuration's, and those of the file that no other has
    the name of; `addresses`: URLs of those that have `dns`. Of both what is at no engine of another's."""

    def __init__(
        self,
        changed: Callable[[], None],
        failed: Callable[[str], None],
        getaddrinfo: Callable[..., Any] = socket.getaddrinfo,
    ) -> None:
        self._changed, self._failed = changed, failed
        self._config: Config | None = None
        self._found: _Instances = ()
        self._stamp: _Stamp = None
        self._bad_stamp: _Stamp = None  # of a file with an error in it
        self._said = ""
        self._names = Names(lambda: failed("dns"), getaddrinfo)
        self.instances: _Instances = ()
        self.addresses: Addresses = {}
        self._ignored: tuple[str, ...] = ()
        self._looking = asyncio.Lock()  # at the file
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, config: Config) -> None:
        """With another configuration, too, which counts when it has been looked at everything once: then this
        returns."""
        async with self._looking:
            path = config.router.discovery_file
            read = (None, ()) if path is None else await self._read_file(path, again=True)
            stamp, found = read or (self._stamp, self._found)
            await self._names.look_up(_names_of(_named(config, found)))
            self._take(config, found, stamp)
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
        await self._names.close()

    async def _watch(self, seconds: Callable[[], float], look: Callable[[], Awaitable[bool]]) -> None:
        while True:
            await asyncio.sleep(seconds())
            try:
                if await look():
                    self._changed()
            except Exception:
                log.exception("Engines could not be looked for; what was discovered before stays")

    async def _look_at_file(self) -> bool:
        async with self._looking:
            path = self._config.router.discovery_file if self._config else None
            read = None if path is None else await self._read_file(path)
            if read is None:
                return False
            stamp, found = read
            # What is known already waits for nobody.
            await self._names.look_up(_names_of(_named(self._config, found)) - self._names.known.keys())
            return self._take(self._config, found, stamp)

    async def _look_at_names(self) -> bool:
        await self._names.look_up(_names_of(_named(self._config, self._found)))
        return self._settle()

    def _take(self, config: Config | None, found: _Instances, stamp: _Stamp) -> bool:
        self._config, self._found, self._stamp = config, found, stamp
        self._names.forget_all_but(_names_of(_named(config, found)))
        return self._settle()

    def _settle(self) -> bool:
        """Whether there is something new."""
        named = _named(self._config, self._found)
        known = {name: self._names.known.get(name, ()) for name in _names_of(named)}
        instances, addresses, ignored = once_each(named, known)
        for sentence in ignored:
            if sentence not in self._ignored:
                log.warning("%s", sentence)
        changed = (instances, addresses) != (self.instances, self.addresses)
        self.instances, self.addresses, self._ignored = instances, addresses, ignored
        return changed

    async def _read_file(self, path: str, again: bool = False) -> tuple[_Stamp, _Instances] | None:
        """None: it hasn't changed, or cannot be read. One that is being written is read again: whoever writes
        it should put a whole one in its place."""
        try:
            stamp = await in_thread(_stamp_of, path)
            if stamp == self._bad_stamp and not again:
                self._failed("file")
                return None
            self._bad_stamp = None
            if stamp == self._stamp and not again:
                self._said = ""
                return None
            found = await in_thread(_instances_in, path)
        except (OSError, UnicodeDecodeError) as fault:
            self._complain(f"{path} cannot be read: {getattr(fault, 'strerror', None) or fault}")
            return None
        except ConfigError as fault:
            self._bad_stamp = stamp
            self._complain(str(fault))
            return None
        self._said = ""
        return stamp, found

    def _complain(self, sentence: str) -> None:
        self._failed("file")
        if sentence != self._said:
            log.error("What was discovered before stays: %s", sentence)
        self._said = sentence


def _named(config: Config | None, found: _Instances) -> _Instances:
    own = config.instances if config else ()
    names = {instance.name for instance in own}
    return (*own, *(instance for instance in found if instance.name not in names))


def _names_of(instances: _Instances) -> set[Name]:
    return {instance.dns for instance in instances if instance.dns}


def _stamp_of(path: str) -> _Stamp:
    status = Path(path).stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _instances_in(path: str) -> _Instances:
    return parse_instances(Path(path).read_text(), path)
