# SPDX-License-Identifier: Apache-2.0
"""What people get from the controller's address."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from controller.live import Raw, eventually, run
from controller.standins.answers import answer_text, chat, completion, stream_text, whole_text
from controller.standins.engine import Behaviour, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, running
from kvcached.controller.access import Keys
from kvcached.controller.app import Locks

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def two() -> dict[str, StandIn | list[StandIn]]:
    return {"a": VllmStandIn(model="a"), "org/b": SglangStandIn(model="org/b")}


# ---- Requests ----


def test_models_are_told_apart_by_name() -> None:
    async def main() -> None:
        stand_ins = two()
        async with running(stand_ins) as whole:
            for name in stand_ins:
                answer = await whole.ask("POST", COMPLETIONS, completion(name, f"of {name}", stream=False))
                assert answer.status == 200
                assert answer_text(answer.data) == whole_text(f"of {name}", 4)
                answer = await whole.ask("POST", CHAT, chat(name, f"chat {name}"))
                assert stream_text(answer.data) == whole_text(f"chat {name}", 4)
            answer = await whole.ask("POST", "/v1/embeddings", {"model": "a", "input": ["x", "y"]})
            assert len(answer.json()["data"]) == 2
            listed = (await whole.ask("GET", "/v1/models")).json()
            assert [card["id"] for card in listed["data"]] == ["a", "org/b"]
            assert {card["object"] for card in listed["data"]} == {"model"}

    run(main())


def test_an_engines_own_errors_are_passed_on() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(fail_status=429))
        async with running({"a": stand_in}) as whole:
            answer = await whole.ask("POST", COMPLETIONS, completion("a", "x"))
            assert answer.status == 429
            direct = await whole.ask("POST", COMPLETIONS, completion("a", "x"), at=stand_in.address)
            assert answer.data == direct.data

    run(main())


def test_request_ids() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            given = await whole.ask(
                "POST", COMPLETIONS, completion("a", "x"), headers={"X-Request-Id": "mine-1"}
            )
            assert given.headers["x-request-id"] == "mine-1"
            first, second = [await whole.ask("GET", "/nowhere") for _ in range(2)]
            assert first.headers["x-request-id"] != second.headers["x-request-id"]
            long = await whole.ask("GET", "/health", headers={"X-Request-Id": "x" * 200})
            assert len(long.headers["x-request-id"]) == 32

    run(main())


@pytest.mark.parametrize(
    ("method", "path", "data", "status", "code"),
    [
        ("POST", COMPLETIONS, b'{"model": "nobody"}', 404, "model_not_found"),
        ("POST", COMPLETIONS, b"{", 400, "invalid_json"),
        ("POST", COMPLETIONS, b"\xff\xfe", 400, "invalid_json"),
        ("POST", COMPLETIONS, b"[" * 4000, 400, "invalid_json"),
        ("POST", COMPLETIONS, b"[]", 400, "invalid_body"),
        ("POST", COMPLETIONS, b"{}", 400, "missing_model"),
        ("POST", CHAT, b'{"model": 3}', 400, "invalid_model"),
        ("POST", COMPLETIONS, b'{"model": "a", "x": "' + b"x" * 5000 + b'"}', 413, "body_too_large"),
        ("GET", COMPLETIONS, None, 405, "method_not_allowed"),
        ("POST", "/health", None, 405, "method_not_allowed"),
        ("GET", "/v1/nothing", None, 404, "unknown_url"),
        ("GET", "/traffic/stats/nobody", None, 404, "model_not_found"),
        ("POST", "/action/sleep/nobody", None, 404, "model_not_found"),
        ("GET", "/health/nobody", None, 404, "model_not_found"),
        ("GET", "/traffic/stats?window=soon", None, 400, "invalid_parameter"),
        ("GET", "/traffic/stats?window=0", None, 400, "invalid_parameter"),
        ("GET", "/models/idle?threshold=nan", None, 400, "invalid_parameter"),
        ("POST", "/action/sleep/a?firm=perhaps", None, 400, "invalid_parameter"),
    ],
    ids=itertools.count(),
)
def test_mistakes(method: str, path: str, data: bytes | None, status: int, code: str) -> None:
    """Each has its status and says what is wrong; and the next request is served."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"max_body_bytes": 4096}) as whole:
            headers = {"Content-Type": "application/json"}
            answer = await whole.ask(method, path, data=data, headers=headers)
            assert (answer.status, answer.code) == (status, code)
            if status == 405:
                assert answer.headers["allow"]
            assert (await whole.ask("POST", COMPLETIONS, completion("a", "x"))).status == 200

    run(main())


