# SPDX-License-Identifier: Apache-2.0
"""The plug-in of SGLang: with ENABLE_KVCACHED=true (or KVCACHED_AUTOPATCH), its KV cache is elastic.

SGLang calls register() in each of its processes, through the entry point group `sglang.srt.plugins`, before
it parses a flag. All that happens there is that hooks are registered at SGLang's HookRegistry, after each
target has been found to take the arguments that it had in the releases this was written for. Nothing here
touches a GPU or a daemon before a scheduler configures its pools.

SGLang only logs what goes wrong in a plug-in, and would serve without it. So what doesn't fit ends the
process; and once the pools are configured, that they are ours is checked, or else an error raised.
"""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvcached import runtime
from kvcached.errors import KVCachedConfigError
from kvcached.utils import autopatch, get_kvcached_logger

if TYPE_CHECKING:
    from kvcached.integration.sglang.reclaim import Loop

SUPPORTED = "0.5.23"

_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"
_COMPONENTS = "sglang.srt.managers.scheduler_components"
_CHECKER = f"{_COMPONENTS}.invariant_checker.SchedulerInvariantChecker"
_UPDATER = f"{_COMPONENTS}.weight_updater.SchedulerWeightUpdaterManager"
_POOLS = "sglang.srt.mem_cache.memory_pool"
_ALLOCATORS = "sglang.srt.mem_cache.allocator"

# Those of SGLang's methods that subclasses override or call, with the arguments they are known to take.
EXTENDED = {
    f"{_POOLS}.MHATokenToKVPool._create_buffers": "self",
    f"{_POOLS}.MHATokenToKVPool._create_buffers_normal": "self",
    f"{_POOLS}.MHATokenToKVPool._kv_buffer_shapes": "self",
    f"{_POOLS}.MHATokenToKVPool._init_kv_copy_and_warmup": "self",
    f"{_POOLS}.MLATokenToKVPool._create_buffers": "self",
    f"{_ALLOCATORS}.token.TokenToKVPoolAllocator.__init__": "self size dtype device kvcache need_sort",
    f"{_ALLOCATORS}.paged.PagedTokenToKVPoolAllocator.__init__": (
        "self size page_size dtype device kvcache need_sort"
    ),
    f"{_ALLOCATORS}.paged.PagedTokenToKVPoolAllocator.alloc_extend": (
        "self prefix_lens prefix_lens_cpu seq_lens seq_lens_cpu last_loc extend_num_tokens num_new_pages"
    ),
    f"{_ALLOCATORS}.paged.PagedTokenToKVPoolAllocator.alloc_decode": "self seq_lens seq_lens_cpu last_loc",
    f"{_ALLOCATORS}.paged.PagedTokenToKVPoolAllocator._release_page_ids": "self *page_ids",
    f"{_ALLOCATORS}.swa.SWATokenToKVPoolAllocator.__init__": (
        "self size size_swa page_size dtype device kvcache need_sort req_to_token_pool"
    ),
    "sglang.srt.mem_cache.prefill_budget.PrefillBudget.__init__": (
        "self allocator tree_cache * num_mixed_decode_tokens"
    ),
}

# What cannot be served: (attribute of the server's arguments, values that are fine, what it is).
REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("tp_size", (1,), "tensor parallelism: ranks must be granted the same, and are not yet"),
    ("pp_size", (1,), "pipeline parallelism: stages must be granted the same, and are not yet"),
    ("enable_dp_attention", (False, None), "attention in data parallel"),
    ("disaggregation_mode", ("null", None), "disaggregation: transfers register memory that is not there"),
    ("speculative_algorithm", (None,), "speculative decoding: the draft's KV cache shares the slots"),
    ("enable_hierarchical_cache", (False, None), "a hierarchical cache"),
    ("enable_hisparse", (False, None), "HiSparse"),
    ("enable_lmcache", (False, None), "LMCache"),
    ("enable_flexkv", (False, None), "FlexKV"),
    ("enable_unified_memory", (False, None), "--enable-unified-memory"),
    ("enable_page_major_kv_layout", (False, None), "--enable-page-major-kv-layout"),
    ("enable_kv_cache_sharding", (False, None), "--enable-kv-cache-sharding"),
    ("dcp_size", (1, None), "decode context parallelism"),
    ("attn_cp_size", (1, None), "context parallelism"),
    ("prefill_only_disable_kv_cache", (False, None), "--prefill-only-disable-kv-cache"),
)


def arguments_of(function: Callable[..., Any]) -> str:
    """Their names; "*" before those that have to be named."""
    names, starred = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names.append(f"*{parameter.name}")
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            names.append("*")
            starred = True
        names.append(parameter.name)
    return " ".join(names)


def differences(expected: dict[str, str]) -> list[str]:
    """What the installed SGLang has otherwise, one sentence each."""
    found = []
    for target, arguments in expected.items():
        try:
            actual = arguments_of(pkgutil.resolve_name(target))
        except (ImportError, AttributeError) as error:
            found.append(f"{target} is not there ({error})")
            continue
        if actual != arguments:
            found.append(f"{target} takes ({actual}), not ({arguments})")
    return found


