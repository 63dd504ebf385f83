# SPDX-License-Identifier: Apache-2.0
"""The controller, as a process, in front of SGLang's own servers, which kvcached-launch has started; memory
is a daemon's, of an emulated GPU. sglang_server.py says what is replaced in them.

Routes, streams, errors, metrics, the pause and what waits meanwhile are SGLang's own; KV memory is
kvcached's, and comes back to the daemon when an engine sleeps. Answers are compared with what the server says
when it is asked directly, before it has ever slept. They are short: SGLang's kernels for Triton are
interpreted here."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.live import Raw, eventually, post, run, serving
from controller.standins.sglang import SglangStandIn
from engines.conftest import HERE
from engines.serving import MAX_TOKENS, Fleet, compare, completion, fleets, front, text_of
from engines.vllm_support import prompts
from harness.broker import eventually as eventually_sync

pytestmark = [pytest.mark.emulator, pytest.mark.timeout(900)]

LIMIT_S = 600
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ASKED = list(prompts(0, 50, 60).values())
FIRST = ASKED[0]
TOKENS = 6
NAMES = ("kept", "lost")
PLUGINS = "[sglang.srt.plugins]\nkvcached = kvcached.integration.sglang.plugin:register\n"


@pytest.fixture(scope="module")
def servers(build_dir: Path, package: Path, sglang_python: str, tmp_path_factory: Any) -> Iterator[Fleet]:
    """kept: its weights are copied when they are released; lost: they are not."""
    folder = tmp_path_factory.mktemp("sglang")
    model = folder / "llama"
    subprocess.run([sglang_python, str(HERE / "tiny_llama.py"), str(model)], check=True, capture_output=True)
    template = folder / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    programs = folder / "venv/bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(
        "#!/bin/sh\n"
        '[ "$1 $2" = "-m sglang.launch_server" ] || exit 2\n'
        f'shift 2\nexec {sglang_python} -m engines.sglang_server "$@"\n'
    )
    (programs / "python").chmod(0o755)
    arguments = f"--device cpu --chat-template {template} --enable-metrics --decode-log-interval 1"
    with fleets(build_dir, package) as make:
        fleet = make(sglang_python, folder / "venv", PLUGINS)
        fleet.environment = {"TRITON_INTERPRET": "1", "SGLANG_PLUGINS": "kvcached"}
        for name, more in (("kept", "--enable-weights-cpu-backup"), ("lost", "")):
            more = f"{arguments} --enable-memory-saver {more}"
            fleet.add(name, model, engine="sglang", arguments=more)
        fleet.configure()
        fleet.start()
        yield fleet


@pytest.fixture(scope="module")
def said(servers: Fleet) -> list[str]:
    """What an engine says to ASKED that has never slept."""
    server = servers.servers["kept"]
    answers = [server.ask("POST", COMPLETIONS, completion("kept", prompt, TOKENS)) for prompt in ASKED]
    assert {status for status, _ in answers} == {200}
    return [text_of(data) for _, data in answers]


@pytest.fixture
def fleet(servers: Fleet, said: list[str]) -> Fleet:
    """The servers, awake and without requests, however the test before has left them."""
    del said
    for server in servers.servers.values():
        servers.serve_again(server.name)
        if server.ask("GET", "/ready")[0] != 200:
            server.ask("POST", "/resume_memory_occupation", {})
            server.ask("POST", "/update_weights_from_disk", {"model_path": str(server.model)})
            server.ask("POST", "/continue_generation", {})
            assert server.ask("GET", "/health_generate")[0] == 200
        eventually_sync(lambda server=server: server.running() == 0)  # type: ignore[misc]
    return servers


def named(data: bytes) -> Any:
    """An answer, without what is different in each."""
    answer = json.loads(data)
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


def chat(model: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "How are you?"}]
    return {
        "model": model,
        "messages": messages,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


def test_answers_and_errors_are_the_engines_own(fleet: Fleet, said: list[str]) -> None:
    server = fleet.servers["kept"]

    async def main() -> None:
        async with front(fleet, NAMES) as made:
            for path, body, status in (
                (COMPLETIONS, completion("kept", FIRST, TOKENS), 200),
                (CHAT, chat("kept"), 200),
                (COMPLETIONS, completion("kept", FIRST, tokens=-1), 400),
                (COMPLETIONS, {"model": "kept"}, 400),
                (CHAT, {"model": "kept", "messages": 3}, 400),
            ):
                answered, data = await post(made.session, made.address + path, body)
                direct = server.ask("POST", path, body)
                assert (answered, named(data)) == (status, named(direct[1])), (path, body)
            streamed = await made.answer("kept", FIRST, TOKENS, stream=True)
            assert text_of(streamed) == said[0]
            assert streamed.count(b"data: ") > 3

    run(main(), LIMIT_S)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_who_leaves_has_his_request_aborted(fleet: Fleet, stream: bool) -> None:
    """And of a stream each chunk comes when it is there: the first one long before the last is made."""
    server = fleet.servers["kept"]
    name = "sglang:num_aborted_requests_total"

    async def main() -> None:
        async with front(fleet, NAMES) as made:
            before = server.metric(name)
            raw = await Raw.open(made.address)
            await raw.send("POST", COMPLETIONS, completion("kept", FIRST, MAX_TOKENS, stream=stream))
            if stream:
                await raw.reader.readuntil(b"data: ")
            await eventually(lambda: server.running() == 1)
            raw.abort()
            await eventually(lambda: server.metric(name) == before + 1)
            await eventually(lambda: server.running() == 0)

    run(main(), LIMIT_S)


@pytest.mark.parametrize("name", NAMES)
def test_sleep_gives_memory_back_and_a_request_wakes(fleet: Fleet, said: list[str], name: str) -> None:
    """Also where weights that were released have to be loaded again."""
    server = fleet.servers[name]

    async def main() -> None:
        async with front(fleet, NAMES) as made:
            assert text_of(await made.answer(name, FIRST, TOKENS)) == said[0]
            assert fleet.used_bytes(name) > 0
            await made.sleep(name)
            assert server.ask("GET", "/ready")[0] == 503
            fleet.gives_back(name)
            other = next(other for other in NAMES if other != name)
            assert text_of(await made.answer(other, FIRST, TOKENS)) == said[0]
            assert await made.state(name) == "asleep"
            assert text_of(await made.answer(name, FIRST, TOKENS, stream=True)) == said[0]
            assert (await made.state(name), server.ask("GET", "/ready")[0]) == ("awake", 200)
            assert fleet.used_bytes(name) > 0

    run(main(), LIMIT_S)


def test_weights_that_are_lost_are_needed(fleet: Fleet, said: list[str]) -> None:
    """The test above sees whether they are loaded."""
    server = fleet.servers["lost"]
    for path, body in (
        ("/pause_generation", {"mode": "retract"}),
        ("/release_memory_occupation", {}),
        ("/resume_memory_occupation", {}),
        ("/continue_generation", {}),
    ):
        assert server.ask("POST", path, body)[0] == 200
    garbled = text_of(server.ask("POST", COMPLETIONS, completion("lost", FIRST, TOKENS))[1])
    assert server.ask("POST", "/update_weights_from_disk", {"model_path": str(server.model)})[0] == 200
    again = text_of(server.ask("POST", COMPLETIONS, completion("lost", FIRST, TOKENS))[1])
    assert (garbled == said[0], again == said[0]) == (False, True)


def test_what_runs_or_comes_while_it_sleeps_is_answered_afterwards(fleet: Fleet, said: list[str]) -> None:
    """Of requests that the controller doesn't know of. Of its own ones none is under way then."""
    server = fleet.servers["kept"]

    async def main() -> None:
        async with front(fleet, NAMES) as made:
            running = asyncio.create_task(
                post(made.session, server.url + COMPLETIONS, completion("kept", FIRST, 100))
            )
            await eventually(lambda: server.running() == 1)
            await made.sleep("kept")
            late = asyncio.create_task(
                post(made.session, server.url + COMPLETIONS, completion("kept", ASKED[1], TOKENS))
            )
            fleet.gives_back("kept")
            assert text_of(await made.answer("kept", ASKED[2], TOKENS)) == said[2]
            status, data = await running
            assert (status, json.loads(data)["usage"]["completion_tokens"]) == (200, 100)
            assert text_of(data).startswith(said[0])
            status, data = await late
            assert (status, text_of(data)) == (200, said[1])

    run(main(), LIMIT_S)