def test_a_body_that_does_not_come() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"idle_timeout_seconds": 0.2}) as whole:
            raw = await Raw.open(whole.address)
            raw.writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            status, _ = await raw.head()
            assert status == 408
            await raw.close()

    run(main())


# ---- Replicas ----


def test_requests_go_where_fewest_are() -> None:
    async def main() -> None:
        replicas: list[StandIn] = [VllmStandIn(model="a", behaviour=Behaviour(hold_at=2)) for _ in range(3)]
        async with running({"a": replicas}) as whole:
            asked = [
                asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", f"r{i}")))
                for i in range(12)
            ]
            await eventually(lambda: sum(r.counters.in_flight for r in replicas) == 12)
            assert [r.counters.in_flight for r in replicas] == [4, 4, 4]
            for replica in replicas:
                replica.release()
            assert {answer.status for answer in await asyncio.gather(*asked)} == {200}

    run(main())


def test_a_replica_that_is_gone_costs_nobody_an_answer() -> None:
    """What it has seen nothing of goes to another one; and it is left alone until it is well."""

    async def main() -> None:
        replicas: list[StandIn] = [VllmStandIn(model="a") for _ in range(2)]
        async with running({"a": replicas}) as whole:
            await eventually(lambda: whole.model("a").lifecycle.state.value == "awake")
            await replicas[0].refuse()
            replicas[0].close_idle_connections()
            for i in range(20):
                answer = await whole.ask("POST", COMPLETIONS, completion("a", f"r{i}"))
                assert stream_text(answer.data) == whole_text(f"r{i}", 4)
            assert replicas[0].counters.ids == []
            await replicas[0].accept()
            await eventually(lambda: all(r.alive for r in whole.model("a").replicas.values()))
            for i in range(20, 30):
                assert (await whole.ask("POST", COMPLETIONS, completion("a", f"r{i}"))).status == 200
            assert replicas[0].counters.ids

    run(main())


def test_an_engine_that_dies_in_the_middle() -> None:
    """Its clients see that their answers are not whole; nobody is asked again."""

    async def main() -> None:
        replicas: list[StandIn] = [VllmStandIn(model="a", behaviour=Behaviour(hold_at=2)) for _ in range(2)]
        async with running({"a": replicas}) as whole:
            asked = [
                asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", f"r{i}")))
                for i in range(4)
            ]
            await eventually(lambda: sum(r.counters.in_flight for r in replicas) == 4)
            replicas[0].die()
            replicas[1].release()
            answers = await asyncio.gather(*asked)
            assert sorted(answer.broken for answer in answers) == [False, False, True, True]
            assert len(replicas[0].counters.ids) + len(replicas[1].counters.ids) == 4

    run(main())


def test_a_model_whose_engines_are_all_gone() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in, "b": VllmStandIn(model="b")}) as whole:
            await eventually(lambda: whole.model("a").lifecycle.state.value == "awake")
            stand_in.die()
            answer = await whole.ask("POST", COMPLETIONS, completion("a", "x"))
            assert (answer.status, answer.code) == (502, "engine_unreachable")
            await eventually(lambda: whole.model("a").lifecycle.state.value == "failed")
            answer = await whole.ask("POST", COMPLETIONS, completion("a", "x"))
            assert (answer.status, answer.code) == (503, "engine_dead")
            assert int(answer.headers["retry-after"]) >= 1
            health = await whole.ask("GET", "/health/a")
            assert (health.status, health.json()["health"]["status"]) == (503, "unhealthy")
            assert (await whole.ask("POST", COMPLETIONS, completion("b", "x"))).status == 200
            await stand_in.restart()
            await eventually(lambda: whole.model("a").lifecycle.state.value == "awake")
            assert (await whole.ask("POST", COMPLETIONS, completion("a", "x"))).status == 200

    run(main())


# ---- What it tells ----


def test_what_is_told() -> None:
    async def main() -> None:
        async with running(two()) as whole:
            await whole.ask("POST", COMPLETIONS, completion("org/b", "x"))
            for path in ("/health/org/b", "/health/org%2Fb"):
                assert (await whole.get(path))["model"] == "org/b"
            assert await whole.get("/health") == {"status": "healthy"}
            assert set((await whole.get("/health/all"))["models"]) == {"a", "org/b"}
            models = (await whole.get("/models"))["models"]
            assert set(models["a"]["endpoint"]) == {"host", "port"}
            stats = await whole.get("/traffic/stats?window=120")
            assert stats["window_seconds"] == 120
            of_b = (await whole.get("/traffic/stats/org/b"))["model_stats"]
            assert (of_b["model_name"], of_b["total_requests"], of_b["successful_requests"]) == (
                "org/b",
                1,
                1,
            )
            assert stats["traffic_stats"]["a"]["last_activity_time"] is None
            idle = await whole.get("/models/idle?threshold=0")
            assert idle["idle_models_count"] == 2
            active = await whole.get("/models/active?threshold=300&window=60")
            assert active["active_models"] == ["a", "org/b"]
            assert (await whole.get("/get_server_info"))["models"]["a"] == "awake"

    run(main())


