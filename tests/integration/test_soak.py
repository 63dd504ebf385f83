# SPDX-License-Identifier: Apache-2.0
"""Much ordinary life in a short time: engines come, borrow, return, leave and die, limits change, and the
daemon's books agree with ours whenever things calm down."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.observer import MIB, resident_bytes
from harness.raw import RawPeer, start_raw

SECONDS = float(os.environ.get("KVCACHED_SOAK_SECONDS", "120"))
ENGINES_MAX = 8
STEPS_BETWEEN_AUDITS = 100
GROWTH_MAX_BYTES = 4 * MIB

# Extents of each class (2, 8, 32, 128 MiB) that make up a page.
PAGES = [(1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0)]
CLASS_BYTES = (2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB)


@dataclass
class Engine:
    peer: RawPeer
    region: int
    page: tuple[int, ...]
    held: dict[int, int] = field(default_factory=dict)  # extent -> bytes


class Life:
    """One run: what is done at random, and what should have come of it."""

    def __init__(self, programs: Programs, daemon: Daemon, seed: int) -> None:
        self.programs = programs
        self.daemon = daemon
        self.random = random.Random(seed)
        self.engines: list[Engine] = []
        self.limited: set[str] = set()

    def step(self) -> None:
        acts = [(self.arrive, 2), (self.borrow, 10), (self.give_back, 8), (self.leave, 1), (self.die, 1)]
        acts.append((self.limit, 1))
        chosen = self.random.choices([act for act, _ in acts], [weight for _, weight in acts])[0]
        chosen()

    def arrive(self) -> None:
        if len(self.engines) == ENGINES_MAX:
            return
        peer = start_raw(self.programs, self.daemon, self.random.choice("abcde"))
        peer.open()
        page = self.random.choice(PAGES)
        self.engines.append(Engine(peer, peer.open_region(*page), page))

    def borrow(self) -> None:
        if not self.engines:
            return
        engine = self.random.choice(self.engines)
        pages = self.random.randint(1, 12)
        extents = engine.peer.take_or_none(engine.region, pages)
        if extents is None:
            return
        # A grant has the largest first, whatever their pages.
        classes = reversed(list(zip(engine.page, CLASS_BYTES, strict=True)))
        sizes = [size for n, size in classes for _ in range(n * pages)]
        engine.held |= zip(extents, sizes, strict=True)

    def give_back(self) -> None:
        engine = self.random.choice(self.engines) if self.engines else None
        if engine is None or not engine.held:
            return
        extents = self.random.sample(sorted(engine.held), self.random.randint(1, len(engine.held)))
        answer = engine.peer.give_back(*extents)
        assert answer.name == "Returned", answer.text
        for extent in extents:
            del engine.held[extent]

    def leave(self) -> None:
        if self.engines:
            self.engines.pop(self.random.randrange(len(self.engines))).peer.close()

    def die(self) -> None:
        if self.engines:
            self.engines.pop(self.random.randrange(len(self.engines))).peer.kill()

    def limit(self) -> None:
        name = self.random.choice("abcde")
        if name in self.limited:
            self.kvctl("limit-percent", name, "100")
        else:
            self.kvctl("limit", name, f"{self.random.randint(0, 600)}M")
        self.limited ^= {name}

    def kvctl(self, *arguments: str) -> None:
        done = self.programs.kvctl(*arguments, daemon=self.daemon)
        assert done.rc == 0, done.err

    def audit(self) -> None:
        """What kvctl shows is what we hold, as soon as the dead are accounted for."""
        expected: Counter[str] = Counter()
        for engine in self.engines:
            expected[engine.peer.instance] += sum(engine.held.values())

        def agrees() -> bool:
            shown = self.programs.kvctl("list", "--json", daemon=self.daemon).json()
            used = {row["ipc"]: row["used_bytes"] for row in shown if row["used_bytes"]}
            assert used == dict(+expected)
            return True

        eventually(agrees)

    def end(self) -> None:
        while self.engines:
            self.leave()
        for name in "abcde":
            self.programs.kvctl("delete", name, daemon=self.daemon)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.usefixtures("observer")
def test_books_stay_right(programs: Programs, daemon: Daemon) -> None:
    """The observer then finds the daemon as it was at first."""
    seed = int(os.environ.get("KVCACHED_TEST_SEED", time.time_ns()))
    print(f"KVCACHED_TEST_SEED={seed}")
    life = Life(programs, daemon, seed)
    started = time.monotonic()
    warm_bytes = 0
    while (elapsed := time.monotonic() - started) < SECONDS:
        for _ in range(STEPS_BETWEEN_AUDITS):
            life.step()
        life.audit()
        if not warm_bytes or elapsed < SECONDS / 4:
            warm_bytes = resident_bytes(daemon.pid)
    life.end()
    assert resident_bytes(daemon.pid) < warm_bytes + GROWTH_MAX_BYTES
