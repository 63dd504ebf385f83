# SPDX-License-Identifier: Apache-2.0
"""One model's life when others replace its engines, or put them to sleep."""

from __future__ import annotations

from dataclasses import replace

from controller.lives import SETTINGS, asleep, awake, begin, calling_wake, where
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
    State,
    Wake,
    Why,
)
from kvcached.controller.config import SleepManager
from kvcached.controller.lifecycle import Lifecycle

# Put to sleep by others, under requests


def stranded(settings: SleepManager = SETTINGS) -> tuple[Lifecycle, list[Action]]:
    """A request waits in an engine that sleeps."""
    life = awake(settings)
    life.came(1, "a")
    return life, life.probed(3, 2, Found.ASLEEP)


def test_those_that_wait_in_the_engine_wake_it() -> None:
    life, actions = stranded()
    assert actions == [Adopt(State.ASLEEP), Look(2)]
    assert (life.waiting_since, life.slept_for) == (3, Why.ELSEWHERE)
    (reserve,) = life.looked(4, 2, Found.ASLEEP)
    assert reserve == Reserve(3, 4 + SETTINGS.queue_deadline_seconds)
    life.room_refused(5, 3)
    assert life.due() == 6
    (again,) = life.tick(6)
    assert again == Reserve(4, 6 + SETTINGS.queue_deadline_seconds)
    (wake,) = life.room_granted(7, 4)
    assert wake == Wake(5)
    assert life.woken(8, 5) == [Release(4)]
    assert (life.state, life.in_flight, life.waiting_since) == (State.AWAKE, {"a"}, None)


def test_those_that_wait_in_the_engine_and_go() -> None:
    life, _ = stranded()
    life.looked(4, 2, Found.ASLEEP)
    assert life.ended(5, "a") == [Release(3)]
    assert life.state is State.ASLEEP
    assert life.quiet


def test_those_that_wait_in_the_engine_wait_where_requests_do_not_wake_it() -> None:
    life, actions = stranded(replace(SETTINGS, wakeup_on_request=False))
    assert actions == [Adopt(State.ASLEEP)]
    assert (life.due(), life.waiting_since) == (None, None)
    assert life.wake_asked(4, "ask") == [Look(2)]


def test_those_that_wait_in_the_engine_and_a_wake_that_fails() -> None:
    """They are in the engine: nobody refuses them, and once it is found asleep again it is woken again."""
    life, _ = stranded()
    life.looked(4, 2, Found.ASLEEP)
    life.room_granted(5, 3)
    assert life.wake_failed(6, 4, "no") == [Release(3)]
    assert life.probed(8, 7, Found.ASLEEP) == []
    assert life.probed(12, 11, Found.ASLEEP) == [Adopt(State.ASLEEP), Look(5)]


# Some of several


def test_the_rest_is_woken_where_somebody_wants_it() -> None:
    life = awake()
    assert not life.wants_all(1)
    life.came(2, "a")
    assert life.wants_all(1)
    assert life.wants_all(3)  # it is under way
    life.ended(4, "a")
    assert life.wants_all(2)
    assert not life.wants_all(3)
    life.wake_asked(5, "ask")
    assert life.wants_all(5)
    life.sleep_asked(100, Why.ADMIN)
    assert not life.wants_all(5)


def test_the_rest_is_not_woken_by_requests_where_these_do_not_wake() -> None:
    life = awake(replace(SETTINGS, wakeup_on_request=False))
    life.came(2, "a")
    assert not life.wants_all(1)
    life.wake_asked(3, "ask")
    assert life.wants_all(1)


def test_the_rest_is_not_woken_when_it_stops() -> None:
    life = awake()
    life.came(2, "a")
    life.stop(3)
    assert not life.wants_all(1)


# Replaced


def test_unserved_looks_and_lets_wait() -> None:
    life = awake()
    life.came(1, "old")
    assert life.unserved(2) == [Look(2)]
    assert where(life) == (State.WAKING, Phase.LOOKING)
    assert life.came(3, "new") == []
    assert life.looked(4, 2, Found.AWAKE) == [Adopt(State.AWAKE), Forward("new")]
    assert life.in_flight == {"old", "new"}


def test_unserved_and_found_asleep_wakes_for_who_waits() -> None:
    life = awake()
    life.unserved(1)
    life.came(2, "a")
    assert life.looked(3, 2, Found.ASLEEP) == [Reserve(3, 122)]


def test_unserved_and_found_asleep_sleeps_where_nobody_waits() -> None:
    life = awake()
    life.unserved(1)
    assert life.looked(3, 2, Found.ASLEEP) == [Adopt(State.ASLEEP)]
    assert (life.state, life.slept_for) == (State.ASLEEP, Why.ELSEWHERE)
    assert life.came(4, "a") == [Look(3)]


def test_unserved_and_found_dead_refuses_who_waits() -> None:
    life = awake()
    life.unserved(1)
    life.came(2, "a")
    assert life.looked(3, 2, Found.DEAD, "gone") == [Refuse("a", "engine_dead", 5, "gone")]


def test_unserved_while_it_drains() -> None:
    life = awake()
    life.came(1, "a")
    life.sleep_asked(2, Why.ADMIN, "ask", firm=True)
    life.came(3, "b")
    assert life.unserved(4) == [Answer("ask", False, "its engines are others now"), Look(2)]
    assert life.looked(5, 2, Found.AWAKE) == [Adopt(State.AWAKE), Forward("b")]


def test_unserved_otherwise() -> None:
    """Whoever is under way will tell, or nothing is forwarded anyway."""
    calling, looking = awake(), awake()
    calling.sleep_asked(100, Why.ADMIN)
    looking.sleep_asked(100, Why.ADMIN)
    looking.sleep_failed(101, 2)
    waking = asleep()
    calling_wake(waking, 1)
    lives: list[Lifecycle] = [asleep(), begin(Found.DEAD), waking, calling, looking]
    for life in lives:
        before = where(life)
        assert life.unserved(102) == []
        assert where(life) == before


def test_wake_overtaken_looks_at_the_new_engines() -> None:
    life = asleep()
    wake = calling_wake(life, 1, "a")
    assert life.wake_overtaken(2, wake) == [Release(3), Look(5)]
    assert where(life) == (State.WAKING, Phase.LOOKING)
    assert life.looked(3, 5, Found.ASLEEP) == [Reserve(6, 121)]
    assert life.wake_overtaken(4, wake) == []


def test_wake_overtaken_by_another_outcome() -> None:
    life = asleep()
    wake = calling_wake(life, 1, "a")
    assert life.wake_overtaken(2, wake + 1) == []
    assert where(life) == (State.WAKING, Phase.CALLING)
    life.woken(2, wake)
    assert life.wake_overtaken(3, wake) == []
    assert life.state is State.AWAKE
