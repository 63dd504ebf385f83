# SPDX-License-Identifier: Apache-2.0
"""Blocks over workers elsewhere, when a worker or a daemon stops or dies, and at the end."""

from __future__ import annotations

import re

import pytest

from harness.broker import Programs, eventually, on_gpu
from harness.crew import (
    EACH,
    HASTY_MS,
    PAGES,
    PATIENT_MS,
    Engine,
    start_engine,
    start_worker,
)
from harness.tasks import go_on, stop

pytestmark = pytest.mark.skipif(on_gpu(), reason="four GPUs are needed")


@pytest.fixture
def engine(programs: Programs) -> Engine:
    return start_engine(programs)


@pytest.fixture
def hasty(programs: Programs) -> Engine:
    """Whose scheduler doesn't wait for long."""
    return start_engine(programs, options=f"timeout={HASTY_MS}")


# ---- Workers ----


def others(engine: Engine, rank: int) -> list[int]:
    return [other for other in range(len(engine.workers)) if other != rank]


def check_over(engine: Engine, rank: int) -> None:
    """This rank's worker is known to be gone: nothing is to be had, and nothing in doubt."""
    assert engine.do("available") == "0"
    for command in ("take 1", f"take {8 * EACH}", "reserve 1", "want 1 0", f"want {EACH} {PATIENT_MS}"):
        assert re.match(f"KVC_E_WORKER_GONE Rank {rank}: ", engine.refused(command)), command
    engine.is_counted(claimed=0, doubt=0, broken=0)


def check_successor(engine: Engine, rank: int) -> None:
    """With another worker in its place the engine goes on, and nothing is left of what there was."""
    engine.scheduler.close()
    engine.workers[rank] = start_worker(engine.programs, engine.daemons[rank], rank, None, engine.stages)
    engine.attach()
    engine.check_books(0)
    engine.do(f"take {20 * EACH}")
    engine.check_books(20)
    engine.check_mapped(list(range(20)))


def test_a_worker_that_is_killed(engine: Engine) -> None:
    """It is noticed with the next order. Free pages go at once, the others' blocks as they come free."""
    engine.do(f"take {4 * EACH}")
    engine.do("give 1")
    engine.workers[3].kill()
    assert re.match("KVC_E_WORKER_GONE Rank 3: ", engine.refused(f"take {2 * EACH}"))
    check_over(engine, 3)
    engine.check_books(4, others(engine, 3))
    eventually(lambda: engine.check_books(0, [3]))
    engine.do(f"give {EACH - 1}")
    engine.check_books(3, others(engine, 3))
    engine.do(f"give {EACH}")
    engine.check_books(2, others(engine, 3))
    check_over(engine, 3)
    engine.do("close-blocks")
    engine.check_books(0)
    check_successor(engine, 3)


def test_a_worker_that_is_killed_before_an_unmap(engine: Engine) -> None:
    engine.do(f"take {4 * EACH}")
    engine.workers[1].kill()
    engine.do(f"give {EACH}")
    check_over(engine, 1)
    engine.check_books(3, others(engine, 1))
    engine.do("clear")
    engine.check_books(0, others(engine, 1))
    check_successor(engine, 1)


def test_a_worker_that_is_killed_has_a_successor(hasty: Engine) -> None:
    """The engine starts anew, on all ranks."""
    hasty.do(f"take {2 * EACH}")
    hasty.workers[3].kill()
    assert re.match("KVC_E_WORKER_GONE Rank 3: ", hasty.refused("take 1"))
    hasty.do("close")
    check_successor(hasty, 3)


def test_a_worker_that_closes_its_region(engine: Engine) -> None:
    engine.do(f"take {2 * EACH}")
    engine.workers[1].do("close-region kv")
    engine.do(f"give {EACH}")
    check_over(engine, 1)
    engine.check_books(1, others(engine, 1))
    engine.workers[1].close()
    check_successor(engine, 1)


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
    """What it hasn't answered is in doubt while that is so, and settled with its death."""
    hasty.do(f"take {2 * EACH}")
    stop(hasty.workers[2])
    hasty.do(f"give {EACH}")
    hasty.is_counted(doubt=1)
    assert hasty.refused(f"take {23 * EACH}").startswith("KVC_E_IN_DOUBT ")
    assert hasty.refused(f"take {2 * EACH}").startswith("KVC_E_TIMEOUT ")
    hasty.is_counted(doubt=3)
    hasty.workers[2].kill()
    eventually(lambda: hasty.do("trim") == "" and hasty.is_counted(mapped=1, doubt=0, empty=PAGES - 1))
    check_over(hasty, 2)
    hasty.check_books(1, others(hasty, 2))
    eventually(lambda: hasty.check_books(0, [2]))
    hasty.do("clear")
    hasty.check_books(0)
    check_successor(hasty, 2)


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


def test_a_daemon_that_is_killed(engine: Engine) -> None:
    """Its claims are void, what is mapped is used on; and a worker that nobody can order stays as it is."""
    engine.do(f"take {2 * EACH}")
    engine.do("give 3")
    engine.do(f"want {3 * EACH} {PATIENT_MS}")
    engine.daemons[1].kill()
    eventually(lambda: engine.do("available") == "3")
    engine.is_counted(claimed=0)
    engine.do("take 3")
    engine.workers[1].do("write kv 1 2 77")
    assert engine.workers[1].do("read kv 1 2") == "77"
    assert engine.refused("take 1").startswith("KVC_E_DISCONNECTED ")
    engine.check_books(2, others(engine, 1))
    engine.do(f"give {2 * EACH}")
    engine.check_books(0, others(engine, 1))


def test_a_daemon_that_is_killed_unwatched(hasty: Engine) -> None:
    """The scheduler has no thread for this rank: the next call notices."""
    hasty.do(f"take {2 * EACH}")
    hasty.daemons[0].kill()
    assert hasty.refused(f"take {EACH}").startswith("KVC_E_DISCONNECTED ")
    hasty.check_books(2, others(hasty, 0))
    hasty.do(f"give {EACH}")
    hasty.check_books(1, others(hasty, 0))
    hasty.do("close-blocks")
    hasty.check_books(0, others(hasty, 0))


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


def test_another_scheduler_takes_over(engine: Engine) -> None:
    """What the first one had is gone, and it takes nothing from the second."""
    first = engine.scheduler
    engine.do(f"take {2 * EACH}")
    engine.attach()
    engine.check_books(0)
    engine.do(f"take {3 * EACH}")
    assert re.match("KVC_E_WORKER_GONE Rank 0: .*taken over", first.refused(f"take {EACH}"))
    assert first.do("available") == "0"
    first.do("clear")
    first.do("close-blocks")
    engine.check_books(3)


def test_workers_that_end_first(engine: Engine) -> None:
    engine.do(f"take {2 * EACH}")
    for worker in engine.workers:
        worker.do("close-region kv")
    engine.check_books(0)
    assert engine.refused(f"take {EACH}").startswith("KVC_E_WORKER_GONE ")
    engine.do("close")
