# SPDX-License-Identifier: Apache-2.0
"""The controller, as a process, in front of vLLM's own servers, which kvcached-launch has started; memory is
a daemon's, of an emulated GPU.

Routes, streams, errors, metrics, modes of sleep, and what waits in an engine meanwhile are vLLM's own; KV
memory is kvcached's, and comes back to the daemon when an engine sleeps. A vLLM for CPUs doesn't give weights
back: sleeping_cpu.py says what stands in for that. Tokens are compared with those that the server says when
it is asked directly, before it has ever slept."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.live import Raw, eventually, post, run, serving
from controller.standins.vllm import VllmStandIn
from engines.serving import (
    BUDGET,
    MAX_TOKENS,
    STATE,
    VLLM_ARGUMENTS,
    Fleet,
    Front,
    Server,
    compare,
    completion,
    fleets,
    front,
    front_of,
    tokens_of,
)
from engines.vllm_support import prompts
from harness.broker import eventually as eventually_sync

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(900)]

LIMIT_S = 600
COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
ASKED = list(prompts(0, 50, 60).values())
FIRST = ASKED[0]
MIB = 1 << 20


@pytest.fixture(scope="module")
def make_fleet(build_dir: Path, package: Path, vllm_python: str) -> Iterator[Callable[[], Fleet]]:
    plugins = "[vllm.general_plugins]\nsleeping_cpu = engines.sleeping_cpu:register\n"
    with fleets(build_dir, package) as make:
        yield lambda: make(vllm_python, Path(vllm_python).parents[1], plugins)


def arguments_of(fleet: Fleet, more: str = "") -> str:
    template = fleet.folder / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return f"{VLLM_ARGUMENTS} --chat-template {template} --enable-sleep-mode {more}"


@pytest.fixture(scope="module")
def servers(make_fleet: Callable[[], Fleet], models: Callable[[str], Path]) -> Fleet:
    """small and large, different models, and embedder, which asks for a key."""
    fleet = make_fleet()
    fleet.add("small", models("llama"), arguments=arguments_of(fleet))
    fleet.add("large", models("llama3"), arguments=arguments_of(fleet))
    pooling = arguments_of(fleet, "--runner pooling --convert embed")
    fleet.add("embedder", models("llama"), arguments=pooling, key="secret")
    fleet.configure()
    fleet.start()
    return fleet


@pytest.fixture(scope="module")
def said(servers: Fleet) -> dict[str, list[list[int]]]:
    """What small and large say to ASKED, of engines that have never slept."""
    found = {}
    for name in ("small", "large"):
        server = servers.servers[name]
        assert server.metric("vllm:sleep_mode_operation_duration_seconds_count") == 0
        answers = [server.ask("POST", COMPLETIONS, completion(name, prompt)) for prompt in ASKED]
        assert {status for status, _ in answers} == {200}
        found[name] = [tokens_of(data) for _, data in answers]
    assert found["small"] != found["large"]
    return found


@pytest.fixture
def fleet(servers: Fleet, said: dict[str, list[list[int]]]) -> Fleet:
    """The servers, awake and without requests, however the test before has left them."""
    del said
    for server in servers.servers.values():
        if json.loads(server.ask("GET", "/is_sleeping")[1])["is_sleeping"]:
            server.ask("POST", "/wake_up?tags=weights")
            assert server.ask("POST", "/collective_rpc", {"method": "reload_weights"})[0] == 200
            server.ask("POST", "/wake_up?tags=kv_cache")
        assert server.ask("GET", "/is_sleeping") == (200, b'{"is_sleeping":false}')
        eventually_sync(lambda server=server: server.running() == 0)  # type: ignore[misc]
    return servers


def named(data: bytes) -> Any:
    """An answer, without what is different in each."""
    answer = json.loads(data)
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


# ---- Requests ----


def test_answers_are_the_engines_own(fleet: Fleet) -> None:
    async def main() -> None:
        async with front(fleet, ["small", "large", "embedder"]) as made:
            for name, path, body in (
                ("small", COMPLETIONS, completion("small", FIRST)),
                ("large", COMPLETIONS, completion("large", FIRST, logprobs=2)),
                ("small", CHAT, chat("small")),
                ("large", CHAT, chat("large")),
                ("embedder", EMBEDDINGS, {"model": "embedder", "input": ["one", "another"]}),
            ):
                status, data = await post(made.session, made.address + path, body)
                direct = fleet.servers[name].ask("POST", path, body)
                assert (status, named(data)) == (200, named(direct[1])), (name, path)
            async with made.session.get(made.address + "/v1/models") as reply:
                listed = await reply.json()
            assert [card["id"] for card in listed["data"]] == ["small", "large", "embedder"]

    run(main(), LIMIT_S)


def chat(model: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "How are you?"}]
    return {"model": model, "messages": messages, "max_tokens": 20, "ignore_eos": True, "seed": 7, **more}


MISTAKES: list[tuple[str, Any]] = [
    (COMPLETIONS, completion("small", FIRST, tokens=-1)),
    (COMPLETIONS, completion("small", FIRST, tokens=10**6)),
    (COMPLETIONS, completion("small", FIRST, temperature="hot")),
    (COMPLETIONS, {"model": "small"}),
    (CHAT, {"model": "small", "messages": 3}),
    (CHAT, chat("small", stream=True, top_p=7)),
    (EMBEDDINGS, {"model": "small", "input": "x"}),
    (COMPLETIONS, completion("embedder", FIRST)),
]


def test_errors_are_the_engines_own(fleet: Fleet) -> None:
    async def main() -> None:
        statuses = set()
        async with front(fleet, ["small", "embedder"]) as made:
            for path, body in MISTAKES:
                said = await post(made.session, made.address + path, body)
                assert said == fleet.servers[body["model"]].ask("POST", path, body)
                statuses.add(said[0])
        assert statuses == {400, 404}

    run(main(), LIMIT_S)


def test_streams_are_the_engines_own(fleet: Fleet, said: dict[str, list[list[int]]]) -> None:
    async def main() -> None:
        async with front(fleet, ["small"]) as made:
            body = completion("small", FIRST, stream=True, stream_options={"include_usage": True})
            async with made.session.post(made.address + COMPLETIONS, json=body) as reply:
                assert reply.headers["Content-Type"].startswith("text/event-stream")
                data = await reply.read()
            assert tokens_of(data) == said["small"][0]
            assert data.count(b"data: ") > 10
            _, data = await post(made.session, made.address + CHAT, chat("small", stream=True))
            assert data.endswith(b"data: [DONE]\n\n")

    run(main(), LIMIT_S)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_who_leaves_has_his_request_aborted(fleet: Fleet, stream: bool) -> None:
    """And of a stream each chunk comes when it is there: the first one long before the last is made."""
    server = fleet.servers["small"]

    async def main() -> None:
        async with front(fleet, ["small"]) as made:
            raw = await Raw.open(made.address)
            body = completion("small", FIRST, MAX_TOKENS, stream=stream)
            made_before = server.metric("vllm:generation_tokens_total")
            await raw.send("POST", COMPLETIONS, body)
            if stream:
                await raw.reader.readuntil(b"data: ")
            await eventually(lambda: server.running() == 1)
            assert await made.metric("kvcached_controller_in_flight_requests") == 1
            raw.abort()
            await eventually(lambda: server.running() == 0)
            assert 0 < server.metric("vllm:generation_tokens_total") - made_before < MAX_TOKENS
            await eventually(lambda: is_cancelled(made))

    run(main(), LIMIT_S)


async def is_cancelled(made: Front) -> bool:
    name = "kvcached_controller_requests_total"
    return await made.metric(name, model="small", outcome="cancelled") == 1


# ---- Sleep ----


def test_sleep_gives_memory_back_and_a_request_wakes(fleet: Fleet, said: dict[str, list[list[int]]]) -> None:
    server = fleet.servers["small"]

    async def main() -> None:
        async with front(fleet, ["small", "large"]) as made:
            assert await made.complete("small", FIRST) == said["small"][0]
            assert fleet.used_bytes("small") > 0
            await made.sleep("small")
            assert server.ask("GET", "/is_sleeping") == (200, b'{"is_sleeping":true}')
            assert server.metric("vllm:engine_sleep_state", sleep_state="weights_offloaded") == 1
            fleet.gives_back("small")
            assert await made.state("small") == "asleep"
            assert await made.complete("large", FIRST) == said["large"][0]
            assert await made.state("small") == "asleep"
            assert await made.complete("small", FIRST, stream=True) == said["small"][0]
            assert await made.state("small") == "awake"
            assert server.metric("vllm:engine_sleep_state", sleep_state="awake") == 1
            assert fleet.used_bytes("small") > 0

    run(main(), LIMIT_S)


def test_what_runs_is_finished_and_what_comes_waits_in_the_engine(
    fleet: Fleet, said: dict[str, list[list[int]]]
) -> None:
    """Also of requests that the controller doesn't know of: vLLM is asked to sleep with mode=wait."""
    server = fleet.servers["small"]

    async def main() -> None:
        async with front(fleet, ["small"]) as made:
            running = await Raw.open(server.url, limit=1 << 24)
            await running.send("POST", COMPLETIONS, completion("small", FIRST, 400, stream=True))
            await running.reader.readuntil(b"data: ")
            asleep = asyncio.create_task(made.act("sleep", "small"))
            await eventually(lambda: is_pausing(server))
            late = asyncio.create_task(
                post(made.session, server.url + COMPLETIONS, completion("small", ASKED[1]))
            )
            status, answer = await asleep
            assert status == 200, answer
            data = b"data: " + await running.reader.readuntil(b"data: [DONE]\n\n")
            assert data.count(b'"finish_reason":"length"') == 1
            assert b'"finish_reason":"abort"' not in data
            await running.close()
            fleet.gives_back("small")
            assert not late.done()
            assert await made.complete("small", FIRST) == said["small"][0]
            status, data = await late
            assert (status, tokens_of(data)) == (200, said["small"][1])

    run(main(), LIMIT_S)


