# SPDX-License-Identifier: Apache-2.0
"""Which replica gets which request."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kvcached.controller.balance import Balance, Result, may_retry


def serving(names: str, **options: int) -> Balance:
    """All of them are awake."""
    balance = Balance(names, **options)
    for name in names:
        balance.set_serving(name, True)
    return balance


def fail(balance: Balance, name: str, times: int) -> list[bool]:
    return [balance.probed(name, good=False) for _ in range(times)]


def test_fewest_under_way() -> None:
    balance = serving("abc")
    assert [balance.pick() for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]
    balance.ended("b", Result.OK)
    assert balance.pick() == "b"
    balance.ended("c", Result.OK)
    balance.ended("c", Result.OK)
    assert [balance.pick(), balance.pick()] == ["c", "c"]


def test_ties_go_to_who_was_picked_least_recently() -> None:
    balance = serving("abc")
    picked = []
    for _ in range(7):
        name = balance.pick()
        picked.append(name)
        balance.ended(name, Result.OK)
    assert picked == ["a", "b", "c", "a", "b", "c", "a"]


def test_none() -> None:
    balance = serving("ab")
    assert balance.pick(tried=["a", "b"]) is None
    assert Balance().pick() is None
    assert [r.outstanding for r in balance.replicas] == [0, 0]


def test_ejection_and_return() -> None:
    balance = serving("ab", failures_to_eject=3)
    assert fail(balance, "a", 4) == [False, False, True, False]
    assert [balance.pick() for _ in range(3)] == ["b", "b", "b"]
    assert balance.probed("a", good=True) is False
    assert balance.pick() == "a"


def test_failures_count_in_a_row_only() -> None:
    balance = serving("ab", failures_to_eject=2)
    for result in (Result.BROKE, Result.OK, Result.NOT_SENT):
        balance.pick(tried="b")
        assert balance.ended("a", result) is False
    balance.pick(tried="b")
    assert balance.ended("a", Result.CANCELLED) is False  # says nothing: neither resets nor counts
    balance.pick(tried="b")
    assert balance.ended("a", Result.BROKE) is True
    assert balance.pick() == "b"


def test_all_ejected() -> None:
    """Then one of them is better than none, and a good answer brings it back."""
    balance = serving("ab", failures_to_eject=1)
    fail(balance, "a", 1)
    fail(balance, "b", 1)
    name = balance.pick()
    assert name == "a"
    assert balance.pick(tried="a") == "b"
    balance.ended("a", Result.OK)
    assert [r.ejected for r in balance.replicas] == [False, True]


def test_who_sleeps_gets_nothing() -> None:
    balance = serving("ab", failures_to_eject=1)
    balance.set_serving("a", False)
    fail(balance, "b", 1)
    assert balance.pick() == "b"
    balance.set_serving("b", False)
    assert balance.pick() is None
    balance.set_serving("a", True)
    assert balance.pick() == "a"
    balance.set_serving("gone", True)


def test_who_is_new_gets_nothing_until_it_is_known_to_be_awake() -> None:
    balance = Balance("a")
    assert not balance.serves
    assert balance.pick() is None
    balance.set_serving("a", True)
    balance.set_replicas("ab")
    assert balance.serves
    assert [balance.pick(), balance.pick()] == ["a", "a"]
    balance.set_serving("b", True)
    assert balance.pick() == "b"
    balance.set_replicas("c")
    assert not balance.serves


def test_retries_only_where_nothing_was_sent() -> None:
    assert [result for result in Result if may_retry(result)] == [Result.NOT_SENT]


def test_a_retry_ends() -> None:
    balance = serving("abc")
    tried: list[object] = []
    while (name := balance.pick(tried)) is not None:
        balance.ended(name, Result.NOT_SENT)
        tried.append(name)
    assert sorted(map(str, tried)) == ["a", "b", "c"]


def test_replicas_come_and_go() -> None:
    balance = serving("ab")
    assert [balance.pick(), balance.pick()] == ["a", "b"]
    balance.set_replicas("bc")
    assert [r.name for r in balance.replicas] == ["b", "c"]
    assert [r.outstanding for r in balance.replicas] == [1, 0]
    balance.set_serving("c", True)
    assert balance.pick() == "c"
    balance.set_replicas("abc")  # comes back before its request has ended
    assert {r.name: r.outstanding for r in balance.replicas} == {"a": 1, "b": 1, "c": 1}
    balance.set_replicas("b")
    balance.ended("a", Result.OK)
    assert balance.probed("a", good=False) is False
    with pytest.raises(ValueError, match="no request"):
        balance.ended("a", Result.OK)
    balance.ended("c", Result.BROKE)
    balance.ended("b", Result.OK)
    balance.set_replicas("abc")
    assert [(r.outstanding, r.failures) for r in balance.replicas] == [(0, 0)] * 3


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="failures_to_eject is 0"):
        Balance("a", failures_to_eject=0)
    with pytest.raises(ValueError, match="no request"):
        Balance("a").ended("a", Result.OK)


def test_books_are_kept(seed: int) -> None:
    """Random picks and ends: what is under way is what the books say, and never differs by more than one
    between replicas while requests only come."""
    rng, balance, names = random.Random(seed), serving("abcd"), "abcd"
    under_way: list[object] = []
    for _ in range(20000):
        if rng.random() < 0.5 or not under_way:
            least = min(r.outstanding for r in balance.replicas)
            name = balance.pick()
            assert {r.name: r.outstanding for r in balance.replicas}[name] == least + 1
            under_way.append(name)
        else:
            balance.ended(under_way.pop(rng.randrange(len(under_way))), Result.OK)
        counted = Counter(under_way)
        assert [r.outstanding for r in balance.replicas] == [counted[name] for name in names]
