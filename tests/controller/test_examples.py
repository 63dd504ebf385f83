# SPDX-License-Identifier: Apache-2.0
"""The examples of configuration do what they say: each file as it is, but for addresses, paths and times, in
front of stand-ins of the sizes that it names, on a GPU of 80 GiB."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from controller.live import eventually, run
from controller.standins.answers import answer_text, chat, completion, whole_text
from controller.standins.engine import Behaviour, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole
from kvcached.controller import config, main, node
from kvcached.controller.config import Instance
from kvcached.controller.reservation import Held, NoRoom, needs_room

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples/controller"
ENGINES = {"vllm": VllmStandIn, "sglang": SglangStandIn}
COMPLETIONS = "/v1/completions"
GPU_BYTES = 80 << 30


class Gpu:
    """A Reserver whose books are what the stand-ins hold, and what is reserved. most: of what was held and
    reserved at a time."""

    def __init__(self, stand_ins: Mapping[str, StandIn]) -> None:
        self.stand_ins = stand_ins
        self.reserved: dict[str, int] = {}
        self.refused: set[str] = set()
        self.most = 0

    async def reserve(self, instance: Instance, limit: float) -> Held:
        assert limit > 0
        wanted = (instance.weight_bytes or 0) + (instance.min_kv_bytes or 0)
        others = sum(s.held_bytes() for name, s in self.stand_ins.items() if name != instance.name)
        total = others + sum(self.reserved.values()) + wanted
        if total > GPU_BYTES:
            self.refused.add(instance.name)
            raise NoRoom(f"{instance.name} does not fit", {0: total - GPU_BYTES})
        self.most = max(self.most, total)
        self.reserved[instance.name] = wanted
        return Room(self, instance.name)


class Room:
    def __init__(self, gpu: Gpu, name: str) -> None:
        self.gpu, self.name = gpu, name

    async def release(self) -> None:
        self.gpu.reserved.pop(self.name, None)


class Example:
    """One that runs. Its engines listen when they are told to."""

    def __init__(self, name: str, folder: Path, changes: Mapping[str, str]) -> None:
        text = (EXAMPLES / f"{name}.yaml").read_text()
        self.written = config.parse(text, name)
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        self.text, self.path = text, folder / f"{name}.yaml"
        self.stand_ins: dict[str, StandIn] = {}
        for instance in self.written.instances:
            assert needs_room(instance)
            sizes = {"weight_bytes": instance.weight_bytes, "kv_bytes": instance.min_kv_bytes}
            behaviour = Behaviour(wake_s=0.02, **sizes)  # type: ignore[arg-type]
            served = instance.served_model_name
            self.stand_ins[instance.name] = ENGINES[instance.engine](served, behaviour)
        self.gpu = Gpu(self.stand_ins)
        self.whole: Whole

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Whole]:
        async with AsyncExitStack() as stack:
            for instance in self.written.instances:
                stand_in = self.stand_ins[instance.name]
                await stand_in.start()
                stack.push_async_callback(stand_in.stop)
                await stand_in.refuse()
                assert instance.url
                old, new = (f"--port {url.rsplit(':', 1)[1]} " for url in (instance.url, stand_in.address))
                assert self.text.count(old) == 1
                self.text = self.text.replace(old, new)
            self.path.write_text(self.text)
            read, locks = main.read(argparse.Namespace(config=str(self.path), host=None, port=None))
            controller = main.Controller(read, locks, reserver=self.gpu)
            stack.push_async_callback(controller.close)
            await controller.start()
            session = await stack.enter_async_context(aiohttp.ClientSession())
            addresses = controller.addresses
            self.whole = Whole(
                controller, session, addresses["user"], addresses.get("admin", addresses["user"])
            )
            yield self.whole
            await asyncio.wait_for(controller.stop(), 30)

    async def is_so(self, name: str, state: str) -> None:
        async def so() -> bool:
            return await self.whole.state(name) == state

        await eventually(so, what=f"{name} is {state}")

    async def ask(self, name: str, identity: str) -> None:
        """It must be answered, by that model."""
        body = completion(name, identity, stream=False)
        answer = await self.whole.ask("POST", COMPLETIONS, body)
        assert answer.status == 200, answer
        assert (answer.json()["model"], answer_text(answer.data)) == (name, whole_text(identity, 4))


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "PROBE_SECONDS", 0.05)


def test_serverless(tmp_path: Path) -> None:
    keys = tmp_path / "api.keys"
    keys.write_text("a-users-key\n")
    changes = {
        "router_port: 8080": "router_port: 0",
        "admin_port: 8081": "admin_port: 0",
        "/etc/kvcached/api.keys": str(keys),
        "idle_threshold_seconds: 30": "idle_threshold_seconds: 0.5",
        "min_awake_seconds: 10": "min_awake_seconds: 0.1",
        "turn_seconds: 20": "turn_seconds: 0.2",
    }

    async def run_it() -> None:
        example = Example("serverless", tmp_path, changes)
        names = list(example.stand_ins)
        assert sum(s.held_bytes() for s in example.stand_ins.values()) > GPU_BYTES
        async with example.running() as whole:
            await check_doors(example, whole)
            # Each is started, and put to sleep before the next one.
            for name, stand_in in example.stand_ins.items():
                await stand_in.accept()
                await example.is_so(name, "awake")
                assert (await whole.act("sleep", name)).status == 200
                assert stand_in.held_bytes() == 0
            for i in range(2):
                for name in names:
                    await example.ask(name, f"{name}{i}")
                # Nobody asks any more.
                for name in names:
                    await example.is_so(name, "asleep")
                assert [s.held_bytes() for s in example.stand_ins.values()] == [0, 0, 0]
            # All at once: they take turns.
            asked = [example.ask(name, f"{name}-{i}") for i in range(20) for name in names]
            await asyncio.gather(*asked)
            assert example.gpu.refused
            assert example.gpu.most <= GPU_BYTES
            stats = (await whole.get("/sleep/status"))["states"]
            assert set(stats) == set(names)

    run(run_it(), 120)


async def check_doors(example: Example, whole: Whole) -> None:
    """Users need a key, administrators another port and the key, and neither gets at the other's routes."""
    name = next(iter(example.stand_ins))
    answer = await whole.ask("POST", COMPLETIONS, chat(name, "x"))
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    answer = await whole.act("sleep", name)
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    whole.headers = {"Authorization": "Bearer a-users-key"}
    answer = await whole.ask("POST", f"/action/sleep/{name}")
    assert (answer.status, answer.code) == (404, "unknown_url")
    answer = await whole.ask("POST", COMPLETIONS, completion(name, "x"), at=whole.admin)
    assert (answer.status, answer.code) == (404, "unknown_url")
    assert (await whole.ask("GET", "/v1/models")).status == 200
    body: Any = {"model": name, "prompt": "x" * (8 << 20)}
    answer = await whole.ask("POST", COMPLETIONS, body)
    assert (answer.status, answer.code) == (413, "body_too_large")


def test_two_models(tmp_path: Path) -> None:
    changes = {
        "router_port: 8080": "router_port: 0",
        "idle_threshold_seconds: 300": "idle_threshold_seconds: 0.5",
        "min_awake_seconds: 30": "min_awake_seconds: 0.1",
        "min_sleep_duration: 10": "min_sleep_duration: 0.1",
    }

    async def run_it() -> None:
        example = Example("two-models", tmp_path, changes)
        async with example.running() as whole:
            assert whole.address.startswith("http://127.0.0.1:")
            assert whole.admin == whole.address
            for name, stand_in in example.stand_ins.items():
                await stand_in.accept()
                await example.is_so(name, "awake")
            # They fit together.
            await asyncio.gather(*(example.ask(name, name) for name in example.stand_ins))
            for name, stand_in in example.stand_ins.items():
                await example.is_so(name, "asleep")
                assert stand_in.held_bytes() == 0
            await example.ask("llama", "again")
            assert (await whole.act("sleep", "llama")).status == 200
            await example.ask("llama", "and again")
            assert not example.gpu.refused

    run(run_it(), 120)


def test_all_examples_are_run() -> None:
    tests = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} <= tests
