# SPDX-License-Identifier: Apache-2.0
"""A scheduler in one process, its workers in others: real daemons, real libraries, and what can go wrong.

Each worker is a kvpeer whose library's own thread carries orders out; the scheduler is a kvranks, or a kvpeer
where one region is enough.
"""

from __future__ import annotations

import re

import pytest

from harness.broker import Daemon, Peer, Programs, eventually, on_gpu
from harness.crew import MIB, PATIENT_MS, STAGES, Crew, start_crew, start_scheduler, start_worker
from harness.tasks import go_on, states, stop, switches

pytestmark = pytest.mark.skipif(on_gpu(), reason="four GPUs are needed")


@pytest.fixture
def crew(programs: Programs) -> Crew:
    return start_crew(programs, PATIENT_MS)


@pytest.fixture
def hasty(programs: Programs) -> Crew:
    """Whose scheduler doesn't wait for long."""
    return start_crew(programs)


# ---- One worker, one scheduler ----


def test_one_worker(programs: Programs, daemon: Daemon) -> None:
    worker = start_worker(programs, daemon, 2)
    scheduler = programs.peer(daemon, "engine")
    scheduler.do("open role=scheduler")
    assert scheduler.do("attach kv 2") == f"32 {20 * MIB}"
    scheduler.do("map kv 3-5,9")
    for page in (3, 5, 9):
        for segment in (0, 1):
            worker.do(f"write kv {page} {segment} {page * 10 + segment}")
    for page in (3, 5, 9):
        for segment in (0, 1):
            assert worker.do(f"read kv {page} {segment}") == str(page * 10 + segment)
    assert worker.do("probe kv 6 0") == "fault"
    scheduler.do("unmap kv 3-4")
    assert worker.do("probe kv 3 0") == "fault"
    assert worker.do("read kv 9 1") == "91"
    assert "cached=0 " in worker.do("status")
    assert worker.refused("map kv 0").startswith("KVC_E_INVALID ")
    assert re.match(r"KVC_E_WORKER .*Page 9 is mapped already", scheduler.refused("map kv 8-9"))
    assert worker.do("probe kv 8 0") == "fault"
    assert scheduler.refused("region kv page=2M pages=1").startswith("KVC_E_INVALID ")


def test_a_scheduler_waits_for_its_worker(programs: Programs, daemon: Daemon) -> None:
    scheduler = programs.peer(daemon, "engine")
    scheduler.do("open role=scheduler")
    assert scheduler.refused("attach kv 0 timeout=50").startswith("KVC_E_TIMEOUT ")
    scheduler.send("attach kv 0 timeout=-1")
    worker = start_worker(programs, daemon, 0)
    assert scheduler.receive() == f"ok 40 {2 * MIB}"
    scheduler.do("map kv 0")
    worker.do("read kv 0 0")


def test_a_worker_on_an_event_loop(programs: Programs, daemon: Daemon) -> None:
    """It carries orders out where it dispatches, and nowhere else."""
    worker = programs.peer(daemon, "engine")
    worker.do("open role=worker")
    worker.do("region kv page=2M pages=8 rank=0")
    scheduler = programs.peer(daemon, "engine")
    scheduler.do("open role=scheduler")
    scheduler.send("attach kv 0")
    worker.send(f"await mapped={4 * 2 * MIB}")
    assert scheduler.receive().startswith("ok ")
    scheduler.do("map kv 0-3")
    assert worker.receive().startswith("ok ")
    scheduler.send("unmap kv 0-1")
    worker.do(f"await mapped={2 * 2 * MIB}")
    assert scheduler.receive() == "ok"


def test_a_worker_that_waits_for_memory_of_its_own(programs: Programs, daemon: Daemon) -> None:
    """What it waits for comes behind the memory of an order, whose turn is when it dispatches."""
    worker = programs.peer(daemon, "engine")
    worker.do("open role=worker")
    worker.do("region kv page=2M pages=400 rank=0")
    worker.do("region own page=2M pages=8")
    scheduler = programs.peer(daemon, "engine")
    scheduler.do("open role=scheduler")
    scheduler.send("attach kv 0")
    worker.send(f"await mapped={2 * MIB}")
    assert scheduler.receive().startswith("ok ")
    scheduler.do("map kv 399")
    assert worker.receive().startswith("ok ")
    scheduler.send("map kv 0-299")
    eventually(lambda: f"used={301 * 2 * MIB} " in worker.do("status"))
    worker.do("map own 0")
    assert f"mapped={2 * 2 * MIB} " in worker.do("status")
    assert worker.do("probe kv 0 0") == "fault"
    worker.do(f"await mapped={302 * 2 * MIB}")
    assert scheduler.receive() == "ok"
    worker.do("read kv 299 0")


