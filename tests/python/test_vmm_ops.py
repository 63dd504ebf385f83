# SPDX-License-Identifier: Apache-2.0
"""Pages by hand, without torch: which pages of which group are meant."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from kvcached import KVCachedConfigError, runtime, vmm_ops
from kvcached.integration.vllm import interfaces as kvi
from kvcached.layout import Layout

PAGE = 2 << 20
COMPOUND = PAGE * 2 * 2


class Number:
    """As numpy's whole numbers."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number


@pytest.fixture
def mapped(kvcached_environment: Any) -> Any:
    """mapped(group): its mapped pages. There are groups 0 and 1, of 8 pages."""
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "false")
    vmm_ops.init_kvcached("cuda:0")
    pools = [runtime.get().open_pool(group, Layout(2, 2, PAGE, PAGE, True), 8) for group in range(2)]

    def pages(group: int) -> list[int]:
        region = pools[group].region
        there = []
        for page in range(8):
            try:
                region.unmap([page])
            except ValueError:
                continue
            region.map([page])
            there.append(page)
        return there

    return pages


def test_groups(mapped: Any) -> None:
    forms: list[Callable[[Any], bool]] = [
        lambda call: call([COMPOUND], 1),
        lambda call: call([COMPOUND], Number(1)),
        lambda call: call([Number(COMPOUND)], group_id=1),
        lambda call: call(offsets=iter([COMPOUND]), group_id=Number(1)),
        lambda call: call([1], [], group_id=1),
        lambda call: call(page_ids=[1], group_id=1),
        lambda call: call(page_ids=iter([1]), block_ids=[5], group_id=1),
    ]
    for give in forms:
        assert give(vmm_ops.map_to_kv_tensors)
        assert [mapped(0), mapped(1)] == [[], [1]]
        assert give(vmm_ops.unmap_from_kv_tensors)
        assert [mapped(0), mapped(1)] == [[], []]


def test_what_is_gone_through_once(mapped: Any) -> None:
    vmm_ops.map_to_kv_tensors(i * COMPOUND for i in (0, 3))
    vmm_ops.map_to_kv_tensors((i for i in (4, 5)), iter([]))
    assert mapped(0) == [0, 3, 4, 5]
    vmm_ops.unmap_from_kv_tensors(i for i in (0,))
    assert mapped(0) == [3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "named", "text"),
    [
        (([0], "0"), {}, "block_ids are '0'"),
        (([0], None), {}, "group_id is None"),
        (([0], True), {}, "group_id is True"),
        (([0], 1.0), {}, "group_id is 1.0"),
        (([0], 1), {"group_id": 1}, "The group is 1, and group_id is 1"),
        (([0],), {"page_ids": [0]}, "Either offsets or page_ids"),
        ((), {}, "Either offsets or page_ids"),
        (("ab",), {}, "offsets are 'ab'"),
        ((5,), {}, "offsets are 5, and must be a list"),
        (([0.0],), {}, "one of offsets is 0.0"),
    ],
)
def test_what_means_nothing(mapped: Any, arguments: Any, named: Any, text: str) -> None:
    for call in (vmm_ops.map_to_kv_tensors, vmm_ops.unmap_from_kv_tensors):
        with pytest.raises(TypeError, match=text):
            call(*arguments, **named)
    assert mapped(0) == []


def test_numbers_that_are_no_pages(mapped: Any) -> None:
    with pytest.raises(KVCachedConfigError, match="one of offsets is -8388608, and must be at least 0"):
        vmm_ops.map_to_kv_tensors([-COMPOUND])
    with pytest.raises(KVCachedConfigError, match="one of page_ids is -1"):
        vmm_ops.map_to_kv_tensors(page_ids=[-1])
    with pytest.raises(RuntimeError, match="KV tensors of group 7 have not been created"):
        vmm_ops.map_to_kv_tensors([0], 7)


def test_a_scheduler_maps_nothing_itself(kvcached_environment: Any) -> None:
    kvi.init_kvcached(separate=True)
    with pytest.raises(RuntimeError, match=r"A scheduler maps pages in its workers: kvcached\.tp_ipc_util"):
        vmm_ops.map_to_kv_tensors([0])


def test_settings_end_with_the_runtime(kvcached_environment: Any) -> None:
    vmm_ops.init_kvcached("cuda:0", page_size=2 * PAGE, contiguous_layout=False)
    assert (runtime.get().manual_page_size, runtime.get().manual_contiguous) == (2 * PAGE, False)
    vmm_ops.shutdown_kvcached()
    kvi.init_kvcached()
    assert (runtime.get().manual_page_size, runtime.get().manual_contiguous) == (0, None)


def test_page_sizes(kvcached_environment: Any) -> None:
    for wrong, text in ((PAGE // 2, "is not a multiple of 2 MiB"), (-PAGE, "must be at least 0")):
        with pytest.raises(KVCachedConfigError, match=text):
            vmm_ops.init_kvcached("cuda:0", page_size=wrong)
    with pytest.raises(TypeError, match=r"page_size is 2\.0"):
        vmm_ops.init_kvcached("cuda:0", page_size=2.0)  # type: ignore[arg-type]
    assert runtime.get_or_none() is None
