# SPDX-License-Identifier: Apache-2.0
"""One model, awake or asleep: whom it serves, who waits, when it is woken and put to sleep.

A state machine without I/O, clock or threads. Each method is an event, gets the time (seconds of a monotonic
clock) and returns actions (actions.py), to be done in their order and before the next event. Those that are
calls take their time, and what comes of them is an event. Requests and asks are named by whatever is hashable
and unique.

What it promises:

  - A request that came is answered by exactly one Forward or Refuse, unless its client leaves first.
  - Those that wait are forwarded in the order in which they came, and before whoever comes later.
  - Who waits is refused when queue_deadline_seconds have passed, and at most queue_max wait.
  - At most one call is under way: so there is one wake, however many requests ask for it.
  - Sleep is never called while a forwarded request has not ended. Nothing is ever aborted.
  - A reservation that is not refused is released: when the engine is awake, or when it is given up.
  - A model that woke stays awake for min_awake_seconds, and one that was put to sleep stays asleep for
    min_sleep_duration: requests wait, they don't fail. An administrator may overrule both.
  - Each ask that has a name is answered exactly once.

The engine's word is the truth, and this is only what is known of it: others may put it to sleep and wake it,
too. So it is looked at before anything is reserved or woken, when a call to sleep has failed, and at the
beginning. What is noticed in passing, by probed(), counts unless it is older than the last change, or a call
is under way that will tell.

States, and phases in them:

  AWAKE                 requests are forwarded
  DRAINING  emptying    to be put to sleep, once what was forwarded has ended
            calling     Sleep is under way
            looking     Sleep has failed; Look is under way
  ASLEEP                those who wait, wait for min_sleep_duration to pass
  WAKING    looking     Look is under way; a lifecycle begins so
            reserving   Reserve is under way
            wanting     there was no room; asked again each second, and when room_changed()
            calling     Wake is under way
  FAILED                nothing is tried until retry_at, which is farther away after each failure in a row

Events in states:

  event           AWAKE          DRAINING               ASLEEP       WAKING                 FAILED
  came            Forward        a                      b            queue                  c
  ended           -              emptying: last: Sleep  -            give up if unwanted    -
  tick            d              emptying: e            b            deadlines; wanting: f  -
  sleep_asked     g              join                   yes          no                     no
  wake_asked      yes            h                      Look         join                   Look
  probed AWAKE    -              -                      awake        i: awake               awake
  probed ASLEEP   asleep         emptying: asleep       -            -                      l: asleep
  probed DEAD     failed         emptying: failed       failed       i: failed              -
  looked AWAKE    -              looking: awake         -            looking: awake         -
  looked ASLEEP   -              looking: asleep        -            looking: k             -
  looked DEAD     -              looking: failed        -            looking: failed        -
  room_granted    Release        Release                Release      reserving: Wake        Release
  room_refused    -              -                      -            reserving: wanting     -
  room_changed    -              -                      -            wanting: Reserve       -
  slept           -              calling: asleep        -            -                      -
  sleep_failed    -              calling: Look          -            -                      -
  woken           -              -                      -            calling: awake         -
  wake_failed     -              -                      -            calling: failed        -
  wake_overtaken  -              -                      -            calling: Release, Look -
  unserved        n              emptying: n            -            -                      -
  stop            j              m; j                   j            j                      j
  go_on           the end of j, in all of them
  held            -              -                      -            -                      -

  a  Emptying and not firm: drop, Forward. Else queue.
  b  Queue. With somebody in it or stranded, and min_sleep_duration over, or a wake asked for: Look, and it is
     WAKING.
  c  Before retry_at: Refuse. Then queue and Look, and it is WAKING.
  d  With auto_sleep_enabled, idle for idle_threshold_seconds, awake for min_awake_seconds: drains, not firm.
  e  drain_timeout_seconds over, or the patience of the first in the queue: drop.
  f  Reserve, a second after the last refusal.
  g  Drains. No, unless an administrator asks: awake for less than min_awake_seconds, a drain was dropped in
     e or a sleep failed a while ago, or requests are under way and it is not for a turn.
  h  Emptying: drop, yes. Else joins, and it is woken as soon as it is asleep.
  i  Reserving or wanting.
  j  From now on who comes is refused, asks are told no, and nothing sleeps but for others' need of room: they
     have requests, too, that were accepted. Not even for that where the engines are not ours any more.
  k  Reserve, where b says Look; else it is ASLEEP.
  l  From retry_at on.
  m  Emptying: drop, unless it is to sleep as j says.
  n  Look, and it is WAKING; asks are told no.

  queue     Waits; or is refused: queue_full, or model_asleep, where requests don't wake it, or could not be
            before its deadline, for min_sleep_duration.
  drop      The drain is over, and it is AWAKE: asks are told no, who waits is forwarded.
  stranded  Those that were forwarded when somebody else put it to sleep: they wait in the engine, and only a
            wake helps them. They count as those who wait do, where requests wake it.
  give up   Reserving or wanting, and nobody waits, is stranded or has asked any more: Release, and it is
            ASLEEP.
  awake     It is AWAKE: Release, asks are told, who waits is forwarded.
  asleep    It is ASLEEP, then as in b. min_sleep_duration counts only from a sleep of ours.
  failed    It is FAILED: Release, who waits is refused (wake_failed, engine_dead), asks are told no. What was
            forwarded is the engine's affair, in this and in all other states.
  held      It counts as a request that was forwarded, until it has ended: another model has requests at its
            engine.
  A result that isn't that of the call under way changes nothing; a grant is released.

Drains are firm or not. One that is not is dropped for the first request that comes. A firm one lets requests
wait, for it is meant for models that never rest: for turns always, else where the asker says so. When the
first of those that wait could no longer be served in time by sleeping and waking again, its patience ends:
the drain is dropped, and the model has another turn_seconds. But once only before it sleeps, or others would
wait for ever for the memory of a model whose answers are long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

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

BACKOFF_SECONDS = 5.0  # after a first failure; doubled for each further one in a row
BACKOFF_MAX_SECONDS = 300.0
ROOM_RETRY_SECONDS = 1.0
# What a wake takes until one has been seen, for Retry-After.
WAKE_GUESS_SECONDS = 10.0


class Lifecycle:
    """Call start() first. `settings` may be replaced at any time; deadlines that run stay. Attributes are for
    reading."""

    def __init__(self, settings: SleepManager, now: float) -> None:
        self.settings = settings
        self.state = State.WAKING
        self.phase = Phase.LOOKING
        self.changed_at = now  # since when that is known of the engine
        self.in_flight: set[Hashable] = set()
        self.awake_since: float | None = None
        self.asleep_since: float | None = None  # None also where nobody knows
        self.slept_for: Why | None = None
        self.why = Why.IDLE  # it drains, or drained last
        self.idle_since = now  # the last request's beginning or end; meaningless while one is under way
        self.retry_at = now  # of FAILED
        self.wanted_at = now  # when somebody came, or asked, whom a wake would have served
        self.failure = ""
        self.wake_seconds: float | None = None  # that the last wake took
        self.stopping = False
        self._gives_way = True  # also while it is stopping
        # When each came, and its deadline, which is never before that of an earlier one.
        self._queue: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        self._last_deadline = now
        self._stranded_since = now  # meaningful while somebody is
        self._wake_asks: dict[Hashable, tuple[float, float]] = {}  # when, and deadline
        self._sleep_asks: list[Hashable] = []
        self._calls = 0
        self._call: int | None = None
        self._reserved: int | None = None  # number of the Reserve that is to be released
        self._firm = False
        self._dropped = False  # a drain has been dropped for who waits; the next one is not
        self._drain_deadline: float | None = None
        self._hold_until = now  # before which requests don't wake it
        self._no_sleep_before = now
        self._room_retry_at = now
        self._wake_began = now
        self._failure_code = ""
        self._failures = 0
        self._sleep_failures = 0
        self._out: list[Action] = []

    # What is going on

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def quiet(self) -> bool:
        """Nothing is under way and nobody waits: who is stopping may go."""
        return self.settled and not self.in_flight

    @property
    def settled(self) -> bool:
        """The same, but for requests that were forwarded: no call is under way, nor, if it is stopping, will
        be."""
        asks = self._wake_asks or self._sleep_asks
        return not (self._queue or asks or self._call or self._reserved)

    @property
    def waiting_since(self) -> float | None:
        """When the first of those came who wait for the model to wake."""
        asked = [came for came, _ in self._wake_asks.values()]
        asked += [self._first()[0]] if self._queue else []
        asked += [self._stranded_since] if self._stranded() else []
        return min(asked, default=None)

    def may_sleep_from(self) -> float | None:
        """When sleep_asked() to make room would be heeded, if it is awake and no request is under way."""
        if self.state is not State.AWAKE or self.awake_since is None:
            return None
        return max(self.awake_since + self.settings.min_awake_seconds, self._no_sleep_before)

    def is_idle(self, now: float) -> bool:
        """Whether it sleeps by itself, where auto_sleep_enabled, if it is awake."""
        return self.state is State.AWAKE and not self.in_flight and now >= self._auto_sleep_at()

    def due(self) -> float | None:
        """When tick() has something to do, if nothing happens before."""
        times = [deadline for _, deadline in self._wake_asks.values()]
        if self._queue:
            times.append(self._first()[1])
        if self.state is State.AWAKE and self.settings.auto_sleep_enabled and not self.stopping:
            times += [] if self.in_flight else [self._auto_sleep_at()]
        elif self.phase is Phase.EMPTYING:
            times += [] if self._drain_deadline is None else [self._drain_deadline]
            times += [self._patience_ends()] if self._queue and not self._dropped else []
        elif self.state is State.ASLEEP and self._wanted():
            times.append(self._hold_until)
        elif self.phase is Phase.WANTING:
            times.append(self._room_retry_at)
        return min(times, default=None)

    def wants_all(self, since: float) -> bool:
        """Whether those of its engines that sleep are to be woken, for others are awake: somebody has wanted
        it since then."""
        busy = bool(self.in_flight) and self.settings.wakeup_on_request
        return self.state is State.AWAKE and not self.stopping and (busy or self.wanted_at >= since)

    # Events

    def start(self, now: float) -> list[Action]:
        self._look(now, State.WAKING)
        return self._take()

    def came(self, now: float, request: Hashable) -> list[Action]:
        if request in self.in_flight or request in self._queue:
            raise ValueError(f"Request {request} came before")
        self.idle_since = now
        if self.settings.wakeup_on_request:
            self.wanted_at = now
        if self.stopping:
            self._do(Refuse(request, "shutting_down", 1))
        elif self.state is State.AWAKE:
            self._forward(request)
        elif self.phase is Phase.EMPTYING and not self._firm:
            self._drop_drain(now, "a request came")
            self._forward(request)
        elif self.state is State.FAILED and now < self.retry_at:
            self._do(Refuse(request, self._failure_code, self.retry_at - now, self.failure))
        else:
            self._enqueue(now, request)
        return self._take()

    def ended(self, now: float, request: Hashable) -> list[Action]:
        """A request is over, or its client is gone; nothing happens if it is not here (any more)."""
        if self._queue.pop(request, None) is not None:
            self._give_up_if_unwanted(now)
        elif request in self.in_flight:
            self.in_flight.remove(request)
            self.idle_since = now
            if self.phase is Phase.EMPTYING and not self.in_flight:
                self._tell_sleep(now)
            self._give_up_if_unwanted(now)
        return self._take()

    def tick(self, now: float) -> list[Action]:
        """Time has passed. See due()."""
        if self.state is State.AWAKE:
            if self.settings.auto_sleep_enabled and not self.stopping and self.is_idle(now):
                self._drain(now, Why.IDLE, firm=False)
        elif self.phase is Phase.EMPTYING:
            if self._drain_deadline is not None and now >= self._drain_deadline:
                self._drop_drain(now, "requests took longer than drain_timeout_seconds", another_turn=True)
            elif self._queue and not self._dropped and now >= self._patience_ends():
                self._dropped = True
                self._drop_drain(now, "requests waited too long for others to end", another_turn=True)
        self._expire(now)
        self._wake_if_due(now)
        if self.phase is Phase.WANTING and now >= self._room_retry_at:
            self._reserve(now)
        return self._take()

    def stop(self, now: float, disowned: bool = False) -> list[Action]:
        """Nothing new is accepted from now on; what was accepted is finished. See `quiet`. disowned: whether
        its engines sleep is others' affair."""
        self.stopping, self._gives_way = True, not disowned
        if self.phase is Phase.EMPTYING and self._is_stopped(self.why):
            self._drop_drain(now, "the controller is shutting down")
        return self._take()

    def go_on(self, now: float) -> list[Action]:
        """After stop(): new requests are accepted again."""
        self.stopping = False
        return self._take()

    def held(self, now: float, name: Hashable) -> list[Action]:
        """Its engine has requests of another model's, under which it must not sleep: until ended() of that
        name."""
        self.in_flight.add(name)
        return self._take()

    def sleep_asked(self, now: float, why: Why, ask: Hashable = None, firm: bool = False) -> list[Action]:
        """ask: a name under which it is answered; None: no answer is wanted."""
        refusal = self._sleep_refusal(now, why)
        if refusal:
            self._answer(ask, False, refusal)
        elif self.state is State.ASLEEP:
            self._answer(ask, True, "it is asleep")
        else:
            if ask is not None:
                self._check_new(ask)
                self._sleep_asks.append(ask)
            firm = firm or why is Why.TURN
            if self.state is State.AWAKE:
                self._drain(now, why, firm)
            else:
                self._firm = self._firm or firm
                self.why = why if why is Why.ADMIN else self.why
        return self._take()

    def wake_asked(self, now: float, ask: Hashable) -> list[Action]:
        """An administrator's: neither backoff nor min_sleep_duration counts."""
        self._check_new(ask)
        self.wanted_at = now
        if self.stopping:
            self._answer(ask, False, "the controller is shutting down")
        elif self.state is State.AWAKE or self.phase is Phase.EMPTYING:
            self.idle_since = now
            if self.state is State.DRAINING:
                self._drop_drain(now, "it was asked to wake")
            self._answer(ask, True, "it is awake")
        else:
            self._wake_asks[ask] = (now, now + self.settings.wake_timeout_seconds)
            self._wake_if_due(now)
            if self.state is State.FAILED:
                self._look(now, State.WAKING)
        return self._take()

    def probed(self, now: float, began: float, found: Found, detail: str = "") -> list[Action]:
        """What a probe that began then says, without having been asked for."""
        passing = self.phase in (Phase.NONE, Phase.EMPTYING, Phase.RESERVING, Phase.WANTING)
        if not passing or began <= self.changed_at:
            return self._take()
        if found is Found.DEAD:
            self._found_dead(now, detail)
        elif found is Found.AWAKE:
            if self.state not in (State.AWAKE, State.DRAINING):
                self._awake(now, adopted=True)
        elif self.state in (State.AWAKE, State.DRAINING) or (
            self.state is State.FAILED and now >= self.retry_at
        ):
            self._asleep(now, Why.ELSEWHERE)
        return self._take()

    def looked(self, now: float, call: int, found: Found, detail: str = "") -> list[Action]:
        if not self._is_over(call, Phase.LOOKING):
            return self._take()
        if found is Found.DEAD:
            self._fail(now, "engine_dead", detail)
        elif found is Found.AWAKE:
            since = self.awake_since if self.state is State.DRAINING else None
            self._awake(now, adopted=self.state is State.WAKING, since=since)
        elif self.state is State.DRAINING:
            self._asleep(now, self.why)
        else:
            self.changed_at = now
            self._refuse_if_requests_do_not_wake(now)
            self._expire(now)  # no room is wanted for who has no time left
            if self._wake_is_due(now):
                self._reserve(now)
            else:
                self._back_to_sleep(now)
        return self._take()

    def room_granted(self, now: float, call: int) -> list[Action]:
        if call == self._call and self.phase is Phase.RESERVING:
            self.changed_at = self._wake_began = now
            self.phase = Phase.CALLING
            self._do(Wake(self._new_call()))
        else:
            self._do(Release(call))
        return self._take()

    def room_refused(self, now: float, call: int) -> list[Action]:
        if self._is_over(call, Phase.RESERVING):
            self._reserved = None
            self.phase = Phase.WANTING
            self._room_retry_at = now + ROOM_RETRY_SECONDS
        return self._take()

    def room_changed(self, now: float) -> list[Action]:
        """There may be room now: a model has been put to sleep."""
        self._expire(now)
        if self.phase is Phase.WANTING:
            self._reserve(now)
        return self._take()

    def woken(self, now: float, call: int) -> list[Action]:
        if self.state is State.WAKING and self._is_over(call, Phase.CALLING):
            self.wake_seconds = now - self._wake_began
            self._awake(now, adopted=False)
        return self._take()

    def wake_failed(self, now: float, call: int, detail: str = "") -> list[Action]:
        if self.state is State.WAKING and self._is_over(call, Phase.CALLING):
            self._fail(now, "wake_failed", detail)
        return self._take()

    def wake_overtaken(self, now: float, call: int) -> list[Action]:
        """Those engines that were woken are the model's no more."""
        if self.state is State.WAKING and self._is_over(call, Phase.CALLING):
            self._release()
            self._look(now, State.WAKING)
        return self._take()

    def unserved(self, now: float) -> list[Action]:
        """None of its engines is known to be awake any more: they are others now."""
        if self.state is State.AWAKE or self.phase is Phase.EMPTYING:
            self.awake_since = None
            self._stranded_since = now
            self._answer_sleep_asks(False, "its engines are others now")
            self._look(now, State.WAKING)
        return self._take()

    def slept(self, now: float, call: int) -> list[Action]:
        if self.state is State.DRAINING and self._is_over(call, Phase.CALLING):
            self._sleep_failures = 0
            self._asleep(now, self.why)
        return self._take()

    def sleep_failed(self, now: float, call: int, detail: str = "") -> list[Action]:
        if self.state is State.DRAINING and self._is_over(call, Phase.CALLING):
            self._sleep_failures += 1
            self._no_sleep_before = now + backoff(self._sleep_failures)
            self._answer_sleep_asks(False, f"it could not be put to sleep: {detail}")
            self._look(now, State.DRAINING)
        return self._take()

    # Calls and answers

    def _do(self, action: Action) -> None:
        self._out.append(action)

    def _take(self) -> list[Action]:
        taken, self._out = self._out, []
        return taken

    def _new_call(self) -> int:
        self._calls += 1
        self._call = self._calls
        return self._calls

    def _is_over(self, call: int, phase: Phase) -> bool:
        """Whether that was the call under way, which it then is no more."""
        if call != self._call or self.phase is not phase:
            return False
        self._call = None
        return True

    def _enter(self, now: float, state: State, phase: Phase) -> None:
        self.state, self.phase, self.changed_at = state, phase, now

    def _check_new(self, ask: Hashable) -> None:
        if ask in self._wake_asks or ask in self._sleep_asks:
            raise ValueError(f"Ask {ask} came before")

    def _answer(self, ask: Hashable, ok: bool, message: str) -> None:
        if ask is not None:
            self._do(Answer(ask, ok, message))

    def _answer_sleep_asks(self, ok: bool, message: str) -> None:
        asks, self._sleep_asks = self._sleep_asks, []
        for ask in asks:
            self._answer(ask, ok, message)

    def _answer_wake_asks(self, ok: bool, message: str) -> None:
        asks, self._wake_asks = self._wake_asks, {}
        for ask in asks:
            self._answer(ask, ok, message)

    def _release(self) -> None:
        if self._reserved is not None:
            self._do(Release(self._reserved))
            self._reserved = None

    # Those who wait

    def _wanted(self) -> bool:
        return bool(self._queue or self._wake_asks or self._stranded())

    def _stranded(self) -> bool:
        """Whether requests wait in an engine that sleeps. We never put it to sleep under one."""
        sleeps = self.state in (State.ASLEEP, State.WAKING)
        return sleeps and bool(self.in_flight) and self.settings.wakeup_on_request

    def _first(self) -> tuple[float, float]:
        return next(iter(self._queue.values()))

    def _forward(self, request: Hashable) -> None:
        self.in_flight.add(request)
        self._do(Forward(request))

    def _forward_all(self) -> None:
        while self._queue:
            self._forward(self._queue.popitem(last=False)[0])

    def _refuse_all(self, code: str, retry_after: float, detail: str) -> None:
        while self._queue:
            self._do(Refuse(self._queue.popitem(last=False)[0], code, retry_after, detail))

    def _refuse_if_requests_do_not_wake(self, now: float) -> None:
        if not self.settings.wakeup_on_request and not self._wake_asks:
            self._refuse_all("model_asleep", self._expected_wait(now), "requests don't wake it")

    def _enqueue(self, now: float, request: Hashable) -> None:
        deadline = now + self.settings.queue_deadline_seconds
        if self._queue:  # or nobody is left of a time with longer ones
            deadline = max(deadline, self._last_deadline)
        sleeps = self.state is State.ASLEEP or self.phase in (Phase.EMPTYING, Phase.CALLING)
        sleeps = sleeps and self.state is not State.WAKING and not self._wake_asks
        wakes_at = self._hold_until if self.state is State.ASLEEP else now + self.settings.min_sleep_duration
        if sleeps and not self.settings.wakeup_on_request:
            self._do(Refuse(request, "model_asleep", self._expected_wait(now), "requests don't wake it"))
        elif sleeps and wakes_at >= deadline:
            self._do(Refuse(request, "model_asleep", wakes_at - now, "it is put to sleep just now"))
        elif len(self._queue) >= self.settings.queue_max:
            self._do(Refuse(request, "queue_full", self._expected_wait(now)))
        else:
            self._last_deadline = deadline
            self._queue[request] = (now, deadline)
            self._wake_if_due(now)
            if self.state is State.FAILED:
                self._look(now, State.WAKING)

    def _expire(self, now: float) -> None:
        wants_room = self.phase in (Phase.RESERVING, Phase.WANTING)
        while self._queue and now >= self._first()[1]:
            request = self._queue.popitem(last=False)[0]
            self._do(Refuse(request, "no_room" if wants_room else "queue_timeout", self._expected_wait(now)))
        for ask in [ask for ask, (_, deadline) in self._wake_asks.items() if now >= deadline]:
            del self._wake_asks[ask]
            self._answer(ask, False, "there was no room in time" if wants_room else "it did not wake in time")
        self._give_up_if_unwanted(now)

    def _give_up_if_unwanted(self, now: float) -> None:
        if self.phase in (Phase.RESERVING, Phase.WANTING) and not self._wanted():
            self._call = None
            self._release()
            self._back_to_sleep(now)

    def _expected_wait(self, now: float) -> float:
        wake = WAKE_GUESS_SECONDS if self.wake_seconds is None else self.wake_seconds
        return max(0.0, self._hold_until - now if self.state is State.ASLEEP else 0.0) + wake

    # Going to sleep

    def _auto_sleep_at(self) -> float:
        return max(self.may_sleep_from() or 0.0, self.idle_since + self.settings.idle_threshold_seconds)

    def _patience_ends(self) -> float:
        """When the first in the queue could no longer be served in time by sleeping and waking again."""
        came, deadline = self._first()
        return max(came, deadline - self.settings.min_sleep_duration - (self.wake_seconds or 0.0))

    def _is_stopped(self, why: Why) -> bool:
        return self.stopping and not (self._gives_way and why in (Why.ROOM, Why.TURN))

    def _sleep_refusal(self, now: float, why: Why) -> str:
        if self._is_stopped(why):
            return "the controller is shutting down"
        if self.state is State.WAKING:
            return "it is being woken"
        if self.state is State.FAILED:
            return f"it has failed: {self.failure}"
        if self.state is State.AWAKE and why is not Why.ADMIN:
            if now < (self.may_sleep_from() or 0.0):
                return "it has not been awake for long enough"
            if self.in_flight and why is not Why.TURN:
                return "requests are under way"
        return ""

    def _drain(self, now: float, why: Why, firm: bool) -> None:
        self._enter(now, State.DRAINING, Phase.EMPTYING)
        self.why, self._firm = why, firm
        timeout = self.settings.drain_timeout_seconds
        self._drain_deadline = None if timeout is None else now + timeout
        if not self.in_flight:
            self._tell_sleep(now)

    def _drop_drain(self, now: float, message: str, another_turn: bool = False) -> None:
        self._enter(now, State.AWAKE, Phase.NONE)
        if another_turn:
            self._no_sleep_before = now + self.settings.turn_seconds
        self._answer_sleep_asks(False, f"it stays awake: {message}")
        self._forward_all()

    def _tell_sleep(self, now: float) -> None:
        self._enter(now, State.DRAINING, Phase.CALLING)
        self._do(Sleep(self._new_call()))

    def _asleep(self, now: float, why: Why) -> None:
        """It is: by our call, or because it was found so, and then nobody knows for how long already."""
        found = why is Why.ELSEWHERE
        self._enter(now, State.ASLEEP, Phase.NONE)
        self.awake_since, self.asleep_since, self.slept_for = None, now, why
        self._dropped = False
        self._stranded_since = now
        # What is found after a failure may be what we have put to sleep before.
        self._hold_until = max(self._hold_until, now) if found else now + self.settings.min_sleep_duration
        if found:
            self._do(Adopt(State.ASLEEP))
        self._answer_sleep_asks(True, "it is asleep")
        self._refuse_if_requests_do_not_wake(now)
        self._wake_if_due(now)

    def _back_to_sleep(self, now: float) -> None:
        """It is still asleep, or was found so by the first look."""
        self._enter(now, State.ASLEEP, Phase.NONE)
        if self.slept_for is None:
            self.slept_for, self.asleep_since = Why.ELSEWHERE, now
            self._do(Adopt(State.ASLEEP))

    # Waking

    def _wake_is_due(self, now: float) -> bool:
        return bool(self._wake_asks or (self._wanted() and now >= self._hold_until))

    def _wake_if_due(self, now: float) -> None:
        if self.state is State.ASLEEP and self._wake_is_due(now):
            self._look(now, State.WAKING)

    def _look(self, now: float, state: State) -> None:
        self._enter(now, state, Phase.LOOKING)
        self._do(Look(self._new_call()))

    def _reserve(self, now: float) -> None:
        self.phase = Phase.RESERVING
        deadlines = [deadline for _, deadline in self._wake_asks.values()]
        deadlines += [next(reversed(self._queue.values()))[1]] if self._queue else []
        deadlines += [now + self.settings.queue_deadline_seconds] if self._stranded() else []
        self._reserved = self._new_call()
        self._do(Reserve(self._reserved, max(deadlines)))

    def _awake(self, now: float, adopted: bool, since: float | None = None) -> None:
        self._call = None
        self._release()
        self._enter(now, State.AWAKE, Phase.NONE)
        self.awake_since = now if since is None else since
        self._hold_until = now
        self.asleep_since = self.slept_for = None
        self.idle_since = max(self.idle_since, self.awake_since)
        self._failures = 0
        self.failure = self._failure_code = ""
        if adopted:
            self._do(Adopt(State.AWAKE))
        self._answer_sleep_asks(False, "it stays awake: it could not be put to sleep")
        self._answer_wake_asks(True, "it is awake")
        self._forward_all()

    # Failing

    def _found_dead(self, now: float, detail: str) -> None:
        if self.state is State.FAILED:
            self.failure, self._failure_code = detail, "engine_dead"
        else:
            self._do(Adopt(State.FAILED))
            self._fail(now, "engine_dead", detail)

    def _fail(self, now: float, code: str, detail: str) -> None:
        self._call = None
        self._release()
        self._failures += 1
        self._dropped = False
        self._enter(now, State.FAILED, Phase.NONE)
        self.retry_at = now + backoff(self._failures)
        self.failure, self._failure_code = detail, code
        self.awake_since = self.asleep_since = self.slept_for = None
        self._answer_sleep_asks(False, f"it has failed: {detail}")
        self._answer_wake_asks(False, f"it has failed: {detail}")
        self._refuse_all(code, self.retry_at - now, detail)


def backoff(failures: int) -> float:
    """Seconds, after so many failures in a row."""
    seconds: float = BACKOFF_SECONDS * 2 ** min(failures - 1, 30)
    return min(seconds, BACKOFF_MAX_SECONDS)
