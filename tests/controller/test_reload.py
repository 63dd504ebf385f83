# SPDX-License-Identifier: Apache-2.0
"""The configuration is read again: all of it counts then, or nothing."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from controller.live import eventually, run, serving
from controller.standins.vllm import VllmStandIn
from kvcached.controller import main as command
from kvcached.controller.main import Controller, read


def test_one_that_fails_half_way_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it keep the next one from counting, or the service manager waiting."""
    path = tmp_path / "c.yaml"
    told: list[str] = []
    monkeypatch.setattr(command, "notify", told.append)

    def write(keys: str, deadline: int) -> Namespace:
        (tmp_path / "keys").write_text(f"{keys}\n")
        router = {"router_port": 0, "api_keys_file": str(tmp_path / "keys"), "idle_timeout_seconds": deadline}
        instances = [{"name": "a", "model": "a", "engine": "vllm", "url": stand_in.address}]
        path.write_text(json.dumps({"router": router, "instances": instances}))
        return Namespace(config=str(path), host=None, port=None)

    async def main() -> None:
        async with serving(stand_in):
            arguments = write("old", 1)
            controller = Controller(*read(arguments), arguments)
            await controller.start()
            begin = controller._discovery.begin

            async def fail(*_: Any) -> None:
                raise RuntimeError("what nobody expects")

            def outcomes() -> list[float]:
                reloads = controller.node.metrics.reloads
                return [reloads.labels(result)._value.get() for result in ("failed", "ok")]

            monkeypatch.setattr(controller._discovery, "begin", fail)
            write("new", 2)
            controller.reload()
            await eventually(lambda: outcomes() == [1, 0])
            service = controller.service
            assert service.locks.open_to("user", "Bearer old")
            assert service.router.idle_timeout_seconds == 1
            monkeypatch.setattr(controller._discovery, "begin", begin)
            controller.reload()
            await eventually(lambda: outcomes() == [1, 1])
            assert service.locks.open_to("user", "Bearer new")
            assert not service.locks.open_to("user", "Bearer old")
            assert service.router.idle_timeout_seconds == 2
            assert told == ["RELOADING=1", "READY=1"] * 2
            await controller.stop()
            await controller.close()

    stand_in = VllmStandIn(model="a")
    run(main())
