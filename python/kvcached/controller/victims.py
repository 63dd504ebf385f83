# SPDX-License-Identifier: Apache-2.0
"""Which models give way for one that has to wake and finds no room.

Each GPU has books of its own: who wakes may lack room on one of its GPUs or on several, and a model that
sleeps makes room on its own GPUs only, on each as much as it has there.

Of the awake ones on the GPUs that are short, those that have nothing to do and have been awake for
min_awake_seconds may be put to sleep, first the one whose

    seconds idle x bytes that come free there / seconds that waking it will take

is the largest: long forgotten, large, cheap to have back. As few as make up for what is missing on each of
these GPUs; and where it isn't known how much that is, one there, and then it is seen. None, where all that
may sleep would not do, if only on one of the GPUs.

One with requests under way is never put to sleep. But where nobody else can give way it has had its turn
after turn_seconds (and min_awake_seconds): it is drained, and its requests wait until it is its turn again.
So two that don't fit together are switched at most once in that time, however they are asked, and each of
them is served.

Who is already on the way out counts as room that is coming. Whoever has waited longest goes first: see
first().
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass

from kvcached.controller.config import SleepManager

# A wake takes no less, so that a model which seems to cost nothing isn't always the one.
LEAST_WAKE_SECONDS = 0.1


@dataclass(frozen=True)
class Candidate:
    """A model that is awake, or on the way out."""

    model: Hashable
    bytes: Mapping[int, int]  # that come free when it sleeps, by GPU
    awake_since: float
    may_sleep_from: float  # see lifecycle.may_sleep_from()
    idle_since: float
    in_flight: int
    wake_seconds: float  # the last wake took, or is thought to take
    leaving: bool = False  # drains, or is being put to sleep

    def on(self, gpus: Iterable[int]) -> int:
        """Bytes that come free on these."""
        return sum(self.bytes.get(gpu, 0) for gpu in gpus)


@dataclass(frozen=True)
class Need:
    """A model that waits for room. `missing_bytes`: by GPU, where there was none when it asked last; None:
    nobody knows how much. Empty: others' memory would not help it."""

    model: Hashable
    gpus: frozenset[int]  # all on which it wants room
    missing_bytes: Mapping[int, int | None]
    waiting_since: float


@dataclass(frozen=True)
class Choice:
    """`sleep`, with nothing to do, and `turn`, to be drained, give way now. look_again: when somebody else
    may; None: only when something has changed. coming: those on the way out will do."""

    sleep: tuple[Hashable, ...] = ()
    turn: tuple[Hashable, ...] = ()
    look_again: float | None = None
    coming: bool = False

    @property
    def hope(self) -> bool:
        """Whether there will be room, as things are."""
        return bool(self.sleep or self.turn or self.coming or self.look_again is not None)


def first(needs: Iterable[Need]) -> list[Need]:
    """For whom somebody may give way now: those who have waited longest for their GPUs. The others' turn
    comes."""
    chosen: list[Need] = []
    for need in sorted(needs, key=lambda need: (need.waiting_since, str(need.model))):
        if not any(need.gpus & earlier.gpus for earlier in chosen):
            chosen.append(need)
    return chosen


def choose(need: Need, candidates: Iterable[Candidate], settings: SleepManager, now: float) -> Choice:
    """Who gives way for `need`. Candidates without memory on the GPUs that are short don't count."""
    others = [c for c in candidates if c.model != need.model]
    missing = _after([c for c in others if c.leaving], need.missing_bytes)
    if not missing:
        return Choice(coming=bool(need.missing_bytes))
    staying = [c for c in others if not c.leaving and c.on(missing) > 0]
    idle = [c for c in staying if not c.in_flight and now >= c.may_sleep_from]
    turns = [c for c in staying if c.in_flight and now >= turn_ends(c, settings)]
    chosen = _enough(idle, turns, missing, now)
    if chosen:
        return Choice(
            tuple(c.model for c in chosen if not c.in_flight), tuple(c.model for c in chosen if c.in_flight)
        )
    if _after(staying, missing):
        return Choice()  # not even all of them would do
    later = [turn_ends(c, settings) if c.in_flight else c.may_sleep_from for c in staying]
    return Choice(look_again=min((at for at in later if at > now), default=None))


def turn_ends(candidate: Candidate, settings: SleepManager) -> float:
    """From when it gives way although it has requests, if others wait."""
    return max(candidate.may_sleep_from, candidate.awake_since + settings.turn_seconds)


def score(candidate: Candidate, gpus: Collection[int], now: float) -> float:
    """How good a victim it is where these GPUs are short. One that is not idle is judged by how long it has
    been awake."""
    since = candidate.awake_since if candidate.in_flight else candidate.idle_since
    seconds = max(candidate.wake_seconds, LEAST_WAKE_SECONDS)
    return max(0.0, now - since) * candidate.on(gpus) / seconds


def _after(asleep: Collection[Candidate], missing: Mapping[int, int | None]) -> dict[int, int | None]:
    """What is missing still when these sleep. Where nobody knows how much it is, any of them may do."""
    left: dict[int, int | None] = {}
    for gpu, n_bytes in missing.items():
        freed = sum(c.on([gpu]) for c in asleep)
        if n_bytes is None and not freed:
            left[gpu] = None
        elif n_bytes is not None and n_bytes > freed:
            left[gpu] = n_bytes - freed
    return left


def _enough(
    idle: list[Candidate], turns: list[Candidate], missing: Mapping[int, int | None], now: float
) -> list[Candidate]:
    """Best first, those with requests last; all of them needed. Empty: not even all would do."""

    def best_first(candidates: list[Candidate]) -> list[Candidate]:
        return sorted(candidates, key=lambda c: (-score(c, missing, now), str(c.model)))

    chosen: list[Candidate] = []
    left = dict(missing)
    for candidate in best_first(idle) + best_first(turns):
        if candidate.on(left) > 0:
            chosen.append(candidate)
            left = _after(chosen, missing)
    if left:
        return []
    for candidate in reversed(chosen.copy()):
        without = [c for c in chosen if c is not candidate]
        if not _after(without, missing):
            chosen = without
    return chosen
