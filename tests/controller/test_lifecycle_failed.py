# SPDX-License-Identifier: Apache-2.0
"""One model's life when its engine has failed: when it is tried again, and what is remembered."""

from __future__ import annotations

from controller.lives import asleep, awake, begin, calling_wake, forwarded, put_to_sleep, refusals
from kvcached.controller.actions import Adopt, Answer, Forward, Found, Look, Refuse, State, Why
from kvcached.controller.lifecycle import BACKOFF_MAX_SECONDS


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
