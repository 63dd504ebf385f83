# SPDX-License-Identifier: Apache-2.0
"""An engine that was another model's a moment ago has that one's requests still: nobody puts it to sleep
under them, or wakes it twice."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from controller.live import eventually, run
from controller.standins.answers import completion, stream_text, whole_text
from controller.standins.engine import Behaviour, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Answer, Whole, config_of, running
from kvcached.controller.actions import Phase, State

COMPLETIONS = "/v1/completions"


def configure(whole: Whole, stand_ins: dict[str, StandIn | list[StandIn]]) -> None:
    """As a reload does, or a discovery file."""
    config = config_of(stand_ins)
    whole.controller.node.apply(config, config.instances, {})


def is_awake(whole: Whole, model: str) -> bool:
    return whole.model(model).lifecycle.state is State.AWAKE


def is_whole(answer: Answer, prompt: str) -> bool:
    return not answer.broken and stream_text(answer.data) == whole_text(prompt, 4)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_model_that_comes_back_or_has_another_name(name: str) -> None:
    """It sleeps when the stream of the one that left has ended."""

    async def main() -> None:
        engine = SglangStandIn(model="a", behaviour=Behaviour(hold_at=2))
        other = VllmStandIn(model="o")
        async with running({"a": engine, "o": other}) as whole:
            stream = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", "busy")))
            await eventually(lambda: engine.counters.in_flight == 1)
            configure(whole, {"o": other})
            configure(whole, {name: engine, "o": other})
            await eventually(lambda: is_awake(whole, name))
            sleep = asyncio.create_task(whole.act("sleep", name))
            await eventually(lambda: not is_awake(whole, name))
            assert whole.model(name).lifecycle.phase is Phase.EMPTYING
            engine.release()
            assert is_whole(await stream, "busy")
            assert (await sleep).status == 200
            assert engine.is_asleep()
            assert engine.counters.deaths == 0
            assert not whole.controller.node._owners_before

    run(main())


def test_a_replica_that_another_model_gets() -> None:
    async def main() -> None:
        first, second = VllmStandIn(model="a"), SglangStandIn(model="a", behaviour=Behaviour(hold_at=2))
        async with running({"a": [second, first]}) as whole:
            stream = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", "busy")))
            await eventually(lambda: second.counters.in_flight == 1)
            configure(whole, {"a": first, "b": second})
            await eventually(lambda: is_awake(whole, "b"))
            sleep = asyncio.create_task(whole.act("sleep", "b"))
            await eventually(lambda: not is_awake(whole, "b"))
            assert whole.model("b").lifecycle.phase is Phase.EMPTYING
            second.release()
            assert is_whole(await stream, "busy")
            assert (await sleep).status == 200
            assert second.counters.deaths == 0

    run(main())


def test_one_wake_where_the_model_that_left_is_at_it() -> None:
    """The new one looks at the engine afterwards; who asks for it waits."""

    async def main() -> None:
        engine, gate, begun = SglangStandIn(model="a"), asyncio.Event(), asyncio.Event()
        async with running({"a": engine}) as whole:
            (replica,) = whole.model("a").replicas.values()
            wake = replica.engine.wake

            async def held(limit: float | None) -> None:
                begun.set()
                await gate.wait()
                await wake(limit)

            replica.engine.wake = held  # type: ignore[method-assign]
            assert (await whole.act("sleep", "a")).status == 200
            before = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", "before")))
            await begun.wait()
            configure(whole, {"b": engine})
            after = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("b", "after")))
            await eventually(lambda: whole.model("b").lifecycle.queued == 1)
            assert not whole.model("b").started
            gate.set()
            assert is_whole(await before, "before")
            engine.model = "b"
            assert is_whole(await after, "after")
            assert (engine.counters.wakes, engine.counters.deaths) == (1, 0)

    run(main())


def test_one_that_comes_back_accepts_requests_and_sleeps() -> None:
    async def main() -> None:
        engine = VllmStandIn(model="a", behaviour=Behaviour(hold_at=2))
        other = VllmStandIn(model="o")
        async with running({"a": engine, "o": other}) as whole:
            stream = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", "busy")))
            await eventually(lambda: engine.counters.in_flight == 1)
            model = whole.model("a")
            configure(whole, {"o": other})
            assert (await whole.ask("POST", COMPLETIONS, completion("a", "x"))).status == 404
            configure(whole, {"a": engine, "o": other})
            assert whole.model("a") is model
            assert len(model.lifecycle.in_flight) == 1
            engine.release()
            assert is_whole(await stream, "busy")
            assert is_whole(await whole.ask("POST", COMPLETIONS, completion("a", "more")), "more")
            assert (await whole.act("sleep", "a")).status == 200

    run(main())


class SerialSglang(SglangStandIn):
    """Its scheduler does one thing after another: who asks it to resume twice has it die of the second."""

    _busy: asyncio.Lock | None = None

    async def _resume(self, tags: set[str], request: web.Request) -> None:
        self._busy = self._busy or asyncio.Lock()
        async with self._busy:
            await super()._resume(tags, request)


@pytest.mark.parametrize("name", ["o", "b"])
@pytest.mark.parametrize("stays", [False, True])
def test_one_wake_where_another_model_is_at_it(name: str, stays: bool) -> None:
    """Whether that one has left, or only lost the engine; whether the engine's model is new, or was there."""

    async def main() -> None:
        engine = SerialSglang(model="a", behaviour=Behaviour(wake_s=4))
        rest, other = VllmStandIn(model="a"), VllmStandIn(model="o")
        async with running({"a": [engine, rest], "o": other}) as whole:
            assert (await whole.act("sleep", "a")).status == 200
            assert (await whole.act("sleep", "o")).status == 200
            before = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", "before")))
            await eventually(engine.is_at_it)
            now: dict[str, StandIn | list[StandIn]] = {"o": other}
            now |= {name: [other, engine] if name == "o" else engine}
            configure(whole, now | ({"a": rest} if stays else {}))
            after = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion(name, "after")))
            assert is_whole(await before, "before")
            assert (await after).status in (200, 404)  # the stand-in has its name only
            await eventually(lambda: not engine.is_at_it())
            assert (engine.counters.wakes, engine.counters.deaths) == (1, 0)

    run(main())


