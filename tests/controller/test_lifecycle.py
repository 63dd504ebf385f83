# SPDX-License-Identifier: Apache-2.0
"""One model's life, event by event: what the table in lifecycle.py says."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import pytest

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
from kvcached.controller.lifecycle import BACKOFF_MAX_SECONDS, Lifecycle

SETTINGS = SleepManager(
    idle_threshold_seconds=300,
    min_sleep_duration=60,
    min_awake_seconds=30,
    turn_seconds=40,
    queue_max=3,
    queue_deadline_seconds=120,
    wake_timeout_seconds=200,
)


def begin(found: Found, settings: SleepManager = SETTINGS) -> Lifecycle:
    """A model that was found so at 0."""
    life = Lifecycle(settings, 0)
    assert life.start(0) == [Look(1)]
    life.looked(0, 1, found, "found dead" if found is Found.DEAD else "")
    return life


def awake(settings: SleepManager = SETTINGS) -> Lifecycle:
    return begin(Found.AWAKE, settings)


def asleep(settings: SleepManager = SETTINGS) -> Lifecycle:
    return begin(Found.ASLEEP, settings)


def put_to_sleep(life: Lifecycle, now: float) -> None:
    """By an administrator."""
    (call,) = life.sleep_asked(now, Why.ADMIN)
    assert isinstance(call, Sleep)
    life.slept(now, call.call)
    assert life.state is State.ASLEEP


def calling_wake(life: Lifecycle, now: float, request: Hashable = "r") -> int:
    """Brings a sleeping model to where Wake is under way for a request; its number."""
    (look,) = life.came(now, request)
    assert isinstance(look, Look)
    (reserve,) = life.looked(now, look.call, Found.ASLEEP)
    assert isinstance(reserve, Reserve)
    (wake,) = life.room_granted(now, reserve.call)
    assert isinstance(wake, Wake)
    return wake.call


def where(life: Lifecycle) -> tuple[State, Phase]:
    return life.state, life.phase


def refusals(actions: list[Action]) -> list[tuple[Hashable, str]]:
    return [(a.request, a.code) for a in actions if isinstance(a, Refuse)]


def forwarded(actions: list[Action]) -> list[Hashable]:
    return [a.request for a in actions if isinstance(a, Forward)]


# Beginning


@pytest.mark.parametrize(
    ("found", "state"),
    [(Found.AWAKE, State.AWAKE), (Found.ASLEEP, State.ASLEEP), (Found.DEAD, State.FAILED)],
)
def test_begins_as_it_is_found(found: Found, state: State) -> None:
    life = Lifecycle(SETTINGS, 0)
    life.start(0)
    assert where(life) == (State.WAKING, Phase.LOOKING)
    assert not life.quiet
    actions = life.looked(1, 1, found)
    assert actions == ([] if found is Found.DEAD else [Adopt(state)])
    assert where(life) == (state, Phase.NONE)
    assert life.quiet


def test_requests_wait_for_the_first_look() -> None:
    life = Lifecycle(SETTINGS, 0)
    life.start(0)
    assert life.came(0, "a") == life.came(1, "b") == []
    assert life.looked(2, 1, Found.AWAKE) == [Adopt(State.AWAKE), Forward("a"), Forward("b")]


def test_found_asleep_is_woken_at_once() -> None:
    """Nobody knows for how long it has been asleep: min_sleep_duration says nothing then."""
    life = Lifecycle(SETTINGS, 0)
    life.start(0)
    life.came(1, "a")
    assert life.looked(2, 1, Found.ASLEEP) == [Reserve(2, 121)]
    assert begin(Found.ASLEEP).came(1, "a") == [Look(2)]


def test_who_waits_for_the_first_look_is_told_that_it_failed() -> None:
    life = Lifecycle(SETTINGS, 0)
    life.start(0)
    life.came(0, "a")
    assert life.looked(2, 1, Found.DEAD, "refused") == [Refuse("a", "engine_dead", 5, "refused")]


# Awake


def test_forwards() -> None:
    life = awake()
    assert life.came(1, "a") == [Forward("a")]
    assert life.came(1, "b") == [Forward("b")]
    assert life.in_flight == {"a", "b"}
    assert life.ended(2, "a") == life.ended(2, "a") == life.ended(2, "never came") == []
    assert life.in_flight == {"b"}
    with pytest.raises(ValueError, match="came before"):
        life.came(3, "b")


def test_sleeps_when_idle() -> None:
    life = awake(replace(SETTINGS, auto_sleep_enabled=True))
    life.came(10, "a")
    assert life.due() is None
    assert life.tick(1000) == []  # a request is under way
    assert not life.is_idle(1000)
    life.ended(1000, "a")
    assert life.due() == 1300
    assert [life.is_idle(now) for now in (1299, 1300)] == [False, True]
    assert life.tick(1299) == []
    assert life.tick(1300) == [Sleep(2)]
    assert where(life) == (State.DRAINING, Phase.CALLING)
    assert life.slept(1301, 2) == []
    assert (life.state, life.slept_for, life.asleep_since) == (State.ASLEEP, Why.IDLE, 1301)
    assert life.due() is None


def test_stays_awake_for_a_while() -> None:
    settings = replace(SETTINGS, auto_sleep_enabled=True, idle_threshold_seconds=1)
    life = awake(settings)
    assert life.due() == 30
    assert life.tick(29) == []
    assert life.sleep_asked(29, Why.ROOM, "ask") == [
        Answer("ask", False, "it has not been awake for long enough")
    ]
    assert life.sleep_asked(30, Why.ROOM) == [Sleep(2)]


def test_does_not_sleep_by_itself_unless_told_to() -> None:
    life = awake()
    assert life.due() is None
    assert life.is_idle(10000)
    assert life.tick(10000) == []


def test_admin_overrules_the_time_awake() -> None:
    life = awake()
    assert life.sleep_asked(1, Why.ADMIN, "ask") == [Sleep(2)]
    assert life.slept(2, 2) == [Answer("ask", True, "it is asleep")]
    assert life.why is life.slept_for is Why.ADMIN


def test_room_is_not_made_by_who_works() -> None:
    life = awake()
    life.came(50, "a")
    assert life.sleep_asked(50, Why.ROOM, "ask") == [Answer("ask", False, "requests are under way")]
    assert life.state is State.AWAKE


def test_wake_asked_of_who_is_awake() -> None:
    life = awake(replace(SETTINGS, auto_sleep_enabled=True))
    assert life.wake_asked(100, "ask") == [Answer("ask", True, "it is awake")]
    assert life.due() == 400


# Draining


def test_waits_for_requests_to_end() -> None:
    life = awake()
    life.came(1, "a")
    life.came(1, "b")
    assert life.sleep_asked(2, Why.ADMIN, "ask") == []
    assert where(life) == (State.DRAINING, Phase.EMPTYING)
    assert life.due() is None
    assert life.ended(3, "a") == []
    assert life.tick(5000) == []
    assert life.ended(5000, "b") == [Sleep(2)]


def test_a_request_drops_the_drain() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(2, Why.ADMIN, "ask")
    assert life.came(3, "b") == [Answer("ask", False, "it stays awake: a request came"), Forward("b")]
    assert where(life) == (State.AWAKE, Phase.NONE)
    life.ended(4, "a")
    assert life.ended(4, "b") == []


def test_a_firm_drain_lets_requests_wait() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(2, Why.ADMIN, "ask", firm=True)
    assert life.came(3, "b") == []
    assert life.ended(4, "a") == [Sleep(2)]
    assert life.came(5, "c") == []
    assert life.slept(10, 2) == [Answer("ask", True, "it is asleep")]
    assert (life.state, life.queued, life.waiting_since) == (State.ASLEEP, 2, 3)
    assert life.due() == 70
    assert life.tick(69) == []
    assert life.tick(70) == [Look(3)]


def test_turns_are_firm() -> None:
    life = awake()
    life.came(1, "a")
    assert life.sleep_asked(29, Why.TURN) == []
    assert life.state is State.AWAKE
    assert life.sleep_asked(30, Why.TURN) == []
    assert life.came(31, "b") == []
    assert where(life) == (State.DRAINING, Phase.EMPTYING)


def test_a_second_ask_joins_and_may_be_firmer() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(2, Why.ADMIN, "one")
    life.sleep_asked(3, Why.ADMIN, "two", firm=True)
    with pytest.raises(ValueError, match="came before"):
        life.sleep_asked(3, Why.ADMIN, "two")
    assert life.came(4, "b") == []
    life.ended(5, "a")
    assert life.slept(6, 2) == [Answer("one", True, "it is asleep"), Answer("two", True, "it is asleep")]


def test_a_drain_is_dropped_for_who_waits_too_long() -> None:
    """Deadline 120, of which 60 asleep: after 60 there is no time for a drain any more. The model that was to
    sleep in vain then has another turn."""
    life = awake()
    life.came(1, "a")
    life.sleep_asked(100, Why.TURN, "ask")
    life.came(101, "b")
    life.came(102, "c")
    assert life.due() == 161
    assert life.tick(160) == []
    assert life.tick(161) == [
        Answer("ask", False, "it stays awake: requests waited too long for others to end"),
        Forward("b"),
        Forward("c"),
    ]
    assert life.may_sleep_from() == 201
    assert life.sleep_asked(200, Why.TURN) == []
    assert life.state is State.AWAKE


def test_a_drain_is_dropped_only_once_for_who_waits() -> None:
    """Else the model whose turn it is would never have it."""
    life = awake()
    life.came(1, "a")
    life.sleep_asked(100, Why.TURN)
    life.came(100, "b")
    assert forwarded(life.tick(160)) == ["b"]
    life.sleep_asked(200, Why.TURN)
    life.came(200, "c")
    assert life.due() == 320
    assert refusals(life.tick(320)) == [("c", "queue_timeout")]
    life.ended(321, "a")
    assert life.ended(321, "b") == [Sleep(2)]
    life.slept(322, 2)
    assert forwarded(life.woken(400, calling_wake(life, 400, "d"))) == ["d"]
    life.sleep_asked(440, Why.TURN)
    life.came(440, "e")
    assert life.due() == 440 + 120 - 60


def test_patience_knows_what_a_wake_takes() -> None:
    life = asleep()
    assert forwarded(life.woken(20, calling_wake(life, 0))) == ["r"]
    assert life.wake_seconds == 20
    life.sleep_asked(100, Why.TURN)
    life.came(100, "b")
    assert life.due() == 140  # 60 asleep, and 20 of waking


def test_drains_take_only_so_long() -> None:
    life = awake(replace(SETTINGS, drain_timeout_seconds=50))
    life.came(1, "a")
    life.sleep_asked(100, Why.ADMIN, "ask", firm=True)
    life.came(100, "b")
    assert life.due() == 150
    assert life.tick(150) == [
        Answer("ask", False, "it stays awake: requests took longer than drain_timeout_seconds"),
        Forward("b"),
    ]
    assert life.in_flight == {"a", "b"}


def test_wake_asked_while_it_drains() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(2, Why.ADMIN, "sleep", firm=True)
    life.came(3, "b")
    assert life.wake_asked(4, "wake") == [
        Answer("sleep", False, "it stays awake: it was asked to wake"),
        Forward("b"),
        Answer("wake", True, "it is awake"),
    ]


def test_wake_asked_while_it_is_put_to_sleep() -> None:
    life = awake()
    life.sleep_asked(2, Why.ADMIN, "sleep")
    assert life.wake_asked(3, "wake") == []
    assert life.slept(4, 2) == [Answer("sleep", True, "it is asleep"), Look(3)]
    assert life.looked(4, 3, Found.ASLEEP) == [Reserve(4, 203)]


def test_sleep_fails() -> None:
    """Then it is looked at, for a request must not go to an engine that did go to sleep."""
    life = awake()
    life.sleep_asked(100, Why.ADMIN, "ask")
    assert life.sleep_failed(101, 2, "404") == [
        Answer("ask", False, "it could not be put to sleep: 404"),
        Look(3),
    ]
    assert where(life) == (State.DRAINING, Phase.LOOKING)
    assert life.came(101, "a") == []
    assert life.looked(102, 3, Found.AWAKE) == [Forward("a")]
    assert life.awake_since == 0
    life.ended(103, "a")
    assert life.sleep_asked(105, Why.ROOM) == []  # not again at once
    assert life.state is State.AWAKE
    assert life.sleep_asked(106, Why.ROOM) == [Sleep(4)]
    life.sleep_failed(106, 4)
    life.looked(106, 5, Found.AWAKE)
    assert life.may_sleep_from() == 116


def test_sleep_fails_and_it_sleeps() -> None:
    life = awake()
    life.sleep_asked(100, Why.ADMIN)
    life.sleep_failed(101, 2)
    life.came(101, "a")
    assert life.looked(102, 3, Found.ASLEEP) == []
    assert (life.state, life.due()) == (State.ASLEEP, 162)


def test_sleep_fails_and_it_is_dead() -> None:
    life = awake()
    life.sleep_asked(100, Why.ADMIN)
    life.sleep_failed(101, 2)
    life.came(101, "a")
    assert life.looked(102, 3, Found.DEAD, "gone") == [Refuse("a", "engine_dead", 5, "gone")]


def test_sleep_asked_while_it_is_looked_at() -> None:
    life = awake()
    life.sleep_asked(100, Why.ADMIN)
    life.sleep_failed(101, 2)
    assert life.sleep_asked(101, Why.ADMIN, "ask") == []
    assert life.looked(102, 3, Found.AWAKE) == [
        Answer("ask", False, "it stays awake: it could not be put to sleep")
    ]


# Asleep


def test_one_wake_for_all_in_order() -> None:
    life = asleep(replace(SETTINGS, queue_max=1000))
    assert life.came(0, 0) == [Look(2)]
    actions = [action for i in range(1, 1000) for action in life.came(i / 100, i)]
    assert actions == []
    assert life.looked(10, 2, Found.ASLEEP) == [Reserve(3, 129.99)]
    assert life.room_granted(11, 3) == [Wake(4)]
    assert life.woken(30, 4) == [Release(3), *[Forward(i) for i in range(1000)]]
    assert (life.wake_seconds, life.awake_since) == (19, 30)


def test_full_queue() -> None:
    life = asleep()
    wake = calling_wake(life, 0, "a")
    life.came(1, "b")
    life.came(1, "c")
    assert life.came(2, "d") == [Refuse("d", "queue_full", 10)]
    life.ended(3, "b")  # its client left
    assert life.came(4, "e") == []
    assert forwarded(life.woken(5, wake)) == ["a", "c", "e"]


def test_requests_are_delayed_by_the_time_asleep() -> None:
    life = awake()
    put_to_sleep(life, 100)
    assert life.came(101, "a") == []
    assert (life.state, life.due()) == (State.ASLEEP, 160)
    assert life.tick(160) == [Look(3)]
    assert life.waiting_since == 101


def test_requests_that_cannot_be_in_time() -> None:
    life = awake(replace(SETTINGS, min_sleep_duration=500))
    put_to_sleep(life, 100)
    assert life.came(101, "a") == [Refuse("a", "model_asleep", 499, "it is put to sleep just now")]
    assert refusals(life.came(480, "b")) == [("b", "model_asleep")]
    assert life.came(481, "c") == []
    assert life.due() == 600
    assert life.tick(600) == [Look(3)]


def test_requests_that_cannot_be_in_time_while_it_goes_to_sleep() -> None:
    life = awake(replace(SETTINGS, min_sleep_duration=500))
    life.sleep_asked(100, Why.ADMIN)
    assert life.came(101, "a") == [Refuse("a", "model_asleep", 500, "it is put to sleep just now")]


def test_admin_overrules_the_time_asleep() -> None:
    life = awake()
    put_to_sleep(life, 100)
    life.came(101, "a")
    assert life.wake_asked(102, "ask") == [Look(3)]
    assert life.came(103, "b") == []
    life.looked(104, 3, Found.ASLEEP)
    life.room_granted(105, 4)
    assert life.woken(106, 5) == [
        Release(4),
        Answer("ask", True, "it is awake"),
        Forward("a"),
        Forward("b"),
    ]


def test_requests_that_do_not_wake() -> None:
    life = asleep(replace(SETTINGS, wakeup_on_request=False))
    assert life.came(1, "a") == [Refuse("a", "model_asleep", 10, "requests don't wake it")]
    assert life.wake_asked(2, "ask") == [Look(2)]
    assert life.came(3, "b") == []  # it is woken anyway
    life.looked(4, 2, Found.ASLEEP)
    life.room_granted(5, 3)
    assert forwarded(life.woken(6, 4)) == ["b"]


def test_requests_that_do_not_wake_at_the_beginning() -> None:
    life = Lifecycle(replace(SETTINGS, wakeup_on_request=False), 0)
    life.start(0)
    assert life.came(0, "a") == []
    assert life.looked(1, 1, Found.ASLEEP) == [
        Refuse("a", "model_asleep", 10, "requests don't wake it"),
        Adopt(State.ASLEEP),
    ]


def test_requests_that_do_not_wake_while_it_goes_to_sleep() -> None:
    life = awake(replace(SETTINGS, wakeup_on_request=False))
    life.came(1, "a")
    life.sleep_asked(100, Why.ADMIN, firm=True)
    assert refusals(life.came(101, "b")) == [("b", "model_asleep")]
    life.ended(102, "a")
    life.sleep_failed(102, 2)
    assert life.came(103, "c") == []  # perhaps it is awake
    assert refusals(life.looked(104, 3, Found.ASLEEP)) == [("c", "model_asleep")]
    assert life.quiet


def test_sleep_asked_of_who_sleeps() -> None:
    assert asleep().sleep_asked(1, Why.ADMIN, "ask") == [Answer("ask", True, "it is asleep")]


# Waking


def test_deadline_while_it_wakes() -> None:
    life = asleep()
    wake = calling_wake(life, 0, "a")
    life.came(50, "b")
    assert life.due() == 120
    assert life.tick(119) == []
    assert life.tick(120) == [Refuse("a", "queue_timeout", 10)]
    assert life.due() == 170
    assert refusals(life.tick(500)) == [("b", "queue_timeout")]
    assert life.woken(501, wake) == [Release(3)]  # a wake is not taken back
    assert life.state is State.AWAKE


def test_deadlines_never_overtake() -> None:
    """Also where settings are changed."""
    life = asleep()
    calling_wake(life, 0, "a")
    life.settings = replace(SETTINGS, queue_deadline_seconds=1)
    life.came(1, "b")
    assert life.due() == 120
    assert refusals(life.tick(120)) == [("a", "queue_timeout"), ("b", "queue_timeout")]


def test_no_room() -> None:
    life = asleep()
    life.came(0, "a")
    life.looked(0, 2, Found.ASLEEP)
    assert life.room_refused(1, 3) == []
    assert where(life) == (State.WAKING, Phase.WANTING)
    assert life.due() == 2
    assert life.tick(2) == [Reserve(4, 120)]
    life.room_refused(3, 4)
    assert life.room_changed(3.5) == [Reserve(5, 120)]
    assert life.room_changed(3.5) == []
    life.came(10, "b")
    life.room_refused(119.5, 5)
    assert life.tick(120) == [Refuse("a", "no_room", 10)]
    assert life.tick(120.5) == [Reserve(6, 130)]
    assert life.room_granted(121, 6) == [Wake(7)]
    assert life.woken(122, 7) == [Release(6), Forward("b")]


def test_gives_up_when_nobody_waits() -> None:
    """And keeps no reservation: one that is granted afterwards is given back."""
    life = asleep()
    life.came(0, "a")
    life.looked(0, 2, Found.ASLEEP)
    assert life.tick(120) == [Refuse("a", "no_room", 10), Release(3)]
    assert life.state is State.ASLEEP
    assert life.quiet
    assert life.room_granted(121, 3) == [Release(3)]
    assert life.quiet


def test_gives_up_when_the_last_client_leaves() -> None:
    life = asleep()
    life.came(0, "a")
    life.looked(0, 2, Found.ASLEEP)
    life.room_refused(1, 3)
    assert life.ended(2, "a") == []
    assert life.state is State.ASLEEP
    assert life.quiet
    assert life.room_refused(3, 3) == []


def test_a_look_goes_on_when_nobody_waits() -> None:
    life = asleep()
    life.came(0, "a")
    assert life.ended(1, "a") == []
    assert life.phase is Phase.LOOKING
    assert life.looked(2, 2, Found.ASLEEP) == []
    assert life.state is State.ASLEEP


def test_already_awake() -> None:
    """Somebody else woke it: nothing is reserved."""
    life = asleep()
    life.came(0, "a")
    assert life.looked(1, 2, Found.AWAKE) == [Adopt(State.AWAKE), Forward("a")]


def test_wake_fails() -> None:
    life = asleep()
    wake = calling_wake(life, 0, "a")
    life.came(1, "b")
    life.wake_asked(1, "ask")
    assert life.wake_failed(10, wake, "500") == [
        Release(3),
        Answer("ask", False, "it has failed: 500"),
        Refuse("a", "wake_failed", 5, "500"),
        Refuse("b", "wake_failed", 5, "500"),
    ]
    assert (life.state, life.retry_at, life.failure) == (State.FAILED, 15, "500")
    assert life.quiet


def test_asks_while_it_wakes() -> None:
    life = asleep()
    wake = calling_wake(life, 0)
    assert life.sleep_asked(1, Why.ADMIN, "no") == [Answer("no", False, "it is being woken")]
    life.wake_asked(1, "yes")
    with pytest.raises(ValueError, match="came before"):
        life.wake_asked(1, "yes")
    assert Answer("yes", True, "it is awake") in life.woken(2, wake)


def test_asks_have_a_deadline() -> None:
    life = asleep()
    assert life.wake_asked(0, "ask") == [Look(2)]
    assert life.looked(0, 2, Found.ASLEEP) == [Reserve(3, 200)]
    life.room_refused(199.5, 3)
    assert life.due() == 200
    assert life.tick(200) == [Answer("ask", False, "there was no room in time")]
    assert life.quiet


# Failed


def test_backoff() -> None:
    life = begin(Found.DEAD)
    assert (life.state, life.retry_at) == (State.FAILED, 5)
    assert life.came(1, "a") == [Refuse("a", "engine_dead", 4, "found dead")]
    assert life.came(5, "b") == [Look(2)]
    assert life.came(5, "c") == []
    assert refusals(life.looked(6, 2, Found.DEAD)) == [("b", "engine_dead"), ("c", "engine_dead")]
    assert life.retry_at == 16
    now, waits = 16.0, []
    for i in range(10):
        (look,) = life.came(now, i)
        assert isinstance(look, Look)
        life.looked(now, look.call, Found.DEAD)
        waits.append(life.retry_at - now)
        now = life.retry_at
    assert waits == [20, 40, 80, 160, *[BACKOFF_MAX_SECONDS] * 6]


def test_tries_again_after_a_failed_wake() -> None:
    life = asleep()
    life.wake_failed(10, calling_wake(life, 0), "500")
    assert refusals(life.came(14, "b")) == [("b", "wake_failed")]
    wake = calling_wake(life, 15, "c")
    assert forwarded(life.woken(20, wake)) == ["c"]
    life.probed(21, 20.5, Found.DEAD)
    assert life.retry_at == 26  # it has worked since, so this is a first failure


def test_comes_back() -> None:
    life = begin(Found.DEAD)
    assert life.probed(2, 1, Found.AWAKE) == [Adopt(State.AWAKE)]
    assert life.came(2, "a") == [Forward("a")]


def test_found_asleep_while_it_has_failed() -> None:
    """It may be asleep because the wake failed: the backoff goes on."""
    life = asleep()
    life.wake_failed(10, calling_wake(life, 0))
    assert life.probed(12, 11, Found.ASLEEP) == []
    assert life.state is State.FAILED
    assert life.probed(16, 15, Found.ASLEEP) == [Adopt(State.ASLEEP)]
    life.wake_failed(20, calling_wake(life, 20, "b"))
    assert life.retry_at == 30  # the second in a row


def test_time_asleep_counts_after_a_death() -> None:
    life = awake()
    put_to_sleep(life, 100)
    life.probed(101, 100.5, Found.DEAD)
    (look,) = life.came(110, "a")
    assert isinstance(look, Look)
    assert life.looked(111, look.call, Found.ASLEEP) == [Adopt(State.ASLEEP)]
    assert (life.state, life.queued, life.due()) == (State.ASLEEP, 1, 160)


def test_time_asleep_counts_after_it_was_found_again() -> None:
    life = awake()
    put_to_sleep(life, 100)
    life.probed(101, 100.5, Found.DEAD)
    assert life.probed(107, 106.5, Found.ASLEEP) == [Adopt(State.ASLEEP)]
    assert life.came(110, "a") == []
    assert life.due() == 160


def test_asks_while_it_has_failed() -> None:
    life = begin(Found.DEAD)
    assert life.sleep_asked(1, Why.ADMIN, "s") == [Answer("s", False, "it has failed: found dead")]
    assert life.wake_asked(1, "w") == [Look(2)]
    assert life.looked(2, 2, Found.DEAD, "still") == [Answer("w", False, "it has failed: still")]


# What is noticed in passing


def test_put_to_sleep_by_others() -> None:
    """Whoever comes next wakes it, at once."""
    life = awake()
    life.came(1, "a")
    life.ended(2, "a")
    assert life.probed(3, 2, Found.ASLEEP) == [Adopt(State.ASLEEP)]
    assert (life.slept_for, life.asleep_since) == (Why.ELSEWHERE, 3)
    wake = calling_wake(life, 4, "b")
    assert forwarded(life.woken(6, wake)) == ["b"]


def test_put_to_sleep_by_others_while_it_drains() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(2, Why.ADMIN, "ask", firm=True)
    life.came(3, "b")
    assert life.probed(5, 4, Found.ASLEEP) == [
        Adopt(State.ASLEEP),
        Answer("ask", True, "it is asleep"),
        Look(2),
    ]


def test_woken_by_others() -> None:
    life = awake()
    put_to_sleep(life, 100)
    life.came(101, "a")
    assert life.probed(103, 102, Found.AWAKE) == [Adopt(State.AWAKE), Forward("a")]
    assert life.awake_since == 103


@pytest.mark.parametrize("refused", [False, True])
def test_woken_by_others_while_there_is_no_room(refused: bool) -> None:
    life = asleep()
    life.came(0, "a")
    life.looked(0, 2, Found.ASLEEP)
    if refused:
        life.room_refused(1, 3)
    released = [] if refused else [Release(3)]
    assert life.probed(3, 2, Found.AWAKE) == [*released, Adopt(State.AWAKE), Forward("a")]
    assert life.room_granted(4, 3) == [Release(3)]
    assert life.state is State.AWAKE


def test_slow_news_while_there_is_no_room() -> None:
    """It is asked for again and again, but nothing else is known of the engine for that."""
    life = asleep()
    life.came(0, "a")
    life.looked(0, 2, Found.ASLEEP)
    life.room_refused(1, 3)
    life.tick(2)
    life.room_refused(2.5, 4)
    life.tick(3.5)
    assert forwarded(life.probed(4, 0.5, Found.AWAKE)) == ["a"]


@pytest.mark.parametrize("drains", [False, True])
def test_dies_while_requests_are_under_way(drains: bool) -> None:
    life = awake()
    life.came(1, "a")
    if drains:
        life.sleep_asked(2, Why.ADMIN, "ask", firm=True)
        life.came(3, "b")
    actions = life.probed(5, 4, Found.DEAD, "gone")
    assert actions[0] == Adopt(State.FAILED)
    assert refusals(actions) == ([("b", "engine_dead")] if drains else [])
    assert life.in_flight == {"a"}
    assert life.ended(6, "a") == []


def test_dies_while_it_wants_room() -> None:
    life = asleep()
    life.came(0, "a")
    life.looked(0, 2, Found.ASLEEP)
    assert life.probed(2, 1, Found.DEAD, "gone") == [
        Adopt(State.FAILED),
        Release(3),
        Refuse("a", "engine_dead", 5, "gone"),
    ]
    assert life.quiet


def test_old_news_and_calls_under_way() -> None:
    life = awake()
    assert life.probed(3, 0, Found.ASLEEP) == []  # as old as the last change
    put_to_sleep(life, 100)
    assert life.probed(101, 99, Found.AWAKE) == []
    wake = calling_wake(life, 200)
    for found in Found:
        assert life.probed(202, 201, found) == []
    life.woken(203, wake)
    assert life.probed(204, 202, Found.DEAD) == []
    assert life.state is State.AWAKE


@pytest.mark.parametrize("found", Found)
def test_no_news(found: Found) -> None:
    life = begin(found)
    assert life.probed(2, 1, found) == []


def test_what_went_wrong_is_kept_up_to_date() -> None:
    life = asleep()
    life.wake_failed(10, calling_wake(life, 0), "500")
    life.probed(12, 11, Found.DEAD, "gone")
    assert life.came(13, "b") == [Refuse("b", "engine_dead", 2, "gone")]


def test_results_of_other_calls_say_nothing() -> None:
    life = asleep()
    wake = calling_wake(life, 0)
    for call in (0, 1, 2, 3, 99):
        assert life.woken(1, call) == life.wake_failed(1, call) == life.looked(1, call, Found.DEAD) == []
        assert life.slept(1, call) == life.sleep_failed(1, call) == life.room_refused(1, call) == []
    assert life.slept(1, wake) == life.sleep_failed(1, wake) == life.looked(1, wake, Found.DEAD) == []
    assert where(life) == (State.WAKING, Phase.CALLING)
    life.woken(2, wake)
    assert life.woken(2, wake) == life.wake_failed(2, wake) == []
    assert life.state is State.AWAKE


# Stopping


def test_stop_finishes_what_was_accepted() -> None:
    life = awake(replace(SETTINGS, auto_sleep_enabled=True))
    life.came(1, "a")
    assert life.stop(2) == []
    assert life.came(3, "b") == [Refuse("b", "shutting_down", 1)]
    assert not life.quiet
    life.ended(4, "a")
    assert life.quiet
    assert life.due() is None
    assert life.tick(10000) == []


def test_stop_drops_a_drain() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(2, Why.ADMIN, "ask", firm=True)
    life.came(3, "b")
    assert life.stop(4) == [
        Answer("ask", False, "it stays awake: the controller is shutting down"),
        Forward("b"),
    ]


def test_stop_while_it_wakes() -> None:
    life = asleep()
    wake = calling_wake(life, 0, "a")
    assert life.stop(1) == []
    assert refusals(life.came(2, "b")) == [("b", "shutting_down")]
    assert forwarded(life.woken(3, wake)) == ["a"]
    assert life.ended(4, "a") == []
    assert life.quiet


def test_stop_while_it_is_put_to_sleep() -> None:
    life = awake()
    life.sleep_asked(100, Why.ADMIN, "ask")
    life.came(101, "a")
    life.stop(102)
    assert not life.quiet
    assert life.slept(103, 2) == [Answer("ask", True, "it is asleep")]
    assert life.tick(163) == [Look(3)]


def test_asks_after_stop() -> None:
    life = awake()
    life.stop(1)
    no = [Answer("ask", False, "the controller is shutting down")]
    assert life.sleep_asked(2, Why.ADMIN, "ask") == life.wake_asked(2, "ask") == no