def test_metrics_of_what_has_happened() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            for _ in range(3):
                await whole.ask("POST", COMPLETIONS, completion("a", "x"))
            await whole.ask("POST", COMPLETIONS, {"model": "nobody"})
            text = (await whole.ask("GET", "/metrics")).data.decode()
            assert 'kvcached_controller_requests_total{model="a",outcome="ok"} 3.0' in text
            assert 'kvcached_controller_refusals_total{code="model_not_found",model=""} 1.0' in text
            assert 'kvcached_controller_model_state{model="a",state="awake"} 1.0' in text
            assert 'kvcached_controller_replicas{kind="serving",model="a"} 1.0' in text
            assert "_created" not in text
            accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
            answer = await whole.ask("GET", "/metrics", headers=accept)
            assert answer.headers["content-type"].startswith("application/openmetrics-text")
            assert answer.data.endswith(b"# EOF\n")

    run(main())


# ---- Who may ask ----


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a", api_key="engine's")
        locks = Locks(Keys(["user"]), Keys(["admin"]))
        async with running({"a": stand_in}, locks=locks, api_key_env="ENGINE_KEY") as whole:
            body = completion("a", "x")
            for headers in ({}, bearer("wrong"), {"Authorization": "user"}, {"Authorization": "Basic user"}):
                answer = await whole.ask("POST", COMPLETIONS, body, headers=headers)
                assert (answer.status, answer.code) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
            for key in ("user", "admin"):
                assert (await whole.ask("POST", COMPLETIONS, body, headers=bearer(key))).status == 200
            for path in ("/sleep/status", "/metrics", "/traffic/stats"):
                assert (await whole.ask("GET", path, headers=bearer("user"))).status == 401
                assert (await whole.ask("GET", path, headers=bearer("admin"))).status == 200
            assert (await whole.ask("GET", "/health")).status == 200

    run_with({"ENGINE_KEY": "engine's"}, main)


def run_with(environment: dict[str, str], main: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        run(main())


def test_administrators_have_a_port_of_their_own() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"admin_port": 0}) as whole:
            assert whole.address != whole.admin
            assert (await whole.ask("GET", "/sleep/status")).code == "unknown_url"
            assert (await whole.ask("POST", "/action/sleep/a")).code == "unknown_url"
            assert (await whole.ask("POST", "/action/sleep/a", at=whole.admin)).status == 200
            assert (
                await whole.ask("POST", COMPLETIONS, {"model": "a"}, at=whole.admin)
            ).code == "unknown_url"

    run(main())