def is_pausing(server: Server) -> bool:
    return bool(json.loads(server.ask("GET", "/is_sleeping")[1])["is_sleeping"])


@pytest.mark.parametrize("who", ["controller", "somebody", "somebody, then the controller"])
def test_weights_that_were_discarded_are_loaded(
    fleet: Fleet, said: dict[str, list[list[int]]], who: str
) -> None:
    """With level 2, by whoever it was."""
    server = fleet.servers["small"]

    async def main() -> None:
        async with front(fleet, ["small"], {"sleep_level": 2 if who == "controller" else 1}) as made:
            if who != "controller":
                assert server.ask("POST", "/sleep?level=2&mode=wait")[0] == 200
            if who != "somebody":
                await made.sleep("small")
            await made.is_so("small", "asleep")
            assert await made.complete("small", FIRST) == said["small"][0]

    run(main(), LIMIT_S)


def test_weights_that_were_discarded_are_needed(fleet: Fleet, said: dict[str, list[list[int]]]) -> None:
    """The test above sees whether they are loaded."""
    server = fleet.servers["small"]
    server.ask("POST", "/sleep?level=2&mode=wait")
    server.ask("POST", "/wake_up")
    garbled = tokens_of(server.ask("POST", COMPLETIONS, completion("small", FIRST))[1])
    server.ask("POST", "/collective_rpc", {"method": "reload_weights"})
    assert server.ask("POST", "/reset_prefix_cache")[0] == 200
    again = tokens_of(server.ask("POST", COMPLETIONS, completion("small", FIRST))[1])
    assert (garbled == said["small"][0], again == said["small"][0]) == (False, True)


