# SPDX-License-Identifier: Apache-2.0
"""kvcached.Reservation: memory for an engine that is about to wake."""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

import kvcached
from harness.broker import Daemon, Result, eventually
from harness.tasks import stopped
from kvcached import Reservation, _native

MIB = 1 << 20
PAGE = 2 * MIB

pytestmark = pytest.mark.usefixtures("kvcached_environment")

Kvctl = Callable[..., Result]


def reserved(kvctl: Kvctl, instance: str = "engine") -> int:
    listed: dict[str, int] = {i["ipc"]: i["reserved_bytes"] for i in kvctl("list", "--json").json()}
    return listed.get(instance, 0)


def test_held_and_released(kvctl: Kvctl) -> None:
    reservation = Reservation(instance="engine", bytes=64 * MIB, foreign_bytes=100 * MIB)
    assert reserved(kvctl) == 64 * MIB
    assert kvctl("info", "--json").json()["expected_bytes"] == 100 * MIB
    assert not reservation.released
    assert repr(reservation) == f"Reservation('engine', bytes={64 * MIB}, foreign_bytes={100 * MIB})"
    reservation.release()
    assert reserved(kvctl) == 0
    assert reservation.released
    assert "released" in repr(reservation)
    reservation.release()


def test_with(kvctl: Kvctl) -> None:
    reservation = Reservation(instance="engine", bytes=64 * MIB)

    def wake() -> None:
        with reservation as held:
            assert held is reservation
            assert reserved(kvctl) == 64 * MIB
            raise KeyError

    with pytest.raises(KeyError):
        wake()
    assert reservation.released
    assert reserved(kvctl) == 0


def test_the_last_reference(kvctl: Kvctl) -> None:
    reservation = Reservation(instance="engine", bytes=64 * MIB)
    assert reserved(kvctl) == 64 * MIB
    del reservation
    gc.collect()
    eventually(lambda: reserved(kvctl) == 0)


def test_its_engine_finds_it(client: _native.Client, kvctl: Kvctl) -> None:
    with Reservation(instance="engine", bytes=16 * PAGE):
        region = client.open_region(16, PAGE)
        region.map(range(10))
        assert reserved(kvctl) == 6 * PAGE
        assert client.status()["used_bytes"] == 16 * PAGE
    eventually(lambda: client.status()["used_bytes"] == 10 * PAGE)


def test_too_much(kvctl: Kvctl) -> None:
    with pytest.raises(kvcached.OutOfMemoryError, match="budget") as caught:
        Reservation(instance="engine", bytes=1 << 40)
    assert caught.value.code == _native.E_BUDGET
    assert kvctl("limit", "engine", "8M").rc == 0
    with pytest.raises(kvcached.OutOfMemoryError, match="limit") as caught:
        Reservation(instance="engine", bytes=9 * MIB)
    assert caught.value.code == _native.E_LIMIT
    Reservation(instance="engine", bytes=8 * MIB).release()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({}, "nothing is to be reserved"),
        ({"bytes": -1}, "-1 is not a number"),
        ({"bytes": 1 << 64}, "18446744073709551616 is not a number"),
        ({"foreign_bytes": -1}, "-1 is not a number"),
        ({"bytes": 1, "timeout": 0}, "timeout=0 "),
        ({"bytes": 1, "timeout": -1.0}, "timeout=-1.0 "),
        ({"bytes": 1, "timeout": math.nan}, "timeout=nan "),
        ({"bytes": 1, "instance": ".hidden"}, "hidden"),
    ],
)
def test_what_makes_no_sense(kvctl: Kvctl, wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Reservation(**({"instance": "engine"} | wrong))
    assert reserved(kvctl) == 0


def test_names_and_numbers_are_what_they_say() -> None:
    with pytest.raises(TypeError):
        Reservation(instance="engine", bytes="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Reservation(bytes=1)  # type: ignore[call-arg]


def test_socket_and_daemon(daemon: Daemon, kvcached_environment: pytest.MonkeyPatch, kvctl: Kvctl) -> None:
    kvcached_environment.setenv("KVCACHED_SOCKET", "/nowhere.sock")
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.sock"):
        Reservation(instance="engine", bytes=PAGE)
    with Reservation(socket=str(daemon.socket), instance="engine", bytes=PAGE, timeout=math.inf):
        assert reserved(kvctl) == PAGE


def test_no_answer_in_time(daemon: Daemon, kvctl: Kvctl) -> None:
    client = _native.Client(instance="engine", role=_native.ROLE_CONTROLLER, own_thread=False)
    with stopped(daemon), pytest.raises(TimeoutError):
        client.reserve(PAGE, timeout_ms=50)
    client.reserve(2 * PAGE)
    assert reserved(kvctl) == 2 * PAGE
    client.release()
    assert reserved(kvctl) == 0
    client.close()
    with stopped(daemon), pytest.raises(TimeoutError):
        Reservation(instance="engine", bytes=PAGE, timeout=0.05)
    eventually(lambda: reserved(kvctl) == 0)


def test_others_run_while_it_waits(daemon: Daemon) -> None:
    """The interpreter's lock is given up."""
    client = _native.Client(instance="engine", role=_native.ROLE_CONTROLLER, own_thread=False)
    waiter = threading.Thread(target=client.reserve, args=(PAGE,))
    with stopped(daemon):
        waiter.start()
        assert sum(range(1000)) == 499500
        assert waiter.is_alive()
    waiter.join()
    client.close()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell has its background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c(daemon: Daemon, kvctl: Kvctl) -> None:
    client = _native.Client(instance="engine", role=_native.ROLE_CONTROLLER, own_thread=False)
    with stopped(daemon):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            client.reserve(PAGE, timeout_ms=-1)
    client.close()
    eventually(lambda: reserved(kvctl) == 0)


def test_the_daemon_ends(daemon: Daemon) -> None:
    """There is nothing to release, and that is no error."""
    reservation = Reservation(instance="engine", bytes=PAGE)
    daemon.kill()
    assert not reservation.released
    reservation.release()
    assert reservation.released


def test_only_controllers(client: _native.Client) -> None:
    with pytest.raises(ValueError, match="KVC_ROLE_CONTROLLER"):
        client.reserve(PAGE)
    with pytest.raises(ValueError, match="KVC_ROLE_CONTROLLER"):
        client.release()


def test_a_closed_client() -> None:
    client = _native.Client(instance="engine", role=_native.ROLE_CONTROLLER, own_thread=False)
    with pytest.raises(ValueError, match="Nothing is reserved"):
        client.release()
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.reserve(PAGE)
    with pytest.raises(ValueError, match="closed"):
        client.release()
