# SPDX-License-Identifier: Apache-2.0
"""One model's life asleep and on the way back: who waits, for what, in which order and until when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.lives import SETTINGS, asleep, awake, calling_wake, forwarded, put_to_sleep, refusals, where
from kvcached.controller.actions import (
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
from kvcached.controller.lifecycle import Lifecycle

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


def test_a_deadline_that_was_longer_before() -> None:
    """It counts while somebody waits who has it."""
    life = asleep(replace(SETTINGS, queue_deadline_seconds=3600))
    life.came(1, "a")
    life.ended(2, "a")
    life.settings = SETTINGS
    life.came(10, "b")
    assert life.due() == 10 + SETTINGS.queue_deadline_seconds


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
