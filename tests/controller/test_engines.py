# SPDX-License-Identifier: Apache-2.0
"""Drivers against the stand-ins, which die of what the engines die of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from controller.live import eventually, post, run, serving
from controller.standins.answers import completion, stream_text, whole_text
from controller.standins.engine import StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from kvcached.controller import engines
from kvcached.controller.engines import Engine, EngineError, SglangEngine, VllmEngine
from kvcached.controller.proxy import connect_session

WHOLE = (1 << 30) + (1 << 29)
Act = Callable[[Engine, Any, aiohttp.ClientSession], Awaitable[None]]


KINDS = ("vllm", "vllm-old", "vllm-2", "sglang", "sglang-old", "sglang-lossy")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """-old: an older release. -2: sleeps at level 2. -lossy: weights that are released are lost."""
    return str(request.param)


def stand_in_of(kind: str, **more: Any) -> StandIn:
    if kind.startswith("vllm"):
        return VllmStandIn(old_replies=kind == "vllm-old", **more)
    return SglangStandIn(old=kind == "sglang-old", cpu_backup=kind != "sglang-lossy", **more)


def driver_of(kind: str, session: aiohttp.ClientSession, url: str, **more: Any) -> Engine:
    made = engines.KINDS[kind.partition("-")[0]]
    return made(session, url, level=2 if kind == "vllm-2" else 1, **more)


def drive(kind: str, act: Act, **more: Any) -> StandIn:
    """Runs `act` with a driver, a stand-in and a session of a client."""

    async def main() -> StandIn:
        stand_in = stand_in_of(kind, **more)
        async with serving(stand_in), connect_session() as own, aiohttp.ClientSession() as session:
            await act(driver_of(kind, own, stand_in.address), stand_in, session)
        return stand_in

    return run(main())


async def ask(session: aiohttp.ClientSession, stand_in: StandIn, identity: str) -> str:
    _, data = await post(session, stand_in.address + "/v1/completions", completion("m", identity))
    return stream_text(data)


async def fault_of(call: Awaitable[Any]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await call
    return caught.value


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in answers a health check at once, so one that doesn't is paused."""
    monkeypatch.setattr(engines, "PAUSED_AFTER_S", 0.2)


def test_sleep_and_wake(kind: str) -> None:
    async def act(driver: Engine, stand_in: StandIn, session: aiohttp.ClientSession) -> None:
        assert await driver.models() == ["m"]
        for n in (1, 2):
            assert not await driver.is_sleeping()
            for _ in range(2):
                await driver.sleep(5)
                assert await driver.is_sleeping()
                assert stand_in.held_bytes() == 0
                await driver.health()
            assert await driver.models() == ["m"]
            for _ in range(2):
                await driver.wake(5)
                assert not await driver.is_sleeping()
                assert stand_in.held_bytes() == WHOLE
                await driver.health()
            assert await ask(session, stand_in, f"id-{n}") == whole_text(f"id-{n}", 4)

    counters = drive(kind, act).counters
    assert (counters.sleeps, counters.wakes, counters.deaths) == (2, 2, 0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sglang-old"])
def test_requests_that_run_or_come_are_answered_in_full(kind: str) -> None:
    """Whoever hasn't drained: vLLM lets them end, SGLang ends them after it has woken. (An older SGLang
    dies.)"""

    async def act(driver: Engine, stand_in: StandIn, session: aiohttp.ClientSession) -> None:
        stand_in.behaviour.hold_at = 2
        running = asyncio.ensure_future(ask(session, stand_in, "first"))
        await eventually(lambda: stand_in.counters.in_flight == 1)
        asleep = asyncio.ensure_future(driver.sleep(10))
        await eventually(stand_in.is_asleep)
        late = asyncio.ensure_future(ask(session, stand_in, "late"))
        await eventually(lambda: stand_in.counters.in_flight == 2)
        stand_in.release()
        await asleep
        assert stand_in.held_bytes() == 0
        assert not late.done()
        await driver.wake(10)
        assert (await running, await late) == (whole_text("first", 4), whole_text("late", 4))

    counters = drive(kind, act).counters
    assert (counters.finished, counters.aborted, counters.while_asleep) == (2, 0, 1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("vllm")])
