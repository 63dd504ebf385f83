# SPDX-License-Identifier: Apache-2.0
"""The engines' interfaces with torch: tensors of every layout, their memory, and their ends."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from kvcached import KVCachedConfigError, runtime, vmm_ops
from kvcached.integration.sglang import interfaces as sgi
from kvcached.integration.vllm import interfaces as kvi

MIB = 1 << 20
CONTIGUOUS = pytest.mark.parametrize("contiguous", ["true", "false"])


@pytest.fixture
def environment(kvcached_environment: Any, torch: Any) -> Any:
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "false")
    return kvcached_environment


@pytest.fixture
def engine(environment: Any) -> None:
    kvi.init_kvcached(tp_rank=0, tp_size=1, is_worker=False, device="cuda:0", async_sched=False)


def numbered(torch: Any, shape: Any, dtype: Any, start: int) -> Any:
    """Small whole numbers, which every dtype has."""
    n = 1
    for size in shape:
        n *= size
    return ((torch.arange(n) + start) % 120).to(dtype).reshape(shape)


def check_round_trip(torch: Any, views: list[Any]) -> None:
    """Views that don't overlap keep what was written to each."""
    for i, view in enumerate(views):
        view.copy_(numbered(torch, view.shape, view.dtype, 7 * i))
    for i, view in enumerate(views):
        assert torch.equal(view, numbered(torch, view.shape, view.dtype, 7 * i))


def test_documented_vllm(environment: Any, torch: Any) -> None:
    """Each step as the reference has it."""
    kvi.init_kvcached(
        tp_rank=0,
        tp_size=1,
        is_worker=False,
        device="cuda:0",
        async_sched=False,
    )
    num_blocks, block_size, num_layers = 1000, 16, 4
    kv_tensors = kvi.alloc_kv_cache(
        (2, num_blocks, block_size, 8, 64),
        block_size,
        torch.float16,
        "cuda",
        num_layers,
        attention_type="MHA",
        kv_layout="NHD",
    )
    assert len(kv_tensors) == num_layers
    manager = kvi.get_kv_cache_manager(num_blocks, block_size, 8 * 64 * 2, num_layers)
    block_ids = manager.alloc(200)
    assert block_ids is not None
    assert 0 not in block_ids
    check_round_trip(torch, [tensor[kv, block_ids[-1]] for tensor in kv_tensors for kv in range(2)])
    available = manager.available_size()
    assert 0 < available <= num_blocks - 1 - 200
    assert manager.alloc(available) is not None
    manager.free(block_ids)
    kvi.shutdown_kvcached()


def test_documented_sglang(environment: Any, torch: Any) -> None:
    sgi.init_kvcached(tp_rank=0, tp_size=1, is_worker=False, device="cuda:0", async_sched=True)
    k_tensors, v_tensors = sgi.alloc_kv_cache(
        (4096, 8, 64), torch.bfloat16, "cuda", 2, page_size=1, attention_type="MHA", kv_layout="NHD"
    )
    assert [len(k_tensors), len(v_tensors)] == [2, 2]
    manager = sgi.get_kv_cache_manager(4096, 1, 8 * 64 * 2, 2)
    ids = manager.alloc(5)
    assert ids is not None
    check_round_trip(torch, [tensors[i][ids] for tensors in (k_tensors, v_tensors) for i in range(2)][:0])
    for i in ids:
        check_round_trip(torch, [tensors[n][i] for tensors in (k_tensors, v_tensors) for n in range(2)])
    sgi.shutdown_kvcached()


