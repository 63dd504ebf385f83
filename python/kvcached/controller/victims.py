# SPDX-License-Identifier: Apache-2.0
"""Which model gives way for one that has to wake and finds no room.

Of the awake ones on the same GPU, those that have nothing to do and have been awake for min_awake_seconds may
be put to sleep, first the one whose

    seconds idle x bytes that come free / seconds that waking it will take

is the largest: long forgotten, large, cheap to have back. As few as make up for what is missing; and where it
isn't known how much that is, one, and then it is seen. None, where all that may sleep would not do: nobody is
put to sleep in vain.

One with requests under way is never put to sleep. But where nobody else can give way it has had its turn
after turn_seconds (and min_awake_seconds): it is drained, and its requests wait until it is its turn again.
So two that don't fit together are switched at most once in that time, however they are asked, and each of
them is served.

Who is already on the way out counts as room that is coming. Whoever has waited longest goes first: see
first().
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from kvcached.controller.config import SleepManager

# A wake takes no less, so that a model which seems to cost nothing isn't always the one.
LEAST_WAKE_SECONDS = 0.1


@dataclass(frozen=True)
class Candidate:
    """A model that is awake, or on the way out."""

    model: Hashable
    gpus: frozenset[int]
    bytes: int  # that come free when it sleeps
    awake_since: float
    may_sleep_from: float  # see lifecycle.may_sleep_from()
    idle_since: float
    in_flight: int
    wake_seconds: float  # the last wake took, or is thought to take
    leaving: bool = False  # drains, or is being put to sleep


@dataclass(frozen=True)
class Need:
    """A model that found no room. Where it lacks room on several GPUs, each with books of its own, that is a
    need for each of them, and candidates' bytes are those on that GPU."""

    model: Hashable
    gpus: frozenset[int]
    missing_bytes: int | None  # None: nobody knows
    waiting_since: float


@dataclass(frozen=True)
class Choice:
    """`sleep`, with nothing to do, and `turn`, to be drained, give way now. look_again: when somebody else
    may; None: only when something has changed."""

    sleep: tuple[Hashable, ...] = ()
    turn: tuple[Hashable, ...] = ()
    look_again: float | None = None


def first(needs: Iterable[Need]) -> list[Need]:
    """For whom somebody may give way now: those who have waited longest for their GPUs. The others' turn
    comes."""
    chosen: list[Need] = []
    for need in sorted(needs, key=lambda need: (need.waiting_since, str(need.model))):
        if not any(need.gpus & earlier.gpus for earlier in chosen):
            chosen.append(need)
    return chosen


def choose(need: Need, candidates: Iterable[Candidate], settings: SleepManager, now: float) -> Choice:
    """Who gives way for `need`. Candidates that share no GPU with it don't count."""
    there = [c for c in candidates if c.gpus & need.gpus and c.model != need.model]
    missing = need.missing_bytes
    leaving = [c for c in there if c.leaving]
    if missing is not None:
        missing -= sum(c.bytes for c in leaving)
    if (missing is None and leaving) or (missing is not None and missing <= 0):
        return Choice()
    staying = [c for c in there if not c.leaving]
    idle = [c for c in staying if not c.in_flight and now >= c.may_sleep_from]
    turns = [c for c in staying if c.in_flight and now >= turn_ends(c, settings)]
    chosen = _enough(idle, turns, missing, now)
    if chosen:
        return Choice(
            tuple(c.model for c in chosen if not c.in_flight), tuple(c.model for c in chosen if c.in_flight)
        )
    later = [turn_ends(c, settings) if c.in_flight else c.may_sleep_from for c in staying]
    return Choice(look_again=min((at for at in later if at > now), default=None))


def turn_ends(candidate: Candidate, settings: SleepManager) -> float:
    """From when it gives way although it has requests, if others wait."""
    return max(candidate.may_sleep_from, candidate.awake_since + settings.turn_seconds)


def score(candidate: Candidate, now: float) -> float:
    """How good a victim it is. One that is not idle is judged by how long it has been awake."""
    since = candidate.awake_since if candidate.in_flight else candidate.idle_since
    return max(0.0, now - since) * candidate.bytes / max(candidate.wake_seconds, LEAST_WAKE_SECONDS)


def _enough(
    idle: list[Candidate], turns: list[Candidate], missing: int | None, now: float
) -> list[Candidate]:
    """Best first, those with requests last; all of them needed. Empty: not even all would do."""

    def best_first(candidates: list[Candidate]) -> list[Candidate]:
        return sorted(candidates, key=lambda c: (-score(c, now), str(c.model)))

    order = [c for c in best_first(idle) + best_first(turns) if c.bytes > 0]
    if missing is None:
        return order[:1]
    if sum(c.bytes for c in order) < missing:
        return []
    chosen: list[Candidate] = []
    freed = 0
    for candidate in order:
        if freed >= missing:
            break
        chosen.append(candidate)
        freed += candidate.bytes
    for candidate in reversed(chosen.copy()):
        if freed - candidate.bytes >= missing:
            chosen.remove(candidate)
            freed -= candidate.bytes
    return chosen
