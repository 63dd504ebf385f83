# SPDX-License-Identifier: Apache-2.0
"""Blocks that a scheduler hands out over workers elsewhere, where a daemon is short of descriptors, or
somebody is dead."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.broker import Programs, eventually, on_gpu
from harness.crew import HASTY_MS, MIB, PATIENT_MS, Crew, Stage, attach_all, start_worker, stop

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


def attach(engine: Engine, timeout_ms: int = PATIENT_MS) -> None:
    """A new scheduler, which alone has a thread for its second rank."""
    engine.scheduler = engine.programs.ranks("engine")
    attach_all(engine.scheduler, engine.daemons, engine.stages, f"timeout={timeout_ms}")
    engine.do("blocks block=256K")


def start_engine(
    programs: Programs, stages: tuple[Stage, ...], timeout_ms: int = PATIENT_MS, **options: Any
) -> Engine:
    """options: as of Daemon."""
    daemons = [
        programs.daemon("1G,1G", name=f"gpu{rank}", arguments=("--gpu", str(rank)), **options)
        for rank in range(len(stages))
    ]
    workers = [start_worker(programs, daemon, rank, None, stages) for rank, daemon in enumerate(daemons)]
    engine = Engine(programs, daemons, workers, programs.ranks("none"), stages)
    attach(engine, timeout_ms)
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


# ---- Death ----

PAIR = (Stage("page=2M pages=24 segments=1", 2 * MIB), Stage("page=2M pages=24 segments=3", 6 * MIB))


def check_over(engine: Engine) -> None:
    """The second worker is known to be gone: nothing is to be had, and nothing in doubt."""
    assert engine.do("available") == "0"
    for command in ("take 1", f"take {8 * EACH}", "reserve 1", "want 1 0", f"want {EACH} {PATIENT_MS}"):
        assert re.match("KVC_E_WORKER Rank 1: ", engine.refused(command)), command
    assert [engine.count(name) for name in ("claimed", "doubt", "broken")] == [0, 0, 0]


def check_successor(engine: Engine) -> None:
    """With another worker in its place the engine goes on, and nothing is left of what there was."""
    engine.scheduler.close()
    engine.workers[1] = start_worker(engine.programs, engine.daemons[1], 1, None, engine.stages)
    attach(engine)
    engine.check_granted(0)
    engine.do(f"take {20 * EACH}")
    engine.check_granted(20)


def test_a_worker_that_is_killed(programs: Programs) -> None:
    """It is noticed with the next order. Free pages go at once, the others' blocks as they come free."""
    engine = start_engine(programs, PAIR)
    engine.do(f"take {4 * EACH}")
    engine.do("give 1")
    engine.workers[1].kill()
    assert re.match("KVC_E_WORKER Rank 1: ", engine.refused(f"take {2 * EACH}"))
    check_over(engine)
    engine.check_granted(4, [0])
    engine.do(f"give {EACH - 1}")
    engine.check_granted(3, [0])
    engine.do(f"give {EACH}")
    engine.check_granted(2, [0])
    check_over(engine)
    engine.do("close-blocks")
    engine.check_granted(0, [0])
    check_successor(engine)


def test_a_worker_that_is_killed_before_an_unmap(programs: Programs) -> None:
    engine = start_engine(programs, PAIR)
    engine.do(f"take {4 * EACH}")
    engine.workers[1].kill()
    engine.do(f"give {EACH}")
    check_over(engine)
    engine.check_granted(3, [0])
    engine.do("clear")
    engine.check_granted(0, [0])
    check_successor(engine)


def test_a_worker_that_closes_its_region(programs: Programs) -> None:
    engine = start_engine(programs, PAIR)
    engine.do(f"take {2 * EACH}")
    engine.workers[1].do("close-region kv")
    engine.do(f"give {EACH}")
    check_over(engine)
    engine.check_granted(1, [0])
    engine.workers[1].close()
    check_successor(engine)


def test_a_stopped_worker_that_is_killed(programs: Programs) -> None:
    """What it hasn't answered is in doubt while that is so, and settled with its death."""
    engine = start_engine(programs, PAIR, HASTY_MS)
    engine.do(f"take {2 * EACH}")
    stop(engine.workers[1])
    engine.do(f"give {EACH}")
    assert engine.count("doubt") == 1
    assert engine.refused(f"take {23 * EACH}").startswith("KVC_E_IN_DOUBT ")
    assert engine.refused(f"take {EACH}").startswith("KVC_E_TIMEOUT ")
    engine.workers[1].kill()

    def is_settled() -> bool:
        engine.do("trim")
        return engine.count("doubt") == 0

    eventually(is_settled)
    check_over(engine)
    engine.check_granted(1, [0])
    engine.do("clear")
    engine.check_granted(0, [0])
    check_successor(engine)


def test_a_daemon_that_is_killed(programs: Programs) -> None:
    """Its claims are void, what is mapped is used on; and a worker that nobody can order stays as it is."""
    engine = start_engine(programs, PAIR)
    engine.do(f"take {2 * EACH}")
    engine.do("give 3")
    engine.do(f"want {3 * EACH} {PATIENT_MS}")
    engine.daemons[1].kill()
    eventually(lambda: engine.do("available") == "3")
    assert engine.count("claimed") == 0
    engine.do("take 3")
    engine.workers[1].do("write kv 1 2 77")
    assert engine.workers[1].do("read kv 1 2") == "77"
    assert re.match("KVC_E_DISCONNECTED ", engine.refused("take 1"))
    engine.check_granted(2, [0])
    engine.do(f"give {2 * EACH}")
    engine.check_granted(0, [0])


def test_another_scheduler_takes_over(programs: Programs) -> None:
    """What the first one had is gone, and it takes nothing from the second."""
    engine = start_engine(programs, PAIR)
    first = engine.scheduler
    engine.do(f"take {2 * EACH}")
    attach(engine)
    engine.check_granted(0)
    engine.do(f"take {3 * EACH}")
    assert re.match("KVC_E_WORKER Rank 0: .*taken over", first.refused(f"take {EACH}"))
    assert first.do("available") == "0"
    first.do("clear")
    first.do("close-blocks")
    engine.check_granted(3)
