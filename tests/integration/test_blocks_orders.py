# SPDX-License-Identifier: Apache-2.0
"""Blocks that a scheduler hands out over workers elsewhere: four GPUs, four daemons, four workers.

All ranks have a page or none; and what each daemon has written down is that. What fails:
test_blocks_failures.py. What stops or dies: test_blocks_orders_death.py.
"""

from __future__ import annotations

import re

import pytest

from harness.broker import Programs, eventually, on_gpu
from harness.crew import (
    BLOCK_STAGES,
    EACH,
    PAGES,
    PATIENT_MS,
    SIZES,
    Engine,
    start_engine,
)
from harness.tasks import stopped

RANKS = range(len(BLOCK_STAGES))

pytestmark = pytest.mark.skipif(on_gpu(), reason="four GPUs are needed")


@pytest.fixture
def engine(programs: Programs) -> Engine:
    return start_engine(programs)


# ---- As it should be ----


def test_all_ranks_have_the_pages(engine: Engine) -> None:
    assert engine.do(f"take {2 * EACH + 1}") == "0"
    engine.check_books(3)
    engine.check_mapped([0, 1, 2])
    engine.is_counted(used=2 * EACH + 1, free=EACH - 1, mapped=3, free_pages=0, doubt=0)
    engine.do(f"give-ids {EACH}-{2 * EACH - 1}")
    engine.check_books(2)
    engine.check_mapped([0, 2])
    engine.do(f"take {EACH}")
    engine.check_books(3)
    engine.do(f"give {2 * EACH + 1}")
    engine.check_books(0)
    engine.check_mapped([])
    engine.is_counted(used=0, free=0, mapped=0, empty=PAGES)
    assert engine.refused("give-ids 0").startswith("KVC_E_NOT_ALLOCATED ")


def test_all_pages_there_are(engine: Engine) -> None:
    engine.do(f"take {PAGES * EACH}")
    engine.check_books(PAGES)
    assert engine.refused("take 1").startswith("KVC_E_NO_BLOCKS ")
    engine.do(f"give {PAGES * EACH}")
    engine.check_books(0)


def test_epochs(engine: Engine) -> None:
    engine.do(f"take {2 * EACH}")
    engine.do(f"give {EACH} 7")
    engine.check_books(2)
    engine.do("complete 6")
    engine.check_books(2)
    engine.do("complete 7")
    engine.check_books(1)


def test_free_pages_stay_mapped_within_bounds(programs: Programs) -> None:
    engine = start_engine(programs, options=f"timeout={PATIENT_MS} max=2")
    engine.do(f"take {4 * EACH}")
    engine.do(f"give {4 * EACH}")
    engine.is_counted(mapped=2, free_pages=2)
    engine.check_books(2)
    engine.do(f"take {2 * EACH}")
    engine.check_books(2)
    engine.do(f"give {2 * EACH}")
    engine.do("trim")
    engine.check_books(0)


def test_reserved_blocks_stay(engine: Engine) -> None:
    engine.do(f"reserve {2 * EACH}")
    engine.check_books(2)
    engine.do("trim")
    engine.check_books(2)
    engine.do(f"take {EACH}")
    engine.is_counted(reserved=EACH, mapped=2)
    engine.do("release")
    engine.check_books(1)


def test_null_block(programs: Programs) -> None:
    engine = start_engine(programs, blocks="null=1")
    engine.check_books(1)
    engine.check_mapped([0])
    assert engine.do(f"take {EACH - 1}") == "1"
    engine.check_books(1)
    engine.do(f"give {EACH - 1}")
    engine.do("trim")
    engine.check_mapped([0])
    engine.do("clear")
    engine.check_books(1)
    engine.do("close-blocks")
    engine.check_books(0)


