# SPDX-License-Identifier: Apache-2.0
"""A GPU, engines whose models don't fit on it together, and what decides about them, in virtual time: hours
of it take seconds, and two runs are alike."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from kvcached.controller import victims
from kvcached.controller.actions import (
    Action,
    Forward,
    Found,
    Look,
    Refuse,
    Reserve,
    Sleep,
    State,
    Wake,
    Why,
)
from kvcached.controller.config import SleepManager
from kvcached.controller.lifecycle import Lifecycle
from kvcached.controller.victims import Candidate, Need

GPU = 0
SLEEP_SECONDS = 1.0


@dataclass
class Model:
    name: str
    bytes: int
    wake_seconds: float
    serve_seconds: float  # that a request takes once it is forwarded
    life: Lifecycle
    awake: bool = False  # in truth
    came: dict[int, float] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)  # seconds, of each request that was forwarded
    refused: list[str] = field(default_factory=list)
    wakes: list[float] = field(default_factory=list)  # when
    awake_seconds: float = 0.0


class Node:
    """known: whether whoever refuses room says how much is missing."""

    def __init__(self, capacity: int, settings: SleepManager, known: bool = True) -> None:
        self.capacity = capacity
        self.settings = settings
        self.known = known
        self.now = 0.0
        self.models: dict[str, Model] = {}
        self._reserved: dict[str, int] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def add(self, name: str, size: int, wake_seconds: float = 5, serve_seconds: float = 2) -> Model:
        life = Lifecycle(self.settings, self.now)
        model = Model(name, size, wake_seconds, serve_seconds, life)
        self.models[name] = model
        self._do(model, life.start(self.now))
        return model

    def request(self, name: str, at: float) -> None:
        self._later(at - self.now, partial(self._request, self.models[name]))

    def run(self, until: float) -> None:
        while True:
            dues = [(due, m) for m in self.models.values() if (due := m.life.due()) is not None]
            due, model = min(dues, key=lambda pair: pair[0], default=(until + 1, None))
            event = self._events[0][0] if self._events else until + 1
            if min(due, event) > until:
                break
            at = max(self.now, min(due, event))
            for each in self.models.values():
                each.awake_seconds += (at - self.now) * each.awake
            self.now = at
            if event <= due:
                heapq.heappop(self._events)[2]()
            elif model is not None:
                self._do(model, model.life.tick(self.now))
            assert self.free() >= 0, "more is awake than there is room for"

    def free(self) -> int:
        held = sum(m.bytes for m in self.models.values() if m.awake or m.name in self._reserved)
        return self.capacity - held

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what))

    def _request(self, model: Model) -> None:
        request = next(self._numbers)
        model.came[request] = self.now
        self._do(model, model.life.came(self.now, request))

    def _do(self, model: Model, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Forward):
                assert model.awake, "a request goes to an engine that sleeps"
                model.waits.append(self.now - model.came.pop(int(str(action.request))))
                self._later(model.serve_seconds, partial(self._end, model, int(str(action.request))))
            elif isinstance(action, Refuse):
                model.refused.append(action.code)
                del model.came[int(str(action.request))]
            elif isinstance(action, Look):
                self._later(0.01, partial(self._looked, model, action.call))
            elif isinstance(action, Reserve):
                self._later(0.01, partial(self._reserve, model, action.call))
            elif isinstance(action, Wake):
                model.awake = True
                self._reserved.pop(model.name)
                model.wakes.append(self.now)
                self._later(model.wake_seconds, partial(self._woken, model, action.call))
            elif isinstance(action, Sleep):
                self._later(SLEEP_SECONDS, partial(self._slept, model, action.call))

    def _end(self, model: Model, request: int) -> None:
        self._do(model, model.life.ended(self.now, request))

    def _looked(self, model: Model, call: int) -> None:
        self._do(model, model.life.looked(self.now, call, Found.AWAKE if model.awake else Found.ASLEEP))

    def _woken(self, model: Model, call: int) -> None:
        self._do(model, model.life.woken(self.now, call))

    def _slept(self, model: Model, call: int) -> None:
        model.awake = False
        self._do(model, model.life.slept(self.now, call))
        for other in self.models.values():
            self._do(other, other.life.room_changed(self.now))

    def _reserve(self, model: Model, call: int) -> None:
        missing = model.bytes - self.free()
        if missing <= 0:
            self._reserved[model.name] = model.bytes
            self._do(model, model.life.room_granted(self.now, call))
        else:
            self._do(model, model.life.room_refused(self.now, call))
            self._make_room(model, missing)

    def _make_room(self, model: Model, missing: int) -> None:
        since = model.life.waiting_since
        assert since is not None
        need = Need(model.name, frozenset({GPU}), {GPU: missing if self.known else None}, since)
        choice = victims.choose(need, map(self._candidate, self._candidates()), self.settings, self.now)
        for names, why in ((choice.sleep, Why.ROOM), (choice.turn, Why.TURN)):
            for name in names:
                victim = self.models[str(name)]
                self._do(victim, victim.life.sleep_asked(self.now, why))
                assert victim.life.state is not State.AWAKE, "a victim that cannot be one"

    def _candidates(self) -> list[Model]:
        return [m for m in self.models.values() if m.life.state in (State.AWAKE, State.DRAINING)]

    def _candidate(self, model: Model) -> Candidate:
        life = model.life
        return Candidate(
            model=model.name,
            bytes={GPU: model.bytes},
            awake_since=life.awake_since or 0.0,
            may_sleep_from=life.may_sleep_from() or 0.0,
            idle_since=life.idle_since,
            in_flight=len(life.in_flight),
            wake_seconds=life.wake_seconds or 1.0,
            leaving=life.state is State.DRAINING,
        )
