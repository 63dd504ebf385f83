# SPDX-License-Identifier: Apache-2.0
"""kvcached._native.Region: addresses, pages, and their order of ending."""

from __future__ import annotations

import ctypes
from typing import Any, Callable

import pytest

from harness.broker import Result
from kvcached import _native

PAGE = 2 << 20


class Index:
    """A number by __index__, as those of NumPy are, that does something first."""

    def __init__(self, value: int, do: Callable[[], object] = lambda: None) -> None:
        self.value = value
        self.do = do

    def __index__(self) -> int:
        self.do()
        return self.value


def test_addresses(client: _native.Client) -> None:
    region = client.open_region(8, PAGE, segments=3, stride_bytes=10 * PAGE)
    assert region.pages == 8
    assert region.page_bytes == 3 * PAGE
    assert region.stride_bytes == 10 * PAGE
    assert region.span_bytes == 28 * PAGE
    assert region.address % PAGE == 0
    region.map([7])
    ctypes.memset(region.address + 20 * PAGE + 7 * PAGE, 0x5A, PAGE)
    assert ctypes.string_at(region.address + 28 * PAGE - 1, 1) == b"\x5a"


def test_map_and_unmap_all_or_none(client: _native.Client) -> None:
    region = client.open_region(8, PAGE)
    region.map((1, 2))
    region.map(iter([3]))
    region.map({4})
    assert client.status()["mapped_bytes"] == 4 * PAGE
    with pytest.raises(_native.InvalidError, match="3"):
        region.map([5, 3])
    with pytest.raises(_native.InvalidError):
        region.map([5, 5])
    with pytest.raises(_native.InvalidError):
        region.map([5, 8])
    with pytest.raises(_native.InvalidError):
        region.unmap([1, 5])
    assert client.status()["mapped_bytes"] == 4 * PAGE
    region.unmap([4, 1, 3, 2])
    region.map([])
    region.unmap([])
    assert client.status()["mapped_bytes"] == 0


def test_flags(client: _native.Client) -> None:
    region = client.open_region(4, PAGE, flags=_native.ZERO_ON_MAP | _native.HOLES_ZERO)
    assert ctypes.string_at(region.address + 3 * PAGE, 64) == bytes(64)
    region.map([1])
    ctypes.memset(region.address + PAGE, 0xFF, PAGE)
    region.unmap([1])
    region.map([1])
    assert ctypes.string_at(region.address + PAGE, PAGE) == bytes(PAGE)


def test_pin(client: _native.Client) -> None:
    region = client.open_region(8, PAGE)
    region.map(range(4))
    region.pin(1, 2)
    with pytest.raises(_native.InvalidError):
        region.unmap([2])
    with pytest.raises(_native.InvalidError):
        region.pin(3, 2)
    region.unpin(1, 2)
    with pytest.raises(_native.InvalidError):
        region.unpin(1, 1)
    region.unmap([0, 1, 2, 3])


def test_lists_of_wrong_types(client: _native.Client) -> None:
    values: list[Any] = [None, 3, "12", [1.0], [None], ["1"], [[1]], object()]
    for wrong in values:
        region = client.open_region(8, PAGE)
        for call in (region.map, region.unmap):
            with pytest.raises(TypeError):
                call(wrong)


@pytest.mark.parametrize("wrong", [-1, 1 << 64, -(1 << 70), 1 << 200])
def test_numbers_that_do_not_fit(client: _native.Client, wrong: int) -> None:
    region = client.open_region(8, PAGE)
    calls: list[Callable[[], object]] = [
        lambda: region.map([wrong]),
        lambda: region.unmap([0, wrong]),
        lambda: region.pin(wrong, 1),
        lambda: region.unpin(0, wrong),
        lambda: region.tensor(wrong, 1),
        lambda: region.tensor(0, wrong),
        lambda: client.open_region(wrong, PAGE),
        lambda: client.open_region(1, wrong),
        lambda: client.open_region(1, PAGE, stride_bytes=wrong),
        lambda: client.open_region(1, PAGE, segments=wrong),
        lambda: client.open_region(1, PAGE, flags=wrong),
        lambda: client.open_region(1, PAGE, group=wrong),
        lambda: client.open_region(1, PAGE, rank=wrong),
        lambda: client.attach(wrong, 0),
        lambda: client.attach(0, wrong),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"^{wrong} is not a number from 0 to "):
            call()


def test_32_bits_are_not_truncated(client: _native.Client) -> None:
    for options in ({"segments": (1 << 32) + 1}, {"flags": 1 << 32}, {"group": 1 << 32}):
        with pytest.raises(ValueError, match="is not a number from 0 to 4294967295"):
            client.open_region(1, PAGE, **options)


def test_shapes_that_make_no_sense(client: _native.Client) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.open_region(0, PAGE),
        lambda: client.open_region(1, 0),
        lambda: client.open_region(1, PAGE + 1),
        lambda: client.open_region(4, PAGE, segments=2, stride_bytes=PAGE),
        lambda: client.open_region((1 << 64) - 1, (1 << 64) - 1),
        lambda: client.open_region(1, PAGE, flags=1 << 20),
        lambda: client.attach(0, 0),
    ]
    for call in calls:
        with pytest.raises(_native.Error):
            call()
    with pytest.raises(TypeError):
        client.open_region(1)  # type: ignore[call-arg]


