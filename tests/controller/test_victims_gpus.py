# SPDX-License-Identifier: Apache-2.0
"""Who gives way where a model lacks room on one of several GPUs, or on several."""

from __future__ import annotations

from controller.test_victims import GIB, NOW, SETTINGS, candidate, need
from kvcached.controller.victims import Candidate, Choice, Need, choose


def on(model: str, *gib: float) -> Candidate:
    """What it has on each GPU, from 0 on."""
    return candidate(model, bytes={gpu: int(size * GIB) for gpu, size in enumerate(gib)})


def test_only_those_with_memory_where_it_is_short() -> None:
    there = [candidate("a", gpus=[1]), candidate("b", gpus=[2, 3])]
    for missing in (1, None):
        assert choose(need(missing), there, SETTINGS, NOW) == Choice()
        on_3 = Need("new", frozenset({0, 1, 2, 3}), {3: missing}, 990)
        assert choose(on_3, there, SETTINGS, NOW) == Choice(sleep=("b",))


def test_bytes_elsewhere_do_not_count() -> None:
    there = [on("a", 30, 5), on("b", 5, 30)]
    assert choose(need(0, 6), there, SETTINGS, NOW) == Choice(sleep=("b",))
    assert choose(need(31, 0), there, SETTINGS, NOW) == Choice(sleep=("a", "b"))
    assert choose(need(36, 0), there, SETTINGS, NOW) == Choice()


def test_each_gpu_has_its_own() -> None:
    there = [on("a", 10), on("b", 0, 10), on("c", 6, 6)]
    assert choose(need(10, 10), there, SETTINGS, NOW) == Choice(sleep=("a", "b"))
    assert choose(need(6, 6), there, SETTINGS, NOW) == Choice(sleep=("c",))
    assert choose(need(11, 6), there, SETTINGS, NOW) == Choice(sleep=("c", "a"))
    assert choose(need(None, None), there, SETTINGS, NOW) == Choice(sleep=("c",))
    assert choose(need(None, 10), there, SETTINGS, NOW) == Choice(sleep=("c", "b"))


def test_nobody_sleeps_on_one_while_the_other_has_no_room() -> None:
    """Until there may be room on both."""
    idle, works = on("idle", 10), candidate("works", bytes={1: 10 * GIB}, in_flight=1, awake_since=970)
    for missing in (1, None):
        both = need(missing, missing)
        assert choose(both, [idle], SETTINGS, NOW) == Choice()
        assert choose(both, [idle, works], SETTINGS, NOW) == Choice(look_again=1010)
        assert choose(both, [idle, works], SETTINGS, 1010) == Choice(sleep=("idle",), turn=("works",))


def test_room_that_is_coming_on_one() -> None:
    leaves = candidate("leaves", bytes={0: 10 * GIB}, leaving=True)
    there = [leaves, on("a", 20), on("b", 0, 20)]
    for missing in (10, None):
        assert choose(need(missing, missing), there, SETTINGS, NOW) == Choice(sleep=("b",))
        assert choose(need(missing, missing), [leaves], SETTINGS, NOW) == Choice()
        assert choose(need(missing), there, SETTINGS, NOW) == Choice(coming=True)


def test_whom_nobody_can_help() -> None:
    nobody = Need("new", frozenset({0}), {}, 990)
    choice = choose(nobody, [candidate("a"), candidate("b", leaving=True)], SETTINGS, NOW)
    assert choice == Choice()
    assert not choice.hope


def test_hope() -> None:
    """Of one for whom even all would not do: none, whenever they may sleep."""
    young = candidate("young", may_sleep_from=1010)
    assert choose(need(10), [young], SETTINGS, NOW) == Choice(look_again=1010)
    assert choose(need(10), [young], SETTINGS, NOW).hope
    assert choose(need(11), [young], SETTINGS, NOW) == Choice()
    assert not choose(need(11), [young], SETTINGS, NOW).hope