def test_fifty_requests_wake_it_once(fleet: Fleet, said: dict[str, list[list[int]]]) -> None:
    """By the engine's own count, of which each of two tags is one."""
    server = fleet.servers["small"]
    counted = "vllm:sleep_mode_operation_duration_seconds_count"

    async def main() -> None:
        async with front(fleet, ["small"]) as made:
            await made.sleep("small")
            before = server.metric(counted, operation="wake")
            answers = await asyncio.gather(*(made.complete("small", prompt) for prompt in ASKED))
            assert answers == said["small"]
            assert server.metric(counted, operation="wake") - before == 2
            assert await made.metric("kvcached_controller_wake_seconds_count", model="small") == 1

    run(main(), LIMIT_S)


def test_who_is_idle_sleeps_by_himself(fleet: Fleet, said: dict[str, list[list[int]]]) -> None:
    settings = {"auto_sleep_enabled": True, "idle_threshold_seconds": 1, "check_interval_seconds": 1}

    async def main() -> None:
        async with front(fleet, ["small", "large"], settings) as made:
            for i in range(2):
                for name in ("small", "large"):
                    assert await made.complete(name, ASKED[i]) == said[name][i]
                for name in ("small", "large"):
                    await made.is_so(name, "asleep")
                    fleet.gives_back(name)
            sleeps = await made.metric("kvcached_controller_sleeps_total", why="idle")
            assert sleeps >= 4

    run(main(), LIMIT_S)


