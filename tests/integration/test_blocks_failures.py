# SPDX-License-Identifier: Apache-2.0
"""Blocks that a scheduler hands out over workers elsewhere, where a daemon is short of descriptors, or a
driver fails."""

from __future__ import annotations

import re

import pytest

from harness.broker import Programs, eventually, on_gpu
from harness.crew import EACH, PAGES, PATIENT_MS, Engine, Stage, start_daemons, start_engine

pytestmark = pytest.mark.skipif(on_gpu(), reason="several GPUs are needed")


# ---- Few descriptors ----

# Then a daemon hands out at most 256 extents at once, and sets at most 128 aside.
FEW = ("prlimit", "--nofile=1024:1024")


def start_short(programs: Programs, stages: tuple[Stage, ...]) -> Engine:
    return start_engine(programs, start_daemons(programs, len(stages), prefix=FEW), stages=stages)


def test_more_than_can_be_set_aside(programs: Programs) -> None:
    """Layers apart: each page takes many extents. They are claimed and mapped in parts."""
    engine = start_short(programs, (Stage(2, 1), Stage(2, 20)))
    engine.limit(1, 20)
    assert engine.refused(f"take {24 * EACH}").startswith("KVC_E_LIMIT ")
    engine.is_counted(mapped=0)
    engine.check_books(0)
    engine.do(f"take {20 * EACH}")
    engine.check_books(20)
    engine.do(f"give {20 * EACH}")
    engine.do("trim")
    eventually(lambda: engine.check_books(0))


def test_pages_that_cannot_be_set_aside(programs: Programs) -> None:
    """One takes more extents than all leases may hold: it is mapped all the same."""
    engine = start_short(programs, (Stage(2, 1), Stage(2, 160)))
    engine.limit(1, 2)
    engine.do(f"take {EACH}")
    engine.do(f"want {EACH} {PATIENT_MS}")
    assert engine.do("available") == str(EACH)
    engine.do(f"take {EACH}")
    engine.check_books(2)
    engine.is_counted(claimed=0)
    assert engine.refused("take 1").startswith("KVC_E_LIMIT ")
    assert engine.do("available") == "0"
    engine.do(f"give {2 * EACH}")


def test_leases_of_others(programs: Programs) -> None:
    """Another engine has been promised as much as can be set aside: this one's pages are mapped without."""
    engine = start_short(programs, (Stage(2, 1, 64),))
    other = programs.peer(engine.daemons[0], "other")
    other.do("open thread=1 min=1 max=4 report=20000")
    other.do("region kv page=2M pages=200")
    other.do("blocks kv block=256K")
    other.do(f"want kv {128 * EACH} {PATIENT_MS}")
    engine.do(f"take {40 * EACH}")
    engine.check_books(40)
    other.do(f"take kv {128 * EACH}")


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
