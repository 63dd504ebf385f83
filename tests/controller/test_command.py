# SPDX-License-Identifier: Apache-2.0
"""kvcached-controller as a process: its command line, signals, and files that change under it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from controller.live import Raw, eventually, post, run, serving
from controller.process import COMMAND, Process, controller, environment, write_config
from controller.standins.answers import completion, stream_text, whole_text
from controller.standins.engine import Behaviour
from controller.standins.vllm import VllmStandIn

COMPLETIONS = "/v1/completions"
AT_ONCE = {"min_sleep_duration": 0, "min_awake_seconds": 0}


def ask_program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


# ---- The command line ----


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.yaml"
    bad = tmp_path / "bad.yaml"
    bad.write_text("router: {router_port: many}\ninstances: []\n")
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        f"router: {{api_keys_file: {tmp_path}/keys}}\n"
        "instances: [{name: a, model: a, engine: vllm, url: 'http://127.0.0.1:1'}]\n"
    )
    for config, sentence in (
        (nowhere, f"{nowhere} cannot be read: No such file or directory"),
        (bad, f'{bad}:1: router.router_port is "many", and must be a whole number from 0 to 65535'),
        (keys, f"{tmp_path}/keys cannot be read: No such file or directory"),
    ):
        for more in ((), ("--check-config",)):
            done = ask_program("--config", str(config), *more)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == f"kvcached-controller: {sentence}\n"
    assert ask_program().returncode == 2
    assert ask_program("--config", str(bad), "--port", "http").returncode == 2


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("instances: [{name: a, model: a, engine: vllm, url: 'http://127.0.0.1:1'}]\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ask_program("--config", str(config), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"kvcached-controller: Nobody can listen on 127.0.0.1:{port}: Address already in use\n"
    )


def test_only_a_check(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("instances: [{name: a, model: a, engine: vllm, url: 'http://127.0.0.1:1'}]\n")
    done = ask_program("--config", str(config), "--check-config")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- The end ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_finished(tmp_path: Path, number: signal.Signals) -> None:
    """A stream goes on, one that waits for a model to wake is served, and nobody else is let in."""

    async def main() -> None:
        held = VllmStandIn(model="held", behaviour=Behaviour(hold_at=2))
        sleepy = VllmStandIn(model="sleepy", behaviour=Behaviour(wake_s=0.5))
        async with serving(held, sleepy), aiohttp.ClientSession() as session:
            config = write_config(
                tmp_path / "c.yaml",
                {"held": held, "sleepy": sleepy},
                sleep_manager=AT_ONCE,
            )
            async with controller(config) as process:
                address = process.address()
                await process.says("Model sleepy is awake")
                assert (await post(session, f"{address}/action/sleep/sleepy", {}))[0] == 200
                kept = await Raw.open(address)
                await kept.send("GET", "/health")
                assert (await kept.head())[0] == 200
                streaming = asyncio.create_task(
                    post(session, address + COMPLETIONS, completion("held", "first"))
                )
                waiting = asyncio.create_task(
                    post(session, address + COMPLETIONS, completion("sleepy", "second"))
                )
                await eventually(lambda: held.counters.in_flight == 1 and sleepy.is_at_it())
                process.process.send_signal(number)
                await process.says("Stopping")
                with pytest.raises(ConnectionRefusedError):
                    await Raw.open(address)
                status, data = await waiting
                assert (status, stream_text(data)) == (200, whole_text("second", 4))
                assert process.process.returncode is None
                held.release()
                status, data = await streaming
                assert (status, stream_text(data)) == (200, whole_text("first", 4))
                assert await process.end() == 0
                await kept.close()

    run(main())


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    async def main() -> None:
        held = VllmStandIn(model="held", behaviour=Behaviour(hold_at=2))
        async with serving(held):
            async with controller(write_config(tmp_path / "c.yaml", {"held": held})) as process:
                raw = await Raw.open(process.address())
                await raw.send("POST", COMPLETIONS, completion("held", "x"))
                await eventually(lambda: held.counters.in_flight == 1)
                process.process.terminate()
                await process.says("Stopping")
                process.process.terminate()
                assert await process.end() == 0
                await raw.close()
            await eventually(lambda: held.counters.in_flight == 0)

    run(main())


SLOW_DAEMON = """
import sys, threading
from kvcached.controller import main, reservation
def make(*_):
    print("The daemon is asked", file=sys.stderr, flush=True)
    threading.Event().wait(60)