@CONTIGUOUS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "uint8", "float8_e4m3fn"])
@pytest.mark.parametrize(
    ("shape", "attention", "blocks_at"),
    [
        ((2, 300, 16, 2, 64), "MHA", 1),
        ((2, 300, 16, 1, 64), "GQA", 1),
        ((300, 2, 16, 2, 64), "MHA", 0),
        ((300, 16, 576), "MLA", 0),
        ((2, 300, 16, 2, 64), "HYBRID_LINEAR", 1),
    ],
)
def test_layouts(
    engine: None,
    environment: Any,
    torch: Any,
    contiguous: str,
    dtype: str,
    shape: tuple[int, ...],
    attention: str,
    blocks_at: int,
) -> None:
    environment.setenv("KVCACHED_CONTIGUOUS_LAYOUT", contiguous)
    kind, layers = getattr(torch, dtype), 3
    tensors, meta = kvi.alloc_kv_cache(
        shape, 16, kind, "cuda", layers, attention_type=attention, return_meta=True
    )
    buffers = 1 if attention == "MLA" else 2
    block = meta["block_bytes"] // kind.itemsize
    assert [meta[name] for name in ("block_bytes", "page_bytes", "contiguous", "kv_buffers")] == [
        block * kind.itemsize,
        2 * MIB,
        contiguous == "true",
        buffers,
    ]
    for tensor in tensors:
        assert (tuple(tensor.shape), tensor.dtype) == (shape, kind)
        assert tensor.stride(blocks_at) == block * (layers * buffers if contiguous == "true" else 1)
        assert tensor.stride(-1) == 1
    cell = meta["block_bytes"] // 16
    manager = kvi.get_kv_cache_manager(shape[blocks_at], 16, cell, layers, num_kv_buffers=buffers)
    manager.alloc(1)
    total = manager.status()["total_blocks"]
    assert total == shape[blocks_at] - 1 or attention == "MLA"  # of which some lie across pages
    ids = manager.alloc(total - 1)
    assert ids is not None
    assert manager.alloc(1) is None
    # The last ones are in the last pages, some beside blocks of others.
    check_round_trip(
        torch,
        [tensor.select(blocks_at, i).view(torch.uint8) for tensor in tensors for i in (1, 2, *ids[-2:])],
    )


@CONTIGUOUS
def test_kernel_blocks(engine: None, environment: Any, torch: Any, contiguous: str) -> None:
    """The kernel's blocks are smaller than the scheduler's, which are made of them."""
    environment.setenv("KVCACHED_CONTIGUOUS_LAYOUT", contiguous)
    tensors = kvi.alloc_kv_cache((2, 512, 16, 2, 64), 64, torch.float16, "cuda", 2, kernel_block_size=16)
    manager = kvi.get_kv_cache_manager(128, 64, 2 * 64 * 2, 2)
    ids = manager.alloc(127)
    assert ids is not None
    check_round_trip(
        torch,
        [tensor[kv, i] for tensor in tensors for kv in (0, 1) for i in (4, 5, 6, 7, 510, 511)],
    )
    with pytest.raises(ValueError, match="not made of kernel blocks of 24"):
        kvi.alloc_kv_cache((2, 8, 16, 2, 64), 64, torch.float16, "cuda", 2, group_id=1, kernel_block_size=24)


@CONTIGUOUS
@pytest.mark.parametrize("page_size", [1, 16])
def test_sglang_layouts(environment: Any, torch: Any, contiguous: str, page_size: int) -> None:
    environment.setenv("KVCACHED_CONTIGUOUS_LAYOUT", contiguous)
    sgi.init_kvcached()
    k, v = sgi.alloc_kv_cache((1000, 4, 32), torch.float16, "cuda", 2, page_size=page_size)
    assert tuple(k[0].shape) == (1000 + (-1000) % page_size, 4, 32)
    manager = sgi.get_kv_cache_manager(k[0].shape[0] // page_size, page_size, 4 * 32 * 2, 2)
    ids = manager.alloc(5)
    assert ids is not None
    tokens = slice(ids[-1] * page_size, (ids[-1] + 1) * page_size)
    check_round_trip(torch, [tensors[i][tokens] for tensors in (k, v) for i in range(2)])
    mla = sgi.alloc_kv_cache((64, 1, 576), torch.float16, "cuda", 2, attention_type="MLA", group_id=1)
    assert [tuple(tensor.shape) for tensor in mla] == [(64, 1, 576)] * 2


def test_two_groups_share_the_instance(engine: None, torch: Any, kvctl: Any) -> None:
    for group in range(2):
        kvi.alloc_kv_cache((2, 256, 16, 8, 64), 16, torch.float16, "cuda", 2, group_id=group)
    managers = [kvi.get_kv_cache_manager(256, 16, 8 * 64 * 2, 2, group_id=group) for group in range(2)]
    for manager in managers:
        assert manager.alloc(200) is not None
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] == sum(manager.get_mapped_memory_size("bytes") for manager in managers)
    with pytest.raises(RuntimeError, match="KV tensors of group 1 exist already"):
        kvi.alloc_kv_cache((2, 256, 16, 8, 64), 16, torch.float16, "cuda", 2, group_id=1)


