# SPDX-License-Identifier: Apache-2.0
"""Logs, as they are shown: the last lines, and those that come, across the change of files."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_STEP_SECONDS = 0.2
_CHANGE_STEPS, _CHANGE_STEP_SECONDS = 50, 0.01
_BLOCK = 1 << 16


class Tail:
    """A log that grows, of which the last `lines` are read first."""

    def __init__(self, path: Path, lines: int) -> None:
        self._path = path
        self._older = path.with_name(f"{path.name}.1")
        self._file: BinaryIO | None = None
        self._rest = b""
        self.first = self._last(lines)

    def _last(self, lines: int) -> list[bytes]:
        # While files change their names there is none for a moment.
        for _ in range(_CHANGE_STEPS):
            if self._open() or not self._older.exists():
                break
            time.sleep(_CHANGE_STEP_SECONDS)
        if self._file is None:
            return []
        end = at = self._file.seek(0, os.SEEK_END)
        data = b""
        while at > 0 and data.count(b"\n") <= lines:
            step = min(_BLOCK, at)
            at -= step
            self._file.seek(at)
            data = self._file.read(step) + data
        self._file.seek(end)
        found = data.split(b"\n")
        self._rest = found.pop()
        if len(found) >= lines:
            return found[len(found) - lines :]
        # The line that the file begins with is whole.
        try:
            with self._older.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _BLOCK))
                before = file.read().splitlines()
        except OSError:
            before = []
        wanted = lines - len(found)
        return [*before[max(0, len(before) - wanted) :], *found]

    def _open(self) -> bool:
        try:
            self._file = self._path.open("rb")
        except FileNotFoundError:
            return False
        return True

    def rest(self) -> bytes:
        """What stands behind the last end of a line."""
        rest, self._rest = self._rest, b""
        return rest

    def lines(self) -> Iterator[bytes]:
        """Those that have come since."""
        while True:
            if self._file is None and not self._open():
                return
            assert self._file is not None
            for data in iter(lambda: self._file.read(_BLOCK), b""):  # type: ignore[union-attr]
                *whole, self._rest = (self._rest + data).split(b"\n")
                yield from whole
            if not self._changed():
                return
            # What came between the last read and the change of files.
            *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
            yield from whole
            newer = self._next()
            if newer is None:
                return
            self._file.close()
            self._file = newer

    def _next(self) -> BinaryIO | None:
        """The file that was begun when ours had been filled, which may have been filled as well by now. None:
        files change their names just now. If ours is gone, so are those that came after it; then the oldest
        that is left."""
        assert self._file is not None
        mine = _identity(os.fstat(self._file.fileno()))
        for _ in range(_CHANGE_STEPS):
            names = [self._path, *self._older_paths()]
            place = next((i for i, path in enumerate(names) if _identity_of(path) == mine), len(names))
            try:
                found = names[max(0, place - 1)].open("rb")
            except FileNotFoundError:
                time.sleep(_CHANGE_STEP_SECONDS)
                continue
            if place == len(names) or _identity_of(names[place]) == mine:
                return found
            found.close()
        return None

    def _older_paths(self) -> Iterator[Path]:
        for number in itertools.count(1):
            path = self._path.with_name(f"{self._path.name}.{number}")
            if not path.exists():
                return
            yield path

    def _changed(self) -> bool:
        assert self._file is not None
        mine = os.fstat(self._file.fileno())
        if self._file.tell() > mine.st_size:  # emptied
            self._file.seek(0)
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False
        return _identity(now) != _identity(mine)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        return _identity(path.stat())
    except FileNotFoundError:
        return None


def follow(tails: dict[str, Tail]) -> Iterator[tuple[str, bytes]]:
    """(name, line), without end."""
    while True:
        for name, tail in tails.items():
            for line in tail.lines():
                yield name, line
        time.sleep(_STEP_SECONDS)
