# SPDX-License-Identifier: Apache-2.0
"""The stand-ins are what the engines are: their routes, parameters and replies are compared with the sources
of installed releases (./dev engines), and what they do when they sleep, fail or die is what tests rely on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from controller.live import Raw, eventually, post, run, serving
from controller.standins import routes, sources
from controller.standins.answers import answer_text, chat, completion, events, stream_text, whole_text
from controller.standins.engine import Behaviour
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn

ROOT = Path(__file__).resolve().parents[2]
ENGINES = {"vllm": VllmStandIn, "sglang": SglangStandIn}
TABLES = {
    "vllm": (routes.VLLM, routes.VLLM_CLASSES, routes.VLLM_RELEASES),
    "sglang": (routes.SGLANG, routes.SGLANG_CLASSES, routes.SGLANG_RELEASES),
}


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Against the sources.


@pytest.fixture
def package(engine: str) -> Path:
    """The installed engine's package."""
    python = os.environ.get(f"KVCACHED_{engine.upper()}_PYTHON") or str(
        ROOT / ".venv-engines" / engine / "bin" / "python"
    )
    found = sorted(Path(python).parents[1].glob(f"lib/python3*/site-packages/{engine}/__init__.py"))
    if not found:
        pytest.skip(f"no sources of {engine} beside {python} (./dev engines makes it)")
    return found[0].parent


def test_releases_that_are_installed_are_known(engine: str, package: Path) -> None:
    about = [path.name for path in package.parent.glob(f"{engine}*-*.dist-info")]
    releases = {re.sub(r"^[^-]*-|\.dist-info$", "", name) for name in about}
    assert releases & set(TABLES[engine][2]), f"{engine} {releases}: compare, and add it to routes.py"


def test_routes_are_the_sources(engine: str, package: Path) -> None:
    classes: dict[str, frozenset[str]] = {}
    if engine == "sglang":
        classes = sources.fields(package / "srt/managers/io_struct.py")
    for route in TABLES[engine][0]:
        found = sources.routes(package / route.source, classes).get(route.path)
        assert found is not None, f"{route.source} has no {route.path}"
        assert found.methods == route.methods, route.path
        assert found.query == route.query, route.path
        assert route.body is None or route.body <= found.body, (route.path, found.body)
        assert route.reply is None or route.reply <= found.keys, (route.path, found.keys)


def test_replies_are_made_of_the_sources_classes(engine: str, package: Path) -> None:
    for (source, name), keys in TABLES[engine][1].items():
        assert keys <= sources.fields(package / source)[name], name


@pytest.mark.parametrize("engine", ["vllm"])
def test_dev_mode_is_what_mounts_the_sleep(package: Path) -> None:
    """SGLang's routes are always there."""
    text = (package / "entrypoints/launchers/api_server/routers.py").read_text()
    guarded = text[text.index("if envs.VLLM_SERVER_DEV_MODE:") :]
    assert "register_vllm_dev_api_routers(app)" in guarded.split('if "generate"')[0]


# Against the table.


def keys_of(engine: str, name: str) -> frozenset[str]:
    return next(keys for (_, known), keys in TABLES[engine][1].items() if known == name)


def body_for(path: str) -> dict[str, Any] | None:
    return {
        "/collective_rpc": {"method": "reload_weights"},
        "/pause_generation": {"mode": "in_place"},
        "/continue_generation": {},
        "/update_weights_from_disk": {"model_path": "/models/m"},
        "/release_memory_occupation": {},
        "/resume_memory_occupation": {},
    }.get(path)


def test_what_is_mounted_is_the_table(engine: str) -> None:
    async def main() -> None:
        stand_in = ENGINES[engine]()
        async with serving(stand_in), aiohttp.ClientSession() as session:
            for route in TABLES[engine][0]:
                for method in ("GET", "POST", "PUT"):
                    if route.path.startswith("/re"):  # not all in any order
                        continue
                    url = stand_in.address + route.path
                    async with session.request(method, url, json=body_for(route.path)) as response:
                        assert (response.status != 405) == (method in route.methods), (method, route.path)
                        if method not in route.methods:
                            assert await response.json() == {"detail": "Method Not Allowed"}
                        elif route.reply is not None and response.status == 200:
                            assert route.reply <= set(await response.json()), route.path
            async with session.get(stand_in.address + "/nowhere") as response:
                assert (response.status, await response.json()) == (404, {"detail": "Not Found"})

    run(main())


