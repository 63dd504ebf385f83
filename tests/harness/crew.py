# SPDX-License-Identifier: Apache-2.0
"""A scheduler without a GPU, and a worker on a GPU and a daemon of its own for each rank.

Each worker is a kvpeer whose library's own thread carries orders out; the scheduler is a kvranks.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.broker import Daemon, Peer, Programs, Ranks, eventually

MIB = 1 << 20
SIZES = "1G,1G,1G,1G"
HASTY_MS = 300
PATIENT_MS = 20000


@dataclass(frozen=True)
class Stage:
    """Of a pipeline: what a rank's worker tells its library, and the bytes of a page over all segments."""

    region: str
    page_bytes: int


# Segments and page sizes differ from rank to rank, and so does what fits.
STAGES = (
    Stage("page=2M pages=40 segments=1", 2 * MIB),
    Stage("page=2M pages=24 segments=3", 6 * MIB),
    Stage("page=10M pages=32 segments=2", 20 * MIB),
    Stage("page=8M pages=28 segments=1", 8 * MIB),
)
COMMON_PAGES = 24


@dataclass
class Crew:
    programs: Programs
    daemons: list[Daemon]
    workers: list[Peer]
    scheduler: Ranks
    stages: tuple[Stage, ...] = STAGES
    instance: str = "engine"

    def row(self, rank: int) -> dict[str, Any]:
        """What the rank's daemon says of the instance; empty where it doesn't know it."""
        for row in self.programs.kvctl("list", "--json", daemon=self.daemons[rank]).json():
            if row["ipc"] == self.instance:
                found: dict[str, Any] = row
                return found
        return {}

    def granted(self, rank: int) -> int:
        return int(self.row(rank).get("used_bytes", 0))

    def check(self, pages: int, ranks: list[int] | None = None) -> None:
        """So many pages are with the workers, no more and no less."""
        for rank in range(len(self.workers)) if ranks is None else ranks:
            assert self.granted(rank) == pages * self.stages[rank].page_bytes, f"rank {rank}"

    def limit(self, rank: int, pages: int) -> None:
        """Sets the instance's limit at a rank's daemon."""
        size = str(pages * self.stages[rank].page_bytes)
        assert self.programs.kvctl("limit", self.instance, size, daemon=self.daemons[rank]).rc == 0


def start_worker(
    programs: Programs,
    daemon: Daemon,
    rank: int,
    environment: dict[str, str] | None = None,
    stages: tuple[Stage, ...] = STAGES,
    instance: str = "engine",
) -> Peer:
    worker = programs.peer(daemon, instance, environment=environment)
    worker.do("open role=worker thread=1 min=4 max=8")
    worker.do(f"region kv {stages[rank].region} rank={rank}")
    return worker


def attach_all(scheduler: Ranks, daemons: list[Daemon], stages: tuple[Stage, ...], options: str) -> None:
    for rank, daemon in enumerate(daemons):
        answer = scheduler.do(f"attach {daemon.socket} {rank} thread={rank % 2} {options}")
        assert answer.split()[1] == str(stages[rank].page_bytes)


def start_scheduler(programs: Programs, daemons: list[Daemon], timeout_ms: int = HASTY_MS) -> Ranks:
    """One that maps pages."""
    scheduler = programs.ranks()
    attach_all(scheduler, daemons, STAGES, f"timeout={timeout_ms}")
    assert scheduler.do("group") == str(COMMON_PAGES)
    return scheduler


def start_daemons(programs: Programs, **options: Any) -> list[Daemon]:
    """One for each GPU. Arguments as of Daemon."""
    return [
        programs.daemon(SIZES, name=f"gpu{rank}", arguments=("--gpu", str(rank)), **options)
        for rank in range(len(STAGES))
    ]


def start_workers(
    programs: Programs,
    daemons: list[Daemon],
    faults: dict[int, str] | None = None,
    stages: tuple[Stage, ...] = STAGES,
    instance: str = "engine",
) -> list[Peer]:
    """faults: the plan of failures of a rank's driver."""
    workers = []
    for rank, daemon in enumerate(daemons):
        plan = (faults or {}).get(rank)
        environment = {"KVCACHED_EMULATE_FAULTS": plan} if plan else None
        workers.append(start_worker(programs, daemon, rank, environment, stages, instance))
    return workers


def start_crew(programs: Programs, timeout_ms: int = HASTY_MS, faults: dict[int, str] | None = None) -> Crew:
    """One whose scheduler maps pages."""
    daemons = start_daemons(programs)
    workers = start_workers(programs, daemons, faults)
    return Crew(programs, daemons, workers, start_scheduler(programs, daemons, timeout_ms))


def task_facts(peer: Peer | Daemon, pattern: str) -> list[str]:
    """What the kernel says of each of its threads."""
    tasks = Path(f"/proc/{peer.pid}/task").iterdir()
    return [re.findall(pattern, (task / "status").read_text(), re.MULTILINE)[0] for task in tasks]


def states(peer: Peer | Daemon) -> list[str]:
    return task_facts(peer, r"^State:\s+(\w)")


def stop(peer: Peer | Daemon) -> None:
    """With all its threads: the signal alone is only a beginning."""
    os.kill(peer.pid, signal.SIGSTOP)
    eventually(lambda: set(states(peer)) == {"T"})


def go_on(peer: Peer | Daemon) -> None:
    os.kill(peer.pid, signal.SIGCONT)