def attach_to_loop(worker: Peer, scheduler: Peer, own: int = 0) -> None:
    """A worker on an event loop, which has to be dispatched meanwhile; then one page is mapped there.

    own: pages that the worker has mapped for itself.
    """
    scheduler.send("attach kv 0")
    worker.send(f"await mapped={(own + 1) * 2 * MIB}")
    assert scheduler.receive().startswith("ok ")
    scheduler.do("map kv 399")
    assert worker.receive().startswith("ok ")


@pytest.fixture
def on_loop(programs: Programs, daemon: Daemon) -> tuple[Peer, Peer]:
    """A worker that carries orders out where it is dispatched, and has a region of its own; a scheduler."""
    worker, scheduler = programs.peer(daemon, "engine"), programs.peer(daemon, "engine")
    worker.do("open role=worker")
    worker.do("region kv page=2M pages=400 rank=0")
    worker.do("region own page=2M pages=8")
    scheduler.do("open role=scheduler")
    attach_to_loop(worker, scheduler)
    return worker, scheduler


def granted_bytes(programs: Programs, daemon: Daemon) -> int:
    """What the daemon has handed over, or is about to."""
    return int(programs.kvctl("info", "--json", daemon=daemon).json()["granted_bytes"])


@pytest.mark.parametrize("has_come", [True, False])
def test_a_region_that_is_closed_under_an_order(
    programs: Programs, daemon: Daemon, on_loop: tuple[Peer, Peer], has_come: bool
) -> None:
    """Its turn never comes: the memory goes back, and the daemon holds nothing against the next region."""
    worker, scheduler = on_loop
    own = 1 if has_come else 0
    scheduler.send("map kv 0-299")
    eventually(lambda: granted_bytes(programs, daemon) == 301 * 2 * MIB)
    if has_come:
        worker.do("map own 0")
    worker.do("close-region kv")
    worker.do("region kv page=2M pages=400 rank=0")
    worker.do(f"await used={own * 2 * MIB}")
    assert re.match("error KVC_E_WORKER_GONE .*closed the region", scheduler.receive())
    scheduler.do("close-region kv")
    attach_to_loop(worker, scheduler, own)
    worker.do("read kv 399 0")


def test_a_region_that_takes_the_number_of_a_closed_one(on_loop: tuple[Peer, Peer]) -> None:
    """An order to unmap that the worker has received, and not carried out, is not the next region's."""
    worker, scheduler = on_loop
    scheduler.send("unmap kv 399")
    worker.do("map own 0")
    worker.do("close-region kv")
    worker.do("region kv page=2M pages=400 rank=0")
    worker.do("dispatch")
    assert re.match("error KVC_E_WORKER_GONE .*closed the region", scheduler.receive())
    scheduler.do("close-region kv")
    attach_to_loop(worker, scheduler, 1)
    worker.do("read kv 399 0")


def test_a_limit(programs: Programs, daemon: Daemon) -> None:
    """The scheduler hears the daemon's refusal as an engine would; more than a packet's extents come."""
    worker = programs.peer(daemon, "engine")
    worker.do("open role=worker thread=1")
    worker.do("region kv page=2M pages=400 rank=0")
    scheduler = programs.peer(daemon, "engine")
    scheduler.do("open role=scheduler")
    scheduler.do("attach kv 0")
    assert programs.kvctl("limit", "engine", "600M", daemon=daemon).rc == 0
    scheduler.do("map kv 0-299")
    assert scheduler.refused("map kv 300").startswith("KVC_E_LIMIT ")
    worker.do("read kv 299 0")
    scheduler.do("unmap kv 7,100")
    scheduler.do("map kv 398-399")


def test_an_idle_worker_sleeps(programs: Programs, daemon: Daemon) -> None:
    worker = start_worker(programs, daemon, 0)
    scheduler = programs.peer(daemon, "engine")
    scheduler.do("open role=scheduler")
    scheduler.do("attach kv 0")
    scheduler.do("map kv 0")

    def is_asked_in_vain() -> dict[str, list[str]]:
        """The worker's switches, where it sleeps through what others do; there is no timer."""
        before = switches(worker)
        assert states(worker) == {"S"}
        for _ in range(10):
            assert programs.kvctl("info", "--json", daemon=daemon).rc == 0
        assert switches(worker) == before
        return before

    asleep = eventually(is_asked_in_vain)
    for _ in range(3):
        assert is_asked_in_vain() == asleep


