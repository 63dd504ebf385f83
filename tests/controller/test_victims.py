# SPDX-License-Identifier: Apache-2.0
"""Who gives way, with exact numbers; and what becomes of models that don't fit together, over hours."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from controller.node import Node
from kvcached.controller.config import SleepManager
from kvcached.controller.victims import Candidate, Choice, Need, choose, first, score, turn_ends

SETTINGS = SleepManager(min_awake_seconds=30, turn_seconds=40)
GIB = 1 << 30
NOW = 1000.0


def candidate(model: str, gib: float = 10, gpus: Iterable[int] = (0,), **changes: Any) -> Candidate:
    """One that has so much on each of its GPUs, has been idle for 100 s, and wakes in 5."""
    plain = Candidate(
        model=model,
        bytes={gpu: int(gib * GIB) for gpu in gpus},
        awake_since=500,
        may_sleep_from=530,
        idle_since=900,
        in_flight=0,
        wake_seconds=5,
    )
    return replace(plain, **changes)


def need(*missing_gib: float | None) -> Need:
    """By GPU, from 0 on."""
    missing = {gpu: None if gib is None else int(gib * GIB) for gpu, gib in enumerate(missing_gib)}
    return Need("new", frozenset(missing), missing, 990)


def is_met(need: Need, asleep: list[Candidate]) -> bool:
    """Whether there is room when these sleep, or, where it isn't known how much is missing, may be."""
    on_each = {gpu: sum(c.bytes.get(gpu, 0) for c in asleep) for gpu in need.missing_bytes}
    return all(on_each[gpu] >= (1 if n is None else n) for gpu, n in need.missing_bytes.items())


def test_score() -> None:
    assert score(candidate("a"), [0], NOW) == 100 * 10 * GIB / 5
    assert score(candidate("a", gpus=[0, 1, 2]), [0, 2, 3], NOW) == 100 * 20 * GIB / 5
    assert score(candidate("a", wake_seconds=0), [0], NOW) == 100 * 10 * GIB / 0.1
    assert score(candidate("a", idle_since=2000), [0], NOW) == 0
    assert score(candidate("a", in_flight=1), [0], NOW) == 500 * 10 * GIB / 5


@pytest.mark.parametrize(
    "better",
    [{"idle_since": 899}, {"gib": 11}, {"wake_seconds": 4}, {"idle_since": 600, "wake_seconds": 19}],
)
def test_best_victim(better: dict[str, Any]) -> None:
    there = [candidate("a"), candidate("b", **better), candidate("c")]
    for missing in (1, None):
        assert choose(need(missing), there, SETTINGS, NOW) == Choice(sleep=("b",))


def test_ties_are_decided() -> None:
    there = [candidate("b"), candidate("a")]
    assert choose(need(1), there, SETTINGS, NOW) == Choice(sleep=("a",))
    assert choose(need(1), there[::-1], SETTINGS, NOW) == Choice(sleep=("a",))


def test_as_few_as_will_do() -> None:
    there = [
        candidate("small", 2, idle_since=0),
        candidate("mid", 5, idle_since=500),
        candidate("big", 40, idle_since=999),
    ]
    assert choose(need(2), there, SETTINGS, NOW) == Choice(sleep=("mid",))
    assert choose(need(7), there, SETTINGS, NOW) == Choice(sleep=("mid", "small"))
    assert choose(need(8), there, SETTINGS, NOW) == Choice(sleep=("big",))
    assert choose(need(47), there, SETTINGS, NOW) == Choice(sleep=("mid", "small", "big"))


def test_nobody_sleeps_in_vain() -> None:
    there = [candidate("a"), candidate("b")]
    assert choose(need(21), there, SETTINGS, NOW) == Choice()
    assert choose(need(20), there, SETTINGS, NOW) == Choice(sleep=("a", "b"))
    assert choose(need(None), [candidate("a", 0)], SETTINGS, NOW) == Choice()


def test_nobody_there() -> None:
    assert choose(need(1), [], SETTINGS, NOW) == Choice()
    assert choose(need(1), [candidate("new")], SETTINGS, NOW) == Choice()


