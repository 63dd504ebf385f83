# SPDX-License-Identifier: Apache-2.0
"""What the checks of SGLang's integration are made of: pools, allocators and trees of SGLang's and of ours,
requests that use them, and a configurator without a model. For SGLang's interpreter."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from engines import torchvision_stub

# isort: split
import torch
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from kvcached.integration.sglang import allocators, plugin, pools

__all__ = ["torchvision_stub"]

HEADS, WIDTH, LAYERS = 16, 256, 2  # 8 KiB a row: 256 tokens in a page of 2 MiB
PAGE_TOKENS = 256
SIZE = 2048
DTYPES = (torch.float16, torch.bfloat16, torch.float8_e4m3fn)


def mha(cls: type, dtype: torch.dtype = torch.float16, page_size: int = 1, **more: Any) -> Any:
    shape = {"head_num": HEADS, "head_dim": WIDTH, "layer_num": LAYERS}
    common = {"size": SIZE, "page_size": page_size, "dtype": dtype, "device": "cpu"}
    return cls(**(common | shape | {"enable_memory_saver": False} | more))


def mla(cls: type, dtype: torch.dtype = torch.bfloat16, page_size: int = 1) -> Any:
    return cls(
        size=SIZE,
        page_size=page_size,
        dtype=dtype,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
    )


def stock_allocator(pool: Any, size: int) -> Any:
    if pool.page_size == 1:
        return TokenToKVPoolAllocator(size, pool.dtype, "cpu", pool, False)
    return PagedTokenToKVPoolAllocator(size, pool.page_size, pool.dtype, "cpu", pool, False)


def our_allocator(pool: Any) -> Any:
    return allocators.make_allocator(pool.size, pool.page_size, pool.dtype, "cpu", pool, False)


def elastic(page_size: int = 1, **more: Any) -> tuple[Any, Any]:
    """A pool and its allocator."""
    pool = mha(pools.ElasticMHATokenToKVPool, page_size=page_size, **more)
    return pool, our_allocator(pool)


def layer(i: int) -> Any:
    return SimpleNamespace(layer_id=i, k_scale=None, v_scale=None, k_scale_float=None, v_scale_float=None)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit by bit: not all types can be compared."""
    bits = [tensor.contiguous().view(torch.uint8) for tensor in (a, b)]
    return bool(a.shape == b.shape and torch.equal(bits[0], bits[1]))


def our_allocator_of(kvcache: Any) -> Any:
    return allocators.make_allocator(kvcache.size, kvcache.page_size, kvcache.dtype, "cpu", kvcache, False)


def lengths(*lists: list[int]) -> tuple[torch.Tensor, ...]:
    """Each for the device and for the CPU, as the allocators take them."""
    return tuple(torch.tensor(of) for of in lists for _ in range(2))


