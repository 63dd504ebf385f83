# SPDX-License-Identifier: Apache-2.0
"""Leases and notices between real engines: what is set aside, for whom, and how it comes back.

What passes in packets and words is test_leases_wire.py's.
"""

from __future__ import annotations

import pytest

from harness.blocks import EACH, SLOT, Kvctl, count, listed, open_blocks, start, used_bytes
from harness.broker import Daemon, Peer, Programs, eventually
from harness.control import books_are_right, info
from harness.raw import RawPeer
from harness.tasks import stopped

BUDGET = 16 * SLOT


@pytest.fixture
def daemon(programs: Programs) -> Daemon:
    return programs.daemon("1G", budget=str(BUDGET))


@pytest.fixture
def needy(programs: Programs, daemon: Daemon) -> Peer:
    """An engine that keeps nothing, and needs what others have."""
    return start(programs, daemon, "needy")


def is_prepared(engine: Peer, pages: int) -> bool:
    """So many pages are mapped and free, and more are offered."""
    now = count(engine)
    return now["free_pages"] >= pages and now["offered"] >= 1


def test_leases_grow_before_they_run_out(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    """An engine that has begun to use pages finds the next ones mapped: it waits once, for the first, and
    would not notice if the daemon stood still."""
    engine = start(programs, daemon, options="thread=1 min=2 max=2")
    engine.do(f"take kv {EACH}")
    for _ in range(4):
        eventually(lambda: is_prepared(engine, 2))
        with stopped(daemon):
            engine.do(f"take kv {EACH}")
            engine.do(f"take kv {EACH}")
    assert count(engine)["waited"] == 1

    def is_exact() -> bool:
        row, now = listed(kvctl), count(engine)
        assert row["granted_bytes"] == now["mapped"] * SLOT
        assert row["leased_bytes"] == (now["offered"] + now["claimed"]) * SLOT
        return bool(row["used_bytes"] == row["granted_bytes"] + row["leased_bytes"])

    eventually(is_exact)


def test_offers_to_a_stopped_engine_serve_others(
    programs: Programs, daemon: Daemon, control: RawPeer, kvctl: Kvctl, needy: Peer
) -> None:
    """At once, and without a word from it. What it has claimed they cannot have; it finds that again."""
    idle = start(programs, daemon, "idle", "thread=1 min=2 max=4 report=60000")
    idle.do(f"take kv {4 * EACH}")
    eventually(lambda: is_prepared(idle, 2))
    open_blocks(idle, "mamba")
    assert idle.do(f"want mamba {2 * EACH} 1000") == str(2 * EACH)
    pages = count(idle)["mapped"]
    offered = count(idle)["offered"]
    assert listed(kvctl, "idle")["leased_bytes"] == (offered + 2) * SLOT
    with stopped(idle):
        room = BUDGET // SLOT - pages - 2
        needy.do(f"take kv {room * EACH}")
        row = listed(kvctl, "idle")
        assert (row["granted_bytes"], row["leased_bytes"]) == (pages * SLOT, 2 * SLOT)
        assert used_bytes(kvctl, "needy") == room * SLOT
        assert needy.refused("take kv 1").startswith("KVC_E_BUDGET ")
    assert (count(idle)["offered"], count(idle, "mamba")["claimed"]) == (0, 2)
    idle.do(f"take mamba {2 * EACH}")
    assert listed(kvctl, "idle")["leased_bytes"] == 0
    assert used_bytes(kvctl, "idle") + used_bytes(kvctl, "needy") == BUDGET
    assert books_are_right(control)


def test_idle_engine_gives_back_what_it_keeps(
    programs: Programs, daemon: Daemon, control: RawPeer, kvctl: Kvctl, needy: Peer
) -> None:
    """Its library does, when others need it and as much as they need, without a call of the engine."""
    idle = start(programs, daemon, "idle", "thread=1 min=1 max=8 report=1")
    idle.do(f"take kv {9 * EACH}")
    idle.do(f"give kv {8 * EACH}")
    assert used_bytes(kvctl, "idle") >= 9 * SLOT
    needy.do(f"take kv {10 * EACH}")
    assert used_bytes(kvctl, "idle") == BUDGET - 10 * SLOT
    needy.do(f"take kv {5 * EACH}")
    assert used_bytes(kvctl, "idle") == SLOT
    assert count(idle)["used"] == EACH
    assert needy.refused("take kv 1").startswith("KVC_E_BUDGET ")
    assert books_are_right(control)
    needy.do(f"give kv {EACH}")
    idle.do(f"take kv {EACH}")
    assert used_bytes(kvctl, "idle") == 2 * SLOT


def test_stopped_engine_misses_a_notice(
    programs: Programs, daemon: Daemon, control: RawPeer, kvctl: Kvctl
) -> None:
    """That is shown, and nobody of its instance gets anything until it has obeyed. Then it works on."""
    engine = start(programs, daemon, options="thread=1 min=1 max=4 report=1")
    sibling = start(programs, daemon)
    engine.do("yield kv")
    engine.do(f"take kv {6 * EACH}")
    with stopped(engine):
        assert kvctl("limit", "engine", str(2 * SLOT)).rc == 0
        assert listed(kvctl)["over_limit"]
        assert not listed(kvctl)["missed_notice"]
        eventually(lambda: listed(kvctl)["missed_notice"])
        assert used_bytes(kvctl) >= 6 * SLOT
        assert sibling.refused("take kv 1").startswith("KVC_E_LIMIT ")
    eventually(lambda: used_bytes(kvctl) == 0)
    row = listed(kvctl)
    assert (row["over_limit"], row["missed_notice"]) == (False, False)
    engine.do(f"take kv {2 * EACH}")
    assert sibling.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert used_bytes(kvctl) == 2 * SLOT
    assert books_are_right(control)


def test_busy_engine_meets_a_lowered_limit(
    programs: Programs, daemon: Daemon, control: RawPeer, kvctl: Kvctl
) -> None:
    """The library gives what is free, and asks the engine for the rest; what that gives goes back, and it
    keeps what it needs."""
    engine = start(programs, daemon, options="thread=1 min=2 max=8 report=1")
    open_blocks(engine, "prefixes")
    engine.do("yield prefixes")
    engine.do(f"take prefixes {5 * EACH}")
    engine.do(f"take kv {4 * EACH}")
    engine.do(f"give kv {2 * EACH}")
    assert used_bytes(kvctl) >= 9 * SLOT
    assert kvctl("limit", "engine", str(4 * SLOT)).rc == 0

    def works_on() -> bool:
        engine.do("take kv 0")
        engine.do("give kv 1")
        engine.do("take kv 1")
        return used_bytes(kvctl) == 2 * SLOT

    eventually(works_on)
    assert (count(engine)["used"], count(engine, "prefixes")["used"]) == (2 * EACH, 0)
    assert not listed(kvctl)["missed_notice"]
    engine.do(f"take prefixes {2 * EACH}")
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert books_are_right(control)


def test_what_a_killed_engine_had_serves_another(
    programs: Programs, daemon: Daemon, control: RawPeer, kvctl: Kvctl, needy: Peer
) -> None:
    """What was set aside for it as well as what it had."""
    first = start(programs, daemon, "first", "min=1 max=4 report=60000")
    first.do(f"take kv {6 * EACH}")
    assert first.do(f"want kv {10 * EACH} 1000") == str(10 * EACH)
    assert listed(kvctl, "first")["leased_bytes"] == 10 * SLOT
    assert needy.refused("take kv 1").startswith("KVC_E_BUDGET ")
    first.kill()
    everything = f"take kv {BUDGET // SLOT * EACH}"
    eventually(lambda: needy.ask(everything).startswith("ok"))
    assert used_bytes(kvctl, "needy") == BUDGET
    eventually(lambda: books_are_right(control))
    assert info(control).number("leased_bytes") == 0
