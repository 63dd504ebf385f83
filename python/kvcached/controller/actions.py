# SPDX-License-Identifier: Apache-2.0
"""What a model can be, what is to be done about it: the words of lifecycle.py.

An action that has a `call` is one that takes its time: whoever does it reports what came of it, with that
number.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Union


class State(Enum):
    AWAKE = "awake"
    DRAINING = "draining"
    ASLEEP = "asleep"
    WAKING = "waking"
    FAILED = "failed"


class Phase(Enum):
    NONE = "none"
    EMPTYING = "emptying"
    CALLING = "calling"
    LOOKING = "looking"
    RESERVING = "reserving"
    WANTING = "wanting"


class Found(Enum):
    """What an engine is found to be."""

    AWAKE = "awake"
    ASLEEP = "asleep"
    DEAD = "dead"


class Why(Enum):
    """For what a model sleeps."""

    IDLE = "idle"
    ADMIN = "admin"
    ROOM = "room"  # another model needs its memory, and it has nothing to do
    TURN = "turn"  # the same, and it has, but has had its turn
    ELSEWHERE = "elsewhere"  # it was found asleep


@dataclass(frozen=True)
class Forward:
    request: Hashable


@dataclass(frozen=True)
class Refuse:
    request: Hashable
    code: str  # a key of errors.KINDS
    retry_after: float  # seconds
    detail: str = ""


@dataclass(frozen=True)
class Look:
    """Find out what the engine is: answered by looked(), once."""

    call: int


@dataclass(frozen=True)
class Reserve:
    """Room for the model, to be had by `deadline`: answered by room_granted() or room_refused(), once, unless
    released before."""

    call: int
    deadline: float


@dataclass(frozen=True)
class Release:
    """Room is not needed any more, or being asked for: that of Reserve `call`. Again, perhaps, for a grant
    that was on its way."""

    call: int


@dataclass(frozen=True)
class Wake:
    """Answered by woken(), when the engine serves again, or wake_failed(), once, within
    wake_timeout_seconds."""

    call: int


@dataclass(frozen=True)
class Sleep:
    """Answered by slept() or sleep_failed(), once."""

    call: int


@dataclass(frozen=True)
class Answer:
    ask: Hashable
    ok: bool
    message: str


@dataclass(frozen=True)
class Adopt:
    """The state is now this one because the engine was found so; only to be noted."""

    state: State


Action = Union[Forward, Refuse, Look, Reserve, Release, Wake, Sleep, Answer, Adopt]
