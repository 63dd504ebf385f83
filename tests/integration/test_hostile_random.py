# SPDX-License-Identifier: Apache-2.0
"""Peers that do anything at all, in any order, for a while.

Nothing is expected of their answers; only that others are served meanwhile, and that nothing is left of them
in the end. Under sanitizers this looks for what no other test has thought of. $KVCACHED_TEST_SEED repeats a
run.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.observer import MIB, Observer
from harness.raw import Message, frame, start_raw

STEPS = 50_000
CROWD = 6
STRANGER_UID = 54321
TYPES = (*range(1, 6), *range(16, 25), *range(64, 72))
# What chance brings about often enough for this to be a test.
COMMON_ANSWERS = ("Welcome", "Refused", "RegionOpened", "Grant", "Returned", "closed")


class Menace:
    """One peer after another. Most of what each does is right, or nothing would come of it."""

    def __init__(self, programs: Programs, daemon: Daemon, number: int, chance: random.Random) -> None:
        self.programs = programs
        self.daemon = daemon
        self.name = f"menace-{number}"
        self.is_stranger = number % 3 == 2 and os.geteuid() == 0
        self.chance = chance
        self.answers: Counter[str] = Counter()
        self.seen: list[int] = []
        self.habits: list[tuple[int, Callable[[], None]]] = [
            (40, self.take),
            (100, self.read),
            (60, self.acknowledge),
            (50, self.give_back),
            (10, self.open_region),
            (5, self.close_region),
            (2, self.damage),
            (2, self.administer),
            (2, self.leave),
            (1, self.die),
        ]
        self.start()

    def start(self) -> None:
        self.peer = start_raw(self.programs, self.daemon, self.name)
        if self.is_stranger:
            self.peer.do(f"become {STRANGER_UID}")
        self.connected = False

    def often(self, percent: int) -> bool:
        return self.chance.randrange(100) < percent

    def say(self, name: str, request: int, fields: str = "") -> None:
        """Sends a message, if there is a connection that takes it."""
        self.peer.ask(f"send {name} {request} {fields}".strip())

    def step(self) -> None:
        if not self.connected:
            self.connect()
            return
        weights = [weight for weight, _ in self.habits]
        self.chance.choices([habit for _, habit in self.habits], weights)[0]()

    def some_number(self) -> int:
        return self.chance.choice([0, 1, 2, 3, 8, 40, 64, 65, 4097, 2**31, 2**32 - 1])

    def connect(self) -> None:
        self.connected = True
        self.regions: list[int] = []
        self.unacknowledged: list[int] = []
        self.peer.ask(f"connect {self.daemon.socket if self.often(95) else self.daemon.control}")
        role = "ROLE_ENGINE" if self.often(95) else self.chance.choice(["ROLE_SCHEDULER", "7"])
        name = self.name if self.often(90) else self.chance.choice(["menace-0", "-"])
        self.say("Hello", 1, f"min_version=1 max_version=1 role={role} instance={name}")
        self.open_region()

    def open_region(self) -> None:
        shapes = ["1,0,0,0", "3,1,0,0", "0,2,1,0"] if self.often(90) else ["0,0,0,1", "0,0,0,0", "1,1,1,1,1"]
        segments = 1 if self.often(95) else self.some_number()
        shape = self.chance.choice(shapes)
        self.say("RegionOpen", 2, f"segments={segments} capacity_pages=64 page_extents={shape}")

    def some_region(self) -> int:
        return self.chance.choice(self.regions) if self.regions and self.often(95) else self.some_number()

    def take(self) -> None:
        pages = self.chance.choice([1, 1, 2, 5, 20, 64]) if self.often(95) else self.some_number()
        self.say("Take", self.chance.randrange(3, 50), f"region={self.some_region()} pages={pages}")

    def read(self) -> None:
        for _ in range(self.chance.randrange(1, 8)):
            text = self.peer.do("receive 0")
            message = Message(text.split(" ")[0], text)
            self.answers[message.name] += 1
            if message.name == "nothing":
                break
            if message.name == "closed":
                self.connected = False
                break
            if message.name == "RegionOpened":
                self.regions.append(message.number("region"))
            elif message.name == "Grant":
                self.seen += message.numbers("extents")
                self.unacknowledged.append(message.number("request"))

    def acknowledge(self) -> None:
        if self.unacknowledged:
            self.say("GrantAck", self.unacknowledged.pop())
        elif self.often(1):
            self.say("GrantAck", 3)

    def give_back(self) -> None:
        """Some of what this peer, or one before it, has seen; perhaps twice."""
        size = self.chance.choice([1, 1, 2, 30])
        extents, self.seen = self.seen[-size:] or [1], self.seen[:-size]
        if self.often(5):
            self.seen += extents
        self.say("Return", 60, "extents=" + ",".join(str(extent) for extent in extents))

    def close_region(self) -> None:
        self.say("RegionClose", 61, f"region={self.some_region()}")

    def damage(self) -> None:
        packet = bytearray(frame(self.chance.choice(TYPES), self.chance.randbytes(self.chance.randrange(40))))
        for _ in range(self.chance.randrange(3)):
            packet[self.chance.randrange(len(packet))] = self.chance.randrange(256)
        self.peer.ask(f"raw {packet.hex()} {self.chance.choice([0, 0, 0, 1, 64, 253])}")

    def administer(self) -> None:
        if self.often(80):
            return
        request = self.chance.choice(["List 1", "Info 1", f"Info 1 instance={self.name}"])
        self.peer.ask(f"send {request}")

    def leave(self) -> None:
        self.peer.do(self.chance.choice(["close", "shutdown"]))
        self.connected = False

    def die(self) -> None:
        self.peer.kill()
        self.start()


@pytest.fixture
def daemon(programs: Programs) -> Daemon:
    """All menaces together cannot have everything."""
    return programs.daemon("4G", config="[instance menace-*]\nlimit=384M\n")


@pytest.mark.timeout(300)
def test_anything_at_all(programs: Programs, daemon: Daemon, observer: Observer) -> None:
    seed = int(os.environ.get("KVCACHED_TEST_SEED", time.time_ns()))
    print(f"KVCACHED_TEST_SEED={seed}")
    chance = random.Random(seed)
    daemon.site.run.chmod(0o755)
    for path in (daemon.socket, daemon.control):
        path.chmod(0o666)
    menaces = [Menace(programs, daemon, number, chance) for number in range(CROWD)]
    for step in range(STEPS):
        chance.choice(menaces).step()
        if step % 200 == 0:
            limit = chance.choice([0, 128 * MIB, 384 * MIB, 384 * MIB])
            observer.admin.request("SetLimit", instance=f"uid:0/{chance.choice(menaces).name}", bytes=limit)
        if step % 500 == 250:
            name = chance.choice(menaces).name
            observer.admin.request("Delete", instance=f"uid:0/{name}", force=1)
        if step % 50 == 0:
            extents = observer.engine.take(observer.region)
            assert observer.engine.give_back(*extents).name == "Returned"
    answers = sum((menace.answers for menace in menaces), Counter())
    print(answers)
    assert all(answers[name] > STEPS // 1000 for name in COMMON_ANSWERS), answers
    for menace in menaces:
        menace.peer.kill()
    for menace in menaces:
        eventually(partial(forget, observer, menace.name))


def forget(observer: Observer, name: str) -> bool:
    """Deletes an instance with its limit; refused until its last process is known to have ended."""
    answer = observer.admin.request("Delete", instance=f"uid:0/{name}")
    return answer.name == "DeleteReply" or answer["error"] == "ERROR_NOT_FOUND"
