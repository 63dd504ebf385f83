# SPDX-License-Identifier: Apache-2.0
"""Peers that do anything at all, in any order, for a while.

Nothing is expected of their answers; only that others are served meanwhile, that what was promised to an
honest client is there, that the books are right, and that nothing is left of them in the end. Under
sanitizers this looks for what no other test has thought of. $KVCACHED_TEST_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from harness.broker import LIMIT_S, Daemon, Programs, eventually
from harness.observer import MIB, Observer
from harness.raw import LEASES, ORDERS, RESERVATIONS, Message, frame, start_raw

STEPS = 60_000
CROWD = 8
STRANGER_UID = 54321
TYPES = (*range(1, 6), *range(16, 25), *range(41, 45), *range(64, 72))
# What chance brings about often enough for this to be a test.
COMMON_ANSWERS = ("Welcome", "Refused", "RegionOpened", "Grant", "Returned", "Leased", "closed")
CLAIMANTS_ANSWERS = ("Leased", "Grant", "Returned")
# ... and what takes more than one to come about.
RARE_ANSWERS = ("RegionAttached", "Notice", "MapOrder", "UnmapOrder", "Reserved", "Released")


Habits = list[tuple[int, Callable[[], None]]]


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
        self.habits: Habits = [
            (100, self.read),
            (5, self.close_region),
            (30, self.lease),
            (30, self.claim),
            (25, self.take_leased),
            (5, self.unclaim),
            (5, self.hint),
            (1, self.scribble),
            (20, self.answer_notice),
            (2, self.damage),
            (2, self.administer),
            (2, self.leave),
            (3, self.die),
        ]
        self.mappers_habits: Habits = [
            (10, self.open_region),
            (40, self.take),
            (60, self.acknowledge),
            (50, self.give_back),
            (30, self.obey),
        ]
        self.schedulers_habits: Habits = [(60, self.attach), (120, self.order)]
        self.controllers_habits: Habits = [(60, self.reserve), (40, self.release)]
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
        if self.role == "CONTROLLER" and self.often(98):
            habits = self.habits + self.controllers_habits
        elif (self.role == "SCHEDULER") == self.often(98):
            habits = self.habits + self.schedulers_habits
        else:
            habits = self.habits + self.mappers_habits
        weights = [weight for weight, _ in habits]
        self.chance.choices([habit for _, habit in habits], weights)[0]()

    def some_number(self) -> int:
        return self.chance.choice([0, 1, 2, 3, 8, 40, 64, 65, 4097, 2**31, 2**32 - 1])

    def connect(self) -> None:
        self.connected = True
        self.regions: list[int] = []
        self.unacknowledged: list[int] = []
        self.claims: list[tuple[int, int]] = []
        self.notices = [0]
        self.orders: list[int] = []
        self.number = 0
        self.attached = False
        self.peer.ask(f"connect {self.daemon.socket if self.often(95) else self.daemon.control}")
        roles = ["ENGINE", "WORKER", "SCHEDULER", "CONTROLLER", "UNSPECIFIED"]
        self.role = self.chance.choices(roles, [46, 22, 22, 8, 2])[0]
        self.features = self.chance.choices(
            [LEASES | ORDERS, LEASES, ORDERS, 0, 2**64 - 1], [80, 8, 6, 4, 2]
        )[0]
        if self.role == "CONTROLLER" and self.often(95):
            self.features = RESERVATIONS
        name = self.name
        if self.often(10 if self.role == "ENGINE" else 80):
            name = "menace-0" if self.often(97) else "-"
        self.say(
            "Hello",
            1,
            f"min_version=1 max_version=1 role=ROLE_{self.role} instance={name} features={self.features}",
        )
        if self.role == "SCHEDULER":
            self.attach()
        elif self.role == "CONTROLLER":
            self.reserve()
        else:
            self.open_region()

    def open_region(self) -> None:
        shapes = ["1,0,0,0", "3,1,0,0", "0,2,1,0"] if self.often(90) else ["0,0,0,1", "0,0,0,0", "1,1,1,1,1"]
        segments = 1 if self.often(95) else self.some_number()
        fields = f"segments={segments} capacity_pages=64 page_extents={self.chance.choice(shapes)}"
        if self.role == "WORKER":
            fields += f" ordered=1 rank={self.some_rank()}"
        self.say("RegionOpen", 2, fields)

    def some_region(self) -> int:
        return self.chance.choice(self.regions) if self.regions and self.often(95) else self.some_number()

    def some_rank(self) -> int:
        return 0 if self.often(80) else 1

    def some_pages(self) -> int:
        return self.chance.choice([1, 1, 2, 5, 20, 64]) if self.often(95) else self.some_number()

    def reserve(self) -> None:
        """A part of what all menaces may have together, or more than there is."""
        parts = [0, 1, MIB, 20 * MIB, 60 * MIB]
        parts += [] if self.often(90) else [2**43, 2**56, 2**63, 2**64 - 1]
        foreign = self.chance.choice([0, 0, 1, MIB, 20 * MIB, parts[-1]])
        self.if_it_may(RESERVATIONS, "Reserve", f"bytes={self.chance.choice(parts)} foreign_bytes={foreign}")

    def release(self) -> None:
        self.if_it_may(RESERVATIONS, "Release", "")

    def some_request(self) -> int:
        return self.chance.randrange(3, 50)

    def if_it_may(self, feature: int, name: str, fields: str) -> None:
        """Says what is fatal without the feature."""
        if self.features & feature or self.often(2):
            self.say(name, self.some_request(), fields)

    def take(self) -> None:
        self.say("Take", self.some_request(), f"region={self.some_region()} pages={self.some_pages()}")

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
            self.note(message)

    def note(self, message: Message) -> None:
        if message.name in ("RegionOpened", "RegionAttached"):
            self.regions.append(message.number("region"))
        elif message.name == "Notice":
            self.notices.append(message.number("number"))
        elif message.name in ("Grant", "MapOrder"):
            self.seen += message.numbers("extents")
            self.unacknowledged.append(message.number("request"))
        elif message.name == "Refused" and message["error"] == "ERROR_WORKER":
            self.regions.clear()
            self.attached = False
        if message.name == "UnmapOrder" or (message.name == "MapOrder" and message["remaining"] == "0"):
            self.orders.append(message.number("request"))

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

    # ---- Leases ----

    def lease(self) -> None:
        courtesy = self.chance.randrange(2)
        fields = f"region={self.some_region()} pages={self.some_pages()} courtesy={courtesy}"
        self.if_it_may(LEASES, "Lease", fields)

    def change_lease(self, region: int, how: str, *numbers: int) -> int:
        """What comes of it; nothing, where there is no such line or no lease file."""
        answer = self.peer.ask(" ".join(["lease", str(region), how, *map(str, numbers)]))
        return int(answer.removeprefix("ok ")) if answer.startswith("ok ") else 0

    def claim(self) -> None:
        region = self.some_region()
        pages = self.change_lease(region, "claim", self.some_pages())
        if pages:
            self.claims.append((region, pages))

    def take_leased(self) -> None:
        """What has been claimed; or what hasn't, or is left in the word."""
        if self.claims and self.often(90):
            region, pages = self.claims.pop()
            if not self.change_lease(region, "spend", pages) and self.often(90):
                return
        elif self.often(30):
            region, pages = self.some_region(), self.some_pages()
        else:
            return
        if self.role == "SCHEDULER" and 0 < pages <= 64:
            self.say_order("Map", region, pages, "leased=1")
        else:
            self.say("Take", self.some_request(), f"region={region} pages={pages} leased=1")

    def unclaim(self) -> None:
        if self.claims:
            self.change_lease(self.claims[-1][0], "unclaim", self.claims.pop()[1])

    def hint(self) -> None:
        self.change_lease(self.some_region(), "hint", self.some_number(), self.some_number())

    def scribble(self) -> None:
        word = self.chance.choice([0, 1, 5, 1 << 32, 5 << 32 | 1, 64 << 32, 2**63, 2**64 - 1])
        if self.often(80):
            self.change_lease(self.some_region(), "write", word)
        else:
            self.peer.ask("punch")

    def answer_notice(self) -> None:
        """Most often the last one, which is the right one; perhaps long after, or again."""
        if self.notices[-1] or self.often(5):
            number = self.notices[-1] if self.often(90) else self.some_number()
            self.if_it_may(LEASES, "NoticeAck", f"number={number}")

    # ---- Orders ----

    def attach(self) -> None:
        """Once, most often: those who attach are in each other's way."""
        if not self.attached or self.often(3):
            self.attached = True
            self.if_it_may(ORDERS, "RegionAttach", f"rank={self.some_rank()}")

    def order(self) -> None:
        if not self.regions and self.often(95):
            return
        name = self.chance.choice(["Map", "Map", "Unmap"])
        self.say_order(name, self.some_region(), self.chance.choice([1, 1, 2, 5, 64]))

    def say_order(self, name: str, region: int, n_pages: int, more: str = "") -> None:
        """One above the other, most often."""
        self.number += 1 if self.often(98) else -1
        pages = ",".join(map(str, self.chance.sample(range(64), n_pages)))
        fields = f"region={region} number={max(self.number, 0)} pages={pages} {more}"
        self.if_it_may(ORDERS, name, fields.strip())

    def obey(self) -> None:
        if self.orders:
            error = (
                "ERROR_NONE" if self.often(90) else self.chance.choice(["ERROR_DRIVER", "ERROR_LIMIT", "77"])
            )
            self.say("OrderDone", self.orders.pop(0), f"error={error} reason=whatever")
        elif self.often(1):
            self.say("OrderDone", 3)

    # ---- The end ----

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


