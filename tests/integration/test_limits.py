# SPDX-License-Identifier: Apache-2.0
"""Limits that move under an engine: what the system that kvcached follows gets wrong, one test for each.

With reserves and leases and without them: they change what an engine finds ready, never what a limit means.
"""

from __future__ import annotations

import pytest

from harness.blocks import EACH, SLOT, Kvctl, count, fields, listed, mapped, open_blocks, start, used_bytes
from harness.broker import Daemon, Programs, eventually

BARE = "min=0 max=0"
CACHING = "thread=1 min=0 max=10 report=1"
READY = "thread=1 min=2 max=10 report=1"

each_way = pytest.mark.parametrize("options", [BARE, CACHING, READY])


def set_limit(kvctl: Kvctl, limit_bytes: int) -> None:
    assert kvctl("limit", "engine", str(limit_bytes)).rc == 0


@pytest.mark.parametrize("options", [CACHING, READY])
def test_idle_engine_meets_a_lowered_limit(
    programs: Programs, daemon: Daemon, kvctl: Kvctl, options: str
) -> None:
    """It makes no call from then on, and all that it keeps without need goes back."""
    engine = start(programs, daemon, options=options)
    engine.do(f"take kv {8 * EACH}")
    engine.do(f"give kv {6 * EACH}")
    assert used_bytes(kvctl) >= 8 * SLOT
    set_limit(kvctl, 5 * SLOT)
    eventually(lambda: not listed(kvctl)["over_limit"])
    assert 2 * SLOT <= used_bytes(kvctl) <= 5 * SLOT
    set_limit(kvctl, SLOT)
    eventually(lambda: used_bytes(kvctl) == 2 * SLOT)
    assert listed(kvctl)["over_limit"]
    assert (mapped(engine), count(engine)["used"]) == (2, 2 * EACH)


@each_way
def test_raising_the_limit_restores(programs: Programs, daemon: Daemon, kvctl: Kvctl, options: str) -> None:
    """To what the engine had at its start."""
    engine = start(programs, daemon, options=options + " utilization=0.25")
    first = fields(engine.do("status"))["limit"]
    engine.do(f"take kv {4 * EACH}")
    set_limit(kvctl, 4 * SLOT)
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    set_limit(kvctl, first)
    engine.do(f"take kv {(first // SLOT - 4) * EACH}")
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert mapped(engine) == first // SLOT
    assert used_bytes(kvctl) == first


@each_way
def test_limit_zero_is_a_limit(programs: Programs, daemon: Daemon, kvctl: Kvctl, options: str) -> None:
    engine = start(programs, daemon, options=options)
    engine.do("take kv 1")
    engine.do("give kv 1")
    set_limit(kvctl, 0)
    eventually(lambda: used_bytes(kvctl) == 0)
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert engine.refused("want kv 1 1000").startswith("KVC_E_LIMIT ")
    assert engine.do("available kv") == "0"
    assert listed(kvctl)["limit_bytes"] == used_bytes(kvctl) == 0
    set_limit(kvctl, SLOT)
    engine.do("take kv 1")


@each_way
def test_limit_is_enforced_whether_or_not_pages_are_prepared(
    programs: Programs, daemon: Daemon, kvctl: Kvctl, options: str
) -> None:
    """There is no thread or reserve that it depends on."""
    engine = start(programs, daemon, options=options)
    set_limit(kvctl, 2 * SLOT)
    engine.do(f"take kv {2 * EACH}")
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert used_bytes(kvctl) == 2 * SLOT
    set_limit(kvctl, 3 * SLOT)
    engine.do(f"take kv {EACH}")
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert used_bytes(kvctl) == 3 * SLOT


@each_way
def test_pages_come_back_one_by_one_under_a_lowered_limit(
    programs: Programs, daemon: Daemon, kvctl: Kvctl, options: str
) -> None:
    """None is kept in reserve while the engine is above its limit."""
    engine = start(programs, daemon, options=options)
    engine.do(f"take kv {8 * EACH}")
    set_limit(kvctl, 6 * SLOT)
    engine.do("await over=1")
    eventually(lambda: used_bytes(kvctl) == 8 * SLOT)
    for left in (7, 6):
        engine.do(f"give kv {EACH - 1}")
        assert used_bytes(kvctl) == (left + 1) * SLOT
        engine.do("give kv 1")
        assert used_bytes(kvctl) == left * SLOT
    engine.do("await over=0")
    assert engine.refused(f"take kv {EACH}").startswith("KVC_E_LIMIT ")


def test_deleted_instances_are_gone(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    """With their limit; who comes later under that name starts anew."""
    engine = start(programs, daemon, options=READY)
    set_limit(kvctl, SLOT)
    assert engine.refused(f"take kv {2 * EACH}").startswith("KVC_E_LIMIT ")
    engine.close()
    eventually(lambda: kvctl("delete", "engine").rc == 0)
    assert kvctl("list", "--json").json() == []
    engine = start(programs, daemon, options=READY)
    engine.do(f"take kv {2 * EACH}")
    row = listed(kvctl)
    assert (row["limit_source"], row["limit_bytes"]) == (
        "budget",
        kvctl("info", "--json").json()["budget_bytes"],
    )
    assert row["used_bytes"] >= 2 * SLOT


def test_delete_of_an_engine_that_runs(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    """Not by mistake. By force it keeps only what it has mapped, on its bill, and is not hidden before it
    ends; what was set aside for it is everybody's."""
    engine = start(programs, daemon, options="min=1 max=1 report=60000")
    engine.do(f"take kv {2 * EACH}")
    engine.do(f"want kv {3 * EACH} 1000")
    assert listed(kvctl)["leased_bytes"] == 3 * SLOT
    assert kvctl("delete", "engine").rc != 0
    engine.do(f"take kv {EACH}")
    assert kvctl("delete", "engine", "--force").rc == 0
    row = listed(kvctl)
    assert row["frozen"]
    assert (row["used_bytes"], row["limbo_bytes"], row["leased_bytes"]) == (3 * SLOT, 3 * SLOT, 0)
    assert engine.refused(f"take kv {EACH}").startswith("KVC_E_DISCONNECTED ")
    engine.close()
    eventually(lambda: kvctl("list", "--json").json() == [])
    start(programs, daemon).do(f"take kv {EACH}")
    assert used_bytes(kvctl) == SLOT


def test_second_pool_of_an_engine(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    """It takes nothing from the first, and both share one limit and one row; what one keeps without need is
    no reason to refuse the other."""
    engine = start(programs, daemon, options="min=0 max=10")
    set_limit(kvctl, 4 * SLOT)
    engine.do(f"take kv {3 * EACH}")
    open_blocks(engine, "mamba")
    assert (mapped(engine), mapped(engine, "mamba")) == (3, 0)
    assert (listed(kvctl)["limit_bytes"], used_bytes(kvctl)) == (4 * SLOT, 3 * SLOT)
    engine.do(f"give kv {2 * EACH}")
    assert mapped(engine) == 3
    engine.do(f"take mamba {3 * EACH}")
    assert (mapped(engine), mapped(engine, "mamba")) == (1, 3)
    assert engine.refused("take mamba 1").startswith("KVC_E_LIMIT ")
    assert engine.refused(f"take kv {EACH}").startswith("KVC_E_LIMIT ")
    assert used_bytes(kvctl) == 4 * SLOT
    engine.do("close-blocks mamba")
    assert used_bytes(kvctl) == SLOT
