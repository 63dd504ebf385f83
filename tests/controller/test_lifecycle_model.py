# SPDX-License-Identifier: Apache-2.0
"""Random lives of one model, each step of which is held against what lifecycle.py promises. Books are kept
here of what went in and came out, and of nothing else."""

from __future__ import annotations

import heapq
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable
from functools import partial

from kvcached.controller.actions import (
    Action,
    Adopt,
    Answer,
    Forward,
    Found,
    Look,
    Phase,
    Refuse,
    Release,
    Reserve,
    Sleep,
    State,
    Wake,
    Why,
)
from kvcached.controller.config import SleepManager
from kvcached.controller.lifecycle import Lifecycle

LIVES = int(os.environ.get("KVCACHED_TEST_ROUNDS", "2000"))
STEPS = 150

CALLS = (Look, Reserve, Wake, Sleep)


class Books:
    """What has been seen of a life. Every method checks."""

    def __init__(self, settings: SleepManager) -> None:
        self.settings = settings
        self.waiting: dict[int, float] = {}  # request -> deadline
        self.in_flight: set[int] = set()
        self.last_forwarded = -1
        self.call: Look | Reserve | Wake | Sleep | None = None
        self.reservations: dict[int, str] = {}  # "asked", "granted"
        self.released: set[int] = set()
        self.asks: set[str] = set()
        self.awake = False  # as far as has been said
        self.woken_at: float | None = None
        self.slept_at: float | None = None
        self.overruled = False  # an administrator has asked since
        self.seen: Counter[str] = Counter()

    def act(self, now: float, action: Action) -> None:
        self.seen[type(action).__name__] += 1
        if isinstance(action, Forward):
            self.forward(action.request)  # type: ignore[arg-type]
        elif isinstance(action, Refuse):
            self.refuse(now, action)
        elif isinstance(action, CALLS):
            self.begin(now, action)
        elif isinstance(action, Release):
            self.release(action.call)
        elif isinstance(action, Answer):
            assert action.ask in self.asks, f"{action} is the second"
            self.asks.remove(str(action.ask))
        elif isinstance(action, Adopt):
            self.awake = action.state is State.AWAKE
            self.woken_at = self.slept_at = None

    def forward(self, request: int) -> None:
        assert request in self.waiting, f"{request} is not to be answered"
        assert request > self.last_forwarded, f"{request} was overtaken"
        assert self.awake, f"{request} goes to an engine that isn't known to be awake"
        del self.waiting[request]
        self.last_forwarded = request
        self.in_flight.add(request)

    def refuse(self, now: float, action: Refuse) -> None:
        deadline = self.waiting.pop(action.request, None)  # type: ignore[call-overload]
        assert deadline is not None, f"{action} is not to be answered"
        self.seen[action.code] += 1
        if action.code in ("queue_timeout", "no_room"):
            assert now >= deadline, action
        assert action.retry_after >= 0

    def begin(self, now: float, call: Look | Reserve | Wake | Sleep) -> None:
        assert self.call is None, f"{call} while {self.call} is under way"
        self.call = call
        if isinstance(call, Reserve):
            assert not self.reservations
            assert call.deadline > now
            self.reservations[call.call] = "asked"
        elif isinstance(call, Wake):
            assert list(self.reservations.values()) == ["granted"], "a wake without a reservation"
            if self.slept_at is not None and not self.overruled:
                assert now >= self.slept_at + self.settings.min_sleep_duration, "woken too early"
        elif isinstance(call, Sleep):
            assert not self.in_flight, "asked to sleep while it works"
            assert self.awake
            self.awake = False
            if self.woken_at is not None and not self.overruled:
                assert now >= self.woken_at + self.settings.min_awake_seconds, "asleep too early"

    def fell_asleep(self, now: float) -> None:
        """By our call, and for min_sleep_duration, unless an administrator waits already."""
        self.slept_at, self.woken_at = now, None
        self.overruled = any(ask.startswith("wake") for ask in self.asks)

    def release(self, call: int) -> None:
        """Again, perhaps, for a grant that was on its way."""
        assert call in self.reservations or call in self.released, f"{call} was never reserved"
        assert call not in self.reservations or not isinstance(self.call, Wake), "released under a wake"
        self.released.add(call)
        self.reservations.pop(call, None)
        if isinstance(self.call, Reserve) and self.call.call == call:
            self.call = None

    def check(self, now: float) -> None:
        """After each step."""
        assert len(self.waiting) <= self.settings.queue_max
        late = [request for request, deadline in self.waiting.items() if now > deadline]
        assert not late, f"{late} were forgotten"


