# SPDX-License-Identifier: Apache-2.0
"""Who belongs to an engine, and their end.

A process is a number and the time when it began: the number alone may be another's by now, and who is another
is never signalled. Whom an engine left behind is found by the ancestors they have, by a word in the
environment that they began with, or by the pipe of the log that they write to: one of these survives what
engines do, who give their processes new sessions and new names.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")
# From SIGKILL until a process is taken for one that does not end: a driver may take long to give memory back.
_DYING_SECONDS = 60.0


class Process(NamedTuple):
    pid: int
    start: int  # ticks since the machine's start

    def handle(self) -> int | None:
        """A pidfd, readable once the process has ended; None: it has ended, or the number is another's."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.is_alive():
            return fd
        os.close(fd)
        return None

    def is_alive(self) -> bool:
        found = look(self.pid)
        return found is not None and found.process == self and not found.is_dead

    def signal(self, number: int) -> None:
        """To this process or to none. OSError: it may not be signalled."""
        fd = self.handle()
        if fd is not None:
            try:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended."""
        fd = self.handle()
        if fd is None:
            return True
        try:
            waiting = select.poll()
            waiting.register(fd, select.POLLIN)
            return bool(waiting.poll(seconds * 1000))
        finally:
            os.close(fd)


class Seen(NamedTuple):
    process: Process
    parent: int
    is_dead: bool  # and waits for its parent to notice


def look(pid: int) -> Seen | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may have any character.
    words = text[text.rfind(")") + 2 :].split()
    return Seen(Process(pid, int(words[19])), int(words[1]), words[0] in "ZX")


def this_process() -> Process:
    seen = look(os.getpid())
    if seen is None:
        raise OSError(0, "/proc does not show this process")
    return seen.process


def boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def become_subreaper() -> None:
    """Whose parents end become this process's children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Family:
    """How an engine's processes are known. mark: a word of their environments, as NAME=VALUE; pipe: the
    number of the pipe that they write to; parent: whose children they are."""

    def __init__(self, engine: Process | None, mark: str, pipe: int, parent: int | None = None) -> None:
        self.engine = engine
        self.parent = parent
        self.outsiders: set[int] = set()  # children of the parent that are no engine's
        self.by_traces = parent is None  # else all of them are its descendants
        self._mark = b"\0" + mark.encode() + b"\0"
        self._pipe = f"pipe:[{pipe}]"

    def members(self) -> list[Process]:
        """Those that live."""
        seen = {}
        for name in (entry.name for entry in _PROC.iterdir()):
            if name.isdigit() and int(name) not in self.outsiders:
                found = look(int(name))
                if found is not None and not found.is_dead and found.process.pid != os.getpid():
                    seen[found.process.pid] = found
        members = {pid for pid, each in seen.items() if self._is_known(each)}
        grown = True
        while grown:
            more = {pid for pid, each in seen.items() if each.parent in members and pid not in members}
            members |= more
            grown = bool(more)
        return [seen[pid].process for pid in sorted(members)]

    def _is_known(self, seen: Seen) -> bool:
        if seen.process == self.engine or (self.parent is not None and seen.parent == self.parent):
            return True
        return self.by_traces and self._has_traces(seen.process.pid)

    def _has_traces(self, pid: int) -> bool:
        folder = _PROC / str(pid)
        with contextlib.suppress(OSError):
            if self._mark in b"\0" + (folder / "environ").read_bytes() + b"\0":
                return True
        for number in ("1", "2"):
            with contextlib.suppress(OSError):
                if str((folder / "fd" / number).readlink()) == self._pipe:
                    return True
        return False


def end(family: Family, seconds: float, pause: Callable[[float], bool]) -> list[Process]:
    """SIGTERM to the engine; to whom it leaves behind; SIGKILL to all after that many seconds. Returns those
    that don't end at all, or may not be signalled. pause waits for that long or less, and returns whether
    SIGKILL is due at once."""
    told: set[Process] = set()
    deadline = time.monotonic() + seconds
    killing, quiet, step = seconds <= 0, 0, 0.02
    while True:
        members = family.members()
        # Who begins while the others are looked at may be missed once.
        quiet = 0 if members else quiet + 1
        if quiet == 2:
            return []
        now = time.monotonic()
        if not killing and now >= deadline:
            killing = True
        if killing:
            deadline = min(deadline, now)
            if now >= deadline + _DYING_SECONDS:
                return members
        _tell(members, told, family.engine, killing)
        killing = pause(step) or killing
        step = min(step * 1.5, 0.25)


def _tell(members: Iterable[Process], told: set[Process], engine: Process | None, killing: bool) -> None:
    members = list(members)
    for process in members:
        if not killing and (process in told or (engine in members and process != engine)):
            continue
        told.add(process)
        # Who may not be signalled remains a member, and is told of at the end.
        with contextlib.suppress(PermissionError):
            process.signal(signal.SIGKILL if killing else signal.SIGTERM)
