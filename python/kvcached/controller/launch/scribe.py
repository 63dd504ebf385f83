# SPDX-License-Identifier: Apache-2.0
"""Keeps an engine's log: reads a pipe until nobody has it any more, and writes files of a bounded size.

What cannot be written is dropped, and counted: the engine neither waits for room on a disk nor dies of it.
The scribe is a process of its own, so that the engine can go on writing when its supervisor is killed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CHUNK = 1 << 16


class Log:
    """log, and older ones log.1, log.2...; `files` in all, each of about `size` bytes."""

    def __init__(self, path: Path, size: int, files: int) -> None:
        self._path = path
        self._size = size
        self._files = files
        self._fd = -1
        self._lost = 0
        self._why = ""

    def write(self, data: bytes) -> None:
        if self._lost:
            notice = f"kvcached-launch: {self._lost} bytes of the log were lost: {self._why}\n".encode()
            left = self._try(notice)
            if left:
                self._lost += len(data)
                return
            self._lost = 0
        # A line is whole within a file.
        cut = data.rfind(b"\n") + 1
        for part in (data[:cut], data[cut:]):
            left = self._try(part)
            self._lost += left
            if part and part.endswith(b"\n") and not left:
                self._rotate()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _try(self, data: bytes) -> int:
        """How much of it is not written. Opens the file again after an error: somebody may have made room."""
        done = 0
        try:
            if data and self._fd < 0:
                self._open()
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            self._why = error.strerror or str(error)
            self.close()
        return len(data) - done

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)

    def _rotate(self) -> None:
        """Without success the file grows on."""
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size < self._size:
                return
            names = [
                self._path,
                *(self._path.with_name(f"{self._path.name}.{i}") for i in range(1, self._files)),
            ]
            if len(names) == 1:
                os.ftruncate(self._fd, 0)
                return
            for older, newer in zip(names[:0:-1], names[-2::-1]):
                with contextlib.suppress(FileNotFoundError):
                    newer.replace(older)
            self.close()
            self._open()


def keep(pipe: int, log: Log) -> None:
    """Returns when nobody can write to the pipe any more."""
    while True:
        data = os.read(pipe, _CHUNK)
        if not data:
            log.close()
            return
        log.write(data)
