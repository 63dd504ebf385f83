# SPDX-License-Identifier: Apache-2.0
"""Whether a daemon runs at all, and a descriptor table that is full."""

from __future__ import annotations

import contextlib
import itertools
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from harness.broker import Daemon, eventually
from harness.tasks import switches

IDLE_S = 10


def is_quiet(daemon: Daemon, seconds: float = 0.5) -> bool:
    """No thread of the daemon runs in this time.

    Time that passes is the subject: whatever told us that a timer has not run out would itself wake threads.
    """
    before = switches(daemon)
    time.sleep(seconds)
    return switches(daemon) == before


@contextlib.contextmanager
def full_descriptor_table(daemon: Daemon, room: int = 0) -> Iterator[None]:
    """The daemon cannot open one descriptor more, or so many.

    It has to be quiet first: what starting opens for a moment would leave a place when it is closed.
    """
    eventually(lambda: is_quiet(daemon))
    used = {int(fd.name) for fd in Path(f"/proc/{daemon.pid}/fd").iterdir()}
    first_beyond = next(itertools.islice((fd for fd in itertools.count() if fd not in used), room, None))
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (first_beyond, before[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
