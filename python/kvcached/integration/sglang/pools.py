# SPDX-License-Identifier: Apache-2.0
"""SGLang's KV pools, whose buffers are addresses of ours.

`ElasticMHATokenToKVPool` and `ElasticMLATokenToKVPool` are SGLang's own classes but for how the buffers are
made: each pool opens a group of pages at the daemon, without memory behind it, and its buffers are views
there. What a slot is, who writes where, how it is copied: all of that is SGLang's.

A buffer has size + page_size rows, one for each token, as SGLang's have; those of page 0 are where padding is
written, and always mapped. Per layer (KVCACHED_CONTIGUOUS_LAYOUT=false) shapes, strides and types are
SGLang's: (rows, heads, head_dim) without gaps. Contiguous, a token's rows of all layers lie together,
K V K V ..., so that one page has all of them: the shapes are the same, and the stride of a row is that of a
token. Where V is narrower than K, a layer's K and V share rows in both layouts.

Fresh pages read as zero: attention multiplies what it masks by zero, and what another engine left behind may
be no number.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool

from kvcached import _native, runtime, tensors
from kvcached.errors import KVCachedConfigError
from kvcached.integration import caches
from kvcached.integration.sglang import interfaces
from kvcached.kv_cache_manager import KVCacheManager
from kvcached.layout import Layout, product


def next_group() -> int:
    """The lowest group of this process that has no tensors."""
    taken = {pool.group_id for pool in runtime.get().each_pool()}
    return next(group for group in range(len(taken) + 1) if group not in taken)


class ElasticPool:
    """What both kinds of pools have besides SGLang's."""

    kvcached_pool: runtime.Pool
    size: int
    page_size: int

    def open_manager(self) -> KVCacheManager:
        """Of the pool's blocks, each a page of SGLang's; it maps page 0. OutOfMemoryError: it can't."""
        layout = self.kvcached_pool.layout
        manager = interfaces.get_kv_cache_manager(
            self.size // self.page_size + 1,
            self.page_size,
            layout.block_bytes // self.page_size,
            layout.layers,
            num_kv_buffers=layout.kv_buffers,
            group_id=self.kvcached_pool.group_id,
        )
        assert manager.blocks is not None
        return manager

    @property
    def _rows(self) -> int:
        """Of whole pages, which may be more than those of the buffers."""
        return -(-(self.size + self.page_size) // self.page_size) * self.page_size

    def _open(self, device: str, layers: int, kv_buffers: int, row_bytes: int) -> runtime.Pool:
        """row_bytes: of a token in one layer and buffer."""
        if layers < 1:
            raise KVCachedConfigError("A KV pool without layers has nothing to share")
        self.kvcached_pool = caches.open_pool(
            device,
            layers,
            kv_buffers,
            self._rows // self.page_size,
            self.page_size * row_bytes,
            next_group(),
            flags=_native.ZERO_ON_MAP,
        )
        return self.kvcached_pool


def elastic_pools(kvcache: Any) -> list[ElasticPool]:
    """Of a pool, or of those that it is made of (full attention first, then sliding windows)."""
    if isinstance(kvcache, ElasticPool):
        return [kvcache]
    inner = (getattr(kvcache, name, None) for name in ("full_kv_pool", "swa_kv_pool"))
    return [pool for pool in inner if isinstance(pool, ElasticPool)]


def _refuse(what: str, instead: str) -> None:
    raise KVCachedConfigError(f"kvcached cannot serve {what}; {instead}")


class ElasticMHATokenToKVPool(ElasticPool, MHATokenToKVPool):
    """k_buffer[l], v_buffer[l]: (size + page_size, heads, head_dim or v_head_dim) of store_dtype."""

    def _create_buffers(self) -> None:
        if self.is_quantized_kv_cache:
            _refuse("a quantized KV cache with scales", "use --kv-cache-dtype auto, bf16 or fp8")
        if self.post_capture_active:
            _refuse("KV memory that is sized after capture", "unset SGLANG_ENABLE_POST_CAPTURE_KV_SIZING")
        if self.kv_cache_layout != "nhd":
            _refuse(f"the KV layout {self.kv_cache_layout}", "unset SGLANG_USE_HND_KVCACHE and the like")
        super()._create_buffers()

    def _create_buffers_normal(self) -> None:
        k_shape, v_shape = self._kv_buffer_shapes()
        views = self._halves if k_shape == v_shape else self._shared_rows
        self.k_buffer, self.v_buffer = views(k_shape, v_shape)

    def _halves(
        self, k_shape: tuple[int, ...], v_shape: tuple[int, ...]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """K and V of one shape: two buffers a layer."""
        rows, *inner = k_shape
        pool = self._open(self.device, self.layer_num, 2, product(inner) * self.store_dtype.itemsize)
        shape = [2, self._rows, *inner]
        layers = caches.views(pool, self.store_dtype, shape, (1, 0))
        return [layer[0, :rows] for layer in layers], [layer[1, :rows] for layer in layers]

    def _shared_rows(
        self, k_shape: tuple[int, ...], v_shape: tuple[int, ...]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """K and V of different widths: one buffer a layer, in whose rows V follows K."""
        size = self.store_dtype.itemsize
        k_bytes, v_bytes = product(k_shape[1:]) * size, product(v_shape[1:]) * size
        pool = self._open(self.device, self.layer_num, 1, k_bytes + v_bytes)
        layout = pool.layout
        token = Layout(layout.layers, 1, k_bytes + v_bytes, layout.page_bytes, layout.contiguous)
        layer_stride, _, row_stride = token.strides(pool.region.stride_bytes)
        flat = tensors.whole(pool.region)

        def buffers(shape: tuple[int, ...], offset: int) -> list[torch.Tensor]:
            strides = [row_stride, shape[2] * size, size]
            return [
                tensors.strided(flat, self.store_dtype, shape, strides, layer * layer_stride + offset)
                for layer in range(layout.layers)
            ]

        return buffers(k_shape, 0), buffers(v_shape, k_bytes)

    def _init_kv_copy_and_warmup(self) -> None:
        """Its kernel takes rows that lie without gaps; SGLang's other way of moving slots takes any."""
        if self.k_buffer[0].is_contiguous():
            super()._init_kv_copy_and_warmup()
            return
        self._kv_copy_config = None
        self.use_native_move_kv_cache = True

    def get_contiguous_buf_infos(self) -> tuple[list[int], list[int], list[int]]:
        _refuse("transfers that register the whole KV cache", "use no disaggregation")
        raise AssertionError


class ElasticMLATokenToKVPool(ElasticPool, MLATokenToKVPool):
    """kv_buffer[l]: (size + page_size, 1, kv_lora_rank + qk_rope_head_dim) of store_dtype."""

    def _create_buffers(self) -> None:
        if self.use_dsa:
            _refuse("sparse attention with an index cache (DSA)", "use a model without it")
        width = self.kv_cache_dim
        pool = self._open(self.device, self.layer_num, 1, width * self.store_dtype.itemsize)
        shape = [1, self._rows, 1, width]
        rows = self.size + self.page_size
        self.kv_buffer = [layer[0, :rows] for layer in caches.views(pool, self.store_dtype, shape, (1, 0))]

    def get_contiguous_buf_infos(self) -> tuple[list[int], list[int], list[int]]:
        _refuse("transfers that register the whole KV cache", "use no disaggregation")
        raise AssertionError
