# SPDX-License-Identifier: Apache-2.0
"""What nobody expects of an engine, a key, a name or a daemon is one model's trouble, and no other's."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest
from aiohttp import web

from controller.live import eventually, run
from controller.standins.answers import completion
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, config_of, running
from kvcached.controller.engines import UNREACHABLE, EngineError, VllmEngine
from kvcached.controller.proxy import connect_session
from kvcached.controller.reservation import DaemonReserver, Reservation

COMPLETIONS = "/v1/completions"
KEY_VARIABLE = "KVCACHED_TEST_ENGINE_KEY"


class Deep(VllmStandIn):
    """Says something that no parser follows to its end."""

    async def is_sleeping(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(body=b"[" * 200_000, content_type="application/json")


async def ask(whole: Whole, model: str) -> tuple[int, str | None]:
    answer = await whole.ask("POST", COMPLETIONS, completion(model, "x"))
    return answer.status, None if answer.status == 200 else answer.code


async def others_are_looked_after(whole: Whole, good: VllmStandIn, bad: str) -> None:
    """Although one of the models is as strange as that."""
    await eventually(lambda: whole.model("bad").lifecycle.state.value == "failed")
    assert await ask(whole, "bad") == (503, "engine_dead")
    reason = (await whole.ask("GET", "/health/bad")).json()["health"]["reason"]
    assert bad in reason
    good.die()
    await eventually(lambda: whole.model("good").lifecycle.state.value == "failed")
    await good.restart()
    await eventually(lambda: whole.model("good").lifecycle.state.value == "awake")
    assert await ask(whole, "good") == (200, None)


def test_an_answer_that_cannot_be_parsed() -> None:
    async def main() -> None:
        good, bad = VllmStandIn(model="good"), Deep(model="bad")
        async with running({"good": good, "bad": bad}) as whole:
            await others_are_looked_after(whole, good, "/is_sleeping answered something else: b'[[[")

    run(main())


def test_a_host_that_cannot_have_that_name() -> None:
    """The configuration refuses it; a driver that gets it all the same says that it cannot ask."""

    async def main() -> None:
        async with connect_session() as session:
            with pytest.raises(EngineError, match="/health cannot be asked: ") as caught:
                await VllmEngine(session, f"http://{'h' * 70}:80").health()
            assert caught.value.kind == UNREACHABLE

    run(main())


def test_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is said where it was, and reported as the engine's failure."""
    healthy = VllmEngine.is_sleeping

    async def main() -> None:
        good, bad = VllmStandIn(model="good"), VllmStandIn(model="bad")

        async def is_sleeping(self: VllmEngine, limit: float | None = None) -> bool:
            if self.url == bad.address:
                raise ZeroDivisionError("no engine expects that")
            return await healthy(self, limit)

        monkeypatch.setattr(VllmEngine, "is_sleeping", is_sleeping)
        async with running({"good": good, "bad": bad}) as whole:
            await others_are_looked_after(whole, good, "no engine expects that")

    run(main())
    faults = [record for record in caplog.records if record.exc_info]
    assert faults
    assert all(record.levelno == logging.ERROR for record in faults)


@pytest.fixture
def key(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(KEY_VARIABLE, request.param)
    return str(request.param)


@pytest.mark.parametrize("key", ["secret\n", " secret\r\n"], indirect=True)
@pytest.mark.usefixtures("key")
def test_a_key_that_ends_with_its_line() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a", api_key="secret")
        async with running({"a": stand_in}, api_key_env=KEY_VARIABLE) as whole:
            assert await ask(whole, "a") == (200, None)

    run(main())


@pytest.mark.parametrize("key", ["sec\nret", "sec\x01ret"], indirect=True)
@pytest.mark.usefixtures("key")
def test_a_key_that_no_header_can_have() -> None:
    async def main() -> None:
        good, bad = VllmStandIn(model="good"), VllmStandIn(model="bad")
        async with running({"good": good, "bad": bad}) as whole:
            config = config_of({"good": good, "bad": bad})
            one, other = config.instances
            instances = (one, replace(other, api_key_env=KEY_VARIABLE))
            await whole.apply(replace(config, instances=instances))
            await others_are_looked_after(whole, good, "its API key has control characters")

    run(main())


class Stubborn:
    """A reservation that its daemon doesn't take back."""

    def __init__(self) -> None:
        self.asked = 0

    def release(self) -> None:
        self.asked += 1
        raise RuntimeError("the daemon did not answer in time")


def test_a_daemon_that_takes_nothing_back() -> None:
    """GPU 0 grants and GPU 1 refuses: the model goes on asking, and is served once both grant."""
    made: list[Stubborn] = []
    refusals = 1

    def make(name: str, gpu: int, kv_bytes: int, weight_bytes: int, limit: float) -> Reservation:
        nonlocal refusals
        del name, kv_bytes, weight_bytes, limit
        if gpu == 1 and refusals:
            refusals -= 1
            raise MemoryError("no room")
        made.append(Stubborn())
        return made[-1]

    async def main() -> None:
        reserver = DaemonReserver(make)
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}, reserver=reserver, ipc_name="x", gpu=[0, 1]) as whole:
            await whole.act("sleep", "a")
            assert await ask(whole, "a") == (200, None)
            await eventually(lambda: all(one.asked for one in made))
            assert len(made) == 3
        await asyncio.get_running_loop().run_in_executor(None, reserver.close)

    run(main())