def test_refused_shapes(engine: None, torch: Any) -> None:
    with pytest.raises(NotImplementedError, match="Hybrid models with attention SWA are not supported"):
        kvi.alloc_kv_cache((2, 8, 16, 2, 64), 16, torch.float16, "cuda", 1, attention_type="SWA")
    with pytest.raises(NotImplementedError, match="KV layout HND is not supported"):
        kvi.alloc_kv_cache((2, 8, 16, 2, 64), 16, torch.float16, "cuda", 1, kv_layout="HND")
    with pytest.raises(KVCachedConfigError, match="neither is 2"):
        kvi.alloc_kv_cache((3, 8, 16, 2, 64), 16, torch.float16, "cuda", 1)
    with pytest.raises(KVCachedConfigError, match="set KVCACHED_PAGE_SIZE_MB=4 or more"):
        kvi.alloc_kv_cache((2, 8, 1024, 16, 128), 1024, torch.float16, "cuda", 1)
    with pytest.raises(KVCachedConfigError, match="group_id is 64"):
        kvi.alloc_kv_cache((2, 8, 16, 2, 64), 16, torch.float16, "cuda", 1, group_id=64)
    assert runtime.get().pool(0) is None


TOUCH = """
    import os, resource, torch
    from kvcached.integration.vllm import interfaces as kvi
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kvi.init_kvcached()
    (tensor,) = kvi.alloc_kv_cache((2, 256, 16, 8, 64), 16, torch.float16, "cuda", 1)
    manager = kvi.get_kv_cache_manager(256, 16, 8 * 64 * 2, 1)
    ids = manager.alloc(5)
    print("mapped", int(tensor[0, ids[0]].count_nonzero()), flush=True)
    print("hole", int(tensor[:, 255].count_nonzero()), flush=True)
"""


def test_holes_fault(torch: Any, run_python: Callable[..., Any]) -> None:
    result = run_python(TOUCH, rc=-11, KVCACHED_PAGE_PREALLOC_ENABLED="false")
    assert result.out == "mapped 0\n"


def test_holes_read_zero(torch: Any, run_python: Callable[..., Any]) -> None:
    result = run_python(TOUCH, KVCACHED_PAGE_PREALLOC_ENABLED="false", KVCACHED_HOLES="zero")
    assert result.out == "mapped 0\nhole 0\n"


def test_tensors_outlive_everything(engine: None, torch: Any, driver: Any) -> None:
    """Their addresses are nobody else's until the last one is gone."""
    before = driver.stats().reservations
    tensors = kvi.alloc_kv_cache((2, 256, 16, 8, 64), 16, torch.float16, "cuda", 2)
    view = tensors[1][0]
    kvi.shutdown_kvcached()
    del tensors
    gc.collect()
    assert driver.stats().reservations == before + 1
    assert view.shape == (256, 16, 8, 64)
    del view
    gc.collect()
    assert driver.stats().reservations == before


def test_interpreter_ends_with_live_tensors(torch: Any, run_python: Callable[..., Any]) -> None:
    code = """
        import threading, torch
        from kvcached.integration.vllm import interfaces as kvi
        kvi.init_kvcached()
        tensors = kvi.alloc_kv_cache((2, 256, 16, 8, 64), 16, torch.float16, "cuda", 2)
        manager = kvi.get_kv_cache_manager(256, 16, 8 * 64 * 2, 2)
        ids = manager.alloc(100)
        torch.kept = tensors
        print("end")
    """
    assert run_python(code).out == "end\n"


def test_documented_manual_integration(environment: Any, torch: Any, kvctl: Any) -> None:
    environment.setenv("KVCACHED_CONTIGUOUS_LAYOUT", "false")
    vmm_ops.init_kvcached("cuda:0")
    mem_size_per_layer, dtype_size, num_layers = 16 * MIB, 2, 3
    raw_tensors = vmm_ops.create_kv_tensors(mem_size_per_layer, dtype_size, "cuda:0", num_layers)
    assert [tuple(tensor.shape) for tensor in raw_tensors] == [(8 * MIB,)] * num_layers
    assert vmm_ops.kv_tensors_created()
    page_ids, block_ids = [0, 3], [0, 1]
    assert vmm_ops.map_to_kv_tensors(page_ids, block_ids)
    page = MIB  # elements
    check_round_trip(
        torch,
        [
            tensor[half + i * page :][:page]
            for tensor in raw_tensors
            for half in (0, 4 * page)
            for i in page_ids
        ],
    )
    (row,) = kvctl("list", "--json").json()
    assert row["used_bytes"] == 2 * num_layers * 2 * 2 * MIB
    with pytest.raises(ValueError, match="mapped already"):
        vmm_ops.map_to_kv_tensors([2 * MIB, 3 * 2 * MIB])
    assert vmm_ops.map_to_kv_tensors([2 * MIB], 0)
    assert vmm_ops.unmap_from_kv_tensors([0, 2 * MIB, 6 * MIB])
    with pytest.raises(ValueError, match="not mapped"):
        vmm_ops.unmap_from_kv_tensors(page_ids, block_ids)
    with pytest.raises(ValueError, match="Offset 5 is not a multiple of 2097152"):
        vmm_ops.map_to_kv_tensors([5])
    vmm_ops.shutdown_kvcached()
    with pytest.raises(RuntimeError, match="kvcached is not initialized"):
        vmm_ops.map_to_kv_tensors([0])


