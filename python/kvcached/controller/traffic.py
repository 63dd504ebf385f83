# SPDX-License-Identifier: Apache-2.0
"""What is counted of one model's requests. Times are the caller's monotonic clock's, in seconds.

A request that is under way is activity: a model that streams for an hour is not idle. A model that nobody has
asked for yet is idle since it is known. Memory is bounded: a slot for each second of the last hour in which
something happened, however many requests there are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

HISTORY_SECONDS = 3600


class Outcome(Enum):
    OK = "ok"  # the engine's answer has been passed on, whatever its status below 500
    FAILED = "failed"  # an answer of 500 or above, the engine's or ours
    CANCELLED = "cancelled"  # the client went away; neither of the two


@dataclass
class _Second:
    number: int
    came: int = 0
    answered: int = 0
    answer_seconds: float = 0.0


@dataclass(frozen=True)
class Stats:
    """Field names are those of the reference; last_activity is None before the first request."""

    total_requests: int
    successful_requests: int
    failed_requests: int
    cancelled_requests: int
    requests_in_flight: int
    request_rate: float  # that came, a second of the window
    avg_response_time: float  # seconds, of what was answered in the window; 0: nothing was
    last_activity: float | None
    idle_time_seconds: float  # 0 while a request is under way
    is_idle: bool


class Traffic:
    """Counters of one model, known since `now`."""

    def __init__(self, now: float) -> None:
        self._known_since = now
        self._last: float | None = None
        self._seconds: deque[_Second] = deque()
        self.total = 0
        self.in_flight = 0
        self.outcomes = dict.fromkeys(Outcome, 0)

    def came(self, now: float) -> None:
        self._last = now
        self.total += 1
        self.in_flight += 1
        self._second(now).came += 1

    def ended(self, now: float, outcome: Outcome, seconds: float) -> None:
        """`seconds`: from when it came to its last byte. One that was cancelled has no response time."""
        if self.in_flight < 1:
            raise ValueError("A request ended that never came")
        self._last = now
        self.in_flight -= 1
        self.outcomes[outcome] += 1
        if outcome is not Outcome.CANCELLED:
            second = self._second(now)
            second.answered += 1
            second.answer_seconds += seconds

    def idle_seconds(self, now: float) -> float:
        if self.in_flight:
            return 0.0
        return max(0.0, now - (self._known_since if self._last is None else self._last))

    def stats(self, now: float, window_seconds: float, idle_threshold_seconds: float) -> Stats:
        """Rates are of the last `window_seconds`, at most HISTORY_SECONDS, to the second. ValueError: not
        positive."""
        if not 0 < window_seconds <= HISTORY_SECONDS:
            raise ValueError(
                f"A window of {window_seconds} s: it must be above 0 and at most {HISTORY_SECONDS}"
            )
        recent = [second for second in self._seconds if second.number > now - window_seconds - 1]
        answered = sum(second.answered for second in recent)
        idle = self.idle_seconds(now)
        return Stats(
            total_requests=self.total,
            successful_requests=self.outcomes[Outcome.OK],
            failed_requests=self.outcomes[Outcome.FAILED],
            cancelled_requests=self.outcomes[Outcome.CANCELLED],
            requests_in_flight=self.in_flight,
            request_rate=sum(second.came for second in recent) / window_seconds,
            avg_response_time=sum(second.answer_seconds for second in recent) / answered if answered else 0.0,
            last_activity=self._last,
            idle_time_seconds=idle,
            is_idle=self.in_flight == 0 and idle >= idle_threshold_seconds,
        )

    def _second(self, now: float) -> _Second:
        number = int(now // 1)
        if not self._seconds or self._seconds[-1].number < number:
            self._seconds.append(_Second(number))
            while self._seconds[0].number < number - HISTORY_SECONDS:
                self._seconds.popleft()
        return self._seconds[-1]
