# SPDX-License-Identifier: Apache-2.0
"""The engines' interfaces with torch: tensors of every layout, their memory, and their ends."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import kvcached.tensors
from harness.tensors import check_round_trip
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


SHAPE = (2, 64, 16, 2, 64)


def alloc(torch: Any, shape: Any = SHAPE, block_size: Any = 16, **others: Any) -> Any:
    given = {"dtype": torch.float16, "device": "cuda", "num_layers": 2, **others}
    return kvi.alloc_kv_cache(shape, block_size, **given)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"shape": (2, -5, 16, 2, 64)}, "one of the dimensions of kvcache_shape is -5"),
        ({"shape": (2, 0, 16, 2, 64)}, "is no shape of a KV cache, such as .2, N, B, H, D."),
        ({"shape": (2, 64)}, "is no shape of a KV cache"),
        ({"shape": (), "attention_type": "MLA"}, "is no shape of a KV cache, such as .N, B, D."),
        ({"shape": (5,), "attention_type": "MLA"}, "is no shape of a KV cache"),
        ({"shape": (2, 1 << 80, 16, 2, 64)}, "are more than any address space has"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": -16}, "block_size is -16"),
        ({"block_size": 32}, "has blocks of 16 tokens, and they were said to be of 32"),
        (
            {"block_size": 64, "kernel_block_size": 32},
            "has blocks of 16 tokens, and they were said to be of 32",
        ),
        ({"block_size": 64, "kernel_block_size": 0}, "kernel_block_size is 0"),
        (
            {"shape": (2, 66, 16, 2, 64), "block_size": 64, "kernel_block_size": 16},
            "66 kernel blocks are no whole number of blocks of 4",
        ),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"dtype": "float17"}, "'float17' is no dtype such as torch.float16"),
        ({"dtype": None}, "None is no dtype"),
        ({"dtype": float}, "is no dtype"),
        ({"dtype": "nn"}, "'nn' is no dtype"),
        ({"device": "banana"}, "banana is no device such as cuda:0"),
        (
            {"device": "cuda:7"},
            "KV tensors are on cuda:0, as init_kvcached.. was told, and were wanted on cuda:7",
        ),
    ],
)
def test_refused_arguments(engine: None, torch: Any, arguments: dict[str, Any], text: str) -> None:
    """And the group may be made afterwards."""
    with pytest.raises(KVCachedConfigError, match=text):
        alloc(torch, **arguments)
    assert alloc(torch)[0].shape == SHAPE


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (((-5, 2, 64), "float16", "cuda", 2), "one of the dimensions of kvcache_shape is -5"),
        (((), "float16", "cuda", 2), "is no shape of a KV cache, such as .tokens, heads, head_dim."),
        (((64, 0, 64), "float16", "cuda", 2), "is no shape of a KV cache"),
        (((64, 2, 64), "float17", "cuda", 2), "'float17' is no dtype"),
        (((64, 2, 64), "float16", "banana", 2), "banana is no device"),
        (((64, 2, 64), "float16", "cuda:7", 2), "KV tensors are on cuda:0"),
        (((64, 2, 64), "float16", "cuda", 0), "num_layers is 0"),
        (((64, 2, 64), "float16", "cuda", 2, 0), "page_size is 0"),
    ],
)
def test_refused_arguments_of_sglang(engine: None, torch: Any, arguments: Any, text: str) -> None:
    with pytest.raises(KVCachedConfigError, match=text):
        sgi.alloc_kv_cache(*arguments)
    k, _ = sgi.alloc_kv_cache((64, 2, 64), "float16", "cuda", 2)
    assert (tuple(k[0].shape), k[0].dtype) == ((64, 2, 64), torch.float16)


def test_arguments_of_another_kind(engine: None, torch: Any) -> None:
    with pytest.raises(TypeError, match=r"one of the dimensions of kvcache_shape is 64\.0"):
        alloc(torch, (2, 64.0, 16, 2, 64))
    with pytest.raises(TypeError, match=r"num_layers is 2\.0"):
        alloc(torch, num_layers=2.0)
    with pytest.raises(TypeError, match="device is True"):
        alloc(torch, device=True)
    sizes = torch.tensor([*SHAPE, 16, 2])
    tensors = alloc(torch, sizes[:5], sizes[5], num_layers=sizes[6])
    assert [tuple(tensor.shape) for tensor in tensors] == [SHAPE] * 2


def test_dtypes_by_name(engine: None, torch: Any) -> None:
    numpy = pytest.importorskip("numpy", reason="no numpy in this Python")
    names = ["float16", "torch.float16", "half", numpy.float16, numpy.dtype("float16")]
    for group, dtype in enumerate(names):
        (tensor,) = alloc(torch, dtype=dtype, num_layers=1, group_id=group)
        assert tensor.dtype == torch.float16


def test_a_group_whose_tensors_fail_is_free_again(
    engine: None, torch: Any, monkeypatch: pytest.MonkeyPatch, driver: Any
) -> None:
    """Whatever it is that fails."""
    before = driver.stats().reservations

    def fail(*arguments: Any) -> Any:
        raise MemoryError

    state = SimpleNamespace(conv=[(4, 64)], temporal=(8, 16))
    kinds = SimpleNamespace(conv=torch.float32, temporal=torch.float32)
    made: list[Callable[[], Any]] = [
        lambda: alloc(torch),
        lambda: sgi.alloc_kv_cache((1024, 2, 64), torch.float16, "cuda", 2),
        lambda: sgi.alloc_mamba_states(
            num_slots=7,
            num_mamba_layers=2,
            cache_params=SimpleNamespace(shape=state, dtype=kinds),
            device="cuda",
            group_id=0,
        ),
        lambda: vmm_ops.create_kv_tensors(16 * MIB, 2, "cuda:0", 2),
    ]
    for make in made:
        with monkeypatch.context() as broken:
            broken.setattr(kvcached.tensors, "whole", fail)
            with pytest.raises(MemoryError):
                make()
        assert runtime.get().pool(0) is None
        assert driver.stats().reservations == before
        assert make()
        kvi.shutdown_kvcached()
        kvi.init_kvcached()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((16 * MIB, 2, "cuda:0", 0), "num_layers is 0"),
        ((16 * MIB, 2, "cuda:0", 2, 0), "num_kv_buffers is 0"),
        ((-16 * MIB, 2, "cuda:0", 2), "size is -16777216"),
        ((16 * MIB, 2, "banana", 2), "banana is no device"),
        ((16 * MIB, 2, "cuda:7", 2), "KV tensors are on cuda:0, .* wanted on cuda:7"),
    ],
)
def test_no_tensors(engine: None, torch: Any, arguments: Any, text: str) -> None:
    with pytest.raises(KVCachedConfigError, match=text):
        vmm_ops.create_kv_tensors(*arguments)
    assert vmm_ops.create_kv_tensors(16 * MIB, 2, "cuda:0", 2)


def test_the_second_of_two_is_the_blocks(engine: None, torch: Any) -> None:
    """(2, 2, ...) is read as (2, N, ...)."""
    (tensor,) = alloc(torch, (2, 2, 16, 2, 64), num_layers=1)
    manager = kvi.get_kv_cache_manager(2, 16, 2 * 64 * 2, 1)
    assert manager.alloc(1) == [1]
    assert tensor.stride(0) < tensor.stride(1)  # a block has its K before its V


@CONTIGUOUS
def test_views_of_other_blocks(engine: None, environment: Any, torch: Any, contiguous: str) -> None:
    """Groups of layers whose blocks have another shape and the same bytes."""
    environment.setenv("KVCACHED_CONTIGUOUS_LAYOUT", contiguous)
    tensors, meta = kvi.alloc_kv_cache(
        (2, 64, 16, 2, 64), 16, torch.float16, "cuda", 3, kernel_block_size=16, return_meta=True
    )
    manager = kvi.get_kv_cache_manager(64, 16, 2 * 64 * 2, 3)
    ids = manager.alloc(63)
    assert ids is not None
    names = ("num_blocks_per_layer", "gpu_mem_bytes_per_layer_k_or_v", "num_layers")
    rest = [meta[name] for name in names]
    again, block_bytes = kvi.build_kv_views(
        meta["raw_kv_tensors"], (2, 64, 16, 2, 64), 16, torch.float16, "MHA", *rest
    )
    assert block_bytes == 2 * 16 * 2 * 64 * 2
    for tensor, other in zip(tensors, again):
        assert (tensor.data_ptr(), tensor.stride()) == (other.data_ptr(), other.stride())
    shape = (2, 64, 32, 1, 64)
    wide, block_bytes = kvi.build_kv_views(meta["raw_kv_tensors"], shape, 32, "float16", "GQA", *rest)
    assert block_bytes == 2 * 16 * 2 * 64 * 2
    check_round_trip(torch, [tensor[kv, i] for tensor in wide for kv in range(2) for i in (1, 30, 63)])
    for tensor, other in zip(tensors, wide):
        assert torch.equal(tensor[:, 30].flatten(), other[:, 30].flatten())
    for arguments, text in (
        ((meta["raw_kv_tensors"][1:], (2, 64, 16, 2, 64), 16), "raw tensors, and . were expected"),
        ((meta["raw_kv_tensors"], (2, 65, 16, 2, 64), 16), "has more blocks than there are: 64"),
        ((meta["raw_kv_tensors"], (2, 64, 16, 2, 64), 32), "has blocks of 16 tokens"),
    ):
        with pytest.raises(KVCachedConfigError, match=text):
            kvi.build_kv_views(*arguments, torch.float16, "MHA", *rest)
