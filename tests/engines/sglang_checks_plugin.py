# SPDX-License-Identifier: Apache-2.0
"""Checks of the plug-in: from SGLang's entry point to our classes, and what it refuses.

Run by sglang_runner.py, which doesn't initialize kvcached for them: that is the plug-in's own to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from engines.sglang_support import (
    Configured,
    error_of,
    load_plugin,
)

# isort: split
from kvcached import runtime
from kvcached.integration.sglang import allocators, plugin, pools


def not_asked_for() -> None:
    """Without ENABLE_KVCACHED the entry point leaves SGLang as it is."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    load_plugins()
    assert not HookRegistry._patched


def configured(page_size: int, use_mla: bool) -> None:
    """Entry point, load_plugins(), configure(): the pool and its allocator are ours."""
    load_plugin()
    result = Configured().run(page_size, use_mla)
    pool_class = pools.ElasticMLATokenToKVPool if use_mla else pools.ElasticMHATokenToKVPool
    allocator_class = (
        allocators.ElasticTokenToKVPoolAllocator
        if page_size == 1
        else allocators.ElasticPagedTokenToKVPoolAllocator
    )
    assert type(result.token_to_kv_pool) is pool_class
    assert type(result.token_to_kv_pool_allocator) is allocator_class
    assert result.token_to_kv_pool_allocator.alloc(page_size) is not None
    assert runtime.get().role.engine == "SGLang"


def configured_without_us() -> None:
    """A pool that another plug-in has put in place of ours is noticed."""
    load_plugin()
    from sglang.srt.platforms.interface import SRTPlatform

    SRTPlatform.get_kv_pool_cls = lambda _self, **_kind: None
    assert "MHATokenToKVPool" in error_of(RuntimeError, Configured().run)


def refused_flags() -> None:
    import msgspec
    from sglang.srt.server_args import ServerArgs

    known = {field.name: field for field in msgspec.structs.fields(ServerArgs)}
    plugin.check_supported(SimpleNamespace())
    for name, fine, _ in plugin.REFUSED:
        assert name in known, name
        assert known[name].default in fine, (name, known[name].default)
        assert name in error_of(ValueError, plugin.check_supported, SimpleNamespace(**{name: "another"}))


def another_release() -> None:
    """A hook's target that takes other arguments ends the process, and says what is supported."""
    from sglang.srt.managers.scheduler import Scheduler

    def run_batch(_self: Any, _batch: Any, _something_new: Any) -> None:
        pass

    Scheduler.run_batch = run_batch
    from sglang.srt.plugins import load_plugins

    said = error_of(SystemExit, load_plugins)
    assert plugin.SUPPORTED in said
    assert "_something_new" in said


def budget() -> None:
    """As much of the whole GPU as is asked for, without what this process has; others' shares don't count."""
    gib_free_now, before, total, fraction = 20.0, 50.0, 80.0, 0.9
    told = plugin.elastic_budget(before, total, fraction)
    assert abs(gib_free_now - (1 - fraction) * told - (fraction * total - (before - gib_free_now))) < 1e-9
    alone = plugin.elastic_budget(total, total, fraction)
    assert abs(alone - total) < 1e-9