class World:
    """A life, the engine that it is about, clients, administrators and other controllers."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.settings = SleepManager(
            idle_threshold_seconds=rng.choice([0, 1, 20]),
            auto_sleep_enabled=rng.random() < 0.5,
            wakeup_on_request=rng.random() < 0.85,
            min_sleep_duration=rng.choice([0, 2, 10, 40]),
            min_awake_seconds=rng.choice([0, 3, 15]),
            turn_seconds=rng.choice([0, 5]),
            queue_max=rng.choice([1, 4, 100]),
            queue_deadline_seconds=rng.choice([1, 5, 30]),
            drain_timeout_seconds=rng.choice([None, 4]),
            wake_timeout_seconds=rng.choice([3, 50]),
        )
        self.now = 0.0
        self.life = Lifecycle(self.settings, self.now)
        self.books = Books(self.settings)
        self.engine = rng.choice(list(Found))
        self.trouble = rng.choice([0.0, 0.2, 0.6])  # how often something goes wrong
        self.room = rng.random()
        self.pace = rng.choice([0.05, 0.5, 5.0])  # seconds between what happens
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.requests = itertools.count()
        self.closing = self.disowned = False
        self.do(self.life.start(self.now))

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.advance(self.rng.expovariate(1 / self.pace))
            self.rng.choices(
                [
                    self.request,
                    self.end,
                    self.leave,
                    self.ask,
                    self.make_room,
                    self.elsewhere,
                    self.probe,
                    self.replace,
                ],
                [40, 30, 4, 6, 4, 6, 10, 2],
            )[0]()
        if self.rng.random() < 0.5:
            self.stop()
        self.finish()

    def stop(self) -> None:
        """Then others may need room still, and who comes is refused."""
        self.disowned = self.rng.random() < 0.5
        self.do(self.life.stop(self.now, self.disowned))
        self.closing = True
        for _ in range(self.rng.choice([0, 20])):
            self.advance(self.rng.expovariate(1 / self.pace))
            self.rng.choices(
                [self.request, self.end, self.leave, self.make_room, self.elsewhere, self.probe],
                [10, 30, 4, 20, 6, 10],
            )[0]()

    def finish(self) -> None:
        """Requests end, calls come back, and nothing is left."""
        for _ in range(1000):
            for request in sorted(self.books.in_flight):
                self.end_request(request)
            if self.life.quiet and not self.books.waiting:
                break
            times = [
                t for t in (self.life.due(), self.events[0][0] if self.events else None) if t is not None
            ]
            assert times, "it waits for nothing"
            self.advance(max(0.0, min(times) - self.now) + 0.001)
        assert self.life.quiet
        assert self.life.queued == 0
        assert not self.life.in_flight
        books = self.books
        assert (books.waiting, books.asks, books.call, books.reservations) == ({}, set(), None, {})
        if self.closing or not self.settings.auto_sleep_enabled:
            assert self.life.due() is None

    def advance(self, seconds: float) -> None:
        """Whatever falls due meanwhile happens, in its order."""
        until = self.now + seconds
        while True:
            due = self.life.due()
            event = self.events[0][0] if self.events else None
            if event is not None and event <= until and (due is None or event <= due):
                self.now = max(self.now, event)
                heapq.heappop(self.events)[2]()
            elif due is not None and due <= until:
                self.now = max(self.now, due)
                self.do(self.life.tick(self.now))
                after = self.life.due()
                assert after is None or after > self.now, "a tick that does nothing"
                self.books.check(self.now)
            else:
                break
        self.now = until

    def later(self, what: Callable[[], None], seconds: float) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), what))

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            self.books.act(self.now, action)
        for action in actions:
            if isinstance(action, CALLS):
                self.later(partial(self.come_back, action), self.rng.choice([0.0, 0.3, 2.0, 8.0]))
        stranded = self.life.in_flight and self.settings.wakeup_on_request
        self.books.seen["stranded"] += bool(stranded and self.life.state is State.WAKING)
        if stranded and self.life.state is State.ASLEEP:
            assert self.life.due() is not None, "nobody wakes it for those that wait in it"
        seen = f"{self.life.state.name} {self.life.phase.name}"
        self.books.seen[seen] += 1

    def come_back(self, call: Look | Reserve | Wake | Sleep) -> None:
        """A call's outcome, unless nobody is interested any more; then perhaps all the same."""
        books, life, number, wrong = self.books, self.life, call.call, self.rng.random() < self.trouble
        current = books.call is not None and books.call.call == number
        if not current and self.rng.random() < 0.5:
            return
        if current:
            books.call = None
        if isinstance(call, Look):
            if current and self.engine is Found.AWAKE:
                books.awake = True
            if current and self.engine is Found.ASLEEP and life.state is State.DRAINING:
                books.fell_asleep(self.now)
            self.do(life.looked(self.now, number, self.engine, "looked"))
        elif isinstance(call, Reserve):
            if self.rng.random() < self.room:
                if current:
                    books.reservations[number] = "granted"
                self.do(life.room_granted(self.now, number))
            else:
                if current:
                    del books.reservations[number]
                self.do(life.room_refused(self.now, number))
        elif isinstance(call, Wake):
            if current and self.rng.random() < 0.1:
                self.engine = self.rng.choice(list(Found))
                books.seen["overtaken"] += 1
                self.do(life.wake_overtaken(self.now, number))
            elif wrong or self.engine is Found.DEAD:
                self.do(life.wake_failed(self.now, number, "failed"))
            else:
                self.engine, books.awake = Found.AWAKE, True
                books.woken_at, books.slept_at, books.overruled = self.now, None, False
                self.do(life.woken(self.now, number))
        elif wrong or self.engine is Found.DEAD:
            self.do(life.sleep_failed(self.now, number, "failed"))
        else:
            self.engine = Found.ASLEEP
            books.fell_asleep(self.now)
            self.do(life.slept(self.now, number))
        books.check(self.now)

    # What may happen

    def request(self) -> None:
        request = next(self.requests)
        self.books.waiting[request] = self.now + self.settings.queue_deadline_seconds
        if len(self.books.waiting) > self.settings.queue_max:
            # It must be answered at once: there is no place for it to wait.
            self.do(self.life.came(self.now, request))
            assert request not in self.books.waiting
        else:
            self.do(self.life.came(self.now, request))
        self.books.check(self.now)

    def end(self) -> None:
        if self.books.in_flight:
            self.end_request(self.rng.choice(sorted(self.books.in_flight)))

    def end_request(self, request: int) -> None:
        self.books.in_flight.remove(request)
        self.do(self.life.ended(self.now, request))

    def leave(self) -> None:
        """A client goes while it waits; or one is said to go that is gone already."""
        if self.books.waiting:
            request = self.rng.choice(sorted(self.books.waiting))
            del self.books.waiting[request]
            self.do(self.life.ended(self.now, request))
        else:
            self.do(self.life.ended(self.now, -1))

    def ask(self) -> None:
        wake = self.rng.random() < 0.5
        ask = f"{'wake' if wake else 'sleep'} {next(self.numbers)}"
        self.books.asks.add(ask)
        self.books.overruled = True
        if wake:
            self.do(self.life.wake_asked(self.now, ask))
        else:
            self.do(self.life.sleep_asked(self.now, Why.ADMIN, ask, self.rng.random() < 0.5))

    def make_room(self) -> None:
        why = self.rng.choice([Why.ROOM, Why.TURN])
        before = self.life.phase
        self.do(self.life.sleep_asked(self.now, why))
        assert not self.disowned or self.life.phase is before, "it gives way although it is not ours"
        self.do(self.life.room_changed(self.now))

    def elsewhere(self) -> None:
        """The engine dies, comes back, or another controller changes it."""
        if self.rng.random() < 0.5 + self.trouble / 2:
            self.engine = self.rng.choice(list(Found))

    def replace(self) -> None:
        """By another engine, of which nothing is known."""
        self.engine = self.rng.choice(list(Found))
        if self.life.state is State.AWAKE or self.life.phase is Phase.EMPTYING:
            self.books.awake = False
            self.books.seen["replaced"] += 1
        self.do(self.life.unserved(self.now))

    def probe(self) -> None:
        """Its answer is what was true when it began."""
        began, found = self.now, self.engine
        self.later(
            lambda: self.do(self.life.probed(self.now, began, found, "probed")), self.rng.choice([0.01, 1.0])
        )


def test_random_lives(seed: int) -> None:
    seen: Counter[str] = Counter()
    for life in range(LIVES):
        world = World(random.Random(f"{seed}.{life}"))
        try:
            world.run(STEPS)
        except BaseException:
            print(f"life {life}, {world.settings}")
            raise
        seen += world.books.seen
    expected = ["AWAKE NONE", "ASLEEP NONE", "FAILED NONE"]
    expected += [f"DRAINING {phase}" for phase in ("EMPTYING", "CALLING", "LOOKING")]
    expected += [f"WAKING {phase}" for phase in ("LOOKING", "RESERVING", "WANTING", "CALLING")]
    expected += ["Forward", "Refuse", "Look", "Reserve", "Release", "Wake", "Sleep", "Answer", "Adopt"]
    expected += ["queue_full", "queue_timeout", "no_room", "model_asleep", "wake_failed", "engine_dead"]
    expected += ["shutting_down"] if seen["shutting_down"] else []
    expected += ["replaced", "overtaken", "stranded"]
    missing = [name for name in expected if not seen[name]]
    assert not missing, f"never happened: {missing}"
