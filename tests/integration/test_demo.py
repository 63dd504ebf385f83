# SPDX-License-Identifier: Apache-2.0
"""./dev demo and ./dev replay: they end well, and however they end, nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.broker import Site, eventually

SCRIPTS = Path(__file__).resolve().parents[1] / "replay"
SEED = int(os.environ.get("KVCACHED_TEST_SEED", time.time_ns() % 2**32))


class Script:
    """A running script, whose processes are known by a variable that they all inherit."""

    def __init__(self, site: Site, *command: str) -> None:
        self.mark = f"TEST_MARK={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [str(SCRIPTS / command[0]), *command[1:]],
            env=site.environment(KVCACHED_BUILD_DIR=str(site.build)) | {name: value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a process group, as in a terminal
            text=True,
            # A shell has its background jobs ignore it, and so would the script until its first line.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def processes(self) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def folders(self) -> list[Path]:
        name = f"kvcached-{self.process.pid}-*"
        return [*Path("/tmp").glob(name), *Path("/dev/shm").glob(name)]

    def check_nothing_left(self) -> None:
        def is_gone() -> bool:
            assert self.processes() == {}
            assert self.folders() == []
            return True

        eventually(is_gone, within=10)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def scripts() -> Iterator[list[Script]]:
    started: list[Script] = []
    yield started
    for script in started:
        script.end()


def start(scripts: list[Script], site: Site, *command: str) -> Script:
    script = Script(site, *command)
    scripts.append(script)
    return script


@pytest.mark.emulator
def test_demo(site: Site, scripts: list[Script]) -> None:
    """It says what it runs on, shows who holds what, and ends with both ways of sharing side by side."""
    script = start(scripts, site, "demo", "--seconds", "10")
    out, err = script.process.communicate(timeout=110)
    assert script.process.returncode == 0, err
    assert "emulating one of 80 GiB" in out
    assert "static: 4 GB for each of 3 engines" in out
    assert "elastic: 12 GB for all" in out
    assert "engine-0" in out.split("elastic: ")[0]
    for row in ("engine-0 code", "engine-1 chat", "engine-2 code"):
        (line,) = (line for line in out.splitlines() if line.startswith(row))
        assert line.split()[2] == line.split()[9] == "300", line
    script.check_nothing_left()


@pytest.mark.emulator
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", range(3))
def test_demo_ends_at_any_moment(
    site: Site, scripts: list[Script], signal_: signal.Signals, moment: int
) -> None:
    wait_s = random.Random(f"{SEED} {signal_} {moment}").uniform(0, 3)
    print(f"after {wait_s:.3f} s, KVCACHED_TEST_SEED={SEED}")
    script = start(scripts, site, "demo")
    with contextlib.suppress(subprocess.TimeoutExpired):
        script.process.wait(wait_s)
    begun = script.folders() != []
    if signal_ == signal.SIGINT:
        os.killpg(script.process.pid, signal_)
    else:
        script.process.send_signal(signal_)
    script.process.communicate(timeout=30)
    script.check_nothing_left()
    if signal_ != signal.SIGKILL and begun:
        assert script.process.returncode == 128 + signal_


@pytest.mark.parametrize("name", ["demo", "table"])
def test_interrupt_while_python_starts(site: Site, name: str) -> None:
    """Python itself may lose it. Here it waits from before the script's first line."""

    def interrupt() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has its background jobs ignore it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGINT)

    done = subprocess.run(
        [str(SCRIPTS / name)],
        env=site.environment(KVCACHED_BUILD_DIR=str(site.build)),
        capture_output=True,
        preexec_fn=interrupt,
        timeout=30,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stdout == done.stderr == b""


@pytest.mark.emulator
def test_table(site: Site, scripts: list[Script]) -> None:
    script = start(scripts, site, "table", "--requests", "20", "--gib", "3,4")
    out, err = script.process.communicate(timeout=110)
    assert script.process.returncode == 0, err
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[:4] for row in rows] == [
        [gib, "GiB", sharing, engine]
        for gib in ("3", "4")
        for sharing in ("static", "elastic")
        for engine in ("0", "1", "2", "all")
    ]
    assert [row[4] for row in rows] == ["20", "20", "20", "60"] * 4
    script.check_nothing_left()


@pytest.mark.emulator
def test_table_says_what_is_wrong(site: Site, scripts: list[Script]) -> None:
    broken = site.run / "broken.csv"
    broken.write_text("1,2\n")
    script = start(scripts, site, "table", "--gib", "2", str(broken))
    _, err = script.process.communicate(timeout=60)
    assert script.process.returncode == 1
    assert f"{broken}:1: not three fields" in err
    assert "Traceback" not in err
    script.check_nothing_left()


def test_table_compares(site: Site, scripts: list[Script]) -> None:
    """A model that says something else is noticed."""
    model = site.run / "model.py"
    model.write_text(
        "class Engine:\n"
        "    served = preempted = refused = peak = 0\n"
        "    ttft = [1.0]\n"
        "def read_trace(spec, slow, limit):\n"
        "    return open(spec).read()\n"
        "def replay(traces, total, mode, guarantee):\n"
        "    return [Engine() for t in traces]\n"
        "def percentile(values, p):\n"
        "    return values[0]\n"
    )
    script = start(
        scripts, site, "table", "--requests", "5", "--gib", "2", "--compare", str(model), "gen:code"
    )
    out, _ = script.process.communicate(timeout=60)
    assert script.process.returncode == 1
    assert "2 GiB static, engine 0: served 5, model 0" in out
    assert "TTFT p50" in out
    script.check_nothing_left()


def test_only_signals_are_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that is cancelled by a mistake of its own says that, not that it was interrupted."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    stage = importlib.import_module("stage")

    async def cancelled() -> int:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        stage.run(cancelled)