def test_models_that_do_not_fit_together(fleet: Fleet, said: dict[str, list[list[int]]]) -> None:
    """Each wants almost all memory to begin with, so whoever is asked for has the other one sleep."""
    assert fleet.servers["embedder"].ask("POST", "/sleep?mode=wait")[0] == 200

    async def main() -> None:
        async with front(fleet, ["small", "large"], min_kv_bytes=BUDGET - 2 * MIB) as made:
            await made.sleep("large")
            for i in range(3):
                for name, other in (("small", "large"), ("large", "small")):
                    assert await made.complete(name, ASKED[i]) == said[name][i]
                    assert (await made.state(name), await made.state(other)) == ("awake", "asleep")
                    fleet.gives_back(other)
            slept = await made.metric("kvcached_controller_sleeps_total", why="room")
            assert slept == 5
            # Both at once: they take turns, and all are answered.
            asked = [(name, i) for i in range(8) for name in ("small", "large")]
            answers = await asyncio.gather(*(made.complete(name, ASKED[i]) for name, i in asked))
            assert answers == [said[name][i] for name, i in asked]

    run(main(), LIMIT_S)


# ---- The stand-in that other tests have for vLLM ----

# One after another; a method, a path, and a body, which is text if it is no JSON. What others of the
# controller's tests rely on is the same: of STATE the state of sleep, of replies that are about sleep all.
STEPS: list[tuple[str, str, Any]] = [
    ("GET", "/health", None),
    ("GET", "/version", None),
    ("GET", "/v1/models", None),
    ("GET", "/nowhere", None),
    ("GET", COMPLETIONS, None),
    ("POST", COMPLETIONS, completion("small", FIRST)),
    ("POST", COMPLETIONS, completion("small", FIRST, stream=True)),
    ("POST", CHAT, chat("small")),
    ("POST", CHAT, chat("small", stream=True)),
    ("POST", COMPLETIONS, completion("nobody", FIRST)),
    ("POST", CHAT, chat("nobody")),
    ("POST", COMPLETIONS, {"model": "small"}),
    ("POST", CHAT, {"model": "small"}),
    ("POST", COMPLETIONS, "{"),
    ("POST", COMPLETIONS, "[]"),
    ("POST", "/collective_rpc", {}),
    ("POST", "/collective_rpc", {"method": "nothing"}),
    ("POST", "/sleep?level=3", None),
    ("POST", "/sleep?level=x", None),
    ("POST", "/sleep?mode=gently", None),
    *((("GET", "/is_sleeping", None), ("GET", STATE, None))),
    *((("POST", "/sleep?level=1&mode=wait", None), ("GET", "/is_sleeping", None), ("GET", STATE, None))),
    *((("POST", "/sleep?level=1&mode=wait", None), ("GET", "/health", None), ("GET", STATE, None))),
    *((("POST", "/wake_up?tags=weights", None), ("GET", "/is_sleeping", None), ("GET", STATE, None))),
    *((("POST", "/wake_up?tags=weights", None), ("GET", "/is_sleeping", None))),
    *((("POST", "/wake_up?tags=kv_cache", None), ("GET", "/is_sleeping", None), ("GET", STATE, None))),
    *((("POST", "/wake_up", None), ("GET", STATE, None))),
    *((("POST", "/sleep?level=2&mode=wait", None), ("GET", STATE, None))),
    *((("POST", "/sleep?level=1&mode=wait", None), ("GET", STATE, None))),
    *((("POST", "/sleep?level=0", None), ("GET", STATE, None))),
    *((("POST", "/wake_up?tags=weights&tags=kv_cache", None), ("GET", "/is_sleeping", None))),
    ("POST", "/collective_rpc", {"method": "reload_weights"}),
    *((("POST", "/sleep?level=0&mode=keep", None), ("GET", "/is_sleeping", None), ("GET", STATE, None))),
    *((("POST", "/wake_up?tags=scheduling", None), ("GET", "/is_sleeping", None), ("GET", STATE, None))),
    *((("POST", "/sleep?level=0&mode=wait", None), ("POST", "/wake_up?tags=weights", None))),
    *((("GET", "/is_sleeping", None), ("GET", STATE, None))),
    ("POST", COMPLETIONS, completion("small", FIRST)),
]