def test_answers_have_the_keys_of_the_table(engine: str) -> None:
    async def main() -> None:
        stand_in = ENGINES[engine]()
        async with serving(stand_in), aiohttp.ClientSession() as session:

            async def ask(path: str, body: Any) -> Any:
                async with session.post(stand_in.address + path, json=body) as response:
                    return await response.json(content_type=None)

            said = await ask("/v1/completions", completion("m", "x", stream=False))
            assert set(said) == keys_of(engine, "CompletionResponse")
            assert set(said["usage"]) == keys_of(engine, "UsageInfo")
            said = await ask("/v1/chat/completions", chat("m", "x", stream=False))
            assert set(said) == keys_of(engine, "ChatCompletionResponse")
            said = await ask("/v1/embeddings", {"model": "m", "input": ["a", "b"]})
            assert set(said) == keys_of(engine, "EmbeddingResponse")
            assert [vector["index"] for vector in said["data"]] == [0, 1]
            async with session.get(stand_in.address + "/v1/models") as response:
                said = await response.json()
            assert set(said) == keys_of(engine, "ModelList")
            assert set(said["data"][0]) == keys_of(engine, "ModelCard")
            body = completion("m", "x", stream_options={"include_usage": True})
            _, data = await post(session, stand_in.address + "/v1/completions", body)
            chunks = events(data)
            for chunk in chunks:
                assert set(chunk) | {"usage"} == keys_of(engine, "CompletionStreamResponse")
            assert chunks[-1]["usage"]["completion_tokens"] == 4
            said = await ask("/v1/completions", {"model": "m"})
            if engine == "vllm":
                assert set(said) == keys_of(engine, "ErrorResponse")
                said = said["error"]
                assert set(said) == keys_of(engine, "ErrorInfo")
            else:
                assert set(said) == keys_of(engine, "ErrorResponse")
            assert said["code"] == 400

    run(main())


def test_errors_of_requests(engine: str) -> None:
    async def main() -> None:
        stand_in = ENGINES[engine](api_key="secret")
        async with serving(stand_in), aiohttp.ClientSession() as session:
            url = stand_in.address + "/v1/completions"
            assert (await post(session, url, completion("m", "x")))[0] == 401
            key = {"Authorization": "Bearer secret"}
            async with session.post(url, data=b"{", headers=key) as response:
                assert response.status == 400
            async with session.post(
                url, data=b"{", headers=key | {"Content-Type": "application/json"}
            ) as response:
                assert response.status == 400
            status, _ = await post(session, url, completion("other", "x"), **key)
            assert status == (404 if engine == "vllm" else 200)  # SGLang serves any name
            async with session.get(stand_in.address + "/health") as response:
                assert response.status == 200

    run(main())


# Generation.


@pytest.mark.parametrize("cuts", [None, 1, 2, 3])
def test_streams_carry_their_id_in_each_chunk(engine: str, cuts: int | None) -> None:
    async def main() -> None:
        stand_in = ENGINES[engine](behaviour=Behaviour(n_chunks=20, chunk_bytes=50, cuts=cuts))
        async with serving(stand_in), aiohttp.ClientSession() as session:
            for path, body in (("/v1/completions", completion), ("/v1/chat/completions", chat)):
                _, data = await post(session, stand_in.address + path, body("m", "me"))
                assert stream_text(data) == whole_text("me", 20, 50)
                _, data = await post(session, stand_in.address + path, body("m", "me", stream=False))
                assert answer_text(data) == whole_text("me", 20, 50)
        assert stand_in.counters.ids == ["me"] * 4
        assert (stand_in.counters.finished, stand_in.counters.in_flight) == (4, 0)

    run(main())