# ---- Hooks ----


def _kv_pool_cls(original: Callable[..., Any], self: Any, *, kind: str) -> Any:
    from kvcached.integration.sglang import pools

    ours = {"mha": pools.ElasticMHATokenToKVPool, "mla": pools.ElasticMLATokenToKVPool}
    return ours.get(kind) or original(self, kind=kind)


def check_supported(server_args: Any) -> None:
    """KVCachedConfigError: SGLang is to do what an elastic KV cache cannot."""
    for name, fine, what in REFUSED:
        if getattr(server_args, name, fine[0]) not in fine:
            raise KVCachedConfigError(
                f"kvcached does not serve {what} ({name}={getattr(server_args, name)}); "
                "change the flag, or unset ENABLE_KVCACHED"
            )


def check_ours(pool: Any, allocator: Any) -> None:
    """RuntimeError: SGLang has made them without us."""
    from kvcached.integration.sglang.allocators import sources_of
    from kvcached.integration.sglang.pools import elastic_pools

    made, served = elastic_pools(pool), [source.pool for source in sources_of(allocator)]
    if not made or made != served:
        raise RuntimeError(
            f"SGLang has made a {type(pool).__name__} with a {type(allocator).__name__}, which kvcached "
            "does not serve: unset ENABLE_KVCACHED for this model"
        )


def reachable(result: Any) -> Any:
    """The result of configure(), with no more tokens than can be handed out: SGLang must not admit a request
    that waits for more."""
    import msgspec

    allocator = result.token_to_kv_pool_allocator
    full = getattr(allocator, "full_attn_allocator", allocator)
    swa = getattr(allocator, "swa_attn_allocator", None)
    most = {"max_total_num_tokens": full.capacity, "full_max_total_num_tokens": full.capacity}
    if swa is not None:
        most["swa_max_total_num_tokens"] = swa.capacity
    less = {
        name: capacity
        for name, capacity in most.items()
        if getattr(result, name) is not None and getattr(result, name) > capacity
    }
    return msgspec.structs.replace(result, **less)


def _configure(original: Callable[..., Any], self: Any, *, pre_model_load_memory: int) -> Any:
    from kvcached.integration.sglang import interfaces

    check_supported(self.server_args)
    if self.is_draft_worker:
        raise KVCachedConfigError("kvcached does not serve a draft model's KV cache")
    interfaces.init_kvcached(device=self.gpu_id)
    result = original(self, pre_model_load_memory=pre_model_load_memory)
    check_ours(result.token_to_kv_pool, result.token_to_kv_pool_allocator)
    return reachable(result)


def _build_allocator(
    original: Callable[..., Any],
    self: Any,
    *,
    sizes: Any,
    token_to_kv_pool: Any,
    token_to_kv_pool_allocator: Any,
    **others: Any,
) -> Any:
    from kvcached.integration.sglang import allocators
    from kvcached.integration.sglang.pools import elastic_pools

    pools = elastic_pools(token_to_kv_pool)
    if token_to_kv_pool_allocator is not None or not pools:
        return original(
            self,
            sizes=sizes,
            token_to_kv_pool=token_to_kv_pool,
            token_to_kv_pool_allocator=token_to_kv_pool_allocator,
            **others,
        )
    page_size = pools[0].page_size
    if self.is_hybrid_swa:
        return allocators.ElasticSWATokenToKVPoolAllocator(
            sizes.full_max_total_num_tokens,
            sizes.swa_max_total_num_tokens,
            page_size,
            self.kv_cache_dtype,
            self.device,
            token_to_kv_pool,
            need_sort=False,
            req_to_token_pool=others["req_to_token_pool"],
        )
    return allocators.make_allocator(
        sizes.max_total_num_tokens, page_size, self.kv_cache_dtype, self.device, token_to_kv_pool, False
    )


def elastic_budget(before_load: float, total: float, fraction: float) -> float:
    """What to tell SGLang was free before the model was loaded, so that its KV cache gets `fraction` of the
    whole GPU without what this process has taken, whatever other processes hold. SGLang computes
    free now - (1 - fraction) x free before. All in GiB. Pure."""
    return (before_load - total * fraction) / (1 - fraction)


def _profile(original: Callable[..., Any], self: Any, pre_model_load_memory: float) -> int:
    from sglang.srt.runtime_context import get_schedule

    client = runtime.get().client()
    fraction = get_schedule().mem_fraction_static
    elastic = self.mambaish_config is None and 0 < fraction < 1  # Mamba's states are not elastic
    if elastic:
        total = client.device()["total_bytes"] / (1 << 30)
        pre_model_load_memory = elastic_budget(pre_model_load_memory, total, fraction)
    n_bytes = int(original(self, pre_model_load_memory))
    status = client.status()
    return min([n_bytes, *(int(status[name]) for name in ("limit_bytes", "budget_bytes") if status[name])])


def _unaccounted(total: int, used: int, available: int) -> int:
    """Tokens that are neither used nor promised: SGLang counts what it can allocate, and knows of nothing
    that others may have meanwhile. With these added, its check is that all used tokens are accounted for."""
    return total - used - available


