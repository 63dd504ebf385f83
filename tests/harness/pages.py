# SPDX-License-Identifier: Apache-2.0
"""Pages of the manual, as somebody follows them: the commands of a Markdown page run one after the other, in
the programs' own surroundings.

Of a page only its fenced blocks count. What stands behind the language says how a block is meant:

    ```sh                     run, and must succeed; what it exports, and its folder, are the next block's
    ```sh background          a terminal of its own, in which a daemon runs until the end of the page, or the
                              page kills it; the next block comes once it is ready
    ```sh background: TEXT    the same for any program, which is ready once it has printed TEXT
    ```sh again               run until its output is as the page says, as somebody would who waits for it
    ```sh fails               run, and must fail
    ```sh needs: NAME         run where there is that (torch, for instance), else only its syntax is checked
    ```sh not run: REASON     only its syntax is checked
    ```text                   what the block before prints; "…" stands for anything in a line, and, alone in
                              one, for any number of lines
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from harness.broker import LIMIT_S, Notifications, eventually

FENCE = re.compile(r"^( *)```(\S*) ?(.*)$")
MARKS = ("", "background", "again", "fails", "needs", "not run")


@dataclass
class Block:
    """A fenced block. expected: the text block that follows it, if one does before any other block."""

    page: str
    line: int
    language: str
    mark: str
    detail: str
    text: str
    expected: str | None = None

    def where(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(text: str, page: str) -> list[Block]:
    blocks: list[Block] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        opened = FENCE.match(lines[at])
        at += 1
        if not opened:
            continue
        indent, language, rest = opened.groups()
        start = at
        while lines[at].strip() != "```":  # a fence that is not closed is an error of the page: IndexError
            at += 1
        content = "".join(line[len(indent) :] + "\n" for line in lines[start:at])
        at += 1
        mark, _, detail = rest.partition(":")
        blocks.append(Block(page, start, language, mark.strip(), detail.strip(), content))
    for block, following in zip(blocks, blocks[1:]):
        if block.language == "sh" and following.language == "text":
            block.expected = following.text
    return blocks


def is_as_expected(expected: str, output: str) -> bool:
    """Blanks count only as far as there are some; "…" stands for what differs from time to time."""
    pattern = ""
    for line in expected.splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*"
        else:
            words = (re.escape(word).replace("…", r".*?") for word in line.split())
            pattern += r"[ \t]*" + r"[ \t]+".join(words) + r"[ \t]*\n"
    return re.fullmatch(pattern, output if output.endswith("\n") or not output else output + "\n") is not None


def check_syntax(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, f"{block.where()}: {checked.stderr}"


class Terminal:
    """A block that runs until the page ends."""

    def __init__(self, block: Block, script: str, environment: dict[str, str], folder: Path) -> None:
        self.block = block
        self.output = folder / f"terminal-{block.line}.log"
        notifications = Notifications(folder / f"notify-{block.line}")
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "bash", block.text],
                env={**environment, "NOTIFY_SOCKET": str(notifications.path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(notifications)
        except BaseException:
            self.kill()
            raise
        finally:
            notifications.close()

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def _is_ready(self, notifications: Notifications) -> bool:
        assert self.process.poll() is None, f"{self.block.where()}: it ended\n{self.text()}"
        if self.block.detail:
            return self.block.detail in self.text()
        notifications.receive()
        return "READY=1" in notifications.received

    def _wait_until_ready(self, notifications: Notifications) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not self._is_ready(notifications):
            assert time.monotonic() < deadline, f"{self.block.where()}: not ready\n{self.text()}"
            select.select([notifications], [], [], 0.02)

    def stop(self) -> None:
        """As closing the terminal would; whatever runs in it must end well, unless the page has killed it."""
        if self.process.poll() == -signal.SIGKILL:
            return
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            status = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.block.where()}: it does not end\n{self.text()}") from None
        assert status in (0, -signal.SIGTERM), f"{self.block.where()}: status {status}\n{self.text()}"

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Reader:
    """Somebody who follows a page in a folder of his own.

    environment: what his shell has; `folder` is where he starts. has: what a block may need, by name.
    """

    def __init__(self, folder: Path, environment: dict[str, str], has: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.environment = environment
        self.has = has
        self.terminals: list[Terminal] = []
        self.ran = 0
        self._state = folder / ".shell"
        self._state.write_text(f"cd {shlex.quote(str(folder))}\n")

    def follow(self, blocks: list[Block]) -> None:
        """All blocks of a page; afterwards, nothing runs any more."""
        try:
            for block in blocks:
                if block.language == "sh":
                    self._do(block)
        except BaseException:
            for terminal in self.terminals:
                terminal.kill()
            raise
        while self.terminals:
            self.terminals.pop().stop()

    def _do(self, block: Block) -> None:
        assert block.mark in MARKS, f"{block.where()}: there is no mark {block.mark}"
        check_syntax(block)
        if block.mark == "not run":
            assert block.detail, f"{block.where()}: no reason is given"
            return
        if block.mark == "needs" and block.detail not in self.has:
            return
        self.ran += 1
        if block.mark == "background":
            script = (
                f'. {shlex.quote(str(self._state))}\nexec bash -c "$1"'  # which the last command replaces
            )
            self.terminals.append(Terminal(block, script, self.environment, self.folder))
        elif block.mark == "again":
            eventually(lambda: self._run(block))
        else:
            self._run(block)

    def _run(self, block: Block) -> bool:
        """True; what isn't as the page says is an AssertionError."""
        state = shlex.quote(str(self._state))
        keep = f"{{ declare -px; printf 'cd %q\\n' \"$PWD\"; }} >{state}.new && mv {state}.new {state}"
        script = f". {state}\nset -e\n{block.text}\n{keep}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        terminals = "".join(f"\n{t.block.where()} says:\n{t.text()}" for t in self.terminals)
        failed = done.returncode != 0
        assert failed == (block.mark == "fails"), (
            f"{block.where()}: {done.returncode}\n{done.stdout}{terminals}"
        )
        if block.expected is not None:
            right = is_as_expected(block.expected, done.stdout)
            assert right, f"{block.where()} expects\n{block.expected}and got\n{done.stdout}{terminals}"
        return True
