# SPDX-License-Identifier: Apache-2.0
"""Blocks end to end: what engines are told is there, under limits that move and with others in the race."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.broker import Daemon, Peer, Programs, Result, eventually

MIB = 1 << 20
SLOT = 16 * MIB  # a page: 8 in each of two segments
EACH = 8  # blocks in a page
REGION = f"region kv page={SLOT // 2} pages=32 segments=2"

Kvctl = Callable[..., Result]


def fields(answer: str) -> dict[str, int]:
    """The NAME=NUMBER words of an answer."""
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)\b", answer)}


def mapped(engine: Peer, name: str = "kv") -> int:
    return fields(engine.do(f"count {name}"))["mapped"]


def used_bytes(kvctl: Kvctl, instance: str) -> int:
    """What the daemon says the instance has; nothing where it doesn't know it."""
    for row in kvctl("list", "--json").json():
        if row["ipc"] == instance:
            used: int = row["used_bytes"]
            return used
    return 0


def start(programs: Programs, daemon: Daemon, instance: str, options: str = "") -> Peer:
    engine = programs.peer(daemon, instance)
    engine.do(f"open {options}")
    engine.do(REGION)
    engine.do("blocks kv block=1M")
    return engine


def test_one_of_two_gets_the_last_page(programs: Programs) -> None:
    """A budget of three pages and two engines: what each is told is there is there, and never more."""
    daemon = programs.daemon("1G", budget=str(3 * SLOT))
    engines = [start(programs, daemon, name, "min=1 max=4 report=60000") for name in ("a", "b")]
    for engine in engines:
        engine.do(f"take kv {EACH}")
    answers = [engine.ask(f"want kv {EACH} 1000") for engine in engines]
    assert sorted(answer.split()[0] for answer in answers) == ["error", "ok"]
    assert sum(answer.startswith("error KVC_E_BUDGET ") for answer in answers) == 1
    for engine, answer in zip(engines, answers, strict=True):
        promised = int(engine.do("available kv"))
        assert promised == (EACH if answer.startswith("ok") else 0)
        if promised:
            engine.do(f"take kv {promised}")
        assert engine.refused("take kv 1").startswith("KVC_E_BUDGET ")


def test_limit_is_enforced_without_preallocation(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine = start(programs, daemon, "engine", "min=0 max=0")
    assert kvctl("limit", "engine", str(2 * SLOT)).rc == 0
    engine.do(f"take kv {2 * EACH}")
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert used_bytes(kvctl, "engine") == 2 * SLOT


def test_limit_zero_is_a_limit(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine = start(programs, daemon, "engine")
    assert kvctl("limit", "engine", "0").rc == 0
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert kvctl("limit", "engine", str(SLOT)).rc == 0
    engine.do("take kv 1")


def test_raising_the_limit_restores(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine = start(programs, daemon, "engine", "utilization=0.25")
    first = fields(engine.do("status"))["limit"]
    engine.do(f"take kv {4 * EACH}")
    assert kvctl("limit", "engine", str(4 * SLOT)).rc == 0
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert kvctl("limit", "engine", str(first)).rc == 0
    engine.do(f"take kv {(first // SLOT - 4) * EACH}")
    assert engine.refused("take kv 1").startswith("KVC_E_LIMIT ")
    assert mapped(engine) == first // SLOT


def test_pages_come_back_one_by_one_under_a_lowered_limit(
    programs: Programs, daemon: Daemon, kvctl: Kvctl
) -> None:
    engine = start(programs, daemon, "engine", "min=2 max=10")
    engine.do(f"take kv {8 * EACH}")
    assert kvctl("limit", "engine", str(6 * SLOT)).rc == 0
    engine.do("await over=1")
    for left in (7, 6):
        engine.do(f"give kv {EACH - 1}")
        assert used_bytes(kvctl, "engine") == (left + 1) * SLOT
        engine.do("give kv 1")
        assert used_bytes(kvctl, "engine") == left * SLOT
    engine.do("await over=0")
    assert engine.refused(f"take kv {EACH}").startswith("KVC_E_LIMIT ")


def test_two_pools_of_an_engine(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    """They share the limit; what one keeps without need is no reason to refuse the other."""
    engine = start(programs, daemon, "engine", "min=0 max=10")
    engine.do(f"region mamba page={SLOT // 2} pages=32 segments=2")
    engine.do("blocks mamba block=2M")
    assert kvctl("limit", "engine", str(4 * SLOT)).rc == 0
    engine.do(f"take kv {3 * EACH}")
    engine.do(f"give kv {2 * EACH}")
    assert mapped(engine) == 3
    engine.do("take mamba 12")
    assert mapped(engine) == 1
    assert mapped(engine, "mamba") == 3
    assert engine.refused("take mamba 1").startswith("KVC_E_LIMIT ")
    engine.do("take kv 0")
    assert used_bytes(kvctl, "engine") == 4 * SLOT
    engine.do("close-blocks mamba")
    assert used_bytes(kvctl, "engine") == SLOT


def test_forgotten_instances_start_anew(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine = start(programs, daemon, "engine")
    assert kvctl("limit", "engine", str(SLOT)).rc == 0
    assert engine.refused(f"take kv {2 * EACH}").startswith("KVC_E_LIMIT ")
    engine.close()
    eventually(lambda: kvctl("delete", "engine").rc == 0)
    engine = start(programs, daemon, "engine")
    engine.do(f"take kv {2 * EACH}")
    assert used_bytes(kvctl, "engine") == 2 * SLOT


def test_what_a_killed_engine_had_serves_another(programs: Programs) -> None:
    daemon = programs.daemon("1G", budget=str(4 * SLOT))
    first = start(programs, daemon, "first", "min=1 max=4 report=60000")
    second = start(programs, daemon, "second")
    first.do(f"take kv {2 * EACH}")
    assert int(first.do(f"want kv {2 * EACH} 1000")) >= 2 * EACH
    assert second.refused(f"take kv {EACH}").startswith("KVC_E_BUDGET ")
    first.kill()
    eventually(lambda: second.ask(f"take kv {4 * EACH}").startswith("ok"), within=5)


def test_blocks_of_the_null_page_and_epochs(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine = programs.peer(daemon, "engine")
    engine.do("open")
    engine.do(REGION)
    engine.do("blocks kv block=1M null=1")
    assert used_bytes(kvctl, "engine") == SLOT
    assert engine.do(f"take kv {EACH - 1}") == "1"
    engine.do(f"take kv {EACH}")
    engine.do(f"give kv {EACH} 7")
    assert used_bytes(kvctl, "engine") == 2 * SLOT
    engine.do("complete kv 7")
    assert used_bytes(kvctl, "engine") == SLOT
