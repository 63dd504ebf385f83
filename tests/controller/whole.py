# SPDX-License-Identifier: Apache-2.0
"""The whole controller in a test's loop, in front of stand-ins, and clients that ask it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from controller.live import eventually, serving
from controller.standins.engine import StandIn
from kvcached.controller import config as configs
from kvcached.controller.access import Keys
from kvcached.controller.actions import State
from kvcached.controller.app import Locks
from kvcached.controller.main import Controller
from kvcached.controller.model import Model
from kvcached.controller.reservation import Reserver

# As fast as tests want it; a test says what it is about.
SETTINGS = {"min_awake_seconds": 0, "min_sleep_duration": 0, "check_interval_seconds": 1, "turn_seconds": 1}


def config_of(
    stand_ins: dict[str, StandIn | list[StandIn]],
    sleep_manager: dict[str, Any] | None = None,
    router: dict[str, Any] | None = None,
    **instance: Any,
) -> configs.Config:
    """Stand-ins that run, by the names that people ask for; several are replicas. No daemon knows of them."""
    instances = []
    for model, of_model in stand_ins.items():
        for i, stand_in in enumerate(of_model if isinstance(of_model, list) else [of_model]):
            engine = "sglang" if "sglang" in type(stand_in).__name__.lower() else "vllm"
            name = re.sub(r"[^A-Za-z0-9.-]", "-", f"{model}-{i}")
            weight = {"weight_bytes": stand_in.behaviour.weight_bytes}
            found = {"name": name, "model": model, "engine": engine, "url": stand_in.address}
            instances.append({**found, **weight, "ipc_name": None, **instance})
    text = {
        "router": {"router_port": 0, **(router or {})},
        "sleep_manager": {**SETTINGS, **(sleep_manager or {})},
        "instances": instances,
    }
    return configs.parse(json.dumps(text), "test.yaml")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes
    broken: bool = False

    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def code(self) -> Any:
        """Of an error of the controller's own, which must be complete."""
        error = self.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert self.headers["x-request-id"]
        return error["code"]


@dataclass
class Whole:
    """`address`: where users ask; `admin`: administrators, which may be the same."""

    controller: Controller
    session: aiohttp.ClientSession
    address: str
    admin: str
    headers: dict[str, str] = field(default_factory=dict)

    def model(self, name: str) -> Model:
        return self.controller.node.models[name]

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """`data` in the options is sent as it is."""
        url = options.pop("at", self.address) + path
        options.setdefault("headers", self.headers)
        async with self.session.request(method, url, json=body, **options) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            try:
                return Answer(response.status, headers, await response.read())
            except aiohttp.ClientPayloadError:
                return Answer(response.status, headers, b"", broken=True)

    async def get(self, path: str, **options: Any) -> Any:
        answer = await self.ask("GET", path, at=self.admin, **options)
        assert answer.status == 200, answer
        return answer.json()

    async def apply(self, config: configs.Config) -> None:
        """As a reload does."""
        self.controller._config = config
        await self.controller._discovery.begin(config)
        self.controller._apply()

    async def act(self, what: str, model: str) -> Answer:
        return await self.ask("POST", f"/action/{what}/{model}", at=self.admin)

    async def state(self, name: str) -> str:
        return str((await self.get("/sleep/status"))["states"][name]["state"])


@asynccontextmanager
async def running(
    stand_ins: dict[str, StandIn | list[StandIn]],
    sleep_manager: dict[str, Any] | None = None,
    router: dict[str, Any] | None = None,
    locks: Locks | None = None,
    reserver: Reserver | None = None,
    **instance: Any,
) -> AsyncIterator[Whole]:
    """With stand-ins, which are started, too. In the end nothing may be left under way."""
    every = [s for of in stand_ins.values() for s in (of if isinstance(of, list) else [of])]
    async with serving(*every):
        config = config_of(stand_ins, sleep_manager, router, **instance)
        async with attached(config, locks, reserver) as whole:
            yield whole


@asynccontextmanager
async def attached(
    config: configs.Config, locks: Locks | None = None, reserver: Reserver | None = None
) -> AsyncIterator[Whole]:
    """To stand-ins that run, and ended in order."""
    async with AsyncExitStack() as stack:
        controller = Controller(config, locks or Locks(Keys(), Keys()), reserver=reserver)
        stack.push_async_callback(controller.close)
        await controller.start()
        models = controller.node.models.values()
        await eventually(lambda: all(model.lifecycle.state is not State.WAKING for model in models))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        user = controller.addresses["user"]
        yield Whole(controller, session, user, controller.addresses.get("admin", user))
        await asyncio.wait_for(controller.stop(), 30)
        await session.close()
        for model in controller.node.models.values():
            assert model.quiet, model.name
            assert all(replica.outstanding == 0 for replica in model.balance.replicas), model.name
            assert model.traffic.in_flight == 0, model.name
        assert controller.service._buffered == 0