reservation.DaemonReserver.__init__.__defaults__ = (make,)
sys.exit(main.main())
"""


def test_a_second_signal_does_not_wait_for_a_daemon(tmp_path: Path) -> None:
    """Nor for the thread that does."""

    async def main() -> None:
        sleepy = VllmStandIn(model="sleepy")
        async with serving(sleepy), aiohttp.ClientSession() as session:
            config = write_config(tmp_path / "c.yaml", {"sleepy": sleepy}, sleep_manager=AT_ONCE)
            text = json.loads(config.read_text())
            text["instances"][0]["weight_bytes"] = "1G"
            config.write_text(json.dumps(text))
            async with controller(config, command=[sys.executable, "-c", SLOW_DAEMON]) as process:
                await process.says("Model sleepy is awake")
                assert (await post(session, f"{process.address()}/action/sleep/sleepy", {}))[0] == 200
                raw = await Raw.open(process.address())
                await raw.send("POST", COMPLETIONS, completion("sleepy", "x"))
                await process.says("The daemon is asked")
                process.process.terminate()
                await process.says("Stopping")
                process.process.terminate()
                assert await process.end() == 0
                await raw.close()

    run(main())


# ---- Changes ----


async def models_of(process: Process) -> list[str]:
    url = f"{process.address()}/v1/models"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return [card["id"] for card in (await answer.json())["data"]]


def test_reload(tmp_path: Path) -> None:
    """Models come and go; an error leaves all as it was, and is said."""

    async def main() -> None:
        first, second = VllmStandIn(model="first"), VllmStandIn(model="second")
        async with serving(first, second):
            config = write_config(tmp_path / "c.yaml", {"first": first})
            async with controller(config) as process:
                write_config(config, {"first": first, "second": second})
                process.process.send_signal(signal.SIGHUP)
                await process.says("The configuration was read")
                assert await models_of(process) == ["first", "second"]
                config.write_text("instances: 3\n")
                process.process.send_signal(signal.SIGHUP)
                await process.says(f"The old configuration stays: {config}:1: instances")
                assert await models_of(process) == ["first", "second"]
                write_config(config, {"second": second}, router={"router_port": 1})
                process.process.send_signal(signal.SIGHUP)
                await process.says("Other addresses and ports need a restart")
                await eventually(lambda: process.log.count("The configuration was read") == 2)
                assert await models_of(process) == ["second"]

    run(main())


def test_discovery_by_file(tmp_path: Path) -> None:
    """Replicas appear and vanish as the file says; one that isn't right changes nothing."""

    async def main() -> None:
        own, found = VllmStandIn(model="own"), VllmStandIn(model="found")
        async with serving(own, found):
            discovered = tmp_path / "found.yaml"
            discovered.write_text("instances: []\n")
            router = {"router_port": 0, "discovery_file": str(discovered)}
            async with controller(write_config(tmp_path / "c.yaml", {"own": own}, router=router)) as process:
                assert await models_of(process) == ["own"]
                replace_file(
                    discovered, [{"name": "f", "model": "found", "engine": "vllm", "url": found.address}]
                )
                await eventually(lambda: has_models(process, ["own", "found"]))
                replace_text(discovered, "instances: [{name: f}]\n")
                await process.says("What was discovered before stays")
                assert await models_of(process) == ["own", "found"]
                replace_file(discovered, [])
                await eventually(lambda: has_models(process, ["own"]))

    run(main())


async def has_models(process: Process, names: list[str]) -> bool:
    return await models_of(process) == names


def replace_file(path: Path, instances: list[dict[str, str]]) -> None:
    replace_text(path, json.dumps({"instances": instances}))


def replace_text(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


# ---- Logs ----


def test_the_log_as_json(tmp_path: Path) -> None:
    """One object a line, whatever a client sends; requests by their ids."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with serving(stand_in), aiohttp.ClientSession() as session:
            config = write_config(tmp_path / "c.yaml", {"a": stand_in})
            async with controller(config, "--log-format", "json") as process:
                url = process.address() + COMPLETIONS
                assert (await post(session, url, completion("a", "x"), X_Request_Id="mine"))[0] == 200
                async with session.get(f"{process.address()}/a%0A%7B%22level%22"):
                    pass
                process.process.terminate()
                assert await process.end() == 0
            lines = [json.loads(line) for line in process.log.splitlines()]
            (mine,) = [line for line in lines if line.get("request_id") == "mine"]
            assert (mine["status"], mine["model"], mine["engine"]) == (200, "a", stand_in.address)
            assert {line["level"] for line in lines} == {"info"}

    run(main())
