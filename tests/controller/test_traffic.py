# SPDX-License-Identifier: Apache-2.0
"""What is counted, with exact numbers."""

from __future__ import annotations

import sys

import pytest

from kvcached.controller.traffic import HISTORY_SECONDS, Outcome, Stats, Traffic


def test_never_used() -> None:
    assert Traffic(100).stats(400, 60, 300) == Stats(0, 0, 0, 0, 0, 0.0, 0.0, None, 300.0, True)
    assert not Traffic(100).stats(399.9, 60, 300).is_idle


def test_counts() -> None:
    traffic = Traffic(0)
    for outcome, seconds in ((Outcome.OK, 1.0), (Outcome.OK, 3.0), (Outcome.FAILED, 0.5)):
        traffic.came(10)
        traffic.ended(10, outcome, seconds)
    traffic.came(10)
    traffic.ended(10, Outcome.CANCELLED, 100)
    traffic.came(11)
    assert traffic.stats(12, 10, 300) == Stats(5, 2, 1, 1, 1, 0.5, 1.5, 11, 0.0, False)


def test_requests_under_way_are_activity() -> None:
    traffic = Traffic(0)
    traffic.came(0)
    assert traffic.stats(5000, 60, 300).idle_time_seconds == 0
    assert not traffic.stats(5000, 60, 300).is_idle
    assert not traffic.stats(5000, 60, 0).is_idle
    traffic.ended(5000, Outcome.OK, 5000)
    assert traffic.stats(5299, 60, 300).idle_time_seconds == 299
    assert not traffic.stats(5299, 60, 300).is_idle
    assert traffic.stats(5300, 60, 300).is_idle


def test_rate_forgets() -> None:
    traffic = Traffic(0)
    for second in range(100):
        traffic.came(second)
        traffic.ended(second + 0.5, Outcome.OK, 0.5)
    assert traffic.stats(100, 10, 1).request_rate == 1.0
    assert traffic.stats(105, 10, 1).request_rate == 0.5
    assert traffic.stats(110, 10, 1).request_rate == 0.0
    assert traffic.stats(110, 10, 1).avg_response_time == 0.0
    assert traffic.stats(110, 100, 1).avg_response_time == 0.5
    assert traffic.stats(110, 10, 1).total_requests == 100


def test_answers_of_one_window_to_requests_of_another() -> None:
    traffic = Traffic(0)
    traffic.came(0)
    traffic.ended(1000, Outcome.OK, 1000)
    stats = traffic.stats(1000, 60, 300)
    assert (stats.request_rate, stats.avg_response_time) == (0.0, 1000)


@pytest.mark.parametrize("window", [0, -1, HISTORY_SECONDS + 1])
def test_window(window: float) -> None:
    with pytest.raises(ValueError, match="window"):
        Traffic(0).stats(0, window, 1)


def test_ends_without_a_beginning() -> None:
    with pytest.raises(ValueError, match="never came"):
        Traffic(0).ended(0, Outcome.OK, 0)


def test_memory_is_bounded() -> None:
    def size(traffic: Traffic) -> int:
        return sys.getsizeof(traffic._seconds) + sum(sys.getsizeof(s) for s in traffic._seconds)

    traffic = Traffic(0)
    sizes: list[int] = []
    for _ in range(2):
        for i in range(20000):
            now = len(sizes) * 20000 + i
            traffic.came(now)
            traffic.ended(now, Outcome.OK, 0.1)
        sizes.append(size(traffic))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    assert len(traffic._seconds) <= HISTORY_SECONDS + 1
