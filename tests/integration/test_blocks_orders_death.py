# SPDX-License-Identifier: Apache-2.0
"""Blocks over workers elsewhere, when a driver fails, a worker or a daemon stops or dies, and at the end."""

from __future__ import annotations

import re

import pytest

from harness.broker import Programs, eventually, on_gpu
from harness.crew import (
    BLOCK_STAGES,
    EACH,
    HASTY_MS,
    PAGES,
    PATIENT_MS,
    Engine,
    go_on,
    start_engine,
    start_worker,
    stop,
)

RANKS = range(len(BLOCK_STAGES))

pytestmark = pytest.mark.skipif(on_gpu(), reason="four GPUs are needed")


@pytest.fixture
def engine(programs: Programs) -> Engine:
    return start_engine(programs)


@pytest.fixture
def hasty(programs: Programs) -> Engine:
    """Whose scheduler doesn't wait for long."""
    return start_engine(programs, options=f"timeout={HASTY_MS}")


# ---- Drivers ----


@pytest.mark.parametrize(
    "plan",
    ["cuMemMap:3=INVALID_VALUE", "cuMemSetAccess:1=OUT_OF_MEMORY", "cuMemImportFromShareableHandle:2=2"],
)
def test_a_driver_that_fails(programs: Programs, plan: str) -> None:
    """What the others have mapped is undone before the call returns."""
    engine = start_engine(programs, faults={2: plan})
    assert re.match("KVC_E_WORKER Rank 2: cuMem", engine.refused(f"take {3 * EACH}"))
    engine.check_books(0)
    engine.check_mapped([])
    engine.is_counted(used=0, mapped=0, doubt=0, broken=0, empty=PAGES)
    engine.do(f"take {3 * EACH}")
    engine.check_books(3)
    engine.check_mapped([0, 1, 2])


def test_a_driver_that_does_not_unmap(programs: Programs) -> None:
    """The page is nobody's until the rank has given it up, too."""
    engine = start_engine(programs, faults={1: "cuMemUnmap:1=INVALID_VALUE"})
    engine.do(f"take {2 * EACH}")
    engine.do(f"give {EACH}")
    engine.check_books(1, [0, 2, 3])
    engine.check_books(2, [1])
    engine.is_counted(used=EACH, free=0, mapped=1, doubt=1)
    engine.do(f"take {EACH}")
    engine.is_counted(used=2 * EACH, doubt=0)
    engine.check_books(2)


def test_a_driver_that_does_not_undo(programs: Programs) -> None:
    """One rank fails to map, another to take that back."""
    engine = start_engine(programs, faults={1: "cuMemMap:1=INVALID_VALUE", 3: "cuMemUnmap:1=INVALID_VALUE"})
    assert re.match("KVC_E_WORKER Rank 1: cuMemMap", engine.refused(f"take {EACH}"))
    engine.is_counted(mapped=0, doubt=1, empty=PAGES - 1)
    engine.check_books(0, [0, 1, 2])
    engine.check_books(1, [3])
    engine.do(f"take {PAGES * EACH}")
    engine.is_counted(mapped=PAGES, doubt=0)
    engine.check_books(PAGES)


# ---- Workers ----


def test_a_worker_that_is_killed(hasty: Engine) -> None:
    hasty.do(f"take {2 * EACH}")
    hasty.workers[3].kill()
    assert re.match("KVC_E_WORKER Rank 3: ", hasty.refused("take 1"))
    hasty.check_books(2, [0, 1, 2])
    eventually(lambda: hasty.check_books(0, [3]))
    hasty.do(f"give {2 * EACH}")
    hasty.check_books(0)
    hasty.do("close-blocks")
    hasty.check_books(0, leased=None)


def test_a_worker_that_is_killed_has_a_successor(hasty: Engine) -> None:
    """The engine starts anew, on all ranks."""
    hasty.do(f"take {2 * EACH}")
    hasty.workers[3].kill()
    assert re.match("KVC_E_WORKER Rank 3: ", hasty.refused("take 1"))
    hasty.do("close")
    hasty.workers[3] = start_worker(hasty.programs, hasty.daemons[3], 3, None, BLOCK_STAGES)
    hasty.attach()
    hasty.check_books(0)
    hasty.do(f"take {3 * EACH}")
    hasty.check_mapped([0, 1, 2])


def test_a_worker_that_is_stopped(hasty: Engine) -> None:
    """Its pages are in doubt, and hold no free blocks, until it goes on; then they are as good as any."""
    hasty.do(f"take {2 * EACH}")
    stop(hasty.workers[1])
    assert re.match("KVC_E_TIMEOUT Rank 1: ", hasty.refused(f"take {(PAGES - 4) * EACH}"))
    hasty.is_counted(used=2 * EACH, free=0, mapped=2, doubt=PAGES - 4, empty=2)
    assert hasty.refused(f"take {3 * EACH}").startswith("KVC_E_IN_DOUBT ")
    assert hasty.do("available") == "0"
    hasty.do(f"give-ids 0-{EACH - 1} 5")
    hasty.do(f"take {EACH}")
    go_on(hasty.workers[1])
    eventually(lambda: hasty.scheduler.ask(f"take {3 * EACH}").startswith("ok"))
    hasty.is_counted(used=5 * EACH, doubt=0)
    hasty.do("trim")
    hasty.is_counted(mapped=5, free_pages=0, empty=PAGES - 5)
    hasty.check_books(5)
    hasty.do(f"give {5 * EACH}")
    hasty.check_books(1)
    hasty.do("complete 5")
    hasty.check_books(0)
    hasty.check_mapped([])


