# SPDX-License-Identifier: Apache-2.0
"""One model's life when its engine is noticed in passing, or a result comes late: what of that counts."""

from __future__ import annotations

import pytest

from controller.lives import asleep, awake, begin, calling_wake, forwarded, put_to_sleep, refusals, where
from kvcached.controller.actions import (
    Adopt,
    Answer,
    Forward,
    Found,
    Look,
    Phase,
    Refuse,
    Release,
    State,
    Why,
)


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