def _check_full(original: Callable[..., Any], self: Any, ps: Any, uncached: int = 0) -> Any:
    allocator = getattr(
        self.token_to_kv_pool_allocator, "full_attn_allocator", self.token_to_kv_pool_allocator
    )
    if ps.full_capacity:
        uncached += _unaccounted(ps.full_capacity, allocator.used_size(), ps.full_available_size)
    return original(self, ps, uncached)


def _check_swa(original: Callable[..., Any], self: Any, ps: Any, uncached: int = 0) -> Any:
    allocator = self.token_to_kv_pool_allocator.swa_attn_allocator
    uncached += _unaccounted(ps.swa_capacity, allocator.used_size(), ps.swa_available_size)
    return original(self, ps, uncached)


def _pool_stats(result: Any, self: Any) -> Any:
    """What is used, not what cannot be allocated at the moment."""
    allocator = self.token_to_kv_pool_allocator
    full = getattr(allocator, "full_attn_allocator", allocator)
    used = full.used_size() - result.full_evictable_size
    changes: dict[str, Any] = {"full_num_used": used, "full_token_usage": used / (result.full_capacity or 1)}
    if result.is_hybrid_swa:
        used = allocator.swa_attn_allocator.used_size() - result.swa_evictable_size
        changes.update(swa_num_used=used, swa_token_usage=used / (result.swa_capacity or 1))
    return dataclasses.replace(result, **changes)


_loops: weakref.WeakKeyDictionary[Any, Loop] = weakref.WeakKeyDictionary()


def _after_ingest(result: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    loop = _loops.get(self)
    if loop is None:
        from kvcached.integration.sglang.allocators import sources_of
        from kvcached.integration.sglang.reclaim import Loop

        loop = _loops[self] = Loop(self.tree_cache, sources_of(self.token_to_kv_pool_allocator))
    loop.step(not self.waiting_queue and self.running_batch.is_empty())


def _run_batch(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    import torch

    from kvcached.integration.sglang.allocators import fence

    fence.begin()
    result = original(self, *args, **kwargs)
    current = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    fence.end(getattr(self, "forward_stream", None), current)
    return result


def _concerns_kv(recv_req: Any) -> bool:
    from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE

    return not recv_req.tags or GPU_MEMORY_TYPE_KV_CACHE in recv_req.tags


def _after_release(result: Any, self: Any, recv_req: Any) -> None:
    from kvcached.integration.sglang.allocators import sources

    if _concerns_kv(recv_req):
        for source in sources():
            source.sleep()


def _after_resume(result: Any, self: Any, recv_req: Any) -> None:
    from kvcached.integration.sglang.allocators import sources

    if _concerns_kv(recv_req):
        for source in sources():
            source.wake()


# target: (its arguments, the kind of hook, the hook)
HOOKS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "sglang.srt.platforms.interface.SRTPlatform.get_kv_pool_cls": ("self * kind", "AROUND", _kv_pool_cls),
    f"{_CONFIGURATOR}.configure": ("self * pre_model_load_memory", "AROUND", _configure),
    f"{_CONFIGURATOR}._build_token_to_kv_pool_allocator": (
        "self * sizes token_to_kv_pool is_dsv4_model req_to_token_pool token_to_kv_pool_allocator",
        "AROUND",
        _build_allocator,
    ),
    f"{_CONFIGURATOR}._profile_available_bytes": ("self pre_model_load_memory", "AROUND", _profile),
    f"{_CHECKER}._check_full_pool": ("self ps uncached", "AROUND", _check_full),
    f"{_CHECKER}._check_swa_pool": ("self ps uncached", "AROUND", _check_swa),
    f"{_COMPONENTS}.pool_stats_observer.SchedulerPoolStatsObserver.get_pool_stats": (
        "self",
        "AFTER",
        _pool_stats,
    ),
    "sglang.srt.managers.scheduler.Scheduler.ingest_requests": ("self stop_at_pause", "AFTER", _after_ingest),
    "sglang.srt.managers.scheduler.Scheduler.run_batch": (
        "self batch pp_proxy_tensors",
        "AROUND",
        _run_batch,
    ),
    f"{_UPDATER}.release_memory_occupation": ("self recv_req", "AFTER", _after_release),
    f"{_UPDATER}.resume_memory_occupation": ("self recv_req", "AFTER", _after_resume),
}

_registered = False


def register() -> None:
    """Of the entry point. SystemExit: this SGLang is another than those that are supported."""
    global _registered
    if _registered or not autopatch():
        return
    wrong = differences({**{target: hook[0] for target, hook in HOOKS.items()}, **EXTENDED})
    if wrong:
        import sglang

        raise SystemExit(
            f"kvcached supports SGLang {SUPPORTED}, and {sglang.__version__} is installed, where "
            f"{'; '.join(wrong)}. Install a supported release, or unset ENABLE_KVCACHED."
        )
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target, (_, kind, hook) in HOOKS.items():
        HookRegistry.register(target, hook, HookType[kind])
    _registered = True
    get_kvcached_logger("kvcached.sglang").info("the KV cache is elastic")