def test_fifty_requests_wake_it_once(fleet: Fleet, said: list[str]) -> None:
    """By what the engine logs of it."""

    def wakes() -> int:
        return fleet.launch("logs", "kept", "--lines", "1000000").out.count("POST /resume_memory_occupation ")

    async def main() -> None:
        async with front(fleet, NAMES) as made:
            await made.sleep("kept")
            before = wakes()
            answers = await asyncio.gather(*(made.answer("kept", prompt, TOKENS) for prompt in ASKED))
            assert [text_of(data) for data in answers] == said
            assert wakes() - before == 1
            assert await made.metric("kvcached_controller_wake_seconds_count", model="kept") == 1

    run(main(), LIMIT_S)


def test_who_is_idle_sleeps_by_himself(fleet: Fleet, said: list[str]) -> None:
    settings = {"auto_sleep_enabled": True, "idle_threshold_seconds": 1, "check_interval_seconds": 1}

    async def main() -> None:
        async with front(fleet, NAMES, settings) as made:
            for i in range(2):
                for name in NAMES:
                    assert text_of(await made.answer(name, ASKED[i], TOKENS)) == said[i]
                for name in NAMES:
                    await made.is_so(name, "asleep")
                    fleet.gives_back(name)

    run(main(), LIMIT_S)


