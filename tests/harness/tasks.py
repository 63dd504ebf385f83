# SPDX-License-Identifier: Apache-2.0
"""A program's threads, as the kernel sees them: what they do, and stopping them all."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.broker import Daemon, Peer, eventually


def facts(program: Peer | Daemon, pattern: str) -> dict[str, list[str]]:
    """What the status of each thread says, by the thread's id."""
    tasks = Path(f"/proc/{program.pid}/task").iterdir()
    return {task.name: re.findall(pattern, (task / "status").read_text(), re.MULTILINE) for task in tasks}


def states(program: Peer | Daemon) -> set[str]:
    return {state for found in facts(program, r"^State:\s+(\w)").values() for state in found}


def switches(program: Peer | Daemon) -> dict[str, list[str]]:
    """How often each thread has gone to sleep, and how often it was made to wait."""
    return facts(program, r"ctxt_switches:\s+(\d+)")


def stop(program: Peer | Daemon) -> None:
    """With all its threads: the signal alone is only a beginning."""
    os.kill(program.pid, signal.SIGSTOP)
    eventually(lambda: states(program) == {"T"})


def go_on(program: Peer | Daemon) -> None:
    os.kill(program.pid, signal.SIGCONT)


@contextmanager
def stopped(program: Peer | Daemon) -> Iterator[None]:
    """While it cannot do anything."""
    stop(program)
    try:
        yield
    finally:
        go_on(program)
