# SPDX-License-Identifier: Apache-2.0
"""kvcached._native.Client: opening, what it tells, closing, and the errors that it raises."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any, Callable

import pytest

import kvcached
from harness.broker import Daemon, Result
from kvcached import _native

MIB = 1 << 20
PAGE = 2 * MIB

pytestmark = pytest.mark.usefixtures("kvcached_environment")


def test_status_and_device(client: _native.Client, kvctl: Callable[..., Result]) -> None:
    assert kvctl("limit", "engine", "64M").rc == 0
    region = client.open_region(16, PAGE)
    region.map(range(4))
    status = client.status()
    assert set(status) == {
        *("limit_bytes", "used_bytes", "budget_bytes", "mapped_bytes", "cached_bytes"),
        *("over_limit", "frozen", "connected"),
    }
    assert status["mapped_bytes"] == 4 * PAGE
    assert status["used_bytes"] >= 4 * PAGE
    assert status["limit_bytes"] == 64 * MIB
    assert (status["over_limit"], status["frozen"], status["connected"]) == (False, False, True)
    device = client.device()
    assert device["uuid"].startswith("GPU-")
    assert device["total_bytes"] == 1 << 30
    assert device["granularity_bytes"] == PAGE
    assert device["class_bytes"] == sorted(device["class_bytes"])
    assert device["class_bytes"][0] == PAGE
    assert device["emulated"] is True
    assert device["ordinal"] == 0


def test_trim_gives_back_what_is_cached(client: _native.Client) -> None:
    region = client.open_region(16, PAGE)
    region.map([0, 1])
    region.unmap([0, 1])
    assert client.status()["cached_bytes"] == 2 * PAGE
    client.trim()
    assert client.status()["cached_bytes"] == 0


def test_without_a_thread_the_host_dispatches() -> None:
    client = _native.Client(instance="engine", own_thread=False)
    client.dispatch()
    client.close()


def test_settings_reach_the_library(kvctl: Callable[..., Result]) -> None:
    client = _native.Client(
        instance="wishes",
        gpu_utilization=0.25,
        max_reserved_pages=2,
        max_reserved_bytes=8 * MIB,
        report_ms=50,
    )
    assert client.status()["limit_bytes"] == 1 << 28
    assert [i["ipc"] for i in kvctl("list", "--json").json()] == ["wishes"]
    client.close()


def test_socket_by_argument(daemon: Daemon, kvcached_environment: pytest.MonkeyPatch) -> None:
    kvcached_environment.setenv("KVCACHED_SOCKET", "/nowhere.sock")
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.sock"):
        _native.Client()
    _native.Client(socket=str(daemon.socket)).close()


# ---- Errors ----


def test_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "kvcachedd.sock"
    with pytest.raises(FileNotFoundError, match=str(path)) as caught:
        _native.Client(socket=str(path))
    assert type(caught.value) is _native.DaemonNotFoundError
    assert isinstance(caught.value, _native.Error)
    assert caught.value.code == -4


def test_a_path_that_is_no_text(tmp_path: Path) -> None:
    path = str(tmp_path / "caf\udce9.sock")
    with pytest.raises((UnicodeEncodeError, FileNotFoundError)):
        _native.Client(socket=path)


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (_native.Error, RuntimeError),
        (_native.InvalidError, ValueError),
        (_native.OutOfMemoryError, RuntimeError),
        (_native.DaemonNotFoundError, FileNotFoundError),
        (_native.DisconnectedError, ConnectionError),
        (_native.DaemonTimeoutError, TimeoutError),
    ],
)
def test_error_classes(error: Any, base: type[Exception]) -> None:
    assert issubclass(error, base)
    assert issubclass(error, _native.Error)
    assert getattr(kvcached, error.__name__) is error
    assert error.__module__ == "kvcached"
    assert error.__doc__
    copy = pickle.loads(pickle.dumps(error("a sentence")))
    assert (type(copy), copy.args) == (error, ("a sentence",))


def test_invalid_settings() -> None:
    for wrong in ({"instance": "no spaces"}, {"instance": ""}, {"gpu_utilization": 1.5}, {"role": 9}):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            _native.Client(**wrong)
        assert type(caught.value) is _native.InvalidError
        assert str(caught.value)


def test_environment_that_cannot_be_used(kvcached_environment: pytest.MonkeyPatch) -> None:
    kvcached_environment.setenv("KVCACHED_MIN_RESERVED_PAGES", "many")
    with pytest.raises(_native.InvalidError, match="KVCACHED_MIN_RESERVED_PAGES"):
        _native.Client()


def test_wrong_types() -> None:
    values: list[dict[str, Any]] = [
        {"socket": 3},
        {"socket": b"bytes"},
        {"instance": ["a"]},
        {"role": "worker"},
        {"timeout_ms": 1.5},
        {"max_reserved_bytes": 1.5},
        {"gpu_utilization": "half"},
        {"report_ms": None},
        {"reclaim": "not callable"},
        {"unknown": 1},
    ]
    for wrong in values:
        with pytest.raises(TypeError):
            _native.Client(**wrong)


def test_numbers_that_do_not_fit() -> None:
    values: list[dict[str, Any]] = [
        {"timeout_ms": 1 << 31},
        {"role": -(1 << 40)},
        {"max_reserved_bytes": -1},
        {"max_reserved_bytes": 1 << 64},
        {"report_ms": -1},
        {"report_ms": 1 << 32},
    ]
    for wrong in values:
        with pytest.raises(ValueError, match=f"^{next(iter(wrong.values()))} is not a number from "):
            _native.Client(**wrong)


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        _native.Client("/some.sock")  # type: ignore[misc]


def test_embedded_nul() -> None:
    with pytest.raises(ValueError, match="null"):
        _native.Client(instance="a\0b")


def test_limit(client: _native.Client, kvctl: Callable[..., Result]) -> None:
    assert kvctl("limit", "engine", "4M").rc == 0
    region = client.open_region(16, PAGE)
    with pytest.raises(_native.OutOfMemoryError) as caught:
        region.map(range(8))
    assert caught.value.code == _native.E_LIMIT
    assert client.status()["mapped_bytes"] == 0


def test_timeout(daemon: Daemon, kvcached_environment: pytest.MonkeyPatch) -> None:
    scheduler = _native.Client(instance="engine", role=_native.ROLE_SCHEDULER)
    with pytest.raises(TimeoutError) as caught:
        scheduler.attach(0, 0, timeout_ms=10)
    assert type(caught.value) is _native.DaemonTimeoutError
    assert caught.value.code == -13
    scheduler.close()


def test_daemon_is_gone(client: _native.Client, daemon: Daemon) -> None:
    region = client.open_region(16, PAGE)
    daemon.kill()
    with pytest.raises(ConnectionError) as caught:
        region.map([0])
    assert type(caught.value) is _native.DisconnectedError
    assert caught.value.code == -12
    assert client.status()["connected"] is False


# ---- Lives ----


def test_closed(client: _native.Client) -> None:
    region = client.open_region(4, PAGE)
    assert client.closed is False
    client.close()
    client.close()
    assert client.closed is True
    assert region.closed is True
    for call in (client.status, client.device, client.trim, client.dispatch):
        with pytest.raises(_native.InvalidError, match="client is closed"):
            call()
    for call in (lambda: client.open_region(1, PAGE), lambda: client.attach(0, 0)):
        with pytest.raises(_native.InvalidError, match="client is closed"):
            call()


def test_opened_once(client: _native.Client) -> None:
    with pytest.raises(RuntimeError, match="opened once"):
        client.__init__()  # type: ignore[misc]
    assert client.status()["connected"] is True
    client.close()
    with pytest.raises(RuntimeError, match="opened once"):
        client.__init__()  # type: ignore[misc]


def test_failed_arguments_leave_it_to_be_opened(daemon: Daemon) -> None:
    client = _native.Client.__new__(_native.Client)
    with pytest.raises(TypeError):
        client.__init__(role="x")  # type: ignore[misc]
    client.__init__(instance="late")  # type: ignore[misc]
    assert client.status()["connected"] is True
    client.close()


def test_never_opened() -> None:
    client = _native.Client.__new__(_native.Client)
    for call in (client.status, client.device, client.trim, client.dispatch):
        with pytest.raises(_native.InvalidError, match="client is closed"):
            call()
    with pytest.raises(_native.InvalidError):
        client.open_region(1, PAGE)
    client.close()
    assert client.closed is True


def test_dropped_without_close(kvctl: Callable[..., Result]) -> None:
    _native.Client(instance="dropped").open_region(4, PAGE).map([0])
    gc.collect()
    assert sum(i["used_bytes"] for i in kvctl("list", "--json").json()) == 0


def test_types_are_final() -> None:
    for base in (_native.Client, _native.Region, _native.Blocks):
        with pytest.raises(TypeError):
            type("Derived", (base,), {})
    with pytest.raises(TypeError, match="open_region"):
        _native.Region()
