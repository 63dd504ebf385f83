# SPDX-License-Identifier: Apache-2.0
"""One model's life on the way to sleep: who is waited for, for how long, and what drops it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.lives import SETTINGS, asleep, awake, calling_wake, forwarded, refusals, where
from kvcached.controller.actions import (
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
