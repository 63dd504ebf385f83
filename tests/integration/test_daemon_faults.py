# SPDX-License-Identifier: Apache-2.0
"""Every driver call of a short life fails once, at every index: the daemon goes on or, before it serves, says
in one sentence why it doesn't start; and the ledger always says what the device says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs, Site, eventually, run_program
from harness.control import books_are_right, open_control
from harness.raw import RawPeer, start_raw

pytestmark = pytest.mark.emulator

CONFIG = "[daemon]\nidle=0.1\nreserve=8M\n"
ERROR = 999


def try_to_take(engine: RawPeer, region: int, pages: int) -> list[int]:
    """The only refusal that a failing driver may cause is one that says so."""
    number = engine.post("Take", region=region, pages=pages)
    extents: list[int] = []
    while True:
        answer = engine.next()
        if answer.name == "Refused":
            assert answer["error"] == "ERROR_DRIVER", answer.text
            return []
        extents += answer.numbers("extents")
        engine.post("GrantAck", number)
        if answer.number("remaining") == 0:
            return extents


def live(programs: Programs, daemon: Daemon) -> None:
    """Memory is lent, returned, lent again; one engine leaves, one is killed; the pool is given back."""
    control = open_control(programs, daemon)
    first, second = start_raw(programs, daemon, "first"), start_raw(programs, daemon, "second")
    first.open()
    second.open()
    extents = try_to_take(first, first.open_region(1, 1), 2)
    second_extents = try_to_take(second, second.open_region(1), 3)
    if extents:
        first.give_back(*extents)
    third = try_to_take(second, second.open_region(0, 1), 1)
    if second_extents:
        second.give_back(*second_extents[:2])
    first.close()
    second.kill()
    eventually(lambda: books_are_right(control) and control.request("Info").number("instances") == 0)
    eventually(lambda: control.request("Info").number("held_bytes") == 0)
    assert books_are_right(control)
    assert third is not None
    control.close()
    daemon.stop()


def calls_of(path: Path) -> Counter[str]:
    calls: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        calls.update(json.loads(line)["calls"])
    return calls


def fails(programs: Programs, fault: str) -> None:
    environment = {"KVCACHED_EMULATE_FAULTS": f"{fault}={ERROR}"}
    live(programs, programs.daemon(config=CONFIG, environment=environment))


@pytest.mark.parametrize("function", ["cuMemCreate", "cuMemExportToShareableHandle", "cuMemRelease"])
def test_every_call_while_serving(programs: Programs, site: Site, function: str) -> None:
    stats = site.run / "stats"
    live(programs, programs.daemon(config=CONFIG, environment={"KVCACHED_EMULATE_STATS": str(stats)}))
    n_calls = calls_of(stats)[function]
    assert n_calls > 5
    for index in range(1, n_calls + 1):
        fails(programs, f"{function}:{index}")


def test_free_memory_cannot_be_read(programs: Programs) -> None:
    """At the start that is fatal; later it is asked for again."""
    for calls in ("2", "3", "4", "5", "2-5", "4-8"):
        fails(programs, f"nvmlDeviceGetMemoryInfo:{calls}")


def test_free_memory_can_never_be_read_again(programs: Programs) -> None:
    """What there is serves; whoever waits for memory that would have to be created is told after some
    patience."""
    environment = {"KVCACHED_EMULATE_FAULTS": f"nvmlDeviceGetMemoryInfo:2+={ERROR}"}
    daemon = programs.daemon(config="[daemon]\nidle=60\n", environment=environment)
    control = open_control(programs, daemon)
    engine = start_raw(programs, daemon, "a")
    engine.open()
    region = engine.open_region()
    engine.give_back(*engine.take(region))
    # A pool has free memory looked at as soon as what was read at the start is too old to create on.
    eventually(lambda: "The driver doesn't say how much memory is free" in daemon.log())
    assert engine.take(region)
    for _ in range(3):
        engine.post("Take", region=region, pages=1)
    for _ in range(3):
        engine.next().check_refused("ERROR_DRIVER", "has not given")
    assert f"used_bytes={2 << 20} " in control.request("Info", instance="a").text
    assert books_are_right(control)


def test_every_call_at_the_start(programs: Programs, site: Site) -> None:
    stats = site.run / "stats"
    daemon = programs.daemon(environment={"KVCACHED_EMULATE_STATS": str(stats)})
    command = daemon.command
    daemon.stop()
    calls = calls_of(stats)
    assert sum(calls.values()) > 5
    calls.update({"nvmlInit": 1, "nvmlDeviceGetHandleByUUID": 1, "nvmlDeviceGetMemoryInfo": 1})
    for function, n_calls in sorted(calls.items()):
        for index in range(1, n_calls + 1):
            check_start(site, command, {"KVCACHED_EMULATE_FAULTS": f"{function}:{index}={ERROR}"})


def test_without_management_library(programs: Programs) -> None:
    """A context is taken to ask for free memory, and the log says so."""
    daemon = programs.daemon(
        config=CONFIG, environment={"KVCACHED_EMULATE_FAULTS": f"nvmlDeviceGetHandleByUUID:1={ERROR}"}
    )
    assert "a context was taken" in daemon.log()
    live(programs, daemon)


def check_start(site: Site, command: list[str], environment: dict[str, str]) -> None:
    """It starts all the same (and is stopped by the time limit), or says why not."""
    result = run_program(["timeout", "--preserve-status", "0.3", *command], site.environment(**environment))
    if result.rc == 0:
        return
    assert result.rc == 1, (environment, result)
    assert result.err.count("\n") == 1, (environment, result)
    assert result.err.startswith("kvcachedd: error: ")


def test_no_memory_ever(programs: Programs) -> None:
    """A driver that gives nothing is a refusal after some patience, and nothing is charged."""
    daemon = programs.daemon(environment={"KVCACHED_EMULATE_FAULTS": "cuMemCreate:1+=2"})
    control = open_control(programs, daemon)
    engine = start_raw(programs, daemon, "a")
    engine.open()
    refusal = engine.request("Take", region=engine.open_region(), pages=1)
    refusal.check_refused("ERROR_DRIVER", "has not given")
    assert "used_bytes=0" in control.request("Info", instance="a").text
    assert books_are_right(control)
