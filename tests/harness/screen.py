# SPDX-License-Identifier: Apache-2.0
"""What a program shows on its pseudo-terminal: the screen as a terminal emulator makes it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pyte

from harness.broker import LIMIT_S
from harness.terminal import Terminal


class Screen(Terminal):
    """A terminal of which not the stream matters, but what can be seen."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        columns: int = 80,
        rows: int = 24,
        kind: str = "linux",
    ) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self._screen)
        self._fed = 0
        # The kind that the emulator plays: it knows no repetition of characters, which xterm has. Its mouse
        # is like xterm's, and not that of a daemon that ncurses would look for.
        super().__init__(command, {**environment, "TERM": kind, "NCURSES_GPM_TERMS": "none"}, columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        self._screen.resize(rows, columns)
        super().resize(columns, rows)

    def lines(self) -> list[str]:
        """As they stand, trailing blanks apart."""
        return [line.rstrip() for line in self._screen.display]

    def await_lines(self, condition: Callable[[list[str]], bool], within: float = LIMIT_S) -> list[str]:
        """The first screen that fulfils the condition."""
        deadline = time.monotonic() + within
        while not condition(self.lines()):
            assert time.monotonic() < deadline, "\n".join(self.lines())
            self._read(deadline - time.monotonic())
        return self.lines()

    def is_reversed(self, row: int) -> bool:
        """Whether the row begins in reverse video."""
        return self._screen.buffer[row][0].reverse

    def shows_cursor(self) -> bool:
        return not self._screen.cursor.hidden

    def _read(self, timeout_s: float) -> bool:
        came = super()._read(timeout_s)
        self._stream.feed(self.raw[self._fed :])
        self._fed = len(self.raw)
        return came