class Requests:
    """Requests that grow and end, at an allocator of pages."""

    def __init__(self, allocator: Any) -> None:
        self.allocator = allocator
        self.slots: dict[int, torch.Tensor] = {}

    def extend(self, request: int, n: int) -> bool:
        have = self.slots.get(request, torch.empty(0, dtype=torch.int64))
        if self.allocator.page_size == 1:
            new = self.allocator.alloc(n)
        else:
            last = torch.tensor([int(have[-1]) if len(have) else -1])
            new = self.allocator.alloc_extend(*lengths([len(have)], [len(have) + n]), last, n)
        if new is not None:
            assert len(new) == n
            self.slots[request] = torch.cat([have, new])
        return new is not None

    def decode(self) -> bool:
        requests = sorted(self.slots)
        if self.allocator.page_size == 1:
            new = self.allocator.alloc(len(requests))
        else:
            last = torch.tensor([int(self.slots[r][-1]) for r in requests])
            new = self.allocator.alloc_decode(*lengths([len(self.slots[r]) + 1 for r in requests]), last)
        if new is not None:
            for request, slot in zip(requests, new.tolist(), strict=True):
                self.slots[request] = torch.cat([self.slots[request], torch.tensor([slot])])
        return new is not None

    def end(self, request: int) -> None:
        self.allocator.free_segment(self.slots.pop(request), start_pos=0)

    def check(self) -> None:
        """Nobody shares a page, and within pages tokens follow each other."""
        page_size = self.allocator.page_size
        seen: set[int] = set()
        for slots in self.slots.values():
            assert (slots % page_size == torch.arange(len(slots)) % page_size).all()
            pages = slots[::page_size] // page_size
            assert (slots // page_size == pages.repeat_interleave(page_size)[: len(slots)]).all()
            assert pages.min() > 0
            assert slots.max() < self.allocator.size + page_size
            assert seen.isdisjoint(pages.tolist())
            seen.update(pages.tolist())


def make_tree(kind: str, allocator: Any) -> Any:
    requests = ReqToTokenPool(size=4, max_context_len=64, device="cpu", enable_memory_saver=False)
    common: dict[str, Any] = {
        "disable": False,
        "req_to_token_pool": requests,
        "token_to_kv_pool_allocator": allocator,
        "page_size": allocator.page_size,
    }
    if kind == "radix":
        return RadixCache(CacheInitParams(**common))
    components = (ComponentType.FULL,)
    return UnifiedRadixCache(CacheInitParams(**common, tree_components=components, tree_core_backend=kind))


def remember(tree: Any, allocator: Any, tokens: range) -> torch.Tensor:
    """Has the tree keep a prefix of new tokens."""
    slots = allocator.alloc(len(tokens))
    assert slots is not None
    tree.insert(InsertParams(key=RadixKey(array("q", tokens)), value=slots.clone()))
    return slots


def found(tree: Any, tokens: range) -> int:
    match = tree.match_prefix(MatchPrefixParams(key=RadixKey(array("q", tokens))))
    return int(match.device_prefix_len)


def observed(allocator: Any, tree: Any) -> tuple[Any, Any]:
    """SGLang's observer and leak checker over them."""
    from sglang.srt.managers.scheduler_components.invariant_checker import SchedulerInvariantChecker
    from sglang.srt.managers.scheduler_components.pool_stats_observer import SchedulerPoolStatsObserver

    common: dict[str, Any] = {
        "tree_cache": tree,
        "token_to_kv_pool_allocator": allocator,
        "req_to_token_pool": tree.req_to_token_pool,
        "is_hybrid_swa": False,
        "is_hybrid_ssm": False,
        "full_tokens_per_layer": None,
        "swa_tokens_per_layer": None,
        "max_total_num_tokens": SIZE,
    }
    observer = SchedulerPoolStatsObserver(
        session_controller=None, hisparse_coordinator=None, enable_hisparse=False, **common
    )
    checker = SchedulerInvariantChecker(
        disaggregation_mode=None,
        page_size=allocator.page_size,
        pool_stats_observer=observer,
        get_last_batch=lambda: None,
        get_running_batch=lambda: None,
        scheduler_stage_metrics=None,
        **common,
    )
    return observer, checker


def kvctl(*arguments: str) -> None:
    subprocess.run([os.environ["TEST_KVCTL"], *arguments], check=True)


def load_plugin() -> None:
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    load_plugins()
    assert set(plugin.HOOKS) <= HookRegistry._patched, set(plugin.HOOKS) - HookRegistry._patched


class Configured:
    """SGLang's configurator, but for what asks a model and a GPU."""

    def __init__(self, **server_args: Any) -> None:
        from sglang.srt.mem_cache import kv_cache_configurator as module

        class Configurator(module.KVCacheConfigurator):
            __slots__ = ()

            def _resolve_memory_pool_config(self, pre_model_load_memory: int) -> Any:
                self._profile_available_bytes(pre_model_load_memory)
                return SimpleNamespace()

            def _derive_pool_sizes(self, **_config: Any) -> Any:
                return SimpleNamespace(
                    max_total_num_tokens=SIZE,
                    max_running_requests=4,
                    full_max_total_num_tokens=None,
                    swa_max_total_num_tokens=None,
                )

            def _init_pools(self, *, sizes: Any, **_others: Any) -> Any:
                kinds = {True: ("mla", MLATokenToKVPool), False: ("mha", MHATokenToKVPool)}
                kind, default = kinds[self.use_mla_backend]
                cls = self._resolve_kv_pool_class(kind=kind, default=default)
                pool = (mla if self.use_mla_backend else mha)(cls, page_size=self.page_size)
                allocator = self._build_token_to_kv_pool_allocator(
                    sizes=sizes,
                    token_to_kv_pool=pool,
                    is_dsv4_model=False,
                    req_to_token_pool=None,
                    token_to_kv_pool_allocator=None,
                )
                return SimpleNamespace(
                    req_to_token_pool=None,
                    token_to_kv_pool=pool,
                    token_to_kv_pool_allocator=allocator,
                    unified_memory_pool=None,
                )

        self.module = module
        self.object = object.__new__(Configurator)
        for name, value in {
            "server_args": SimpleNamespace(**server_args),
            "device": "cpu",
            "gpu_id": 0,
            "is_draft_worker": False,
            "is_hybrid_swa": False,
            "use_mla_backend": False,
            "kv_cache_dtype": torch.bfloat16,
            "mambaish_config": None,
            "memory_pool_config": None,
            "req_to_token_pool": None,
            "token_to_kv_pool_allocator": None,
            "page_size": 1,
            "spec_algorithm": SimpleNamespace(is_none=lambda: True),
            "kv_shard_size": 1,
            "model_config": SimpleNamespace(is_multimodal=False),
            "post_capture_kv_active": False,
        }.items():
            setattr(self.object, name, value)

    def run(self, page_size: int = 1, use_mla: bool = False) -> Any:
        self.object.page_size = page_size
        self.object.use_mla_backend = use_mla
        schedule = SimpleNamespace(page_size=page_size, mem_fraction_static=0.5, prefill_max_requests=None)
        null = SimpleNamespace(disaggregation_mode="null", enable_hisparse=False)
        full = SimpleNamespace(full_prefill_max_req=None, backend=None)
        execution = SimpleNamespace(
            kernel=SimpleNamespace(attention_backend="triton"),
            graph=SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=full)),
        )
        replaced = {
            "get_schedule": lambda: schedule,
            "get_disagg": lambda: null,
            "get_memory": lambda: null,
            "get_exec": lambda: execution,
            "get_mm": lambda: SimpleNamespace(mm_feature_transport=None),
            "get_available_gpu_memory": lambda *_arguments, **_named: 0.5,
            "mm_runtime_reservation_gb": lambda **_named: 0.0,
        }
        import sglang.srt.runtime_context as context

        context.get_schedule = replaced["get_schedule"]
        for name, value in replaced.items():
            assert hasattr(self.module, name), name
            setattr(self.module, name, value)
        return self.object.configure(pre_model_load_memory=0.75)


