# SPDX-License-Identifier: Apache-2.0
"""Blocks that a scheduler hands out over workers elsewhere, where a daemon is short of descriptors, or
somebody is dead."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.broker import Programs, eventually, on_gpu
from harness.crew import MIB, PATIENT_MS, Crew, Stage, attach_all, start_worker

pytestmark = pytest.mark.skipif(on_gpu(), reason="several GPUs are needed")

EACH = 8  # blocks in a page


class Engine(Crew):
    """A crew whose scheduler hands out blocks."""

    def do(self, command: str) -> str:
        return self.scheduler.do(command)

    def refused(self, command: str) -> str:
        return self.scheduler.refused(command)

    def count(self, name: str) -> int:
        found = re.search(rf"\b{name}=(\d+)", self.do("count"))
        assert found
        return int(found[1])

    def check_granted(self, pages: int, ranks: list[int] | None = None) -> bool:
        """So many pages are with the workers."""
        for rank in range(len(self.workers)) if ranks is None else ranks:
            granted = self.row(rank).get("granted_bytes", 0)
            assert granted == pages * self.stages[rank].page_bytes, f"rank {rank}"
        return True


def start_engine(programs: Programs, stages: tuple[Stage, ...], **options: Any) -> Engine:
    """options: as of Daemon."""
    daemons = [
        programs.daemon("1G,1G", name=f"gpu{rank}", arguments=("--gpu", str(rank)), **options)
        for rank in range(len(stages))
    ]
    workers = [start_worker(programs, daemon, rank, None, stages) for rank, daemon in enumerate(daemons)]
    engine = Engine(programs, daemons, workers, programs.ranks("engine"), stages)
    attach_all(engine.scheduler, daemons, stages, f"timeout={PATIENT_MS}")
    engine.do("blocks block=256K")
    return engine


# ---- Few descriptors ----

# Then a daemon hands out at most 256 extents at once, and sets at most 128 aside.
FEW = ("prlimit", "--nofile=1024:1024")


def test_more_than_can_be_set_aside(programs: Programs) -> None:
    """Layers apart: each page takes many extents. They are claimed and mapped in parts."""
    stages = (Stage("page=2M pages=24 segments=1", 2 * MIB), Stage("page=2M pages=24 segments=20", 40 * MIB))
    engine = start_engine(programs, stages, prefix=FEW)
    engine.limit(1, 20)
    assert engine.refused(f"take {24 * EACH}").startswith("KVC_E_LIMIT ")
    assert engine.count("mapped") == 0
    engine.check_granted(0)
    engine.do(f"take {20 * EACH}")
    engine.check_granted(20)
    engine.do(f"give {20 * EACH}")
    engine.do("trim")
    eventually(lambda: engine.check_granted(0))


def test_pages_that_cannot_be_set_aside(programs: Programs) -> None:
    """One takes more extents than all leases may hold: it is mapped all the same."""
    stages = (
        Stage("page=2M pages=24 segments=1", 2 * MIB),
        Stage("page=2M pages=24 segments=160", 320 * MIB),
    )
    engine = start_engine(programs, stages, prefix=FEW)
    engine.limit(1, 2)
    engine.do(f"take {EACH}")
    engine.do(f"want {EACH} {PATIENT_MS}")
    assert engine.do("available") == str(EACH)
    engine.do(f"take {EACH}")
    engine.check_granted(2)
    assert engine.count("claimed") == 0
    assert engine.refused("take 1").startswith("KVC_E_LIMIT ")
    assert engine.do("available") == "0"
    engine.do(f"give {2 * EACH}")


def test_leases_of_others(programs: Programs) -> None:
    """Another engine has been promised as much as can be set aside: this one's pages are mapped without."""
    stages = (Stage("page=2M pages=64 segments=1", 2 * MIB),)
    engine = start_engine(programs, stages, prefix=FEW)
    other = programs.peer(engine.daemons[0], "other")
    other.do("open thread=1 min=1 max=4 report=20000")
    other.do("region kv page=2M pages=200")
    other.do("blocks kv block=256K")
    other.do(f"want kv {128 * EACH} {PATIENT_MS}")
    engine.do(f"take {40 * EACH}")
    engine.check_granted(40)
    other.do(f"take kv {128 * EACH}")