def test_disconnects_are_seen(engine: str) -> None:
    async def main() -> None:
        stand_in = ENGINES[engine](behaviour=Behaviour(hold_at=2))
        async with serving(stand_in):
            for stream in (True, False):
                raw = await Raw.open(stand_in.address)
                await raw.send("POST", "/v1/completions", completion("m", "x", stream=stream))
                if stream:
                    await raw.reader.readuntil(b"<x:1>")
                else:
                    await stand_in.until(lambda: True)
                    await eventually(lambda: stand_in.counters.in_flight == 1)
                raw.abort()
                await eventually(lambda: stand_in.counters.in_flight == 0, within=1)
        assert (stand_in.counters.aborted, stand_in.counters.max_in_flight) == (2, 1)

    run(main())


def test_failing_and_dying(engine: str) -> None:
    async def main() -> None:
        stand_in = ENGINES[engine](behaviour=Behaviour(fail_status=503, fail_times=1))
        async with serving(stand_in), aiohttp.ClientSession() as session:
            url = stand_in.address + "/v1/completions"
            assert (await post(session, url, completion("m", "x")))[0] == 503
            assert (await post(session, url, completion("m", "x")))[0] == 200
            for how in ("abort", "close"):
                stand_in.behaviour = Behaviour(die_at=2, die_how=how)
                raw = await Raw.open(stand_in.address)
                await raw.send("POST", "/v1/completions", completion("m", "x"))
                data = await raw.rest()
                assert b"0\r\n\r\n" not in data
                assert how == "abort" or b"<x:1>" in data
                await raw.close()
            stand_in.behaviour = Behaviour(die_at=-1)
            with pytest.raises(aiohttp.ClientConnectionError):
                await post(session, url, completion("m", "x"))
            stand_in.behaviour = Behaviour(die_at=2, die_how="exit")
            with pytest.raises(aiohttp.ClientError):
                await post(session, url, completion("m", "x"))
            with pytest.raises(aiohttp.ClientConnectorError):
                await post(session, url, completion("m", "x"))
            await stand_in.restart()
            stand_in.behaviour = Behaviour()
            assert (await post(session, url, completion("m", "x")))[0] == 200
        assert (stand_in.counters.deaths, stand_in.counters.aborted) == (1, 0)

    run(main())


def test_refusing_and_accepting(engine: str) -> None:
    async def main() -> None:
        stand_in = ENGINES[engine]()
        async with serving(stand_in):
            kept = await Raw.open(stand_in.address)
            await kept.send("GET", "/health")
            assert (await kept.head())[0] == 200
            await stand_in.refuse()
            with pytest.raises(ConnectionRefusedError):
                await Raw.open(stand_in.address)
            await kept.send("GET", "/health")
            assert (await kept.head())[0] == 200
            assert stand_in.close_idle_connections() == 1
            assert await kept.rest() == b""
            await kept.close()
            await stand_in.accept()
            again = await Raw.open(stand_in.address)
            await again.close()

    run(main())


# Sleep.


def start_post(session: aiohttp.ClientSession, url: str, body: Any) -> asyncio.Task[tuple[int, bytes]]:
    return asyncio.ensure_future(post(session, url, body))


def test_vllm_waits_for_requests_and_keeps_those_that_come_meanwhile() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(hold_at=1))
        async with serving(stand_in), aiohttp.ClientSession() as session:
            url = stand_in.address
            running = start_post(session, url + "/v1/completions", completion("m", "first"))
            await eventually(lambda: stand_in.counters.in_flight == 1)
            asleep = start_post(session, url + "/sleep?level=1&mode=wait", None)
            await eventually(lambda: stand_in.paused)
            async with session.get(url + "/is_sleeping") as response:
                assert await response.json() == {"is_sleeping": True}
            late = start_post(session, url + "/v1/completions", completion("m", "late"))
            await eventually(lambda: stand_in.counters.while_asleep == 1)
            assert stand_in.held_bytes() == (1 << 30) + (1 << 29)
            stand_in.release()
            assert stream_text((await running)[1]) == whole_text("first", 4)
            assert (await asleep)[0] == 200
            assert stand_in.held_bytes() == 0
            assert not late.done()
            await post(session, url + "/wake_up?tags=weights", None)
            assert stand_in.held_bytes() == 1 << 30
            assert not late.done()
            await post(session, url + "/wake_up?tags=kv_cache", None)
            assert stream_text((await late)[1]) == whole_text("late", 4)
        assert (stand_in.counters.sleeps, stand_in.counters.wakes) == (1, 1)

    run(main())


