# SPDX-License-Identifier: Apache-2.0
"""Engines of one model that come, go, sleep and die, each by itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from aiohttp import web

from controller.live import eventually, run
from controller.standins.answers import completion
from controller.standins.engine import StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, config_of, running
from kvcached.controller.actions import Found, State
from kvcached.controller.config import Instance
from kvcached.controller.engines import KINDS
from kvcached.controller.reservation import Held, NoRoom

COMPLETIONS = "/v1/completions"
# No probe but a test's own, and those that a change makes.
QUIET = {"check_interval_seconds": 3600}


@pytest.fixture(autouse=True)
def unprobed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcached.controller.node.PROBE_SECONDS", 3600)


async def ask(whole: Whole, identity: str = "x") -> int:
    return (await whole.ask("POST", COMPLETIONS, completion("a", identity))).status


async def put_to_sleep(whole: Whole, stand_in: VllmStandIn) -> None:
    """By somebody else."""
    async with whole.session.post(stand_in.address + "/sleep?level=1&mode=wait") as response:
        assert response.status == 200


# ---- Put to sleep by others ----


@pytest.mark.parametrize("kind", [VllmStandIn, SglangStandIn])
def test_a_request_that_waits_in_an_engine_that_sleeps_wakes_it(kind: type[StandIn]) -> None:
    """It was forwarded before anybody knew."""

    async def main() -> None:
        stand_in = kind(model="a")
        async with running({"a": stand_in}, QUIET) as whole:
            other = KINDS[stand_in.engine](whole.session, stand_in.address)
            await other.sleep(5)
            asked = asyncio.ensure_future(ask(whole))
            await eventually(lambda: stand_in.counters.in_flight == 1)
            await whole.model("a").probe()
            assert await asked == 200
            assert stand_in.counters.wakes == 1
            await eventually(lambda: whole.model("a").lifecycle.state is State.AWAKE)

    run(main())


def test_a_request_waits_in_an_engine_where_requests_do_not_wake_it() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}, {**QUIET, "wakeup_on_request": False}) as whole:
            await put_to_sleep(whole, stand_in)
            asked = asyncio.ensure_future(ask(whole))
            await eventually(lambda: stand_in.counters.in_flight == 1)
            await whole.model("a").probe()
            assert await whole.state("a") == "asleep"
            assert (await whole.act("wakeup", "a")).status == 200
            assert await asked == 200

    run(main())


class Late(VllmStandIn):
    """Whose answers come when they are let go."""

    hold = False

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.held, self.go = asyncio.Event(), asyncio.Event()

    async def is_sleeping(self, request: web.Request) -> web.StreamResponse:
        answer = await super().is_sleeping(request)
        if self.hold:
            self.hold = False
            self.held.set()
            await self.go.wait()
        return answer


def test_what_was_found_before_a_wake_says_nothing_after_it() -> None:
    async def main() -> None:
        stand_in = Late("a")
        async with running({"a": stand_in}, QUIET) as whole:
            await whole.act("sleep", "a")
            stand_in.hold = True
            probe = asyncio.ensure_future(whole.model("a").probe())
            await stand_in.held.wait()
            assert await ask(whole) == 200
            stand_in.go.set()
            await probe
            assert whole.model("a").balance.serves
            assert await whole.state("a") == "awake"
            assert stand_in.counters.wakes == 1

    run(main())


# ---- Some of several ----


@pytest.mark.parametrize("known", [True, False])
def test_one_that_is_dead_is_no_reason_not_to_sleep(known: bool) -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            two.die()
            if known:
                await whole.model("a").probe()
            assert (await whole.act("sleep", "a")).status == 200
            assert await whole.state("a") == "asleep"
            text = (await whole.ask("GET", "/metrics")).data.decode()
            assert 'kvcached_controller_sleeps_total{model="a",why="admin"} 1.0' in text
            assert 'kvcached_controller_sleep_failures_total{model="a"} 0.0' in text
            assert await ask(whole) == 200

    run(main())


def test_one_that_refuses_to_sleep_is() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            two.behaviour.sleep_fails = True
            assert (await whole.act("sleep", "a")).status == 400
            assert await ask(whole) == 200

    run(main())


def test_all_that_are_dead_do_not_sleep() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            one.die()
            two.die()
            assert (await whole.act("sleep", "a")).status == 400
            await eventually(lambda: whole.model("a").lifecycle.state is State.FAILED)

    run(main())


async def one_awake_one_asleep(whole: Whole, two: VllmStandIn) -> None:
    """For the other one has failed to wake."""
    await whole.act("sleep", "a")
    two.behaviour.wake_fails = True
    assert await ask(whole) == 200
    two.behaviour.wake_fails = False
    assert two.is_asleep()


def serving(whole: Whole) -> list[bool]:
    return [replica.serving for replica in whole.model("a").balance.replicas]


def test_one_that_could_not_be_woken_is_woken_later() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await one_awake_one_asleep(whole, two)
            assert serving(whole) == [True, False]
            await whole.model("a").probe()
            await eventually(lambda: serving(whole) == [True, True])
            assert not two.is_asleep()
            one.die()
            assert [await ask(whole) for _ in range(4)] == [200] * 4

    run(main())


def test_one_that_others_have_put_to_sleep_under_a_request_is_woken() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await put_to_sleep(whole, one)
            asked = [asyncio.ensure_future(ask(whole)) for _ in range(2)]
            await eventually(lambda: one.counters.in_flight == 1)
            await whole.model("a").probe()
            assert await asyncio.gather(*asked) == [200, 200]

    run(main())


def test_one_that_sleeps_while_nobody_asks_sleeps_on() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await whole.model("a").probe()
            await put_to_sleep(whole, two)
            for _ in range(3):
                await whole.model("a").probe()
                assert not whole.model("a")._tasks
            assert two.is_asleep()
            assert (await whole.act("wakeup", "a")).status == 200
            await whole.model("a").probe()
            await eventually(lambda: not two.is_asleep())

    run(main())


class Full:
    """A Reserver that has room, or not."""

    full = False
    n_held = n_refused = 0

    async def reserve(self, instance: Instance, limit: float) -> Held:
        del instance, limit
        if self.full:
            self.n_refused += 1
            raise NoRoom("there is none", {0: 1})
        self.n_held += 1
        return self

    async def release(self) -> None:
        self.n_held -= 1


def test_one_for_which_there_is_no_room_sleeps_on() -> None:
    """Until there is. The other model does not give way for it."""

    async def main() -> None:
        one, two, other = VllmStandIn(model="a"), VllmStandIn(model="a"), VllmStandIn(model="b")
        room = Full()
        async with running({"a": [one, two], "b": other}, QUIET, reserver=room) as whole:
            await one_awake_one_asleep(whole, two)
            room.full = True
            await whole.model("a").probe()
            await eventually(lambda: room.n_refused == 1 and not whole.model("a")._given_up)
            assert (two.is_asleep(), other.is_asleep()) == (True, False)
            room.full = False
            await ask(whole)
            await whole.model("a").probe()
            await eventually(lambda: serving(whole) == [True, True] and room.n_held == 0)

    run(main())


def test_one_that_fails_again_is_left_alone_for_a_while() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        room = Full()
        async with running({"a": [one, two]}, QUIET, reserver=room) as whole:
            await one_awake_one_asleep(whole, two)
            two.behaviour.wake_fails = True
            await whole.model("a").probe()
            replica = whole.model("a").replicas[two.address]
            await eventually(lambda: replica.n_failed == 1 and room.n_held == 0)
            await ask(whole)
            await whole.model("a").probe()
            assert not whole.model("a")._tasks
            assert replica.n_failed == 1

    run(main())


def test_a_sleep_waits_for_one_that_is_woken_alone() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await one_awake_one_asleep(whole, two)
            two.behaviour.wake_s = 0.2
            await whole.model("a").probe()
            await eventually(two.is_at_it)
            assert (await whole.act("sleep", "a")).status == 200
            assert (one.is_asleep(), two.is_asleep()) == (True, True)
            assert (one.held_bytes(), two.held_bytes()) == (0, 0)
            assert serving(whole) == [False, False]

    run(main())


# ---- Others now ----


def test_a_new_one_that_sleeps_gets_nothing() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await whole.apply(config_of({"a": [one]}, QUIET))
            await put_to_sleep(whole, two)
            await whole.apply(config_of({"a": [one, two]}, QUIET))
            assert await asyncio.gather(*(ask(whole) for _ in range(4))) == [200] * 4
            assert two.counters.while_asleep == 0

    run(main())


def test_a_new_one_that_is_awake_serves_at_once() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await whole.apply(config_of({"a": [one]}, QUIET))
            await whole.apply(config_of({"a": [one, two]}, QUIET))
            await eventually(lambda: all(r.serving for r in whole.model("a").balance.replicas))
            for _ in range(2):
                assert await ask(whole) == 200
            assert (one.counters.finished, two.counters.finished) == (1, 1)

    run(main())


def test_another_one_in_its_place_is_looked_at_and_woken() -> None:
    """Who comes waits for that."""

    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await whole.apply(config_of({"a": [one]}, QUIET))
            await put_to_sleep(whole, two)
            await whole.apply(config_of({"a": [two]}, QUIET))
            assert await asyncio.gather(*(ask(whole) for _ in range(4))) == [200] * 4
            assert (two.counters.wakes, two.counters.while_asleep) == (1, 0)

    run(main())


@pytest.mark.parametrize("old", [True, False])
def test_one_whose_instance_changes_stays_as_it_is(old: bool) -> None:
    """An older SGLang does not say that it sleeps."""

    async def main() -> None:
        stand_in = SglangStandIn(model="a", old=old)
        async with running({"a": stand_in}, QUIET) as whole:
            await whole.act("sleep", "a")
            await whole.apply(config_of({"a": stand_in}, QUIET, gpu=1))
            assert whole.model("a").gpus == {1}
            await whole.model("a").probe()
            assert await whole.state("a") == "asleep"
            assert await ask(whole) == 200
            assert (stand_in.counters.wakes, stand_in.counters.deaths) == (1, 0)

    run(main())


def test_one_of_another_kind_at_the_same_address_is_new() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            config = config_of({"a": [one, two]}, QUIET)
            first, second = config.instances
            model = whole.model("a")
            model.set_replicas([(one.address, first), (two.address, replace(second, engine="sgl"))])
            assert serving(whole) == [True, False]
            model.set_replicas([(one.address, first), (two.address, second)])
            await eventually(lambda: serving(whole) == [True, True])

    run(main())


def test_a_key_that_changes_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHED_TEST_ENGINE_KEY", "secret")

    async def main() -> None:
        stand_in = VllmStandIn(model="a", api_key="secret")
        async with running({"a": stand_in}, QUIET) as whole:
            assert await ask(whole) == 401
            await whole.apply(config_of({"a": stand_in}, QUIET, api_key_env="KVCACHED_TEST_ENGINE_KEY"))
            assert await ask(whole) == 200
            engine = whole.model("a").replicas[stand_in.address].engine
            assert await engine.models() == ["a"]

    run(main())


def test_one_that_is_admitted_while_the_engines_change_waits() -> None:
    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await whole.apply(config_of({"a": [one]}, QUIET))
            model = whole.model("a")
            instance = config_of({"a": [two]}, QUIET).instances[0]
            now = asyncio.get_running_loop().time()
            model._event(model.lifecycle.unserved(now))
            admitted = asyncio.ensure_future(model.admit("request"))
            await asyncio.sleep(0)  # the task has begun, and waits
            assert model.lifecycle.queued == 1
            assert model.lifecycle._call is not None
            model._event(model.lifecycle.looked(now, model.lifecycle._call, Found.AWAKE))
            model.set_replicas([(two.address, instance)])  # before the request goes on
            await admitted
            assert model.balance.serves
            model.ended("request")

    run(main())


def test_another_one_in_its_place_while_it_wakes() -> None:
    """The model isn't awake because its old engine is."""

    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await whole.act("sleep", "a")
            await whole.apply(config_of({"a": [one]}, QUIET))
            one.behaviour.wake_s = 0.2
            asked = asyncio.ensure_future(ask(whole))
            await eventually(one.is_at_it)
            await whole.apply(config_of({"a": [two]}, QUIET))
            assert two.is_asleep()
            assert await asked == 200
            assert (two.counters.wakes, two.counters.finished, two.counters.while_asleep) == (1, 1, 0)

    run(main())


def test_another_one_in_its_place_while_it_is_put_to_sleep() -> None:
    """It is put to sleep, too."""

    async def main() -> None:
        one, two = VllmStandIn(model="a"), VllmStandIn(model="a")
        async with running({"a": [one, two]}, QUIET) as whole:
            await whole.apply(config_of({"a": [one]}, QUIET))
            one.behaviour.sleep_s = 0.2
            asked = asyncio.ensure_future(whole.act("sleep", "a"))
            await eventually(one.is_at_it)
            await whole.apply(config_of({"a": [two]}, QUIET))
            assert (await asked).status == 200
            assert await whole.state("a") == "asleep"
            assert two.is_asleep()

    run(main())
