# SPDX-License-Identifier: Apache-2.0
"""What a misbehaving peer does to others and to the daemon, as others see it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from harness.broker import Daemon, Programs, eventually
from harness.raw import Message, start_raw

MIB = 1 << 20


class Observer:
    """A decent engine and a decent administrator, who notice what a misbehaving peer does to others."""

    def __init__(self, programs: Programs, daemon: Daemon) -> None:
        self.daemon = daemon
        self.engine = start_raw(programs, daemon, "decent")
        self.engine.open()
        self.region = self.engine.open_region()
        self.admin = start_raw(programs, daemon, "admin")
        self.admin.open(daemon.control)
        self.is_served()
        self.connections = self.count_connections()

    def is_served(self) -> None:
        """Borrowing and returning works, and nothing but that is outstanding."""
        extents = self.engine.take(self.region, 3)
        assert len(set(extents)) == 3
        assert self.engine.give_back(*extents).name == "Returned"

    def info(self) -> Message:
        return self.admin.request("Info")

    def instances(self) -> list[str]:
        return re.findall(r" instance=(\S+)", self.admin.request("List").text)

    def count_connections(self) -> int:
        """The daemon's sockets and process descriptors."""
        names = descriptors(self.daemon.pid)
        return sum(name.startswith(("socket:", "anon_inode:[pidfd]", "pidfd:")) for name in names)

    def check_nothing_left(self) -> None:
        """Only the two of us are connected, nobody holds anything, and nothing is on its way out."""
        self.is_served()

        def is_calm() -> bool:
            info = self.info()
            left = [info.number(f"{state}_bytes") for state in ("granted", "limbo", "destroying", "creating")]
            assert left == [0, 0, 0, 0], info.text
            assert info.number("held_bytes") == info.number("pool_bytes")
            assert self.instances() == ["decent"]
            assert self.count_connections() == self.connections
            return True

        eventually(is_calm)


def descriptors(pid: int) -> list[str]:
    """What a process' descriptors are."""
    names = []
    for entry in list(Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):
            names.append(str(entry.readlink()))
    return names


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024