def test_not_before_it_has_been_awake_for_a_while() -> None:
    there = [candidate("a", may_sleep_from=1010), candidate("b", may_sleep_from=1005)]
    assert choose(need(1), there, SETTINGS, NOW) == Choice(look_again=1005)
    assert choose(need(1), there, SETTINGS, 1005) == Choice(sleep=("b",))
    assert choose(need(11), there, SETTINGS, 1005) == Choice(look_again=1010)
    assert choose(need(11), there, SETTINGS, 1010) == Choice(sleep=("a", "b"))


def test_turns() -> None:
    works = candidate("a", in_flight=3, awake_since=970, may_sleep_from=1000)
    assert turn_ends(works, SETTINGS) == 1010
    assert choose(need(1), [works], SETTINGS, 1009) == Choice(look_again=1010)
    assert choose(need(1), [works], SETTINGS, 1010) == Choice(turn=("a",))
    longer = replace(SETTINGS, turn_seconds=10)
    assert choose(need(1), [works], longer, 999) == Choice(look_again=1000)
    assert choose(need(1), [works], longer, 1000) == Choice(turn=("a",))


def test_who_works_comes_last() -> None:
    works = candidate("a", 80, in_flight=1)
    rests = candidate("b", idle_since=999)
    assert choose(need(10), [works, rests], SETTINGS, NOW) == Choice(sleep=("b",))
    assert choose(need(None), [works, rests], SETTINGS, NOW) == Choice(sleep=("b",))
    assert choose(need(11), [works, rests], SETTINGS, NOW) == Choice(turn=("a",))
    assert choose(need(85), [works, rests], SETTINGS, NOW) == Choice(sleep=("b",), turn=("a",))


def test_who_is_on_the_way_out() -> None:
    leaves = candidate("a", leaving=True)
    assert choose(need(10), [leaves, candidate("b")], SETTINGS, NOW) == Choice(coming=True)
    assert choose(need(11), [leaves, candidate("b")], SETTINGS, NOW) == Choice(sleep=("b",))
    assert choose(need(None), [leaves, candidate("b")], SETTINGS, NOW) == Choice(coming=True)
    assert choose(need(0), [candidate("b")], SETTINGS, NOW) == Choice(coming=True)


def test_first() -> None:
    early = Need("early", frozenset({0, 1}), {0: 1}, 10)
    late = Need("late", frozenset({1, 2}), {2: 1}, 11)
    elsewhere = Need("elsewhere", frozenset({2}), {2: 1}, 12)
    assert first([elsewhere, late, early]) == [early, elsewhere]
    assert first([]) == []
    a, b = Need("a", frozenset({0}), {0: 1}, 10), Need("b", frozenset({0}), {0: 1}, 10)
    assert first([b, a]) == first([a, b]) == [a]


def test_chosen_are_needed_and_allowed(seed: int) -> None:
    """On one GPU, or on two, on each of which each has its own size."""
    rng = random.Random(seed)
    chosen = 0
    for _ in range(20000):
        gpus = range(rng.choice([1, 2]))
        there = [
            candidate(
                str(i),
                bytes={gpu: rng.randrange(20) * GIB for gpu in gpus if rng.random() < 0.8},
                awake_since=rng.choice([500, 980]),
                may_sleep_from=rng.choice([530, 1000, 1010]),
                idle_since=rng.uniform(500, 1000),
                in_flight=rng.choice([0, 0, 1]),
                wake_seconds=rng.uniform(0, 20),
                leaving=rng.random() < 0.1,
            )
            for i in range(rng.randrange(6))
        ]
        wanted = need(*(rng.choice([None, *range(40)]) for _ in gpus))
        choice = choose(wanted, there, SETTINGS, NOW)
        by_name = {c.model: c for c in there}
        picked = [by_name[name] for name in choice.sleep + choice.turn]
        leaving = [c for c in there if c.leaving]
        assert not picked or is_met(wanted, picked + leaving)
        assert not any(is_met(wanted, [c for c in picked if c is not one] + leaving) for one in picked)
        assert choice.coming == is_met(wanted, leaving)
        assert not choice.hope or is_met(wanted, there)
        assert all(not c.leaving and c.may_sleep_from <= NOW for c in picked)
        assert all(by_name[name].in_flight == 0 for name in choice.sleep)
        assert all(by_name[name].awake_since + 40 <= NOW for name in choice.turn)
        assert choice.look_again is None or (choice.look_again > NOW and not picked)
        chosen += bool(picked)
    assert chosen > 2000