def test_a_stopped_worker_is_not_asked_again(hasty: Engine) -> None:
    """What it does late of an unmap counts as well."""
    hasty.do(f"take {3 * EACH}")
    stop(hasty.workers[0])
    hasty.do(f"give {EACH}")
    hasty.is_counted(used=2 * EACH, mapped=2, doubt=1)
    hasty.do("trim")
    hasty.is_counted(used=2 * EACH, mapped=2, doubt=1)
    go_on(hasty.workers[0])
    eventually(lambda: hasty.do("trim") == "" and hasty.is_counted(mapped=2, doubt=0, empty=PAGES - 2))
    hasty.check_books(2)


def test_a_stopped_worker_that_is_killed(hasty: Engine) -> None:
    stop(hasty.workers[2])
    assert hasty.refused(f"take {2 * EACH}").startswith("KVC_E_TIMEOUT ")
    hasty.is_counted(doubt=2)
    hasty.workers[2].kill()
    eventually(lambda: hasty.do("trim") == "" and hasty.is_counted(doubt=0, empty=PAGES))
    eventually(lambda: hasty.check_books(0))


def test_closing_in_doubt(hasty: Engine) -> None:
    """A rank that has not answered keeps nothing when it goes on, and the region can be used anew."""
    hasty.do(f"take {EACH}")
    stop(hasty.workers[1])
    assert hasty.refused(f"take {2 * EACH}").startswith("KVC_E_TIMEOUT ")
    hasty.do("close-blocks")
    go_on(hasty.workers[1])
    eventually(lambda: hasty.check_books(0))
    hasty.do("blocks block=256K")
    hasty.do(f"take {4 * EACH}")
    hasty.check_mapped([0, 1, 2, 3])


# ---- Daemons ----


def test_a_daemon_that_is_stopped(hasty: Engine) -> None:
    """It has promised nothing, so no worker was asked, and there is no doubt."""
    hasty.do(f"take {EACH}")
    stop(hasty.daemons[2])
    assert hasty.refused(f"take {EACH}").startswith("KVC_E_TIMEOUT ")
    hasty.is_counted(used=EACH, mapped=1, doubt=0, claimed=0)
    hasty.check_books(1, [0, 1, 3])
    go_on(hasty.daemons[2])
    hasty.do(f"take {EACH}")
    hasty.check_books(2)
    hasty.check_mapped([0, 1])


def test_a_daemon_that_is_stopped_after_its_promise(hasty: Engine) -> None:
    hasty.do(f"want {2 * EACH} {PATIENT_MS}")
    stop(hasty.daemons[2])
    assert re.match("KVC_E_TIMEOUT Rank 2: ", hasty.refused(f"take {2 * EACH}"))
    hasty.is_counted(used=0, mapped=0, doubt=2)
    go_on(hasty.daemons[2])
    eventually(lambda: hasty.do("trim") == "" and hasty.is_counted(doubt=0, mapped=0))
    hasty.check_books(0)


def test_a_daemon_that_is_killed(hasty: Engine) -> None:
    hasty.do(f"take {2 * EACH}")
    hasty.daemons[0].kill()
    assert hasty.refused(f"take {EACH}").startswith("KVC_E_DISCONNECTED ")
    hasty.check_books(2, [1, 2, 3])
    hasty.do(f"give {EACH}")
    hasty.check_books(1, [1, 2, 3])
    hasty.do("close-blocks")
    hasty.check_books(0, [1, 2, 3])


# ---- The end ----


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("what", ["region", "client"])
def test_closing_a_region_before_the_blocks(engine: Engine, what: str, rank: int) -> None:
    """They go with it, at all ranks."""
    engine.do(f"take {2 * EACH}")
    engine.do(f"want {4 * EACH} {PATIENT_MS}")
    engine.do(f"close-{what} {rank}")
    engine.check_books(0)
    engine.check_mapped([])
    engine.do("close")
    engine.check_books(0, leased=0)


def test_closing_and_opening_again(engine: Engine) -> None:
    engine.do(f"take {2 * EACH}")
    engine.do("close-blocks")
    engine.check_books(0)
    engine.do("blocks block=512K")
    engine.do(f"take {EACH}")
    engine.check_mapped([0, 1])


def test_a_scheduler_that_is_killed(engine: Engine) -> None:
    """What it had is taken away when the next one comes."""
    engine.do(f"take {2 * EACH}")
    engine.do(f"want {4 * EACH} {PATIENT_MS}")
    engine.scheduler.kill()
    eventually(lambda: engine.check_books(2, leased=0))
    engine.attach()
    engine.check_books(0)
    engine.do(f"take {EACH}")
    engine.check_mapped([0])


def test_workers_that_end_first(engine: Engine) -> None:
    engine.do(f"take {2 * EACH}")
    for worker in engine.workers:
        worker.do("close-region kv")
    engine.check_books(0)
    assert engine.refused(f"take {EACH}").startswith("KVC_E_WORKER ")
    engine.do("close")