def scheduler_of(allocator: Any, tree: Any) -> Any:
    """SGLang's scheduler, but for what a model, a GPU or a client is needed for."""
    from sglang.srt.managers.scheduler import Scheduler

    made = object.__new__(Scheduler)
    made.tree_cache, made.token_to_kv_pool_allocator = tree, allocator
    made.waiting_queue = [SimpleNamespace()]
    made.running_batch = SimpleNamespace(is_empty=lambda: True)
    made._deferred_input_requests = []
    made._poll_timeout_aborts = list
    made.request_receiver = SimpleNamespace(recv_requests=lambda **_local: [])
    made.process_input_requests = lambda _requests: None
    return made


# Takes all of the memory that nobody has been promised, says how many bytes it is, and keeps it.
HOG = """
import sys
from kvcached import _native
client = _native.Client(instance="hog", min_reserved_pages=0, max_reserved_pages=0)
region = client.open_region(1 << 9, 2 << 20)
page = 0
try:
    while True:
        region.map([page])
        page += 1
except _native.OutOfMemoryError:
    print(page * (2 << 20), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def hog(meanwhile: Callable[[], object]) -> Iterator[int]:
    """Another engine; how many bytes it got. meanwhile: what is done over and over until it has them."""
    engine = subprocess.Popen(
        [sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with engine:
        assert engine.stdout is not None
        while not select.select([engine.stdout], [], [], 0.01)[0]:
            meanwhile()
        yield int(engine.stdout.readline())
        engine.communicate()


def error_of(kind: type[BaseException], call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """What the call says when it raises an error of that kind; it must."""
    try:
        call(*arguments, **named)
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")