HOUR = 3600.0


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_two_that_are_always_asked_take_turns(known: bool) -> None:
    """100 GiB, and two models of 60 with two requests each second: each is awake half of the time, nobody is
    refused, and they are switched about once a minute, the time that one sleeps at least."""
    settings = SleepManager()
    node = Node(100, settings, known)
    models = [node.add(name, 60) for name in "ab"]
    for i in range(int(HOUR * 2)):
        node.request("ab"[i % 2], i / 2)
        node.request("ab"[i % 2], i / 2 + 0.1)
    node.run(HOUR + 200)
    for model in models:
        assert model.refused == []
        assert len(model.waits) == HOUR * 2
        assert max(model.waits) <= settings.queue_deadline_seconds
        assert 20 <= len(model.wakes) <= HOUR / (settings.min_sleep_duration + settings.min_awake_seconds)
        assert 0.35 * HOUR <= model.awake_seconds <= 0.65 * HOUR
    both = sorted(models[0].wakes + models[1].wakes)
    assert all(later - earlier >= settings.turn_seconds for earlier, later in zip(both, both[1:]))


def test_two_that_are_asked_now_and_then() -> None:
    """Each of them every 20 seconds: it isn't switched for each request."""
    settings = SleepManager(min_sleep_duration=0)
    node = Node(100, settings)
    models = [node.add(name, 60) for name in "ab"]
    for i in range(int(HOUR / 20)):
        node.request("a", i * 20)
        node.request("b", i * 20 + 10)
    node.run(HOUR + 200)
    for model in models:
        assert model.refused == []
        assert len(model.waits) == HOUR / 20
        assert len(model.wakes) <= HOUR / (2 * settings.min_awake_seconds)
    both = sorted(models[0].wakes + models[1].wakes)
    assert all(later - earlier >= settings.min_awake_seconds for earlier, later in zip(both, both[1:]))


def test_long_answers_are_not_cut_and_nobody_is_refused_for_them() -> None:
    """Answers of ten minutes: while one ends, others of the same model would wait too long, and don't. The
    other model finds no room then, and is told so, but has its turn when an answer has ended."""
    settings = SleepManager()
    node = Node(100, settings)
    slow = node.add("slow", 60, serve_seconds=600)
    quick = node.add("quick", 60)
    for i in range(6):
        node.request("slow", i * 700)
    for i in range(420):
        node.request("quick", 5 + i * 10)
    node.run(6000)
    assert slow.refused == []
    assert len(slow.waits) == 6
    assert set(quick.refused) == {"no_room"}
    assert len(quick.waits) > 40
    assert len(quick.wakes) >= 4


@pytest.mark.parametrize(("turn_seconds", "slow_served", "turns"), [(30, 20, 10), (1800, 85, 2)])
def test_long_answers_without_end(turn_seconds: float, slow_served: int, turns: int) -> None:
    """One of ten minutes each 100 seconds, so that the model never rests by itself. The other has its turns
    all the same; turn_seconds says who is served how much."""
    node = Node(100, SleepManager(turn_seconds=turn_seconds))
    slow = node.add("slow", 60, serve_seconds=600)
    quick = node.add("quick", 60)
    for i in range(100):
        node.request("slow", i * 100)
    for i in range(1000):
        node.request("quick", 5 + i * 10)
    node.run(11000)
    assert len(slow.waits) >= slow_served
    assert len(quick.wakes) >= turns
    assert len(quick.waits) >= 10 * turns
    assert set(slow.refused) == {"queue_timeout"}
    assert set(quick.refused) <= {"no_room", "queue_timeout"}


def test_those_that_fit_are_left_alone() -> None:
    node = Node(100, SleepManager())
    models = [node.add(name, 50) for name in "ab"]
    for i in range(1000):
        node.request("ab"[i % 2], i)
    node.run(1200)
    assert [len(model.wakes) for model in models] == [1, 1]
    assert [model.refused for model in models] == [[], []]


def test_three_of_which_two_fit() -> None:
    """All of them are served, in turns."""
    node = Node(100, SleepManager())
    models = [node.add(name, 45) for name in "abc"]
    for i in range(int(HOUR)):
        node.request("abc"[i % 3], i)
    node.run(HOUR + 200)
    for model in models:
        assert model.refused == []
        assert len(model.waits) == HOUR / 3
        assert model.awake_seconds > HOUR / 3
        assert len(model.wakes) <= HOUR / 60