def test_manual_contiguous(environment: Any, torch: Any) -> None:
    vmm_ops.init_kvcached("cuda:0", page_size=4 * MIB, contiguous_layout=True)
    with pytest.raises(RuntimeError, match="KV tensors of group 0 have not been created"):
        vmm_ops.map_to_kv_tensors([0])
    (whole,) = vmm_ops.create_kv_tensors(16 * MIB, 4, "cuda:0", 2)
    assert (whole.dtype, tuple(whole.shape)) == (torch.int32, (8 * MIB,))
    compound = 4 * MIB * 2 * 2
    vmm_ops.map_to_kv_tensors([compound])
    whole[compound // 4 :] = 5
    assert int(whole[-1]) == 5
    for size, text in ((0, "not a positive multiple"), (MIB, "not a positive multiple of 2 x 4194304")):
        with pytest.raises(KVCachedConfigError, match=text):
            vmm_ops.create_kv_tensors(size, 4, "cuda:0", 2, group_id=1)
    with pytest.raises(KVCachedConfigError, match="dtype_size is 3"):
        vmm_ops.create_kv_tensors(16 * MIB, 3, "cuda:0", 2, group_id=1)
    with pytest.raises(KVCachedConfigError, match="not a multiple of 2 MiB"):
        vmm_ops.init_kvcached("cuda:0", page_size=MIB)


def test_page_allocator(environment: Any, torch: Any) -> None:
    vmm_ops.init_kvcached("cuda:0", contiguous_layout=True)
    (whole,) = vmm_ops.create_kv_tensors(16 * MIB, 1, "cuda:0", 2)
    pages = vmm_ops.PageAllocator(2, 8 * MIB, 2 * MIB, contiguous_layout=True)
    assert [pages.get_num_total_pages(), pages.get_num_free_pages()] == [4, 4]
    taken = [pages.alloc_page() for _ in range(3)]
    assert [page.page_id for page in taken] == [0, 1, 2]
    whole[2 * 8 * MIB] = 1
    assert pages.get_page_state() == {"total": 4, "inuse": 3, "reserved": 0, "free": 1}
    assert not pages.resize(4 * MIB)
    with pytest.raises(RuntimeError, match="No free pages left"):
        pages.alloc_page()
    pages.free_page(2)
    pages.free_pages([0, 1])
    assert pages.resize(8 * MIB)
    assert pages.get_num_reserved_pages() == 2
    assert pages.get_avail_physical_pages() == 2
    pages.trim()
    assert pages.get_num_reserved_pages() == 0
    with pytest.raises(ValueError, match="not allocated"):
        pages.free_page(3)
    assert pages.group_indices_by_page([0, 5, 3], MIB) == {0: [0], 2: [5], 1: [3]}
    pages.close()


def test_internal_page() -> None:
    page = vmm_ops.InternalPage(1, 100)
    page.init(30)
    assert vmm_ops.InternalPage.get_block_range(1, 100, 30) == (4, 6)
    assert page.get_free_blocks() == [4, 5]
    assert page.empty()
    assert page.alloc(2) == [4, 5]
    assert page.full()
    with pytest.raises(ValueError, match="has 0 free blocks, not 1"):
        page.alloc()
    for wrong in ([4, 4], [6], [3]):
        with pytest.raises(ValueError, match="are allocated"):
            page.free_batch(wrong)
    page.free(5)
    with pytest.raises(ValueError, match="are allocated"):
        page.free(5)
    assert page.num_free_blocks() == 1
    assert vmm_ops.InternalPage.get_num_blocks(100, 30) == 3
