# SPDX-License-Identifier: Apache-2.0
"""Torch tensors over a pool's addresses, by DLPack. Torch is imported here, when a tensor is made, and
nowhere else in the package's core: it needs no headers of torch, and no rebuild when torch changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvcached import _native
from kvcached.errors import KVCachedConfigError
from kvcached.runtime import Pool

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
    """A view of that shape; strides and offset in bytes."""
    import torch

    size = dtype.itemsize
    if offset % size or any(stride % size for stride in strides_bytes):
        raise KVCachedConfigError(f"Strides {list(strides_bytes)} are not all multiples of {dtype}")
    usable = flat.numel() // size * size
    typed = flat[:usable].view(dtype)
    return torch.as_strided(typed, tuple(shape), [s // size for s in strides_bytes], offset // size)


def on_device(device: Any, pool: Pool) -> None:
    """Complains where tensors are wanted on another kind of device than the daemon's GPU is."""
    kind = "cpu" if pool.client.device()["emulated"] else "cuda"
    wanted = str(device).partition(":")[0]
    if wanted == "cpu" and kind == "cuda":
        raise KVCachedConfigError(f"KV tensors are on the GPU, and were wanted on {device}")
