# SPDX-License-Identifier: Apache-2.0
"""A program in a pseudo-terminal, as somebody at the keyboard meets it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from typing import Self

from harness.broker import LIMIT_S

CONTROL_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][AB0]|[=>])")


class Terminal:
    """with Terminal(command, environment) as terminal: terminal.type("help\\r"); terminal.expect("> ")"""

    def __init__(
        self, command: list[str], environment: dict[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self.text = ""  # all that was written, without control sequences
        self.raw = ""
        self._seen = 0
        self._ours, theirs = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            command,
            env={"TERM": "xterm", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def _read(self, timeout_s: float) -> bool:
        """Whether something came; false at the end as well."""
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return False
        with contextlib.suppress(OSError):
            self.raw += os.read(self._ours, 65536).decode(errors="replace")
            self.text = CONTROL_SEQUENCE.sub("", self.raw).replace("\r\n", "\n").replace("\r", "")
            return True
        return False

    def expect(self, text: str, within: float = LIMIT_S) -> str:
        """Waits for the text; what was written since the last one that was waited for, with it."""
        deadline = time.monotonic() + within
        while (at := self.text.find(text, self._seen)) < 0:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self.text[self._seen :]!r}"
            if not self._read(left):
                assert self.text.find(text, self._seen) >= 0, f"no {text!r} in {self.text[self._seen :]!r}"
        before, self._seen = self._seen, at + len(text)
        return self.text[before : self._seen]

    def drop(self, within: float) -> None:
        """Reads what comes in that time, and keeps nothing: for long runs that nobody reads."""
        if self._read(within):
            self.raw = self.text = ""
            self._seen = 0

    def takes_keys(self) -> bool:
        """Whether the program reads keys as they come: what is typed before is echoed twice."""
        return not termios.tcgetattr(self._ours)[3] & termios.ICANON

    def end(self, within: float = LIMIT_S) -> int:
        """Reads until the program ends; its exit status."""
        deadline = time.monotonic() + within
        while self._read(max(0.0, deadline - time.monotonic())):
            pass
        return self.process.wait(within)
