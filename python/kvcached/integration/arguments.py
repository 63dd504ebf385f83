# SPDX-License-Identifier: Apache-2.0
"""Who a process is, from the arguments of its init_kvcached(), of which there have been several orders.

An older one is (tp_rank, tp_size, is_worker, device, async_sched), where newer ones have pp_rank before
is_worker. What is given by position is told apart by type; what cannot be is a TypeError, since a wrong guess
would be another GPU, or another rank.
"""

from __future__ import annotations

from typing import Any

from kvcached import runtime
from kvcached.errors import KVCachedConfigError
from kvcached.utils import whole_number


def in_order(pp_rank: Any, is_worker: Any, device: Any, async_sched: Any) -> tuple[Any, Any, Any, Any]:
    """These four, where is_worker was given in pp_rank's place, and what follows one place further on, or
    after it by name."""
    if not isinstance(pp_rank, bool):
        return pp_rank, is_worker, device, async_sched
    if not isinstance(is_worker, bool):
        return 0, pp_rank, is_worker, async_sched if device is None else device
    if is_worker:
        raise TypeError(f"is_worker is {pp_rank}, as the third argument, and {is_worker}")
    return 0, pp_rank, device, async_sched


def flag(value: Any, name: str) -> bool:
    """A bool, or 0 or 1. TypeError: something else, such as a device in its place."""
    if isinstance(value, (bool, int)) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} is {value!r}, and must be true or false")


def number(value: Any, name: str, least: int = 0) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value}, and must be a whole number")
    return whole_number(value, name, least)


def role(
    engine: str,
    *,
    tp_rank: Any,
    world_size: Any,
    tp_size: Any,
    pp_rank: Any,
    pp_size: Any = 1,
    is_worker: Any,
    separate: Any = None,
    device: Any,
    async_sched: Any,
) -> runtime.Role:
    """separate: by default where there are several workers. TypeError, or KVCachedConfigError: a rank that is
    not among so many workers, sizes that contradict each other, no device."""
    given = number(world_size, "world_size", 1)
    size = given if tp_size is None else number(tp_size, "tp_size", 1)
    if given not in (1, size):
        raise KVCachedConfigError(f"world_size is {given}, and tp_size {size}")
    tp, pp = number(tp_rank, "tp_rank"), number(pp_rank, "pp_rank")
    if tp >= size:
        raise KVCachedConfigError(f"tp_rank is {tp}, and there are {size} ranks, from 0 on")
    stages = max(number(pp_size, "pp_size", 1), pp + 1)
    flag(async_sched, "async_sched")
    return runtime.Role(
        engine=engine,
        tp_rank=tp,
        world_size=size,
        pp_rank=pp,
        pp_size=stages,
        is_worker=flag(is_worker, "is_worker"),
        separate=size * stages > 1 if separate is None else flag(separate, "separate"),
        device=runtime.named_device(device),
    )