def test_the_stand_in_does_the_same(fleet: Fleet) -> None:
    async def main() -> None:
        stand_in = VllmStandIn(model="small")
        async with serving(stand_in):
            await compare(stand_in.address, fleet.servers["small"].url, STEPS, ("/v1", "/version"))

    run(main(), LIMIT_S)


# ---- kvcached-launch ----


def test_launch(make_fleet: Callable[[], Fleet], models: Callable[[str], Path]) -> None:
    """One file for the engine and for the controller. The engine is run again, whichever of its processes is
    killed, and the controller finds it again."""
    fleet = make_fleet()
    plain = arguments_of(fleet).replace(" --enable-sleep-mode", "")
    server = fleet.add("one", models("llama"), arguments=plain)
    fleet.configure(
        router={"router_port": 0},
        sleep_manager={"auto_sleep_enabled": True, "idle_threshold_seconds": 3600},
        kvcached={"kvcached_max_cached_tokens": 2048},
    )
    begun = fleet.start()
    found = fleet.status("one")
    assert {
        key: found[key] for key in ("state", "healthy", "supervised", "restarts", "address", "error")
    } == {
        "state": "running",
        "healthy": True,
        "supervised": True,
        "restarts": 0,
        "address": server.url,
        "error": None,
    }
    assert begun.out == f"one is started: process {found['pid']}, {server.url}\n"
    assert fleet.launch("start").out == "one runs already\n"
    check_what_it_was_given(found["pid"])
    assert "Application startup complete" in fleet.log("one")
    said = tokens_of(server.ask("POST", COMPLETIONS, completion("one", FIRST))[1])
    assert fleet.used_bytes("one") > 0

    async def main() -> None:
        async with front_of(fleet, fleet.config, ["one"]) as made:
            assert await made.complete("one", FIRST) == said
            for restarts, of_engine in ((1, False), (2, True)):
                raw = await Raw.open(made.address, limit=1 << 24)
                body = completion("one", FIRST, MAX_TOKENS, stream=True)
                await raw.send("POST", COMPLETIONS, body, "Connection: close")
                await raw.reader.readuntil(b"data: ")
                os.kill(engine_core(fleet) if of_engine else fleet.record("one")["engine"][0], signal.SIGKILL)
                data = await raw.rest()
                # Without the engine vLLM's server says so in the stream, and ends it in order.
                assert (b'data: {"error": ' in data, b"data: [DONE]" in data) == (of_engine, of_engine)
                await raw.close()
                await made.is_so("one", "failed")
                await eventually(lambda n=restarts: fleet.record("one")["restarts"] == n, 60)  # type: ignore[misc]
                await asyncio.to_thread(fleet.serve, "one")
                await made.is_so("one", "awake")
                assert await made.complete("one", FIRST) == said
            assert fleet.status("one")["exit"] == "status 0"
            await made.sleep("one")
            fleet.gives_back("one")
            assert await made.complete("one", FIRST) == said

    run(main(), LIMIT_S)
    assert fleet.launch("stop").out == "one is stopped\n"
    assert (fleet.left(), fleet.used_bytes("one")) == ([], 0)
    assert fleet.launch("status").rc == 3


def check_what_it_was_given(pid: int) -> None:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--served-model-name") + 1] == "one"
    assert "--enable-sleep-mode" in words
    given = dict(
        word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0") if word
    )
    for name, value in {
        "ENABLE_KVCACHED": "true",
        "KVCACHED_IPC_NAME": "one",
        "KVCACHED_MAX_CACHED_TOKENS": "2048",
        "VLLM_SERVER_DEV_MODE": "1",
    }.items():
        assert given[name] == value, name


def engine_core(fleet: Fleet) -> int:
    """vLLM's process that schedules, by the name that it gives itself."""
    (found,) = [
        pid for pid in fleet.left() if Path(f"/proc/{pid}/comm").read_text().startswith("VLLM::EngineCor")
    ]
    return found