class Claimant:
    """An honest client of leases. What it has claimed it gets, whatever others do, and whatever its limit is
    by then. It asks for one thing at a time, and nobody waits with it for the answer."""

    def __init__(self, programs: Programs, daemon: Daemon, chance: random.Random) -> None:
        self.chance = chance
        self.peer = start_raw(programs, daemon, "claimant")
        self.peer.open(features=LEASES)
        self.region = self.peer.open_region()
        self.claimed = 0
        self.held: list[int] = []
        self.asked = ""
        self.answers: Counter[str] = Counter()

    def ask(self, name: str, pages: int = 0, **fields: object) -> None:
        self.asked, self.pages, self.since = name, pages, time.monotonic()
        if pages:
            fields |= {"region": self.region, "pages": pages}
        self.request = self.peer.post(name, **fields)

    def step(self) -> None:
        answer = self.peer.next(within=0)
        if answer.name == "Notice":
            self.heed(answer)
        elif answer.name != "nothing":
            self.hear(answer)
        elif self.asked:
            assert time.monotonic() < self.since + LIMIT_S, f"no answer to {self.asked}"
        else:
            self.chance.choice([self.lease, self.take, self.take, self.give_back])()
        assert self.peer.lease(self.region).claimed == self.claimed

    def lease(self) -> None:
        self.ask("Lease", self.chance.randrange(1, 20), courtesy=self.chance.randrange(2))

    def take(self) -> None:
        """Some of what is claimed; the rest is for later."""
        if self.claimed:
            pages = self.chance.randrange(1, self.claimed + 1)
            assert self.peer.spend(self.region, pages)
            self.claimed -= pages
            self.ask("Take", pages, leased=1)

    def give_back(self) -> None:
        """All but so little that others have to be pressed for more now and then."""
        if len(self.held) > 40:
            self.ask("Return", extents=self.held[20:])
            del self.held[20:]

    def heed(self, notice: Message) -> None:
        """Keeps some of its promises to itself."""
        pages = self.chance.randrange(self.claimed + 1)
        assert self.peer.unclaim(self.region, pages) == pages
        self.claimed -= pages
        self.answers["Notice"] += 1
        self.peer.post("NoticeAck", number=notice.number("number"))

    def hear(self, answer: Message) -> None:
        assert answer.number("request") == self.request, answer.text
        self.answers[answer.name] += 1
        if answer.name == "Refused":
            assert self.asked == "Lease", answer.text
            assert answer["error"] in ("ERROR_LIMIT", "ERROR_BUDGET"), answer.text
        elif answer.name == "Leased":
            assert (self.asked, self.pages) == ("Lease", answer.number("pages"))
            self.claimed += self.peer.claim(self.region, self.pages)
        elif answer.name == "Grant":
            extents = self.peer.collect(answer)
            assert len(extents) == self.pages
            self.held += extents
        else:
            assert (self.asked, answer.name) == ("Return", "Returned"), answer.text
        self.asked = ""


