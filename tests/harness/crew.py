# SPDX-License-Identifier: Apache-2.0
"""A scheduler without a GPU, and a worker on a GPU and a daemon of its own for each rank.

Each worker is a kvpeer whose library's own thread carries orders out; the scheduler is a kvranks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from harness.broker import Daemon, Peer, Programs, Ranks

MIB = 1 << 20
SIZES = "1G,1G,1G,1G"
HASTY_MS = 300
PATIENT_MS = 20000


PAGES = 24  # that all ranks have
EACH = 8  # blocks in a page


@dataclass(frozen=True)
class Stage:
    """Of a pipeline: the shape of a rank's region, of whose pages each segment has so many MiB."""

    page_mib: int
    segments: int
    pages: int = PAGES

    @property
    def region(self) -> str:
        """As a worker is told to open it."""
        return f"page={self.page_mib}M pages={self.pages} segments={self.segments}"

    @property
    def page_bytes(self) -> int:
        """Of a page, over all segments."""
        return self.page_mib * self.segments * MIB


# Segments and page sizes differ from rank to rank, and so does what fits.
STAGES = (Stage(2, 1, 40), Stage(2, 3), Stage(10, 2, 32), Stage(8, 1, 28))

# Of an engine that hands out blocks: a page is the same blocks at all ranks, so all have as many pages.
BLOCK_STAGES = tuple(replace(stage, pages=PAGES) for stage in STAGES)


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
    assert scheduler.do("group") == str(PAGES)
    return scheduler


def start_daemons(programs: Programs, n: int = len(STAGES), **options: Any) -> list[Daemon]:
    """One for each of the first n GPUs. options: as of Daemon."""
    return [
        programs.daemon(SIZES, name=f"gpu{rank}", arguments=("--gpu", str(rank)), **options)
        for rank in range(n)
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


class Engine(Crew):
    """A crew whose scheduler hands out blocks."""

    def do(self, command: str) -> str:
        return self.scheduler.do(command)

    def refused(self, command: str) -> str:
        return self.scheduler.refused(command)

    def count(self) -> dict[str, int]:
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", self.do("count"))}

    def is_counted(self, **expected: int) -> bool:
        found = self.count()
        assert {name: found[name] for name in expected} == expected
        return True

    def books(self, rank: int) -> tuple[int, int]:
        """Pages that are granted to the worker, and pages set aside for the scheduler."""
        row, page = self.row(rank), self.stages[rank].page_bytes
        granted, leased = int(row.get("granted_bytes", 0)), int(row.get("leased_bytes", 0))
        assert row.get("used_bytes", 0) == granted + leased, row
        assert granted % page == leased % page == 0, row
        return granted // page, leased // page

    def check_books(self, granted: int, ranks: list[int] | None = None, leased: int | None = None) -> bool:
        """leased: None: something may be offered, which the daemon takes back when it likes."""
        for rank in range(len(self.workers)) if ranks is None else ranks:
            found = self.books(rank)
            assert found == (granted, found[1] if leased is None else leased), f"rank {rank}"
        return True

    def check_mapped(self, pages: list[int], ranks: list[int] | None = None) -> None:
        """Just these pages are there, in each segment, and are memory."""
        for rank in range(len(self.workers)) if ranks is None else ranks:
            worker, last = self.workers[rank], self.stages[rank].segments - 1
            for page in range(PAGES):
                expected = "mapped" if page in pages else "fault"
                assert worker.do(f"probe kv {page} {last}") == expected, f"rank {rank}, page {page}"
            for page in pages:
                worker.do(f"write kv {page} {last} {page + 1}")
            for page in pages:
                assert worker.do(f"read kv {page} {last}") == str(page + 1)

    def attach(self, options: str = f"timeout={PATIENT_MS}", blocks: str = "") -> None:
        """With a new scheduler."""
        self.scheduler = self.programs.ranks(self.instance)
        attach_all(self.scheduler, self.daemons, self.stages, options)
        self.do(f"blocks block=256K {blocks}")


def start_engine(
    programs: Programs,
    daemons: list[Daemon] | None = None,
    options: str = f"timeout={PATIENT_MS}",
    faults: dict[int, str] | None = None,
    instance: str = "engine",
    blocks: str = "",
    stages: tuple[Stage, ...] = BLOCK_STAGES,
) -> Engine:
    """options: as of kvranks' attach. daemons: one for each stage."""
    daemons = daemons or start_daemons(programs, len(stages))
    workers = start_workers(programs, daemons, faults, stages, instance)
    engine = Engine(programs, daemons, workers, programs.ranks(instance), stages, instance)
    attach_all(engine.scheduler, daemons, stages, options)
    engine.do(f"blocks block=256K {blocks}")
    return engine
