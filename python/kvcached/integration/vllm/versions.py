# SPDX-License-Identifier: Apache-2.0
"""Which vLLM this works with, and what it relies on there.

vLLM promises none of these names. What is relied on is compared before anything is built on it, so that
another release ends with a sentence at the start, not with wrong tokens later."""

from __future__ import annotations

import inspect
from typing import Any

from kvcached.utils import get_kvcached_logger

TESTED = ("0.32",)
READ = ("0.29", "0.33")  # their sources have the same signatures; they were not run

logger = get_kvcached_logger("kvcached.vllm")


class UnsupportedError(RuntimeError):
    """This vLLM is not one that kvcached can work with."""


def installed() -> str:
    import vllm

    return str(vllm.__version__)


def unsupported(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"kvcached cannot work with vLLM {installed()}: {why}. Tested: {', '.join(TESTED)}; by reading only: "
        f"{', '.join(READ)}. Unset ENABLE_KVCACHED and KVCACHED_AUTOPATCH to run without it"
    )


def note() -> None:
    """Says so where a release was not tested; it is used as long as everything that is relied on is there."""
    release = ".".join(installed().split(".")[:2])
    if release not in TESTED:
        known = "was read and not run" if release in READ else "is not known"
        logger.warning("vLLM %s %s; tested: %s", installed(), known, ", ".join(TESTED))


def need_parameters(owner: Any, name: str, *parameters: str) -> None:
    """That owner.name can be called with these parameters, in this order, the first ones after self."""
    method = getattr(owner, name, None)
    where = f"{getattr(owner, '__name__', owner)}.{name}"
    if method is None:
        raise unsupported(f"there is no {where}")
    found = [p for p in inspect.signature(method).parameters if p != "self"]
    if found[: len(parameters)] != list(parameters):
        raise unsupported(f"{where} has parameters {found}, not {list(parameters)}")


def need_attributes(thing: Any, *names: str) -> None:
    missing = [name for name in names if not hasattr(thing, name)]
    if missing:
        raise unsupported(f"a {type(thing).__name__} has no {', '.join(missing)}")


def check_config(engine_args: Any) -> None:
    need_parameters(engine_args, "create_engine_config", "usage_context", "headless")


def check_scheduler() -> None:
    from vllm.v1.core import block_pool, kv_cache_coordinator
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue
    from vllm.v1.core.sched.scheduler import Scheduler

    pool = block_pool.BlockPool
    if getattr(kv_cache_coordinator, "BlockPool", None) is not pool:
        raise unsupported("kv_cache_coordinator.BlockPool is not vLLM's BlockPool")
    need_parameters(
        pool,
        "__init__",
        "num_gpu_blocks",
        "enable_caching",
        "hash_block_size",
        "enable_kv_cache_events",
        "metrics_collector",
    )
    need_parameters(pool, "get_new_blocks", "num_blocks")
    need_parameters(pool, "free_blocks", "ordered_blocks")
    need_parameters(pool, "touch", "blocks")
    need_parameters(pool, "evict_blocks", "block_ids")
    need_parameters(pool, "_maybe_evict_cached_block", "block")
    for name in ("reset_prefix_cache", "get_num_free_blocks", "get_usage", "take_events"):
        need_parameters(pool, name)
    for name in ("popleft", "popleft_n", "remove", "append_n", "prepend_n"):
        need_parameters(FreeKVCacheBlockQueue, name)
    need_parameters(KVCacheManager, "allocate_slots", "request", "num_new_tokens")
    need_parameters(KVCacheManager, "free", "request")
    need_parameters(Scheduler, "schedule")
    need_parameters(Scheduler, "update_from_output", "scheduler_output", "model_runner_output")
    need_parameters(Scheduler, "add_request", "request")
    need_parameters(Scheduler, "finish_requests", "request_ids", "finished_status")
    need_parameters(Scheduler, "reset_prefix_cache", "reset_running_requests", "reset_connector")
    need_parameters(Scheduler, "set_pause_state", "pause_state")
    need_parameters(Scheduler, "shutdown")


def check_worker(worker: type) -> None:
    base = next(c for c in worker.__mro__ if c.__module__.startswith("vllm."))
    need_parameters(base, "_maybe_get_memory_pool_context", "tag")
    need_parameters(base, "initialize_from_config", "kv_cache_config")
    for name in ("determine_available_memory", "init_device", "get_kv_cache_spec", "shutdown"):
        need_parameters(base, name)


def check_groups(kv_cache_utils: Any) -> None:
    """Of models whose layers are of several kinds."""
    need_parameters(kv_cache_utils, "get_kv_cache_groups", "vllm_config", "kv_cache_spec")
