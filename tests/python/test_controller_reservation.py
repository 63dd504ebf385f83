# SPDX-License-Identifier: Apache-2.0
"""Room that the controller reserves, in a real daemon's books."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from harness.broker import Result
from kvcached.controller.reservation import DaemonReserver, NoRoom

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("kvcached_environment")

Kvctl = Callable[..., Result]


def instance(**more: Any) -> Any:
    known = {
        "url": "http://127.0.0.1:8000",
        "ipc_name": "llama",
        "gpu": (0,),
        "weight_bytes": 100 * MIB,
        "min_kv_bytes": 64 * MIB,
    }
    return SimpleNamespace(**{**known, **more})


def test_it_is_held_until_it_is_released(kvctl: Kvctl) -> None:
    async def main() -> None:
        reserver = DaemonReserver()
        held = await reserver.reserve(instance(), 10)
        (listed,) = kvctl("list", "--json").json()
        assert (listed["ipc"], listed["reserved_bytes"]) == ("llama", 64 * MIB)
        assert kvctl("info", "--json").json()["expected_bytes"] == 100 * MIB
        with pytest.raises(NoRoom, match="GPU 0 for qwen: ") as refusal:
            await reserver.reserve(instance(ipc_name="qwen", weight_bytes=1 << 40), 10)
        assert refusal.value.missing_bytes == {0: None}
        await held.release()
        assert kvctl("list", "--json").json() == []
        reserver.close()

    asyncio.run(main())


def test_an_own_limit_is_not_for_others_to_help(kvctl: Kvctl) -> None:
    async def main() -> None:
        kvctl("limit", "llama", "32M")
        reserver = DaemonReserver()
        with pytest.raises(NoRoom, match=r"GPU 0 for llama: .*limit") as refusal:
            await reserver.reserve(instance(), 10)
        assert refusal.value.missing_bytes == {}
        reserver.close()

    asyncio.run(main())


def test_nobody_there() -> None:
    async def main() -> None:
        reserver = DaemonReserver()
        with pytest.raises(NoRoom, match="GPU 7 for llama: ") as refusal:
            await reserver.reserve(instance(gpu=(7,)), 10)
        assert refusal.value.missing_bytes == {}
        reserver.close()

    asyncio.run(main())
