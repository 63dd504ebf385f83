# SPDX-License-Identifier: Apache-2.0
"""An engine that was another model's a moment ago has that one's requests still: nobody puts it to sleep
under them, or wakes it twice."""

from __future__ import annotations

import asyncio

import pytest

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