def test_a_clients_key_does_not_reach_an_engine() -> None:
    """Even one that would take it."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", api_key="user")
        async with running({"a": stand_in}, locks=Locks(Keys(["user"]), Keys())) as whole:
            answer = await whole.ask("POST", COMPLETIONS, completion("a", "x"), headers=bearer("user"))
            assert (answer.status, answer.json()) == (401, {"error": "Unauthorized"})

    run(main())


# ---- Sleep ----


async def is_asleep(whole: Whole, name: str) -> bool:
    return await whole.state(name) == "asleep"


@pytest.mark.parametrize("made", [VllmStandIn, SglangStandIn])
def test_sleep_and_wake(made: type[StandIn]) -> None:
    async def main() -> None:
        stand_in = made(model="a")
        async with running({"a": stand_in}) as whole:
            answer = await whole.act("sleep", "a")
            assert (answer.status, answer.json()["success"]) == (200, True)
            assert stand_in.is_asleep()
            status = await whole.get("/sleep/status")
            assert status["sleeping_models"]["a"]["manual_sleep"] is True
            assert (await whole.act("wakeup", "a")).json()["success"]
            assert not stand_in.is_asleep()
            await whole.act("sleep", "a")
            answer = await whole.ask("POST", COMPLETIONS, completion("a", "woken"))
            assert stream_text(answer.data) == whole_text("woken", 4)
            assert stand_in.counters.while_asleep == 0

    run(main())


def test_idle_models_sleep_by_themselves() -> None:
    async def main() -> None:
        stand_ins = two()
        settings = {"auto_sleep_enabled": True, "idle_threshold_seconds": 0.3}
        async with running(stand_ins, settings) as whole:
            await eventually(lambda: is_asleep(whole, "a"))
            await eventually(lambda: is_asleep(whole, "org/b"))
            assert (await whole.get("/sleep/status"))["sleeping_models"]["a"]["reason"] == "idle"

    run(main())


def test_state_is_adopted_from_engines() -> None:
    """Another controller has put one to sleep, before this one began and while it ran."""

    async def main() -> None:
        stand_in, other = VllmStandIn(model="a"), VllmStandIn(model="b")
        async with running({"a": stand_in, "b": other}) as whole:
            async with whole.session.post(f"{stand_in.address}/sleep?level=1") as slept:
                assert slept.status == 200
            await eventually(lambda: is_asleep(whole, "a"))
            assert (await whole.get("/sleep/status"))["sleeping_models"]["a"]["reason"] == "elsewhere"
            answer = await whole.ask("POST", COMPLETIONS, completion("a", "x"))
            assert answer.status == 200
            assert stand_in.counters.while_asleep == 0

    run(main())


def test_a_wake_that_fails() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in, "b": VllmStandIn(model="b")}) as whole:
            await whole.act("sleep", "a")
            stand_in.behaviour.wake_fails = True
            answers = await asyncio.gather(
                *(whole.ask("POST", COMPLETIONS, completion("a", f"x{i}")) for i in range(10))
            )
            assert {(answer.status, answer.code) for answer in answers} == {(503, "wake_failed")}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
            assert (await whole.ask("POST", COMPLETIONS, completion("b", "x"))).status == 200
            stand_in.behaviour.wake_fails = False
            assert (await whole.act("wakeup", "a")).json()["success"]
            assert (await whole.ask("POST", COMPLETIONS, completion("a", "x"))).status == 200

    run(main())


def note_order(whole: Whole, name: str) -> tuple[list[Any], list[Any]]:
    """In which requests come, and in which they are let through, from now on."""
    model, came, admitted = whole.model(name), [], []
    admit = model.admit

    async def noted(key: Any) -> None:
        came.append(key)
        await admit(key)
        admitted.append(key)

    model.admit = noted  # type: ignore[method-assign]
    return came, admitted


def test_a_thousand_requests_for_a_model_that_sleeps() -> None:
    """One wake, and all are answered, in the order in which they came."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(wake_s=0.5))
        async with running({"a": stand_in}) as whole:
            await whole.act("sleep", "a")
            came, admitted = note_order(whole, "a")
            asked = []
            for i in range(1000):
                asked.append(asyncio.create_task(whole.ask("POST", COMPLETIONS, completion("a", f"r{i}"))))
                if i == 0:
                    await eventually(lambda: whole.model("a").lifecycle.queued == 1)
            answers = await asyncio.gather(*asked)
            for i, answer in enumerate(answers):
                assert answer.status == 200
                assert stream_text(answer.data) == whole_text(f"r{i}", 4)
            assert stand_in.counters.wakes == 1
            assert stand_in.counters.while_asleep == 0
            assert sorted(stand_in.counters.ids) == sorted(f"r{i}" for i in range(1000))
            assert len(came) == 1000
            assert admitted == came

    run(main(), limit=60)


def test_more_than_may_wait() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(wake_s=0.5))
        async with running({"a": stand_in}, {"queue_max": 5}) as whole:
            await whole.act("sleep", "a")
            answers = await asyncio.gather(
                *(whole.ask("POST", COMPLETIONS, completion("a", f"r{i}")) for i in range(20))
            )
            assert [answer.status for answer in answers].count(200) == 5
            refused = [answer for answer in answers if answer.status != 200]
            assert {(answer.status, answer.code) for answer in refused} == {(503, "queue_full")}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)

    run(main())


def test_clients_that_wait_and_go() -> None:
    """They leave nothing behind, and the model does not wake for nobody longer than it must."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(wake_s=0.3))
        async with running({"a": stand_in}) as whole:
            await whole.act("sleep", "a")
            raws = [await Raw.open(whole.address) for _ in range(10)]
            for i, raw in enumerate(raws):
                await raw.send("POST", COMPLETIONS, completion("a", f"gone{i}"))
            await eventually(lambda: whole.model("a").lifecycle.queued == 10)
            for raw in raws:
                raw.abort()
            await eventually(lambda: whole.model("a").lifecycle.queued == 0)
            answer = await whole.ask("POST", COMPLETIONS, completion("a", "x"))
            assert answer.status == 200
            assert stand_in.counters.ids == ["x"]

    run(main())