def test_resizing(engine: Engine) -> None:
    engine.do(f"take {4 * EACH}")
    engine.do("resize 2")
    engine.check_books(4)
    assert engine.refused("take 1").startswith("KVC_E_NO_BLOCKS ")
    engine.do(f"give-ids {3 * EACH}-{4 * EACH - 1}")
    engine.check_mapped([0, 1, 2])
    engine.do(f"give-ids 0-{EACH - 1},{2 * EACH}-{3 * EACH - 1}")
    engine.check_books(1)
    engine.check_mapped([1])
    engine.do(f"resize {2 * PAGES}")
    engine.do(f"take {(PAGES - 1) * EACH}")
    engine.check_books(PAGES)


def test_clearing(engine: Engine) -> None:
    engine.do(f"take {4 * EACH}")
    engine.do("clear")
    engine.check_books(0)


def test_wanted_pages_are_set_aside(engine: Engine) -> None:
    """At all ranks, before a map is needed; and what was set aside is what is used."""
    assert engine.do(f"want {3 * EACH} {PATIENT_MS}") == str(3 * EACH)
    engine.is_counted(claimed=3, mapped=0)
    engine.check_books(0, leased=3)
    assert engine.do("available") == str(3 * EACH)
    engine.do(f"take {EACH + 1}")
    engine.check_books(2, leased=1)
    assert engine.do("available") == str(2 * EACH - 1)
    engine.do("trim")
    engine.is_counted(claimed=0, mapped=2)


def test_wanted_later(engine: Engine) -> None:
    engine.do(f"want {2 * EACH} 0")
    eventually(lambda: engine.do("available") == str(2 * EACH))
    engine.is_counted(claimed=2, mapped=0)


def test_prepared_ahead(programs: Programs) -> None:
    """By the library's own threads and where the scheduler dispatches: memory is set aside at all ranks."""
    engine = start_engine(programs, options=f"timeout={PATIENT_MS} min=2 max=4")
    engine.do(f"take {EACH}")

    def is_prepared() -> bool:
        engine.do("dispatch")
        return int(engine.do("available")) >= 2 * EACH

    eventually(is_prepared)
    assert engine.count()["claimed"] >= 2
    before = [engine.books(rank)[0] for rank in RANKS]
    assert before == [1] * len(BLOCK_STAGES)
    engine.do(f"take {2 * EACH}")
    engine.check_mapped([0, 1, 2])


def test_fork(engine: Engine) -> None:
    engine.do(f"take {EACH}")
    engine.do("fork")
    engine.check_books(1)
    engine.do(f"take {EACH}")
    engine.check_mapped([0, 1])
    engine.do(f"give {2 * EACH}")
    engine.check_books(0)


# ---- Too little memory ----


@pytest.mark.parametrize("rank", RANKS)
def test_a_limit_at_one_rank(engine: Engine, rank: int) -> None:
    """Nobody has a page that not all have, and nobody keeps anything for it."""
    engine.limit(rank, 2)
    assert engine.refused(f"take {2 * EACH + 1}").startswith("KVC_E_LIMIT ")
    engine.check_mapped([])
    engine.is_counted(claimed=0, mapped=0, doubt=0)
    engine.check_books(0)
    engine.do(f"take {2 * EACH}")
    engine.check_mapped([0, 1])
    assert engine.refused("take 1").startswith("KVC_E_LIMIT ")
    engine.limit(rank, 3)
    engine.do(f"take {EACH}")
    engine.check_mapped([0, 1, 2])


def test_a_limit_that_is_lowered(engine: Engine) -> None:
    engine.do(f"take {4 * EACH}")
    engine.limit(2, 2)
    assert engine.refused("take 1").startswith("KVC_E_LIMIT ")
    for left in (3, 2, 1):
        engine.do(f"give {EACH - 1}")
        engine.check_books(left + 1)
        engine.do("give 1")
        engine.check_books(left)
    engine.do(f"take {EACH}")
    engine.check_books(2)
    assert engine.refused("take 1").startswith("KVC_E_LIMIT ")


