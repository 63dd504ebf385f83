# SPDX-License-Identifier: Apache-2.0
"""One model's life, event by event as the table in lifecycle.py has it: how it is found in the beginning, and
while it is awake."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.lives import SETTINGS, awake, begin, where
from kvcached.controller.actions import (
    Adopt,
    Answer,
    Forward,
    Found,
    Look,
    Phase,
    Refuse,
    Reserve,
    Sleep,
    State,
    Why,
)
from kvcached.controller.lifecycle import Lifecycle

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