# ---- Four of each ----


def test_all_ranks_map_together(crew: Crew) -> None:
    crew.scheduler.do("map 0-7,20")
    assert crew.scheduler.do("page 20") == "mmmm"
    crew.check(9)
    for worker in crew.workers:
        worker.do("write kv 20 0 77")
        assert worker.do("read kv 20 0") == "77"
    crew.scheduler.do("unmap 0-5")
    crew.check(3)
    crew.scheduler.do("fork")
    crew.scheduler.do("unmap 6-7,20")
    crew.check(0)
    assert crew.scheduler.refused("map 23-24").startswith("KVC_E_INVALID ")


def test_a_rank_without_memory(crew: Crew) -> None:
    """The others keep what they have mapped; a second try costs only what is missing."""
    assert crew.programs.kvctl("limit", "engine", "30M", daemon=crew.daemons[1]).rc == 0
    assert re.match("KVC_E_LIMIT Rank 1: ", crew.scheduler.refused("map 0-7"))
    assert crew.scheduler.do("page 7") == "m-mm"
    crew.check(8, [0, 2, 3])
    crew.check(0, [1])
    crew.scheduler.do("map 0-4")
    crew.check(5, [1])
    crew.check(8, [0, 2, 3])
    crew.scheduler.do("unmap 5-7")
    crew.check(5)


@pytest.mark.parametrize(
    "plan",
    ["cuMemMap:3=INVALID_VALUE", "cuMemSetAccess:1=OUT_OF_MEMORY", "cuMemImportFromShareableHandle:2=2"],
)
def test_a_driver_that_fails(programs: Programs, plan: str) -> None:
    crew = start_crew(programs, PATIENT_MS, {2: plan})
    assert re.match("KVC_E_WORKER Rank 2: cuMem", crew.scheduler.refused("map 0-2"))
    assert crew.scheduler.do("page 1") == "mm-m"
    crew.check(0, [2])
    crew.scheduler.do("map 0-2")
    crew.check(3)


def test_a_driver_that_does_not_unmap(programs: Programs) -> None:
    crew = start_crew(programs, PATIENT_MS, {1: "cuMemUnmap:1=INVALID_VALUE"})
    crew.scheduler.do("map 0-2")
    assert re.match("KVC_E_WORKER Rank 1: cuMemUnmap", crew.scheduler.refused("unmap 0-2"))
    assert crew.scheduler.do("page 1") == "-m--"
    crew.check(3, [1])
    crew.scheduler.do("unmap 0-2")
    crew.check(0)


def test_a_worker_that_is_killed(hasty: Crew) -> None:
    hasty.scheduler.do("map 0-3")
    hasty.workers[3].kill()
    assert re.match("KVC_E_WORKER_GONE Rank 3: ", hasty.scheduler.refused("map 4"))
    assert hasty.scheduler.do("page 4") == "mmm-"
    assert hasty.scheduler.do("page 0") == "mmm-"
    eventually(lambda: hasty.granted(3) == 0)
    assert re.match("KVC_E_WORKER_GONE Rank 3: ", hasty.scheduler.refused("map 5"))
    assert hasty.scheduler.do("page 5") == "----"
    hasty.scheduler.do("unmap 0-4")
    hasty.check(0, [0, 1, 2])


def test_a_worker_that_is_stopped(hasty: Crew) -> None:
    """What it was asked is in doubt until it goes on; pages that it isn't asked about are not."""
    hasty.scheduler.do("map 0-1")
    stop(hasty.workers[1])
    assert re.match("KVC_E_TIMEOUT Rank 1: ", hasty.scheduler.refused("map 2-3"))
    assert re.match("KVC_E_TIMEOUT Rank 1: ", hasty.scheduler.refused("unmap 0"))
    assert hasty.scheduler.do("page 2") == "m?mm"
    assert hasty.scheduler.do("page 0") == "-?--"
    assert hasty.scheduler.do("page 1") == "mmmm"
    for command in ("map 2", "unmap 3", "map 0", "unmap 0"):
        assert hasty.scheduler.refused(command).startswith("KVC_E_IN_DOUBT ")
    go_on(hasty.workers[1])
    hasty.scheduler.do("settle")
    assert hasty.scheduler.do("page 2") == "mmmm"
    assert hasty.scheduler.do("page 0") == "----"
    hasty.check(3)