def test_numbers_by_index(client: _native.Client) -> None:
    region = client.open_region(Index(8), Index(PAGE))  # type: ignore[arg-type]
    region.map([Index(3), True, 2])  # type: ignore[list-item]
    region.unmap([1, 2, 3])


def test_a_list_that_changes_while_it_is_read(client: _native.Client) -> None:
    region = client.open_region(8, PAGE)
    pages: list[Any] = []
    pages += [Index(0, pages.clear), 1, 2]
    with pytest.raises(IndexError):
        region.map(pages)
    pages[:] = [Index(0, lambda: pages.extend([1, 2])), 3]
    region.map(pages)
    region.unmap([0, 3])
    pages[:] = [Index(5, lambda: pages.__setitem__(0, None))]
    region.map(pages)
    region.unmap([5])
    assert client.status()["mapped_bytes"] == 0


def test_an_index_that_closes(client: _native.Client) -> None:
    region = client.open_region(8, PAGE)
    with pytest.raises(_native.InvalidError, match="region is closed"):
        region.map([Index(0, region.close)])  # type: ignore[list-item]
    region = client.open_region(8, PAGE)
    with pytest.raises(_native.InvalidError, match="client is closed"):
        region.map([Index(0, client.close)])  # type: ignore[list-item]


def test_an_index_that_raises(client: _native.Client) -> None:
    def fail() -> None:
        raise LookupError("mine")

    region = client.open_region(8, PAGE)
    with pytest.raises(LookupError, match="mine"):
        region.map([Index(0, fail)])  # type: ignore[list-item]
    with pytest.raises(LookupError, match="mine"):
        region.pin(Index(0, fail), 1)  # type: ignore[arg-type]


def test_closed(client: _native.Client) -> None:
    region = client.open_region(8, PAGE)
    region.map([0])
    region.close()
    region.close()
    assert region.closed is True
    assert client.status()["mapped_bytes"] == 0
    calls: list[Callable[[], object]] = [
        lambda: region.map([1]),
        lambda: region.unmap([0]),
        lambda: region.pin(0, 1),
        lambda: region.unpin(0, 1),
        lambda: region.tensor(0, 1),
        lambda: region.address,
        lambda: region.stride_bytes,
        lambda: region.pages,
        lambda: region.page_bytes,
    ]
    for call in calls:
        with pytest.raises(_native.InvalidError, match="region is closed"):
            call()
    assert region.span_bytes == 8 * PAGE


def test_client_first(client: _native.Client, kvctl: Callable[..., Result]) -> None:
    region = client.open_region(8, PAGE)
    region.map([0, 1])
    client.close()
    with pytest.raises(_native.InvalidError, match="client is closed"):
        region.map([2])
    with pytest.raises(_native.InvalidError, match="client is closed"):
        _ = region.address
    region.close()
    region.close()
    assert kvctl("info", "--json").json()["granted_bytes"] == 0


def test_a_region_keeps_its_client(kvctl: Callable[..., Result], client: _native.Client) -> None:
    region = _native.Client(instance="other").open_region(8, PAGE)
    region.map([0])
    assert {i["ipc"] for i in kvctl("list", "--json").json()} == {"engine", "other"}
    region.close()


def test_scheduler_and_worker(client: _native.Client) -> None:
    worker = _native.Client(instance="split", role=_native.ROLE_WORKER)
    scheduler = _native.Client(instance="split", role=_native.ROLE_SCHEDULER)
    own = worker.open_region(8, PAGE, segments=2, flags=_native.ORDERED, group=3, rank=5)
    with pytest.raises(_native.InvalidError):
        own.map([0])
    remote = scheduler.attach(3, 5, timeout_ms=10_000)
    assert (remote.address, remote.span_bytes, remote.pages) == (0, 0, 8)
    remote.map([2])
    for call, page in ((remote.map, 2), (remote.unmap, 3)):
        with pytest.raises(_native.Error, match=f"Page {page} is ") as refused:
            call([page])
        assert type(refused.value) is _native.Error
        assert refused.value.code == _native.E_WORKER
    assert worker.status()["mapped_bytes"] == 2 * PAGE
    ctypes.memset(own.address + 2 * PAGE, 1, PAGE)
    with pytest.raises(ValueError, match="not all of"):
        remote.tensor(0, 1)
    with pytest.raises(_native.InvalidError):
        remote.tensor(0, 0)
    with pytest.raises(_native.InvalidError):
        remote.pin(2, 1)
    with pytest.raises(_native.InvalidError):
        scheduler.open_region(8, PAGE)
    assert scheduler.device()["ordinal"] == -1
    own.close()
    with pytest.raises(ConnectionError) as caught:
        remote.map([3])
    assert caught.value.code == _native.E_WORKER_GONE  # type: ignore[attr-defined]
    scheduler.close()
    worker.close()
