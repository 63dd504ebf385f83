# SPDX-License-Identifier: Apache-2.0
"""kvcached._native.Blocks: each call, what it counts, and what it refuses."""

from __future__ import annotations

import tracemalloc
from typing import Any, Callable
from unittest import mock

import pytest

from harness.broker import Daemon, Result
from kvcached import _native

PAGE = 2 << 20
BLOCK = PAGE // 4  # four of them in a page


class Index:
    """A number by __index__, as those of NumPy are, that does something first."""

    def __init__(self, value: int, do: Callable[[], object] = lambda: None) -> None:
        self.value = value
        self.do = do

    def __index__(self) -> int:
        self.do()
        return self.value


@pytest.fixture
def region(client: _native.Client) -> _native.Region:
    return client.open_region(16, PAGE)


@pytest.fixture
def blocks(region: _native.Region) -> _native.Blocks:
    return _native.Blocks([region], BLOCK)


def test_alloc_and_free(client: _native.Client, blocks: _native.Blocks) -> None:
    ids = blocks.alloc(6)
    assert sorted(ids) == list(range(6))
    assert all(type(i) is int for i in ids)
    assert client.status()["mapped_bytes"] == 2 * PAGE
    status = blocks.status()
    assert (status["total_blocks"], status["used_blocks"], status["free_blocks"]) == (64, 6, 2)
    assert (status["mapped_pages"], status["full_pages"], status["partly_pages"]) == (2, 1, 1)
    blocks.free(ids[::-1])
    assert blocks.status()["used_blocks"] == 0
    assert blocks.alloc(0) == []
    blocks.free([])