def test_one_that_is_to_sleep_when_others_requests_have_ended(kind: str) -> None:
    """It is not woken before it sleeps: it would sleep all the same, and die of the next request."""

    async def act(driver: Engine, stand_in: StandIn, session: aiohttp.ClientSession) -> None:
        other = driver_of(kind, session, stand_in.address)
        stand_in.behaviour.hold_at = 2
        running = asyncio.ensure_future(ask(session, stand_in, "first"))
        await eventually(lambda: stand_in.counters.in_flight == 1)
        asleep = asyncio.ensure_future(driver.sleep(10))
        await eventually(stand_in.is_asleep)
        assert not await other.is_sleeping()
        await other.wake(5)
        late = asyncio.ensure_future(ask(session, stand_in, "late"))
        await eventually(lambda: stand_in.counters.in_flight == 2)
        stand_in.release()
        await asleep
        assert await other.is_sleeping()
        await other.wake(5)
        assert (await running, await late) == (whole_text("first", 4), whole_text("late", 4))

    counters = drive(kind, act).counters
    assert (counters.sleeps, counters.wakes, counters.deaths) == (1, 1, 0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sglang-old"])
def test_another_controller_adopts_what_it_finds(kind: str) -> None:
    async def act(driver: Engine, stand_in: StandIn, session: aiohttp.ClientSession) -> None:
        other = driver_of(kind, session, stand_in.address)
        await driver.sleep(5)
        assert await other.is_sleeping()
        await other.sleep(5)
        await other.wake(5)
        assert not await driver.is_sleeping()
        await driver.wake(5)
        assert await ask(session, stand_in, "x") == whole_text("x", 4)

    counters = drive(kind, act).counters
    assert (counters.sleeps, counters.wakes, counters.deaths) == (1, 1, 0)


def test_an_older_sglang_that_somebody_else_put_to_sleep_is_left_alone() -> None:
    async def act(driver: Engine, stand_in: StandIn, session: aiohttp.ClientSession) -> None:
        other = driver_of("sglang-old", session, stand_in.address)
        await driver.sleep(5)
        assert not await other.is_sleeping()
        await other.wake(5)
        await driver.wake(5)

    counters = drive("sglang-old", act).counters
    assert (counters.sleeps, counters.wakes, counters.deaths) == (1, 1, 0)


@pytest.mark.usefixtures("impatient")
def test_an_sglang_that_starts_or_has_been_unwell_does_not_sleep() -> None:
    async def act(driver: Engine, stand_in: SglangStandIn, _: aiohttp.ClientSession) -> None:
        stand_in.starting = True
        fault = await fault_of(driver.is_sleeping())
        assert (fault.kind, fault.status) == (engines.NOT_READY, 503)
        assert (await fault_of(driver.wake(5))).kind == engines.NOT_READY
        stand_in.starting, stand_in.unhealthy = False, True
        await driver.wake(5)
        assert not await driver.is_sleeping()
        assert not stand_in.unhealthy

    counters = drive("sglang", act).counters
    assert (counters.wakes, counters.deaths) == (0, 0)


@pytest.mark.usefixtures("impatient")
def test_a_health_check_that_was_cut_short_is_no_pause() -> None:
    async def act(driver: Engine, stand_in: SglangStandIn, session: aiohttp.ClientSession) -> None:
        await driver.sleep(5)
        other = SglangEngine(session, stand_in.address)
        assert (await fault_of(other.is_sleeping(0.05))).kind == engines.TIMEOUT
        assert await other.is_sleeping(5)

    drive("sglang", act)


@pytest.mark.usefixtures("impatient")
def test_a_restarted_engine_is_awake(kind: str) -> None:
    async def act(driver: Engine, stand_in: StandIn, session: aiohttp.ClientSession) -> None:
        await driver.sleep(5)
        stand_in.die()
        for call in (driver.health(), driver.is_sleeping(), driver.wake(5), driver.sleep(5), driver.models()):
            assert (await fault_of(call)).kind == engines.UNREACHABLE
        await stand_in.restart()
        assert not await driver.is_sleeping()
        await driver.wake(5)
        await driver.sleep(5)
        await driver.wake(5)
        assert await ask(session, stand_in, "x") == whole_text("x", 4)

    assert drive(kind, act).counters.deaths == 1


def test_a_sleep_that_fails_leaves_it_awake(kind: str) -> None:
    async def act(driver: Engine, stand_in: StandIn, session: aiohttp.ClientSession) -> None:
        stand_in.behaviour.sleep_fails = True
        fault = await fault_of(driver.sleep(5))
        assert (fault.kind, fault.status) == (engines.REFUSED, 500 if "vllm" in kind else 400)
        assert str(fault).startswith(stand_in.address)
        assert "told to fail" in str(fault)
        assert not await driver.is_sleeping()
        assert await ask(session, stand_in, "x") == whole_text("x", 4)

    drive(kind, act)


def test_a_wake_that_fails_can_be_tried_again(kind: str) -> None:
    async def act(driver: Engine, stand_in: StandIn, session: aiohttp.ClientSession) -> None:
        await driver.sleep(5)
        stand_in.behaviour.wake_fails = True
        assert (await fault_of(driver.wake(5))).kind == engines.REFUSED
        assert await driver.is_sleeping()
        stand_in.behaviour.wake_fails = False
        await driver.wake(5)
        assert await ask(session, stand_in, "x") == whole_text("x", 4)

    assert drive(kind, act).counters.deaths == 0


def test_limits(kind: str) -> None:
    async def act(driver: Engine, stand_in: StandIn, _: aiohttp.ClientSession) -> None:
        stand_in.behaviour.sleep_s = 0.3
        fault = await fault_of(driver.sleep(0.1))
        assert fault.kind == engines.TIMEOUT
        assert "did not answer within" in str(fault)
        await eventually(lambda: stand_in.counters.sleeps == 1)  # done all the same

    drive(kind, act)


def test_vllm_without_its_dev_mode_never_sleeps() -> None:
    async def act(driver: Engine, stand_in: StandIn, _: aiohttp.ClientSession) -> None:
        assert not await driver.is_sleeping()
        await driver.wake(5)
        fault = await fault_of(driver.sleep(5))
        assert (fault.kind, fault.status) == (engines.UNSUPPORTED, 404)
        assert str(fault) == (
            f"{stand_in.address} has no POST /sleep: start vLLM with VLLM_SERVER_DEV_MODE=1 and "
            "--enable-sleep-mode"
        )

    drive("vllm", act, dev_mode=False)


def test_vllm_at_level_2_by_somebody_else() -> None:
    """Who sleeps it at level 1 finds weights discarded, and loads them."""

    async def act(driver: Engine, stand_in: VllmStandIn, session: aiohttp.ClientSession) -> None:
        await post(session, stand_in.address + "/sleep?level=2&mode=wait", None)
        await driver.wake(5)
        assert await ask(session, stand_in, "x") == whole_text("x", 4)

    drive("vllm", act)


def test_vllm_at_level_2_when_it_is_put_to_sleep_at_level_1() -> None:
    """Its metrics would say level 1 then, and nobody would load the weights."""

    async def act(driver: Engine, stand_in: VllmStandIn, session: aiohttp.ClientSession) -> None:
        await post(session, stand_in.address + "/sleep?level=2&mode=wait", None)
        await driver.sleep(5)
        await driver.wake(5)
        assert await ask(session, stand_in, "x") == whole_text("x", 4)

    drive("vllm", act)


def test_vllm_that_has_woken_in_part_is_woken_in_full() -> None:
    async def act(driver: Engine, stand_in: VllmStandIn, session: aiohttp.ClientSession) -> None:
        await driver.sleep(5)
        await post(session, stand_in.address + "/wake_up?tags=weights", None)
        assert await driver.is_sleeping()
        await driver.wake(5)
        assert stand_in.held_bytes() == WHOLE

    drive("vllm", act)


def test_sglang_whose_weights_cannot_be_loaded_sleeps_on() -> None:
    async def act(driver: Engine, stand_in: SglangStandIn, session: aiohttp.ClientSession) -> None:
        await driver.sleep(5)
        model, stand_in.fails_to_load = stand_in.model, True
        fault = await fault_of(driver.wake(5))
        assert (fault.kind, fault.status) == (engines.REFUSED, 400)
        assert "Failed to get weights iterator" in str(fault)
        assert (await driver.is_sleeping(), stand_in.held_bytes()) == (True, 0)
        stand_in.fails_to_load = False
        await driver.wake(5)
        assert await ask(session, stand_in, "x") == whole_text("x", 4)
        assert model == stand_in.model

    assert drive("sglang-lossy", act).counters.deaths == 0


@pytest.mark.parametrize("kind", ["sglang", "sglang-old"])
def test_sglang_is_not_left_between_two_steps(kind: str) -> None:
    """Whoever asked may be gone: it is released, and it is continued."""

    async def act(driver: Engine, stand_in: SglangStandIn, _: aiohttp.ClientSession) -> None:
        stand_in.behaviour.sleep_s = stand_in.behaviour.wake_s = 0.2
        asleep = asyncio.ensure_future(driver.sleep(5))
        await eventually(stand_in.is_at_it)
        asleep.cancel()
        await eventually(lambda: stand_in.held_bytes() == 0)
        await asyncio.wait([asleep])
        await eventually(driver.is_sleeping)
        awake = asyncio.ensure_future(driver.wake(5))
        await eventually(stand_in.is_at_it)
        awake.cancel()
        await eventually(lambda: not stand_in.paused)
        assert asleep.cancelled()
        await asyncio.wait([awake])

    assert drive(kind, act).counters.deaths == 0


def test_a_key_is_sent(kind: str) -> None:
    async def act(driver: Engine, stand_in: StandIn, session: aiohttp.ClientSession) -> None:
        fault = await fault_of(driver.models())
        assert (fault.kind, fault.status) == (engines.REFUSED, 401)
        assert "Unauthorized" in str(fault)
        knowing = driver_of(kind, session, stand_in.address, api_key="secret")
        assert await knowing.models() == ["m"]
        await knowing.sleep(5)
        await knowing.wake(5)

    drive(kind, act, api_key="secret")


LARGE = b'{"data": [], "is_sleeping": false, "more": "' + b"x" * (1 << 20) + b'"}'


@pytest.mark.parametrize(
    "said",
    [b"<html>", b"[1]", b'{"data": [1]}', b'{"is_sleeping": "no"}', b"", LARGE],
    ids=lambda said: str(said[:20]),
)
@pytest.mark.parametrize("made", [VllmEngine, SglangEngine])
def test_what_is_no_engine(said: bytes, made: type[Engine]) -> None:
    async def main() -> None:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(body=said, status=200 if request.path != "/ready" else 418)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with connect_session() as session:
            driver = made(session, f"http://127.0.0.1:{runner.addresses[0][1]}/")
            for call in (driver.models(), driver.is_sleeping(), driver.sleep(5), driver.wake(5)):
                assert (await fault_of(call)).kind == engines.REFUSED
        await runner.cleanup()

    run(main())


def test_health_of_one_that_is_dead() -> None:
    async def act(driver: Engine, stand_in: StandIn, _: aiohttp.ClientSession) -> None:
        stand_in.behaviour.health_fails = True
        fault = await fault_of(driver.health())
        assert (fault.kind, fault.status) == (engines.NOT_READY, 503)

    drive("vllm", act)


def test_metrics_that_are_made_to_be_read_for_long() -> None:
    """Labels are looked at as far as an engine's are long: all of a line's would take hours."""
    line = b'vllm:engine_sleep_state{engine="%b",sleep_state="awake"} 1.0'
    assert engines._AWAKE.search(line % (b"0" * 400))
    assert not engines._AWAKE.search(line % (b"0" * 600))
