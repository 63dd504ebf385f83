# SPDX-License-Identifier: Apache-2.0
"""Thousands of models keep nobody waiting: what is long is done in threads, or piece by piece."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.exposition import choose_encoder

from controller.discovering import engine, looking_at, put
from controller.live import eventually, run
from controller.standins.engine import StandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import config_of, running
from kvcached.controller import discovery, metrics, node
from kvcached.controller.config import parse_instances
from kvcached.controller.model import Model

ENOUGH_S = 20


class Gate:
    """What is called waits until somebody in the event loop opens it, which nobody does if that stands
    still."""

    def __init__(self, work: Any) -> None:
        self.work, self.begun, self.opened, self.stood = work, threading.Event(), threading.Event(), False

    def __call__(self, *arguments: Any) -> Any:
        self.begun.set()
        self.stood = not self.opened.wait(ENOUGH_S)
        return self.work(*arguments)

    async def open(self) -> None:
        await eventually(self.begun.is_set)
        self.opened.set()


def test_metrics_are_written_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        encode, content_type = choose_encoder("")
        gate = Gate(encode)
        monkeypatch.setattr(metrics, "choose_encoder", lambda _: (gate, content_type))
        async with running({"a": VllmStandIn(model="a")}) as whole:
            asked = asyncio.create_task(whole.ask("GET", "/metrics"))
            await gate.open()
            told = (await asked).data.decode()
        assert not gate.stood
        for series in (
            'model_state{model="a",state="awake"} 1.0',
            'requests_total{model="a",outcome="ok"} 0.0',
            'wake_seconds_count{model="a"} 0.0',
            'discovery_failures_total{source="dns"} 0.0',
        ):
            assert f"\nkvcached_controller_{series}\n" in told

    run(main())


def test_a_discovery_file_is_read_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        path = tmp_path / "engines.yaml"
        put(path)
        async with looking_at(path) as (_, changes):
            gate = Gate(parse_instances)
            monkeypatch.setattr(discovery, "parse_instances", gate)
            put(path, engine("a"))
            await gate.open()
            await eventually(lambda: changes == [["a"]])
        assert not gate.stood

    run(main())


def many(n: int) -> dict[str, StandIn | list[StandIn]]:
    """Models whose engines are nowhere."""
    found: dict[str, StandIn | list[StandIn]] = {}
    for i in range(n):
        stand_in = VllmStandIn(model=f"m{i}")
        stand_in.address = f"http://127.0.0.2:{i + 1}"
        found[f"m{i}"] = stand_in
    return found


def test_models_begin_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        turn, begun = 0, Counter[int]()
        start = Model.start

        def watched(model: Model) -> None:
            begun[turn] += 1
            start(model)

        async def count() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        async with running({"a": VllmStandIn(model="a")}) as whole:
            monkeypatch.setattr(Model, "start", watched)
            counting = asyncio.create_task(count())
            config = config_of(many(50))
            whole.controller.node.apply(config, config.instances, {})
            await eventually(lambda: sum(begun.values()) == 50)
            counting.cancel()
            assert max(begun.values()) <= node.STARTS_AT_ONCE

    run(main())


def test_probes_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the time until the next ones: none comes before its turn."""
    seconds, n, early_s = 0.5, 20, 0.01

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, {"check_interval_seconds": 3600}) as whole:
            config = config_of(many(n), {"check_interval_seconds": 3600})
            whole.controller.node.apply(config, config.instances, {})
            loop, at = asyncio.get_running_loop(), []

            async def probe(_: Model) -> None:
                at.append(loop.time())

            monkeypatch.setattr(Model, "probe", probe)
            began = loop.time()
            await whole.controller.node._probe_all(seconds)
            await eventually(lambda: len(at) == n)
            assert all(time >= began + seconds * i / n - early_s for i, time in enumerate(at, 1))

    run(main())