def test_vllm_aborts_without_a_mode_and_freezes_with_keep() -> None:
    async def main() -> None:
        stand_in = VllmStandIn(behaviour=Behaviour(hold_at=1))
        async with serving(stand_in), aiohttp.ClientSession() as session:
            url = stand_in.address
            running = start_post(session, url + "/v1/completions", completion("m", "x"))
            await eventually(lambda: stand_in.counters.in_flight == 1)
            asleep = start_post(session, url + "/sleep", None)
            await eventually(lambda: stand_in.paused)
            stand_in.release()
            chunks = events((await running)[1])
            assert chunks[-1]["choices"][0]["finish_reason"] == "abort"
            assert (await asleep)[0] == 200
            assert (await post(session, url + "/wake_up", None))[0] == 200
            stand_in.behaviour = Behaviour(n_chunks=50, chunk_s=0.001)
            running = start_post(session, url + "/v1/completions", completion("m", "x"))
            await eventually(lambda: stand_in.counters.in_flight == 1)
            assert (await post(session, url + "/sleep?mode=keep", None))[0] == 200
            assert not running.done()
            assert (await post(session, url + "/wake_up", None))[0] == 200
            assert stream_text((await running)[1]) == whole_text("x", 50)

    run(main())


def test_vllm_refuses_what_it_does_not_know() -> None:
    async def main() -> None:
        stand_in, user = VllmStandIn(), VllmStandIn(dev_mode=False)
        async with serving(stand_in, user), aiohttp.ClientSession() as session:
            for query in ("level=3", "level=x", "mode=gently"):
                assert (await post(session, f"{stand_in.address}/sleep?{query}", None))[0] == 400
            # A body says nothing: parameters are in the query.
            status, _ = await post(session, stand_in.address + "/sleep", {"level": "2"})
            assert (status, stand_in.noted) == (200, 1)
            assert (await post(session, user.address + "/sleep", None))[0] == 404

    run(main())


def test_vllm_loses_its_weights_with_level_2() -> None:
    async def main() -> None:
        stand_in = VllmStandIn()
        async with serving(stand_in), aiohttp.ClientSession() as session:
            url = stand_in.address
            await post(session, url + "/sleep?level=2", None)
            async with session.get(url + "/metrics") as response:
                assert 'sleep_state="discard_all"} 1.0' in await response.text()
            rpc = {"method": "reload_weights"}
            assert (await post(session, url + "/collective_rpc", rpc))[0] == 500
            await post(session, url + "/wake_up", None)
            _, data = await post(session, url + "/v1/completions", completion("m", "x"))
            assert "x" not in stream_text(data)
            assert (await post(session, url + "/collective_rpc", rpc))[0] == 200
            _, data = await post(session, url + "/v1/completions", completion("m", "x"))
            assert stream_text(data) == whole_text("x", 4)

    run(main())


async def _release_under_a_request(stand_in: SglangStandIn, session: aiohttp.ClientSession) -> None:
    stand_in.behaviour = Behaviour(hold_at=1)
    running = start_post(session, stand_in.address + "/v1/completions", completion("m", "x"))
    await eventually(lambda: stand_in.counters.in_flight == 1)
    with pytest.raises(aiohttp.ClientError):
        await post(session, stand_in.address + "/release_memory_occupation", {})
    with pytest.raises(aiohttp.ClientError):
        await running


async def _release_twice(stand_in: SglangStandIn, session: aiohttp.ClientSession) -> None:
    assert await post(session, stand_in.address + "/release_memory_occupation", {}) == (200, b"null")
    assert stand_in.held_bytes() == 0
    await post(session, stand_in.address + "/release_memory_occupation", {})


async def _resume_awake(stand_in: SglangStandIn, session: aiohttp.ClientSession) -> None:
    await post(session, stand_in.address + "/resume_memory_occupation", {"tags": ["weights"]})


async def _generate_asleep(stand_in: SglangStandIn, session: aiohttp.ClientSession) -> None:
    await post(session, stand_in.address + "/release_memory_occupation", {})
    await post(session, stand_in.address + "/v1/completions", completion("m", "x"))


