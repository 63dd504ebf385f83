# SPDX-License-Identifier: Apache-2.0
"""What a test leaves behind: processes, and descriptors of the test process itself.

The test process is made a subreaper, so that what a daemon or an engine leaves behind becomes its child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on children of our children become ours when their parents die."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def parent_and_state(pid: int) -> tuple[int, str]:
    """(0, "") for a process that has gone meanwhile."""
    try:
        # The name, in parentheses, may hold anything.
        rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, ""
    return int(rest[1]), rest[0]


def live_children() -> dict[int, str]:
    """Our children by pid, with their command lines. The dead ones among them are reaped."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        parent, state = parent_and_state(pid)
        if parent != os.getpid():
            continue
        if state == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            found[pid] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def end_children() -> None:
    """SIGKILL to all of them, grandchildren following as they become ours."""
    while children := live_children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def open_descriptors() -> dict[int, str]:
    """Descriptors of this process and what they are."""
    found = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        # The descriptor of this very listing is closed by now.
        with contextlib.suppress(FileNotFoundError):
            found[int(entry.name)] = str(entry.readlink())
    return found