def test_one_that_dies_is_started_again_and_found(fleet: Fleet, said: list[str]) -> None:
    """Of what the controller's page says that it dies of: memory that is resumed while it is there."""
    server = fleet.servers["lost"]

    async def main() -> None:
        async with front(fleet, ["lost"]) as made:
            restarts = fleet.record("lost")["restarts"]
            assert await asyncio.to_thread(server.ask, "POST", "/resume_memory_occupation", {}) == (0, b"")
            await made.is_so("lost", "failed")
            await eventually(lambda: fleet.record("lost")["restarts"] == restarts + 1, 60)
            await asyncio.to_thread(fleet.serve, "lost")
            await made.is_so("lost", "awake")
            assert text_of(await made.answer("lost", FIRST, TOKENS)) == said[0]

    run(main(), LIMIT_S)


STEPS: list[tuple[str, str, Any]] = [
    ("GET", "/health", None),
    ("GET", "/ready", None),
    ("GET", "/model_info", None),
    ("GET", "/get_model_info", None),
    ("GET", "/server_info", None),
    ("GET", "/get_server_info", None),
    ("GET", "/v1/models", None),
    ("GET", "/nowhere", None),
    ("GET", COMPLETIONS, None),
    ("POST", COMPLETIONS, completion("lost", FIRST, TOKENS)),
    ("POST", COMPLETIONS, completion("lost", FIRST, TOKENS, stream=True)),
    ("POST", CHAT, chat("lost")),
    ("POST", CHAT, chat("lost", stream=True)),
    ("POST", COMPLETIONS, completion("nobody", FIRST)),
    ("POST", COMPLETIONS, {"model": "lost"}),
    ("POST", CHAT, {"model": "lost"}),
    ("POST", COMPLETIONS, "{"),
    ("POST", COMPLETIONS, "[]"),
    ("POST", "/pause_generation", {"mode": "gently"}),
    ("POST", "/pause_generation", {"mode": "retract"}),
    ("GET", "/ready", None),
    ("POST", "/release_memory_occupation", {}),
    ("GET", "/ready", None),
    ("GET", "/server_info", None),
    ("POST", "/resume_memory_occupation", {}),
    ("GET", "/ready", None),
    ("POST", "/update_weights_from_disk", {}),
    ("POST", "/update_weights_from_disk", {"model_path": "/nowhere"}),
    ("POST", "/continue_generation", {}),
    ("GET", "/ready", None),
    ("GET", "/health_generate", None),
    ("GET", "/ready", None),
    ("POST", COMPLETIONS, completion("lost", FIRST, TOKENS)),
]


def test_the_stand_in_does_the_same(fleet: Fleet) -> None:
    server = fleet.servers["lost"]

    async def main() -> None:
        stand_in = SglangStandIn(model="lost", cpu_backup=False)
        async with serving(stand_in):
            await compare(stand_in.address, server.url, STEPS, ("/v1", "_info", "_weights"))

    run(main(), LIMIT_S)
    assert server.ask("POST", "/update_weights_from_disk", {"model_path": str(server.model)})[0] == 200