def test_one_wake_where_the_one_before_takes_too_long() -> None:
    """It goes on, though nobody waits for it."""

    async def main() -> None:
        engine = SerialSglang(model="a", behaviour=Behaviour(wake_s=5))
        settings = {"wake_timeout_seconds": 1}
        async with running({"a": engine}, settings) as whole:
            assert (await whole.act("sleep", "a")).status == 200
            assert (await whole.ask("POST", COMPLETIONS, completion("a", "x"))).code == "wake_failed"
            config = config_of({"b": engine}, settings)
            whole.controller.node.apply(config, config.instances, {})
            await whole.ask("POST", COMPLETIONS, completion("b", "x"))
            await eventually(lambda: not engine.is_at_it())
            assert (engine.counters.wakes, engine.counters.deaths) == (1, 0)

    run(main())


def test_one_that_leaves_while_it_is_held() -> None:
    """It is forgotten; who has the engine then may sleep, and the controller may end."""

    async def main() -> None:
        engine = VllmStandIn(model="a", behaviour=Behaviour(hold_at=2))
        async with running({"a": engine}) as whole:
            stream = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", "busy")))
            await eventually(lambda: engine.counters.in_flight == 1)
            configure(whole, {"b": engine})
            held = whole.model("b")
            await eventually(lambda: is_awake(whole, "b"))
            configure(whole, {"c": engine})
            await eventually(lambda: is_awake(whole, "c"))
            engine.release()
            assert is_whole(await stream, "busy")
            assert held.quiet
            assert (await asyncio.wait_for(whole.act("sleep", "c"), 5)).status == 200

    run(main())


@pytest.mark.parametrize("old", [False, True])
def test_one_that_comes_while_the_others_fall_asleep(old: bool) -> None:
    async def main() -> None:
        engine = SglangStandIn(model="a", behaviour=Behaviour(hold_at=2), old=old)
        rest, other = VllmStandIn(model="a"), SglangStandIn(model="b", behaviour=Behaviour(sleep_s=1))
        async with running({"a": [engine, rest], "b": other}) as whole:
            stream = asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", "busy")))
            await eventually(lambda: engine.counters.in_flight == 1)
            sleep = asyncio.create_task(whole.act("sleep", "b"))
            await eventually(other.is_at_it)
            configure(whole, {"a": rest, "b": [other, engine]})
            assert (await sleep).status == 200
            assert (engine.counters.sleeps, engine.counters.deaths) == (0, 0)
            engine.release()
            assert is_whole(await stream, "busy")

    run(main())