async def _check_health_asleep(stand_in: SglangStandIn, session: aiohttp.ClientSession) -> None:
    await post(session, stand_in.address + "/release_memory_occupation", {})
    await session.get(stand_in.address + "/health")


@pytest.mark.parametrize(
    "act",
    [_release_under_a_request, _release_twice, _resume_awake, _generate_asleep, _check_health_asleep],
)
def test_sglang_dies_of(act: Any) -> None:
    async def main() -> None:
        stand_in = SglangStandIn()
        async with serving(stand_in), aiohttp.ClientSession() as session:
            if act is _release_under_a_request:
                await act(stand_in, session)
            else:
                with pytest.raises(aiohttp.ClientError):
                    await act(stand_in, session)
            assert stand_in.dead
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(stand_in.address + "/health")
        assert stand_in.counters.deaths == 1

    run(main())


def test_sglang_paused_holds_requests_and_health_checks() -> None:
    async def main() -> None:
        stand_in = SglangStandIn(health_timeout_s=0.05)
        async with serving(stand_in), aiohttp.ClientSession() as session:
            url = stand_in.address
            assert (await post(session, url + "/pause_generation", {"mode": "retract"}))[0] == 200
            assert (await post(session, url + "/release_memory_occupation", {}))[0] == 200
            for path in ("/ready", "/health"):
                async with session.get(url + path) as response:
                    assert response.status == 503
            late = start_post(session, url + "/v1/completions", completion("m", "x"))
            await eventually(lambda: stand_in.counters.while_asleep == 1)
            assert (await post(session, url + "/resume_memory_occupation", {}))[0] == 200
            assert not late.done()
            assert (await post(session, url + "/continue_generation", {}))[0] == 200
            assert stream_text((await late)[1]) == whole_text("x", 4)
            for path, status in (("/ready", 503), ("/health", 200), ("/ready", 200)):
                async with session.get(url + path) as response:
                    assert response.status == status

    run(main())


# As processes.


@pytest.fixture
def process(engine: str) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """Address, admin address, and the process."""
    command = [
        sys.executable,
        "-m",
        f"controller.standins.{engine}",
        "--behaviour",
        json.dumps({"hold_at": 1}),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    with started:
        assert started.stdout is not None
        yield started.stdout.readline().strip(), started.stdout.readline().strip(), started
        started.terminate()
        assert started.wait(10) in (0, 3)


def test_a_process_is_told_over_its_admin_address(process: tuple[str, str, subprocess.Popen[str]]) -> None:
    async def main() -> None:
        address, admin, _ = process
        async with aiohttp.ClientSession() as session:
            asked = start_post(session, address + "/v1/completions", completion("m", "x"))

            async def counters() -> Any:
                async with session.get(admin + "/standin/counters") as response:
                    return await response.json()

            async def in_flight() -> bool:
                return bool((await counters())["in_flight"] == 1)

            await eventually(in_flight)
            await post(session, admin + "/standin/release", None)
            assert stream_text((await asked)[1]) == whole_text("x", 4)
            found = await counters()
            assert (found["finished"], found["ids"], found["held_bytes"]) == (1, ["x"], 3 << 29)
            await post(session, admin + "/standin/refuse", None)
            with pytest.raises(ConnectionRefusedError):
                await Raw.open(address)
            await post(session, admin + "/standin/accept", None)
            await post(session, admin + "/standin/behaviour", {"n_chunks": 2})
            _, data = await post(session, address + "/v1/completions", completion("m", "y"))
            assert stream_text(data) == whole_text("y", 2)

    run(main())


def test_a_process_exits_in_the_middle(process: tuple[str, str, subprocess.Popen[str]]) -> None:
    async def main() -> None:
        address, admin, started = process
        async with aiohttp.ClientSession() as session:
            dying = {"die_at": 1, "die_how": "exit", "hold_at": None}
            await post(session, admin + "/standin/behaviour", dying)
            with pytest.raises(aiohttp.ClientError):
                await post(session, address + "/v1/completions", completion("m", "x"))
        assert started.wait(10) == 3

    run(main())
