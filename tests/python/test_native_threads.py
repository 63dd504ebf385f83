# SPDX-License-Identifier: Apache-2.0
"""Threads: calls that wait let others run, handles can be closed under them, and sums stay exact.

Where a test would hang, it is a child interpreter that hangs. Its threads are switched only where they wait,
so that who comes to run knows what the other one is waiting in.
"""

from __future__ import annotations

import threading
from typing import Callable

import pytest

from harness.broker import Result
from kvcached import _native

PAGE = 2 << 20

WAITING = """
import sys, threading
from kvcached import _native
PAGE = 2 << 20
scheduler = _native.Client(instance="split", role=_native.ROLE_SCHEDULER)
worker = _native.Client(instance="split", role=_native.ROLE_WORKER)
begun, answers = threading.Event(), []

def attach():
    begun.set()
    try:
        answers.append(scheduler.attach(0, 0, timeout_ms=-1))
    except BaseException as error:
        answers.append(error)

sys.setswitchinterval(1000)
thread = threading.Thread(target=attach, daemon=True)
thread.start()
begun.wait()
# The thread has given the lock up: it is in attach().
"""


def test_others_run_while_one_waits(run_python: Callable[..., Result]) -> None:
    run_python(
        WAITING
        + """
assert answers == []
region = worker.open_region(8, PAGE, flags=_native.ORDERED)
thread.join()
assert answers[0].pages == 8
"""
    )


def test_closed_while_one_waits(run_python: Callable[..., Result]) -> None:
    """close() returns at once, new calls are refused at once; the call ends as it would have."""
    run_python(
        WAITING
        + """
scheduler.close()
scheduler.close()
assert scheduler.closed and answers == []
try:
    scheduler.status()
except _native.InvalidError as error:
    assert "closed" in str(error)
else:
    raise AssertionError
region = worker.open_region(8, PAGE, flags=_native.ORDERED)
thread.join()
remote, = answers
assert remote.closed
try:
    remote.map([0])
except _native.InvalidError:
    pass
else:
    raise AssertionError
"""
    )


def test_a_sentence_survives_the_close(run_python: Callable[..., Result]) -> None:
    """The error of a call is its own, though the call's end closes the client."""
    run_python(
        WAITING.replace("timeout_ms=-1", "timeout_ms=200")
        + """
scheduler.close()
thread.join()
error, = answers
assert type(error) is _native.DaemonTimeoutError and len(str(error)) > 20, repr(error)
"""
    )


def test_alloc_waits_without_the_lock(run_python: Callable[..., Result]) -> None:
    """A worker that does not answer, since nobody dispatches for it, until the other thread does."""
    run_python(
        """
import sys, threading
from kvcached import _native
PAGE = 2 << 20
worker = _native.Client(instance="split", role=_native.ROLE_WORKER, own_thread=False)
scheduler = _native.Client(instance="split", role=_native.ROLE_SCHEDULER)
region = worker.open_region(8, PAGE, flags=_native.ORDERED)
remote, done = [], threading.Event()

def run(function):
    begun, done = threading.Event(), threading.Event()
    def body():
        begun.set()
        answers.append(function())
        done.set()
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    begun.wait()
    while not done.is_set():
        worker.dispatch()
        done.wait(0.001)
    return answers[-1]

answers = []
sys.setswitchinterval(1000)
remote = run(lambda: scheduler.attach(0, 0))
blocks = run(lambda: _native.Blocks([remote], PAGE))
ids = run(lambda: blocks.alloc(3))
assert ids == [0, 1, 2], ids
assert worker.status()["mapped_bytes"] == 3 * PAGE
run(lambda: blocks.free(ids))
run(blocks.trim)
run(blocks.close)
"""
    )


def test_sums_are_exact(client: _native.Client) -> None:
    """Threads that allocate and free: no block has two owners, none is lost."""
    blocks = _native.Blocks([client.open_region(32, PAGE)], PAGE // 8)
    owners = [0] * 256
    problems: list[str] = []

    def work(seed: int) -> None:
        mine: list[int] = []
        for i in range(1500):
            n = (seed + i * 7) % 9
            try:
                taken = blocks.alloc(n)
            except _native.OutOfMemoryError:
                taken = []
            for block in taken:
                owners[block] += 1
                if owners[block] != 1:
                    problems.append(f"block {block} has {owners[block]} owners")
            mine += taken
            if blocks.available() > 256:
                problems.append("more available than there are")
            if i % 3 == 2 or len(mine) > 40:
                for block in mine:
                    owners[block] -= 1
                blocks.free(mine)
                mine = []
            if i % 100 == seed:
                blocks.trim()
        for block in mine:
            owners[block] -= 1
        blocks.free(mine)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert owners == [0] * 256
    status = blocks.status()
    assert (status["used_blocks"], status["total_blocks"]) == (0, 256)
    blocks.trim()
    assert client.status()["mapped_bytes"] == 0
    assert len(blocks.alloc(256)) == 256


@pytest.mark.parametrize("what", ["blocks", "region", "client"])
def test_closed_under_threads(client: _native.Client, what: str) -> None:
    """Threads that use what another one closes get an error, each at its next call, and nothing worse."""
    region = client.open_region(32, PAGE)
    blocks = _native.Blocks([region], PAGE // 8)
    ends: list[str] = []
    begun = threading.Barrier(5)

    def work() -> None:
        begun.wait()
        try:
            while True:
                blocks.free(blocks.alloc(9))
                blocks.trim()
        except _native.InvalidError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    {"blocks": blocks, "region": region, "client": client}[what].close()  # type: ignore[attr-defined]
    for thread in threads:
        thread.join()
    assert len(ends) == 4
    assert all(end.endswith("is closed") for end in ends), ends


def test_opened_twice_at_once(kvcached_environment: pytest.MonkeyPatch) -> None:
    client = _native.Client.__new__(_native.Client)
    outcomes: list[object] = []

    def begin() -> None:
        try:
            outcomes.append(client.__init__(instance="engine"))  # type: ignore[misc]
        except RuntimeError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 1
    client.close()