def test_more_than_fit_on_the_stack(client: _native.Client) -> None:
    blocks = _native.Blocks([client.open_region(16, PAGE)], PAGE // 64)
    ids = blocks.alloc(1000)
    assert len(set(ids)) == 1000
    blocks.free(ids)
    assert blocks.status()["used_blocks"] == 0


def test_all_or_none(blocks: _native.Blocks) -> None:
    ids = blocks.alloc(5)
    with pytest.raises(_native.OutOfMemoryError) as out:
        blocks.alloc(60)
    assert out.value.code == _native.E_NO_BLOCKS
    for wrong in ([ids[0], 63], [ids[0], ids[0]], [64], [(1 << 32) - 1]):
        with pytest.raises(_native.InvalidError) as caught:
            blocks.free(wrong)
        assert caught.value.code == _native.E_NOT_ALLOCATED
    assert blocks.status()["used_blocks"] == 5
    blocks.free(ids)


def test_limit(blocks: _native.Blocks, kvctl: Callable[..., Result]) -> None:
    assert kvctl("limit", "engine", "4M").rc == 0
    with pytest.raises(_native.OutOfMemoryError) as caught:
        blocks.alloc(9)
    assert caught.value.code == _native.E_LIMIT
    assert len(blocks.alloc(8)) == 8


def test_frozen(blocks: _native.Blocks, kvctl: Callable[..., Result]) -> None:
    blocks.alloc(4)
    assert kvctl("delete", "engine", "--force").rc == 0
    with pytest.raises(_native.Error):
        blocks.alloc(4)


def test_available_and_want(blocks: _native.Blocks) -> None:
    assert blocks.available() == 0
    assert blocks.want(9, -1) >= 9
    assert blocks.available() >= 9
    ids = blocks.alloc(9)
    assert blocks.available() >= 3
    with pytest.raises(_native.OutOfMemoryError):
        blocks.want(100, -1)
    assert blocks.want(0) == blocks.available()
    blocks.free(ids)


def test_reserve_and_release(blocks: _native.Blocks) -> None:
    blocks.reserve(6)
    assert blocks.status()["reserved_blocks"] == 6
    blocks.trim()
    assert blocks.status()["free_blocks"] == 8
    blocks.alloc(2)
    assert blocks.status()["reserved_blocks"] == 4
    blocks.release()
    assert blocks.status()["reserved_blocks"] == 0
    with pytest.raises(_native.OutOfMemoryError):
        blocks.reserve(1000)


def test_trim(blocks: _native.Blocks) -> None:
    blocks.free(blocks.alloc(16))
    assert blocks.status()["mapped_pages"] == 4
    blocks.trim()
    assert blocks.status()["mapped_pages"] == 0


def test_resize(blocks: _native.Blocks) -> None:
    blocks.resize(2)
    assert blocks.status()["total_blocks"] == 8
    ids = blocks.alloc(8)
    with pytest.raises(_native.OutOfMemoryError):
        blocks.alloc(1)
    blocks.resize(1 << 40)
    assert blocks.status()["total_blocks"] == 64
    blocks.free(ids)


def test_clear(blocks: _native.Blocks) -> None:
    blocks.alloc(10)
    blocks.reserve(3)
    blocks.clear()
    status = blocks.status()
    assert (status["used_blocks"], status["reserved_blocks"]) == (0, 0)


def test_epochs(blocks: _native.Blocks) -> None:
    blocks.free_after(blocks.alloc(4), 7)
    blocks.trim()
    assert (blocks.status()["waiting_pages"], blocks.status()["mapped_pages"]) == (1, 1)
    blocks.complete(6)
    blocks.trim()
    assert blocks.status()["mapped_pages"] == 1
    blocks.complete(7)
    blocks.trim()
    assert blocks.status()["mapped_pages"] == 0


def test_occupancy_census_and_page_of(blocks: _native.Blocks) -> None:
    ids = blocks.alloc(8)
    blocks.free([i for i in ids if i in (0, 1, 2)])
    assert blocks.occupancy([1, 0, 15]) == [4, 1, 0]
    assert blocks.occupancy(range(300, 300)) == []
    assert blocks.census(10) == [(0, 1), (1, 4)]
    assert blocks.census(1) == [(0, 1)]
    assert blocks.census(0) == []
    assert blocks.census((1 << 64) - 1) == [(0, 1), (1, 4)]
    assert [blocks.page_of(i) for i in (0, 3, 4, 63)] == [0, 0, 1, 15]
    for wrong in (64, (1 << 32) - 1, 1 << 32, (1 << 64) - 1):
        with pytest.raises(ValueError, match="no block"):
            blocks.page_of(wrong)
    with pytest.raises(_native.InvalidError):
        blocks.occupancy([16])


def test_null_block_and_max_pages(region: _native.Region) -> None:
    blocks = _native.Blocks((region,), BLOCK, null_block=True, max_pages=2)
    assert blocks.status()["total_blocks"] in (7, 8)
    ids = blocks.alloc(7)
    assert 0 not in ids
    with pytest.raises(_native.InvalidError):
        blocks.free([0])
    blocks.close()


def test_max_blocks(region: _native.Region) -> None:
    """The last page has room for more."""
    blocks = _native.Blocks([region], BLOCK, max_blocks=9)
    assert blocks.want(9, 1000) == 9
    with pytest.raises(_native.OutOfMemoryError, match="not 10 free blocks"):
        blocks.alloc(10)
    ids = blocks.alloc(9)
    assert sorted(ids) == list(range(9))
    assert blocks.available() == 0
    status = blocks.status()
    assert (status["total_blocks"], status["used_blocks"], status["full_pages"]) == (9, 9, 3)
    with pytest.raises(ValueError, match="not allocated"):
        blocks.free([9])
    blocks.free(ids[:5])
    assert sorted(blocks.alloc(5)) == list(range(5))
    blocks.resize(2)
    assert blocks.status()["total_blocks"] == 8
    blocks.resize(16)
    assert blocks.status()["total_blocks"] == 9


def test_over_two_regions(client: _native.Client) -> None:
    regions = [client.open_region(8, PAGE), client.open_region(8, 2 * PAGE)]
    blocks = _native.Blocks(regions, BLOCK)
    blocks.alloc(4)
    assert client.status()["mapped_bytes"] == 3 * PAGE
    with pytest.raises(_native.InvalidError):
        regions[1].map([5])
    regions[1].close()
    with pytest.raises(_native.InvalidError, match="region is closed"):
        blocks.alloc(1)
    regions[0].map([5])  # the host's again
    blocks.close()


# ---- What is refused ----


def test_counts_of_wrong_types(blocks: _native.Blocks) -> None:
    values: list[Any] = [None, 1.0, "1", [1], object()]
    for wrong in values:
        for call in (
            *(blocks.alloc, blocks.reserve, blocks.resize, blocks.complete, blocks.want, blocks.census),
            blocks.page_of,
        ):
            with pytest.raises(TypeError):
                call(wrong)
        with pytest.raises(TypeError):
            blocks.free_after([], wrong)


def test_counts_that_do_not_fit(blocks: _native.Blocks) -> None:
    values: list[int] = [-1, 1 << 64, 1 << 300]
    for wrong in values:
        for call in (
            *(blocks.alloc, blocks.reserve, blocks.resize, blocks.complete, blocks.want, blocks.census),
            blocks.page_of,
        ):
            with pytest.raises(ValueError, match=f"^{wrong} is not a number from 0 to 18446744073709551615$"):
                call(wrong)
        for free in (blocks.free, blocks.occupancy):
            with pytest.raises(ValueError, match=f"^{wrong} is not a number from 0 to "):
                free([0, wrong])
        with pytest.raises(ValueError, match=f"^{wrong} is not"):
            blocks.free_after([], wrong)
    for timeout in (-(1 << 31) - 1, 1 << 31, 1 << 70):
        with pytest.raises(ValueError, match=f"^{timeout} is not a number from -2147483648 to 2147483647$"):
            blocks.want(1, timeout)


def test_ids_of_more_than_32_bits(blocks: _native.Blocks) -> None:
    blocks.alloc(1)
    with pytest.raises(ValueError, match=r"^4294967296 is not a number from 0 to 4294967295$"):
        blocks.free([1 << 32])
    assert blocks.status()["used_blocks"] == 1


@pytest.mark.parametrize("n", [1 << 20, 1 << 32, 1 << 33, (1 << 64) - 1])
def test_more_blocks_than_there_are(blocks: _native.Blocks, n: int) -> None:
    """They are refused as such, and take no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(_native.OutOfMemoryError, match=f"There are not {n} free blocks") as caught:
            blocks.alloc(n)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.code == _native.E_NO_BLOCKS


@pytest.mark.parametrize("n", [1 << 40, 1 << 61, 1 << 62, (1 << 64) - 1])
def test_absurd_numbers_of_blocks(blocks: _native.Blocks, n: int) -> None:
    with pytest.raises((MemoryError, _native.OutOfMemoryError)):
        blocks.alloc(n)
    with pytest.raises(_native.Error):
        blocks.reserve(n)


def test_lists_of_wrong_types(blocks: _native.Blocks) -> None:
    blocks.alloc(1)
    values: list[Any] = [None, 3, "0", [0.0], [None], ["0"]]
    for wrong in values:
        for call in (blocks.free, blocks.occupancy, lambda ids: blocks.free_after(ids, 1)):
            with pytest.raises(TypeError):
                call(wrong)
        assert blocks.status()["used_blocks"] == 1


def test_numbers_by_index(blocks: _native.Blocks) -> None:
    ids: list[Any] = [Index(i) for i in blocks.alloc(Index(3))]  # type: ignore[arg-type]
    blocks.free(ids)
    assert blocks.status()["used_blocks"] == 0


def test_a_list_that_changes_while_it_is_read(blocks: _native.Blocks) -> None:
    ids: list[Any] = list(blocks.alloc(8))
    ids[0] = Index(ids[0], ids.clear)
    with pytest.raises(IndexError):
        blocks.free(ids)
    assert blocks.status()["used_blocks"] == 8
    ids[:] = [Index(1, lambda: ids.__setitem__(0, None)), Index(0, lambda: ids.extend(range(1000)))]
    blocks.free(ids)
    assert blocks.status()["used_blocks"] == 6


def test_an_index_that_closes(blocks: _native.Blocks) -> None:
    ids = blocks.alloc(2)
    with pytest.raises(_native.InvalidError, match="is closed"):
        blocks.free([Index(ids[0], blocks.close)])  # type: ignore[list-item]


def test_regions_that_are_none(client: _native.Client, region: _native.Region) -> None:
    for wrong in (None, 3, [None], [region, 3], [mock.MagicMock(spec=region)], [client], [_native.Region]):
        with pytest.raises(TypeError):
            _native.Blocks(wrong, BLOCK)  # type: ignore[arg-type]
    with pytest.raises(_native.InvalidError):
        _native.Blocks([], BLOCK)


def test_regions_that_do_not_fit(client: _native.Client, region: _native.Region) -> None:
    calls: list[Callable[[], object]] = [
        lambda: _native.Blocks([region, region], BLOCK),
        lambda: _native.Blocks([region, client.open_region(8, PAGE)], BLOCK),
        lambda: _native.Blocks([region], 0),
        lambda: _native.Blocks([region], 2 * PAGE),
    ]
    for call in calls:
        with pytest.raises(_native.InvalidError):
            call()
    region.map([0])
    with pytest.raises(_native.InvalidError):
        _native.Blocks([region], BLOCK)


def test_options_that_do_not_fit(region: _native.Region) -> None:
    for wrong in ({"max_pages": -1}, {"max_pages": 1 << 64}):
        with pytest.raises(ValueError, match="is not a number from 0 to 18446744073709551615"):
            _native.Blocks([region], BLOCK, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^-1 is not a number"):
        _native.Blocks([region], -1)
    for many in ((), ([region],), ([region], BLOCK, True)):
        with pytest.raises(TypeError):
            _native.Blocks(*many)


# ---- Lives ----


def all_calls(blocks: _native.Blocks) -> list[Callable[[], object]]:
    return [
        lambda: blocks.alloc(1),
        lambda: blocks.free([]),
        lambda: blocks.free_after([], 1),
        lambda: blocks.complete(1),
        blocks.available,
        lambda: blocks.want(1),
        lambda: blocks.reserve(1),
        blocks.release,
        blocks.trim,
        lambda: blocks.resize(1),
        blocks.clear,
        lambda: blocks.occupancy([]),
        lambda: blocks.census(1),
        lambda: blocks.page_of(0),
        blocks.status,
    ]


def test_closed(client: _native.Client, region: _native.Region, blocks: _native.Blocks) -> None:
    blocks.alloc(5)
    blocks.close()
    blocks.close()
    for call in all_calls(blocks):
        with pytest.raises(_native.InvalidError, match="set of blocks is closed"):
            call()
    assert client.status()["mapped_bytes"] == 0
    region.map([0])


def test_never_opened() -> None:
    blocks = _native.Blocks.__new__(_native.Blocks)
    for call in all_calls(blocks):
        with pytest.raises(_native.InvalidError, match="set of blocks is closed"):
            call()
    blocks.close()


def test_opened_once(region: _native.Region, blocks: _native.Blocks) -> None:
    with pytest.raises(RuntimeError, match="opened once"):
        blocks.__init__([region], BLOCK)  # type: ignore[misc]
    assert blocks.alloc(1) == [0]


def test_failed_open(region: _native.Region) -> None:
    blocks = _native.Blocks.__new__(_native.Blocks)
    with pytest.raises(_native.InvalidError):
        blocks.__init__([region], 0)  # type: ignore[misc]
    with pytest.raises(_native.InvalidError, match="closed"):
        blocks.alloc(1)
    region.map([0])


@pytest.mark.parametrize("order", ["crb", "cbr", "rbc", "rcb", "brc", "bcr"])
def test_closing_in_any_order(
    client: _native.Client, region: _native.Region, blocks: _native.Blocks, order: str
) -> None:
    blocks.alloc(5)
    capsule = region.tensor(0, PAGE)
    handles = {"c": client, "r": region, "b": blocks}
    for i, letter in enumerate(order):
        handles[letter].close()  # type: ignore[attr-defined]
        for again in order[: i + 1]:
            handles[again].close()  # type: ignore[attr-defined]
        with pytest.raises(_native.InvalidError, match="closed"):
            blocks.alloc(1)
    del capsule


@pytest.mark.parametrize("order", ["crb", "cbr", "rbc", "rcb", "brc", "bcr"])
def test_dropping_in_any_order(
    kvcached_environment: pytest.MonkeyPatch, kvctl: Callable[..., Result], order: str
) -> None:
    client = _native.Client(instance="engine")
    region = client.open_region(16, PAGE)
    blocks = _native.Blocks([region], BLOCK)
    blocks.alloc(5)
    handles: dict[str, object] = {"c": client, "r": region, "b": blocks}
    del client, region, blocks
    for letter in order:
        del handles[letter]
    assert kvctl("info", "--json").json()["granted_bytes"] == 0


def test_the_daemon_is_gone(blocks: _native.Blocks, daemon: Daemon) -> None:
    ids = blocks.alloc(5)
    daemon.kill()
    with pytest.raises(_native.DisconnectedError):
        blocks.alloc(30)
    assert len(blocks.alloc(3)) == 3, "what is mapped goes on"
    blocks.free(ids)
    blocks.close()
