# SPDX-License-Identifier: Apache-2.0
"""An engine that doesn't say how it is may be busy; one that doesn't for long is dead."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from controller.live import eventually, run
from controller.standins.answers import completion
from controller.standins.engine import Behaviour, StandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, running
from kvcached.controller.config import parse_instances
from kvcached.controller.engines import EngineError, VllmEngine
from kvcached.controller.model import Model

COMPLETIONS = "/v1/completions"
# No probe but a test's own.
SETTINGS = {"check_interval_seconds": 3600}
SILENCE_S = 0.5
MOST_SILENT = 3


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VllmEngine.health, "__defaults__", (SILENCE_S,))


async def ask(whole: Whole) -> int:
    return (await whole.ask("POST", COMPLETIONS, completion("a", "x"))).status


def test_one_that_is_busy_goes_on_serving() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}, SETTINGS) as whole:
            for _ in range(3):
                stand_in.behaviour.silent = MOST_SILENT - 1
                for _ in range(MOST_SILENT - 1):
                    await whole.model("a").probe()
                    assert await whole.state("a") == "awake"
                    assert await ask(whole) == 200
                await whole.model("a").probe()

    run(main())


def test_one_that_stays_silent_is_dead_until_it_answers() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}, SETTINGS) as whole:
            stand_in.behaviour.silent = MOST_SILENT + 1
            for _ in range(MOST_SILENT + 1):
                await whole.model("a").probe()
            assert await whole.state("a") == "failed"
            assert await ask(whole) == 503
            answer = await whole.ask("GET", "/health/a")
            assert "did not answer within" in answer.json()["health"]["reason"]
            await whole.model("a").probe()
            assert await ask(whole) == 200

    run(main())


def test_one_that_says_no_or_is_gone_is_dead_at_once() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}, SETTINGS) as whole:
            stand_in.behaviour.health_fails = True
            await whole.model("a").probe()
            assert await whole.state("a") == "failed"
            stand_in.behaviour.health_fails = False
            await whole.model("a").probe()
            assert await whole.state("a") == "awake"
            stand_in.die()
            await whole.model("a").probe()
            assert await whole.state("a") == "failed"

    run(main())


@pytest.mark.parametrize(("silent", "status"), [(MOST_SILENT - 1, 200), (MOST_SILENT, 503)])
def test_those_who_wait_wait_for_one_that_is_busy(silent: int, status: int) -> None:
    """It is looked at again before it is woken."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour())
        async with running({"a": stand_in}, SETTINGS) as whole:
            assert (await whole.act("sleep", "a")).status == 200
            stand_in.behaviour.silent = silent
            assert await ask(whole) == status
            await eventually(lambda: stand_in.behaviour.silent == 0)

    run(main())


def test_one_that_is_being_asked_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not asked once more meanwhile."""

    async def main() -> None:
        asked: Counter[str] = Counter()
        stand_ins: dict[str, StandIn | list[StandIn]] = {name: VllmStandIn(model=name) for name in ("a", "b")}
        async with running(stand_ins, {"check_interval_seconds": 0.01}):

            async def probe(model: Model) -> None:
                asked[model.name] += 1
                if model.name == "a":
                    await asyncio.Event().wait()

            monkeypatch.setattr(Model, "probe", probe)
            await eventually(lambda: asked["b"] >= 10)
            assert asked["a"] == 1

    run(main())


def test_those_that_never_answer_keep_no_other_from_being_asked() -> None:
    """However many."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            mute = [await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) for _ in range(120)]
            for server in mute:
                stack.callback(server.close)
            addresses = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in mute]
            stand_in = VllmStandIn(model="a")
            whole = await stack.enter_async_context(running({"a": stand_in}, SETTINGS))
            controller = whole.controller
            extra = [
                {"name": f"m{i}", "model": f"m{i}", "engine": "vllm", "url": url}
                for i, url in enumerate(addresses)
            ]
            instances = parse_instances(json.dumps({"instances": extra}), "more.yaml")
            controller.node.apply(controller._config, (*controller._config.instances, *instances), {})
            engines = [
                controller.node.models[f"m{i}"].replicas[url].engine for i, url in enumerate(addresses)
            ]
            asked = [asyncio.ensure_future(engine.health(10 * SILENCE_S)) for engine in engines]
            stand_in.abort_connections()  # none is left to be used again
            await whole.model("a").probe()
            assert whole.model("a").replicas.popitem()[1].n_silent == 0
            faults = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(fault, EngineError) for fault in faults)

    run(main())