def test_a_stopped_worker_that_is_killed(hasty: Crew) -> None:
    """Its death is an answer, too: nothing was done, and nothing is in doubt."""
    stop(hasty.workers[2])
    assert hasty.scheduler.refused("map 2-3").startswith("KVC_E_TIMEOUT ")
    hasty.workers[2].kill()
    hasty.scheduler.do("settle")
    assert hasty.scheduler.do("page 2") == "mm-m"
    assert re.match("KVC_E_WORKER_GONE Rank 2: ", hasty.scheduler.refused("map 2"))
    eventually(lambda: hasty.granted(2) == 0)
    hasty.scheduler.do("unmap 2-3")
    hasty.check(0)


def test_a_daemon_that_is_stopped(hasty: Crew) -> None:
    stop(hasty.daemons[0])
    assert re.match("KVC_E_TIMEOUT Rank 0: ", hasty.scheduler.refused("map 2"))
    assert hasty.scheduler.do("page 2") == "?mmm"
    go_on(hasty.daemons[0])
    hasty.scheduler.do("settle")
    assert hasty.scheduler.do("page 2") == "mmmm"
    hasty.check(1)


def test_a_daemon_that_is_killed(hasty: Crew) -> None:
    """The rank is lost, with what it was asked and what it had."""
    hasty.scheduler.do("map 0")
    stop(hasty.workers[0])
    assert hasty.scheduler.refused("map 2").startswith("KVC_E_TIMEOUT ")
    hasty.daemons[0].kill()
    hasty.scheduler.do("settle")
    assert hasty.scheduler.do("page 0") == "-mmm"
    assert hasty.scheduler.do("page 2") == "-mmm"
    assert re.match("KVC_E_DISCONNECTED Rank 0: ", hasty.scheduler.refused("map 2"))
    go_on(hasty.workers[0])
    hasty.scheduler.do("unmap 0,2")
    hasty.check(0, [1, 2, 3])


def test_a_scheduler_that_is_killed(crew: Crew) -> None:
    """What it had mapped stays until the next one comes, and then goes before that asks for anything."""
    crew.scheduler.do("map 0-7")
    crew.scheduler.kill()
    crew.check(8)
    for rank in range(len(crew.daemons)):
        crew.limit(rank, 8)
    crew.scheduler = start_scheduler(crew.programs, crew.daemons, PATIENT_MS)
    crew.check(0)
    assert crew.scheduler.do("page 0") == "----"
    crew.scheduler.do("map 4-11")
    crew.check(8)
    crew.scheduler.do("unmap 4-11")
    crew.check(0)


def test_a_scheduler_that_is_killed_in_the_middle(hasty: Crew) -> None:
    """A worker that goes on only then does nothing for it any more that its successor would not undo."""
    stop(hasty.workers[1])
    assert hasty.scheduler.refused("map 0-7").startswith("KVC_E_TIMEOUT ")
    hasty.scheduler.kill()
    go_on(hasty.workers[1])
    hasty.scheduler = start_scheduler(hasty.programs, hasty.daemons, PATIENT_MS)
    hasty.check(0)
    hasty.scheduler.do("map 0-7")
    hasty.check(8)


def test_of_two_schedulers_the_last_one_rules(crew: Crew) -> None:
    crew.scheduler.do("map 0-3")
    second = start_scheduler(crew.programs, crew.daemons, PATIENT_MS)
    crew.check(0)
    assert re.match("KVC_E_WORKER_GONE Rank 0: .*taken over", crew.scheduler.refused("map 8"))
    second.do("map 0-1")
    crew.check(2)
    for command in ("map 8", "map 0"):
        assert re.match("KVC_E_WORKER_GONE Rank 0: .*taken over", crew.scheduler.refused(command))
    assert crew.scheduler.refused("unmap 0-1").startswith("KVC_E_")
    crew.check(2)


def test_workers_that_end_first(crew: Crew) -> None:
    crew.scheduler.do("map 0-3")
    for worker in crew.workers:
        worker.do("close-region kv")
    crew.check(0)
    assert crew.scheduler.refused("map 5").startswith("KVC_E_WORKER_GONE ")
    for rank, worker in enumerate(crew.workers):
        worker.do(f"region kv {STAGES[rank].region} rank={rank}")
    crew.scheduler.do("close")
    crew.scheduler = start_scheduler(crew.programs, crew.daemons, PATIENT_MS)
    crew.scheduler.do("map 5")
    crew.check(1)