@pytest.fixture(params=[None, "768M"], ids=["limits", "budget"])
def daemon(programs: Programs, request: pytest.FixtureRequest) -> Daemon:
    """All menaces together cannot have everything; or can, so that each is asked to give back for others."""
    return programs.daemon("6G", budget=request.param, config="[instance menace-*]\nlimit=384M\n")


@pytest.mark.timeout(300)
def test_anything_at_all(programs: Programs, daemon: Daemon, observer: Observer) -> None:
    seed = int(os.environ.get("KVCACHED_TEST_SEED", time.time_ns()))
    print(f"KVCACHED_TEST_SEED={seed}")
    chance = random.Random(seed)
    daemon.site.run.chmod(0o755)
    for path in (daemon.socket, daemon.control):
        path.chmod(0o666)
    is_scarce = observer.info().number("budget_bytes") < 1 << 30
    menaces = [Menace(programs, daemon, number, chance) for number in range(CROWD)]
    claimant = Claimant(programs, daemon, chance)
    names = [claimant.peer.instance, *(menace.name for menace in menaces)]
    for step in range(STEPS):
        chance.choice(menaces).step()
        if step % 10 == 0:
            claimant.step()
        if step % 200 == 0:
            limit = chance.choice([0, 128 * MIB, 384 * MIB, 384 * MIB])
            observer.admin.request("SetLimit", instance=f"uid:0/{chance.choice(names)}", bytes=limit)
        if step % 1000 == 250:
            name = chance.choice(menaces).name
            observer.admin.request("Delete", instance=f"uid:0/{name}", force=1)
        if step % 50 == 0:
            serve(observer, is_scarce)
        if step % 2000 == 0:
            eventually(partial(books_agree, observer))
    answers = sum((menace.answers for menace in menaces), Counter())
    print(answers, claimant.answers)
    assert all(answers[name] > STEPS // 2000 for name in COMMON_ANSWERS), answers
    assert all(answers[name] > 0 for name in RARE_ANSWERS), answers
    assert all(claimant.answers[name] > STEPS // 2000 for name in CLAIMANTS_ANSWERS), claimant.answers
    for peer in (claimant.peer, *(menace.peer for menace in menaces)):
        peer.kill()
    for name in names:
        eventually(partial(forget, observer, name))


def serve(observer: Observer, is_scarce: bool) -> None:
    """A decent engine gets a page; where others may have taken the last one, at least an answer."""
    extents = observer.engine.take_or_none(observer.region)
    assert extents or is_scarce
    if extents:
        assert observer.engine.give_back(*extents).name == "Returned"


def books_agree(observer: Observer) -> bool:
    """Instances are charged what the daemon has lent, and for nothing else. Between the two answers something
    may move."""
    total: Counter[str] = Counter()
    listed = observer.admin.request("List")
    for instance in re.findall(r"limit_bytes=.*?reserved_bytes=\d+", listed.text):
        fields = {name: int(number) for name, number in re.findall(r"(\w+)_bytes=(\d+)", instance)}
        parts = ("granted", "limbo", "pending", "leased", "reserved")
        assert fields["used"] == sum(fields[name] for name in parts), instance
        total.update(fields)
    info = observer.info()
    states = ("creating", "pool", "leased", "granted", "limbo", "destroying")
    now = {name: info.number(f"{name}_bytes") for name in states}
    assert info.number("held_bytes") == sum(now.values()), info.text
    assert (total["leased"], total["granted"]) == (now["leased"], now["granted"]), listed.text + info.text
    assert now["limbo"] <= total["limbo"] <= now["limbo"] + now["destroying"], listed.text + info.text
    return True


def forget(observer: Observer, name: str) -> bool:
    """Deletes an instance with its limit; refused until its last process is known to have ended."""
    answer = observer.admin.request("Delete", instance=f"uid:0/{name}")
    return answer.name == "DeleteReply" or answer["error"] == "ERROR_NOT_FOUND"
