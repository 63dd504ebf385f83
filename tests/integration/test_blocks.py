# SPDX-License-Identifier: Apache-2.0
"""Blocks end to end: what engines are told is there, with others in the race."""

from __future__ import annotations

import os
import random
import time

from harness.blocks import EACH, SLOT, Kvctl, count, open_blocks, start, used_bytes
from harness.broker import Daemon, Peer, Programs
from harness.control import books_are_right, open_control

# What a report has promised stays promised; nothing is prepared behind the test's back.
PATIENT = "min=1 max=4 report=60000"


def both(engines: list[Peer], commands: list[str]) -> list[str]:
    """One command each, at the same time."""
    for engine, command in zip(engines, commands, strict=True):
        engine.send(command)
    return [engine.receive() for engine in engines]


def promised(answer: str) -> int:
    """What "want" has made sure of."""
    verdict, number = answer.split()[:2]
    assert verdict == "ok" or number == "KVC_E_BUDGET", answer
    return int(number) if verdict == "ok" else 0


def test_one_of_two_gets_the_last_page(programs: Programs) -> None:
    """Exactly one, each time; the other is told before it promises anything."""
    daemon = programs.daemon("1G", budget=str(3 * SLOT))
    engines = [start(programs, daemon, name, PATIENT) for name in ("a", "b")]
    for engine in engines:
        engine.do(f"take kv {EACH}")
    n_promised = 0
    for _ in range(10):
        told = [promised(answer) for answer in both(engines, [f"want kv {EACH} 2000"] * 2)]
        assert sum(told) <= EACH
        n_promised += sum(told) == EACH
        for loser, winner in ((0, 1), (1, 0)):
            if told[winner] == EACH:
                assert engines[loser].do("available kv") == "0"
        taken = [answer.split()[0] for answer in both(engines, [f"take kv {EACH}"] * 2)]
        assert sorted(taken) == ["error", "ok"]
        winner = taken.index("ok")
        assert told[winner] == EACH or sum(told) == 0
        engines[winner].do(f"give kv {EACH}")
        engines[winner].do("trim")
    assert n_promised > 0


def take_all(engine: Peer) -> int:
    """Takes page after page until it is refused; how many blocks."""
    taken = 0
    while (answer := engine.ask(f"take kv {EACH}")).startswith("ok"):
        taken += EACH
    assert answer.startswith("error KVC_E_BUDGET "), answer
    return taken


def test_what_was_reported_is_there_whatever_others_take(programs: Programs) -> None:
    """Two engines want random numbers at the same time; then one takes all that it can get, and after
    that the other what it was told."""
    daemon = programs.daemon("1G", budget=str(12 * SLOT))
    control = open_control(programs, daemon)
    engines = [start(programs, daemon, name, PATIENT + " thread=1") for name in ("a", "b")]
    seed = int(os.environ.get("KVCACHED_TEST_SEED", time.time_ns()))
    print(f"KVCACHED_TEST_SEED={seed}")
    dice = random.Random(seed)
    for _ in range(12):
        for engine in engines:
            engine.do("take kv 1")
        both(engines, [f"want kv {dice.randrange(9 * EACH)} {dice.choice((0, 2000))}" for _ in engines])
        told, greedy = dice.sample(engines, 2)
        promised = int(told.do("available kv"))
        taken = take_all(greedy)
        told.do(f"take kv {promised}")
        assert promised + taken + 2 <= 12 * EACH
        for engine in engines:
            engine.do(f"give kv {count(engine)['used']}")
            engine.do("trim")
    assert books_are_right(control)


def test_blocks_of_the_null_page_and_epochs(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine = programs.peer(daemon, "engine")
    engine.do("open")
    open_blocks(engine, options="null=1")
    assert used_bytes(kvctl) == SLOT
    assert engine.do(f"take kv {EACH - 1}") == "1"
    engine.do(f"take kv {EACH}")
    engine.do(f"give kv {EACH} 7")
    assert used_bytes(kvctl) == 2 * SLOT
    engine.do("complete kv 7")
    assert used_bytes(kvctl) == SLOT
