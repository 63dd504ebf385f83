# SPDX-License-Identifier: Apache-2.0
"""Torch tensors over a pool's addresses, by DLPack. Torch is imported here, when a tensor is made, and
nowhere else in the package's core: it needs no headers of torch, and no rebuild when torch changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kvcached import _native, runtime
from kvcached.errors import KVCachedConfigError
from kvcached.layout import Layout

if TYPE_CHECKING:
    import torch

_CHUNK = (1 << 62) - 1


def whole(region: _native.Region) -> torch.Tensor:
    """All of a region: one dimension of unsigned bytes. On the GPU, or the CPU where that is emulated. What
    is not mapped faults when it is touched. The addresses are nobody else's as long as a tensor lives."""
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(region.tensor(0, min(region.span_bytes, _CHUNK)))


def strided(
    flat: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], strides_bytes: Sequence[int], offset: int
) -> torch.Tensor:
    """A view of that shape of what has one dimension; strides and offset in bytes."""
    import torch

    size = dtype.itemsize
    if offset % size or any(stride % size for stride in strides_bytes):
        raise KVCachedConfigError(f"Strides {list(strides_bytes)} are not all multiples of {dtype}")
    flat = flat.view(torch.uint8)
    typed = flat[: flat.numel() // size * size].view(dtype)
    start = typed.storage_offset() + offset // size
    return torch.as_strided(typed, tuple(shape), [s // size for s in strides_bytes], start)


def check_device(device: Any) -> None:
    """Complains where tensors are wanted elsewhere than on the GPU of init_kvcached(), also called cpu where
    that is emulated."""
    kind, index = runtime.parse_device(device)
    run = runtime.get()
    if run.role.native_role == _native.ROLE_SCHEDULER:
        raise KVCachedConfigError("A scheduler has no GPU, so it makes no tensors: its workers do")
    ours = run.role.device or 0
    if index is not None and index != ours:
        raise KVCachedConfigError(
            f"KV tensors are on cuda:{ours}, as init_kvcached() was told, and were wanted on {device}"
        )
    if kind == "cpu" and not run.client().device()["emulated"]:
        raise KVCachedConfigError(f"KV tensors are on the GPU, and were wanted on {device}")


@contextlib.contextmanager
def pool_of(device: Any, group_id: int, layout: Layout, pages: int, flags: int = 0) -> Iterator[runtime.Pool]:
    """A new pool, for tensors on that device; it stays if what is done with it succeeds."""
    check_device(device)
    if pages * layout.segment_page_bytes >= 1 << 63:
        raise KVCachedConfigError(
            f"{pages} pages of {layout.segment_page_bytes} bytes are more than any address space has"
        )
    run = runtime.get()
    pool = run.open_pool(group_id, layout, pages, flags)
    try:
        yield pool
    except BaseException:
        run.drop_pool(pool)
        raise


def dtype_of(dtype: Any) -> torch.dtype:
    """A torch.dtype, also by its name, or numpy's of that name."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    of_numpy = isinstance(dtype, type) and dtype.__module__ == "numpy"
    name = dtype.__name__ if of_numpy else str(dtype)
    found = getattr(torch, name.rpartition(".")[2], None)
    if not isinstance(found, torch.dtype):
        raise KVCachedConfigError(f"{dtype!r} is no dtype such as torch.float16")
    return found
