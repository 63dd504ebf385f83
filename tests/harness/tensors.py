# SPDX-License-Identifier: Apache-2.0
"""Whether tensors over a KV cache's memory keep what is written to them."""

from __future__ import annotations

from typing import Any


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
