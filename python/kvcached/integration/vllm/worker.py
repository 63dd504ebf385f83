# SPDX-License-Identifier: Apache-2.0
"""vLLM's worker, with a KV cache that has addresses for a whole GPU and memory for what is used.

worker_cpu.Worker and worker_gpu.Worker are what --worker-cls is set to. vLLM allocates its one KV buffer
inside a context that the worker makes (_maybe_get_memory_pool_context); ours answers that allocation with a
tensor over the region. How many blocks there are depends on --kv-cache-memory-bytes or
--num-gpu-blocks-override, else on the GPU's size, and on nobody else's use of it."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from vllm.distributed.parallel_state import get_world_group
from vllm.v1.core import kv_cache_utils

from kvcached import _native, runtime, tensors
from kvcached.errors import KVCachedConfigError
from kvcached.integration.vllm import interfaces, versions
from kvcached.integration.vllm.geometry import Geometry, geometry, whole_blocks
from kvcached.utils import page_size

# Of the GPU's memory, which vLLM wants free at its start: it asks for no KV cache there.
LITTLE = 0.01


class BufferOf(TorchFunctionMode):
    """Inside it torch.zeros() of `size` bytes of int8 is the region's tensor. taken: how often that was
    so."""

    def __init__(self, size: int, region: _native.Region) -> None:
        super().__init__()
        self._size = size
        self._region = region
        self.taken = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros and kwargs.get("dtype") is torch.int8 and args == (self._size,):
            self.taken += 1
            return tensors.whole(self._region).view(torch.int8)
        return func(*args, **kwargs)


class Elastic:
    """Before a vLLM Worker in a class' bases."""

    _buffer: BufferOf | None = None

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        vllm_config.cache_config.gpu_memory_utilization = LITTLE
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        versions.check_worker(type(self))

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        me: Any = self
        parallel = me.parallel_config
        size = parallel.world_size // parallel.pipeline_parallel_size
        interfaces.init_kvcached(
            tp_rank=me.rank % size,
            world_size=size,
            pp_rank=me.rank // size,
            pp_size=parallel.pipeline_parallel_size,
            is_worker=True,
            device=me.local_rank,
            separate=parallel.distributed_executor_backend != "uni",
        )

    def determine_available_memory(self) -> int:
        me: Any = self
        want = me.cache_config.kv_cache_memory_bytes or runtime.get().client().device()["total_bytes"]
        blocks = self._blocks_of_groups()
        usable = whole_blocks(want, blocks, page_size()) if any(blocks) else want
        if usable == 0:
            raise KVCachedConfigError(f"{want} bytes are not one page of this model's KV cache")
        self._profile(usable)
        return usable

    def _blocks_of_groups(self) -> list[list[int]]:
        """For each group of layers that vLLM will make: a block's bytes in each of its layers that are here.
        How layers of several kinds are grouped depends on those of all stages."""
        me: Any = self
        mine: dict[str, Any] = me.get_kv_cache_spec()
        specs = dict(mine)
        if me.parallel_config.pipeline_parallel_size > 1:
            group = get_world_group()
            everyones: list[dict[str, Any]] = [{} for _ in range(group.world_size)]
            torch.distributed.all_gather_object(everyones, mine, group=group.cpu_group)
            specs = {name: spec for one in everyones for name, spec in one.items()}
        if len(set(specs.values())) <= 1:
            return [[spec.page_size_bytes for spec in mine.values()]]
        versions.check_groups(kv_cache_utils)
        blocks = []
        for group in kv_cache_utils.get_kv_cache_groups(me.vllm_config, specs):
            each = getattr(group.kv_cache_spec, "kv_cache_specs", {})
            here = [name for name in group.layer_names if name in mine]
            blocks.append([each.get(name, group.kv_cache_spec).page_size_bytes for name in here])
        return blocks

    def _profile(self, usable: int) -> None:
        """Runs the model once, as vLLM does before there is a KV cache."""
        raise NotImplementedError

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        if not kv_cache_config.kv_cache_tensors:
            super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
            return
        shape = geometry(kv_cache_config, page_size())
        region = self._open(shape)
        self._buffer = BufferOf(shape.size, region)
        super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        if self._buffer.taken != 1:
            raise versions.unsupported(
                f"its worker asked {self._buffer.taken} times for a KV buffer of {shape.size} bytes, not once"
            )

    def _open(self, shape: Geometry) -> _native.Region:
        run = runtime.get()
        # Before there is a scheduler, vLLM warms a GPU's kernels up with blocks that nobody has mapped.
        flags = 0 if run.client().device()["emulated"] else _native.HOLES_ZERO
        region = run.open_pool(0, shape.layout, shape.pages, flags).region
        if region.span_bytes != shape.size or (
            shape.layout.segments > 1 and region.stride_bytes != shape.stride_bytes
        ):
            raise KVCachedConfigError(
                f"vLLM wants {shape.size} bytes of KV cache with layers {shape.stride_bytes} bytes apart, "
                f"and the region has {region.span_bytes} with {region.stride_bytes}"
            )
        return region

    def _maybe_get_memory_pool_context(self, tag: str) -> Any:
        if tag == "kv_cache" and self._buffer is not None:
            return self._buffer
        return super()._maybe_get_memory_pool_context(tag)  # type: ignore[misc]

    def shutdown(self) -> None:
        super().shutdown()  # type: ignore[misc]
        interfaces.shutdown_kvcached()
