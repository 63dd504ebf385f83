# SPDX-License-Identifier: Apache-2.0
"""One model's life in a test's hands: how it begins, the short ways to what tests are about, and what came of
it."""

from __future__ import annotations

from collections.abc import Hashable

from kvcached.controller.actions import (
    Action,
    Forward,
    Found,
    Look,
    Phase,
    Refuse,
    Reserve,
    Sleep,
    State,
    Wake,
    Why,
)
from kvcached.controller.config import SleepManager
from kvcached.controller.lifecycle import Lifecycle

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