def test_free_pages_go_under_a_lowered_limit(programs: Programs) -> None:
    """When one rank is short: of what is mapped without need, at all of them; the engine calls nothing."""
    engine = start_engine(programs, options=f"timeout={PATIENT_MS} max=8")
    engine.do(f"take {6 * EACH}")
    engine.do(f"give {4 * EACH}")
    engine.check_books(6)
    engine.limit(3, 3)
    eventually(lambda: engine.check_books(3))
    engine.do(f"give {EACH}")
    engine.check_books(3)


# ---- Two engines ----


def start_two(programs: Programs, pages: int, options: str = "") -> list[Engine]:
    """That contend for the memory of the same four daemons: each has room for so many pages of its rank."""
    daemons = [
        programs.daemon(
            SIZES,
            name=f"gpu{rank}",
            arguments=("--gpu", str(rank)),
            budget=str(pages * BLOCK_STAGES[rank].page_bytes),
        )
        for rank in RANKS
    ]
    return [
        start_engine(programs, daemons, f"timeout={PATIENT_MS} {options}", instance=name)
        for name in ("first", "second")
    ]


def last_claimed(engine: Engine) -> int:
    """The rank at which a scheduler claims last: it goes by the GPUs' UUIDs."""

    def uuid(rank: int) -> str:
        info = engine.programs.kvctl("info", "--json", daemon=engine.daemons[rank]).json()
        return str(info["gpu"]["uuid"])

    return max(RANKS, key=uuid)


def test_an_instance_that_is_refused_keeps_nothing_from_others(programs: Programs) -> None:
    """A scheduler that hears nothing any more holds no memory at the ranks where it was not refused."""
    first, second = start_two(programs, 4)
    first.limit(last_claimed(first), 0)
    assert first.refused(f"take {4 * EACH}").startswith("KVC_E_LIMIT ")
    with stopped(first.scheduler):
        second.do(f"take {4 * EACH}")
        second.check_books(4)
        first.check_books(0)


def ask_both(engines: list[Engine], command: str) -> list[str]:
    """Of both at once."""
    for engine in engines:
        engine.scheduler.send(command)
    return [engine.scheduler.receive() for engine in engines]


def test_one_of_two_gets_the_last_page(programs: Programs) -> None:
    engines = start_two(programs, 3)
    for engine in engines:
        engine.do(f"take {EACH}")
    for _ in range(10):
        answers = ask_both(engines, f"take {EACH}")
        assert sorted(answer.split()[0] for answer in answers) == ["error", "ok"]
        winner, loser = engines if answers[0].startswith("ok") else engines[::-1]
        assert sum(answer.startswith("error KVC_E_BUDGET ") for answer in answers) == 1
        winner.check_books(2)
        loser.check_books(1, leased=0)
        assert loser.do("available") == "0"
        winner.do(f"give {EACH}")
    for engine in engines:
        engine.check_books(1)


def test_one_of_two_is_told_that_the_last_page_is_there(programs: Programs) -> None:
    """And has it then, whatever the other one asks for."""
    engines = start_two(programs, 1, "report=60000")
    answers = ask_both(engines, f"want {EACH} {PATIENT_MS}")
    assert sorted(answer.split()[0] for answer in answers) == ["error", "ok"]
    told, other = engines if answers[0].startswith("ok") else engines[::-1]
    assert other.do("available") == "0"
    assert other.refused("take 1").startswith("KVC_E_BUDGET ")
    told.do(f"take {EACH}")
    told.check_books(1)
    other.check_books(0, leased=0)


def test_two_schedulers_make_progress(programs: Programs) -> None:
    """Nobody waits in a circle for what the other one has at some ranks, and nothing is lost."""
    engines = start_two(programs, 4)
    for answer in ask_both(engines, f"churn 8 {3 * EACH}"):
        words = re.fullmatch(r"ok taken=(\d+) refused=\d+", answer)
        assert words, answer
        assert int(words[1]) > 8
    for engine in engines:
        engine.is_counted(used=0, mapped=0, doubt=0, broken=0)
        engine.check_books(0)
        engine.do(f"take {4 * EACH}")
        engine.check_mapped([0, 1, 2, 3])
        engine.do(f"give {4 * EACH}")
