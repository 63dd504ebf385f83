# SPDX-License-Identifier: Apache-2.0
"""What kvctl tells of the past and the reasons: events, why, watch, reload, version; and several GPUs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from harness.broker import Daemon, Programs, Result, Site, eventually
from harness.control import open_control
from harness.listeners import CHALLENGE_REPLY, Challenging, Refusing, Silent
from harness.raw import start_holder, start_raw

DONE, FAILED, USAGE, NO_DAEMON = 0, 1, 2, 3
MIB = 1 << 20

Kvctl = Callable[..., Result]


@pytest.fixture
def kvctl(programs: Programs, daemon: Daemon) -> Kvctl:
    def run(*words: str) -> Result:
        return programs.kvctl(*words, daemon=daemon)

    return run


def lines_of(result: Result) -> list[dict[str, Any]]:
    assert (result.rc, result.err) == (DONE, ""), result
    return [json.loads(line) for line in result.out.splitlines()]


def kinds(result: Result) -> list[str]:
    return [line["kind"] for line in lines_of(result)]


@pytest.fixture
def running(site: Site, daemon: Daemon) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """kvctl as it goes on, by its words; ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket), *words]
        program = subprocess.Popen(
            command, env=site.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(program)
        return program

    yield start
    for program in started:
        program.kill()
        program.communicate()


def stream(program: subprocess.Popen[str]) -> IO[str]:
    assert program.stdout
    return program.stdout


# ---- Events ----


def test_a_life_in_events(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine = start_holder(programs, daemon, "a", pages=4)
    kvctl("limit", "a", "2M")
    engine.kill()
    eventually(lambda: "freed" in kinds(kvctl("events", "--json")))
    told = lines_of(kvctl("events", "--json", "a"))
    assert [line["kind"] for line in told] == [
        "joined",
        "limit",
        "over-limit",
        "lost",
        "within-limit",
        "freed",
    ]
    assert [line["number"] for line in told] == sorted({line["number"] for line in told})
    joined, limit, over, lost, _, _ = told
    assert (joined["pid"], joined["ipc"], joined["gpu"]) == (engine.pid, "a", 0)
    assert limit["bytes"] == 2 * MIB
    assert over["bytes"] == 6 * MIB
    assert (lost["pid"], lost["bytes"]) == (engine.pid, 8 * MIB)
    assert kinds(kvctl("events", "--json"))[0] == "started"
    assert kvctl("events", "other").out == ""
    text = kvctl("events").out
    assert re.search(
        rf" lost +uid:{os.getuid()}/a  pid {engine.pid}  A process has \w+, and held 8.00 MB\n", text
    )


def test_names_of_other_domains_are_others(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    control = open_control(programs, daemon)
    control.request("SetLimit", instance="tenant/a", bytes=MIB)
    control.request("SetLimit", instance="uid:7/a", bytes=MIB)
    assert len(lines_of(kvctl("events", "--json", "a"))) == 2
    (line,) = lines_of(kvctl("events", "--json", "tenant/a"))
    assert line["domain"] == "tenant"


def test_events_are_followed(
    programs: Programs, daemon: Daemon, running: Callable[..., subprocess.Popen[str]]
) -> None:
    program = running("events", "--follow", "--json")
    assert json.loads(stream(program).readline())["kind"] == "started"
    engine = start_raw(programs, daemon, "a")
    engine.open()
    assert json.loads(stream(program).readline())["kind"] == "joined"
    engine.close()
    assert json.loads(stream(program).readline())["kind"] == "left"
    daemon.stop()
    assert json.loads(stream(program).readline())["kind"] == "stopping"
    assert program.wait(30) == FAILED
    assert program.stderr
    assert program.stderr.read() == "kvctl: the daemon is stopping\n"


def test_one_waits_at_a_time(programs: Programs, daemon: Daemon) -> None:
    control = open_control(programs, daemon, features=4)
    last = control.request("Events").number("last")
    control.post("Events", after=last, wait=1)
    control.request("Events", after=last, wait=1).check_refused("ERROR_INVALID", "waits already")
    other = open_control(programs, daemon, features=4)
    other.request("SetLimit", instance="a", bytes=MIB)
    answer = control.next()
    assert answer.name == "EventsReply", answer.text
    assert "EVENT_LIMIT" in answer.text
    assert answer.number("last") == last + 1


def test_numbers_of_another_life(programs: Programs, daemon: Daemon) -> None:
    """Who follows with a number that this daemon has not come to is told at once."""
    control = open_control(programs, daemon, features=4)
    answer = control.request("Events", after=1 << 40, wait=1)
    assert answer.number("last") == 1
    assert "events={" not in answer.text


def test_who_follows_and_goes(programs: Programs, daemon: Daemon) -> None:
    control = open_control(programs, daemon, features=4)
    control.post("Events", after=control.request("Events").number("last"), wait=1)
    control.kill()
    other = open_control(programs, daemon, features=4)
    other.request("SetLimit", instance="a", bytes=MIB)
    assert other.request("Events").number("last") == 2


def test_operations_are_a_feature(programs: Programs, daemon: Daemon) -> None:
    control = open_control(programs, daemon)
    assert control.request("Events").name == "Refused"
    assert control.next().name == "closed"


def test_more_events_than_are_kept(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    control = open_control(programs, daemon)
    for i in range(1500):
        control.request("SetLimit", instance="a", bytes=i)
    told = lines_of(kvctl("events", "--json"))
    assert [line["number"] for line in told] == [1, *range(1501 - 1022, 1502)]


# ---- Why ----


def test_why(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine = start_holder(programs, daemon, "a", pages=4)
    kvctl("limit", "a", "2M")
    reasons = json.loads(kvctl("why", "--json", "a").out)
    (part,) = reasons["parts"]
    assert (part["holding"], part["bytes"], part["peer"]["pid"]) == ("used", 8 * MIB, engine.pid)
    assert reasons["instance"]["used_bytes"] == 8 * MIB
    assert reasons["limits"][0] == {"source": "admin", "bytes": 2 * MIB}
    assert reasons["limits"][-1]["source"] == "budget"
    assert reasons["over_limit_for_ms"] >= 0
    assert reasons["frozen_for_ms"] is None
    text = kvctl("why", "a").out
    assert text.startswith(f"uid:{os.getuid()}/a uses 8.00 MB of 2.00 MB\n")
    assert f"used           8.00 MB  in use; pid {engine.pid}; for " in text
    assert "It is over its limit, so nothing more is granted to it, for " in text


def test_why_of_nobody(kvctl: Kvctl) -> None:
    result = kvctl("why", "nobody")
    assert (result.rc, result.out, result.err) == (FAILED, "", "kvctl: There is no instance nobody\n")


# ---- Watch ----


def test_watch(programs: Programs, daemon: Daemon, running: Callable[..., subprocess.Popen[str]]) -> None:
    program = running("watch", "-n", "0.1", "a")
    assert stream(program).readline() == "There is no instance a\n"
    programs.kvctl("limit", "a", "512M", daemon=daemon)
    lines = iter(stream(program).readline, "")
    line = next(line for line in lines if line.startswith("a "))
    assert line.split() == ["a", "512.00", "MB", "0", "B", "0.0", "%"]
    program.send_signal(signal.SIGINT)
    assert program.wait(30) == -signal.SIGINT


def test_watch_json(
    programs: Programs, daemon: Daemon, running: Callable[..., subprocess.Popen[str]]
) -> None:
    programs.kvctl("limit", "a", "1G", daemon=daemon)
    program = running("watch", "--json")
    (instance,) = json.loads(stream(program).readline())
    assert instance["ipc"] == "a"
    stream(program).close()
    assert program.wait(30) != DONE


@pytest.fixture
def several(programs: Programs, site: Site) -> Iterator[list[Daemon]]:
    """Daemons of GPU 0 and 2, each with an instance, and what refuses everybody at the socket of GPU 1."""
    folder = site.run / "kvcached"
    folder.mkdir()
    daemons = []
    for gpu in (0, 2):
        daemon = programs.daemon(
            "1G,1G,1G",
            name=f"gpu{gpu}",
            arguments=("--gpu", str(gpu)),
            socket_path=folder / f"gpu{gpu}.sock",
        )
        programs.kvctl("limit", f"on-{gpu}", "1M", daemon=daemon)
        daemons.append(daemon)
    with Refusing(folder / "gpu1.sock.ctl", "Nobody may look"):
        yield daemons


@pytest.fixture
def watching(site: Site) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """kvctl --all watch, with these words."""
    environment = site.environment(XDG_RUNTIME_DIR=str(site.run), RUNTIME_DIRECTORY="")
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [str(site.program("kvctl/kvctl")), "--all", "watch", "-n", "0.1", *words]
        pipe = subprocess.PIPE
        program = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        started.append(program)
        return program

    yield start
    for program in started:
        program.kill()
        program.communicate()


def test_watch_all(
    programs: Programs, several: list[Daemon], watching: Callable[..., subprocess.Popen[str]]
) -> None:
    """What cannot be looked at is one line in its place, with the reason, for as long as that is so."""
    program = watching()
    lines = iter(stream(program).readline, "")

    def look() -> list[str]:
        """One look, without the heads of its tables: two empty lines end it."""
        shown: list[str] = []
        while shown[-1:] != [""] or len(shown) < 2 or not shown[-2].startswith(("on-2", "GPU 2: ")):
            line = next(lines).rstrip("\n")
            if not line.startswith("IPC "):
                shown.append(line.split("  ")[0])
        return shown

    refused = ["GPU 0:", "on-0", "", "GPU 1: unknown. Nobody may look; trying again", ""]
    assert look() == look() == [*refused, "GPU 2:", "on-2", ""]
    several[1].stop()
    gone = f"GPU 2: unknown. No daemon listens at {several[1].control}; trying again"
    assert eventually(lambda: look() == [*refused, gone, ""])
    again = programs.daemon("1G,1G,1G", name="gpu2", arguments=("--gpu", "2"), socket_path=several[1].socket)
    assert programs.kvctl("limit", "on-2", "1M", daemon=again).rc == DONE
    assert eventually(lambda: look() == [*refused, "GPU 2:", "on-2", ""])
    assert program.poll() is None


def test_watch_all_beside_the_silent(
    programs: Programs, site: Site, watching: Callable[..., subprocess.Popen[str]]
) -> None:
    """They hold up one look, all of them together, and have their reason in their places; later ones come as
    often as without them."""
    folder = site.run / "kvcached"
    folder.mkdir()
    daemon = programs.daemon(socket_path=folder / "gpu0.sock")
    programs.kvctl("limit", "a", "1M", daemon=daemon)
    with Silent(folder / "gpu1.sock.ctl") as one, Silent(folder / "gpu2.sock.ctl") as two:
        program = watching()

        def look() -> list[str]:
            """Until what it says of the last GPU."""
            shown: list[str] = []
            while not shown or not shown[-1].startswith("GPU 2: "):
                shown.append(stream(program).readline().rstrip("\n"))
            return [line for line in shown if line.startswith(("GPU ", "a "))]

        def silent(path: Path, gpu: int) -> str:
            return f"GPU {gpu}: unknown. The daemon at {path} has not answered for 1 s; trying again"

        others = [silent(one.path, 1), silent(two.path, 2)]
        assert look()[0] == "GPU 0:"
        started = time.monotonic()
        for _ in range(30):
            heading, instance, *rest = look()
            assert (heading, instance.split()[0], rest) == ("GPU 0:", "a", others)
        # A second more for each look would be 30 s.
        assert time.monotonic() - started < 15
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: look() == [silent(daemon.control, 0), *others])
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        eventually(lambda: look()[0] == "GPU 0:")
        program.kill()
        program.wait()


def test_watch_all_json(several: list[Daemon], watching: Callable[..., subprocess.Popen[str]]) -> None:
    """There is no place in an array for a reason: it is told once, apart."""
    program = watching("--json")

    def look() -> list[str]:
        return [one["ipc"] for one in json.loads(stream(program).readline())]

    assert look() == look() == ["on-0", "on-2"]
    several[1].stop()
    eventually(lambda: look() == ["on-0"])
    assert [look() for _ in range(3)] == 3 * [["on-0"]]
    program.kill()
    assert program.stderr
    told = program.stderr.read().splitlines()
    assert told[0] == "kvctl: GPU 1: Nobody may look"
    assert told[1].startswith("kvctl: GPU 2: ")
    assert len(told) == 2


def test_all_but_one(several: list[Daemon], programs: Programs, site: Site) -> None:
    def ask(*words: str) -> Result:
        return programs.kvctl("--all", "list", *words, XDG_RUNTIME_DIR=str(site.run), RUNTIME_DIRECTORY="")

    result = ask()
    assert (result.rc, result.err) == (FAILED, "kvctl: Nobody may look\n")
    assert [line.split()[0] for line in result.out.splitlines() if line.startswith("on-")] == ["on-0", "on-2"]
    assert ask("--json") == Result(FAILED, "", "kvctl: Nobody may look\n")
    for daemon in several:
        daemon.stop()
    assert ask() == Result(FAILED, "", "kvctl: Nobody may look\n")


@pytest.mark.parametrize("interval", ["0", "0.01", "x", "-1", "1e3", "86401"])
def test_a_bad_interval(kvctl: Kvctl, interval: str) -> None:
    result = kvctl("watch", f"--refresh={interval}")
    assert (result.rc, result.out) == (USAGE, "")
    assert result.err == f"kvctl: {interval} is not a number of seconds from 0.1 to 86400\n"


# ---- Reload, version ----


def test_reload(programs: Programs, site: Site) -> None:
    daemon = programs.daemon(config="[instance a]\nlimit=1M\n")
    path = site.run / "gpu0.conf"
    result = programs.kvctl("reload", daemon=daemon)
    assert result == Result(DONE, "The daemon of GPU 0 has read its configuration\n", "")
    path.write_text("[instance a]\nlimit=1Q\n")
    result = programs.kvctl("reload", daemon=daemon)
    assert (result.rc, result.out) == (FAILED, "")
    assert result.err.startswith(f"kvctl: {path}:2: limit")
    path.write_text("[daemon]\nwarm = 64\n")
    (answer,) = json.loads(programs.kvctl("reload", "--json", daemon=daemon).out)
    assert answer["warnings"] == [
        "Other sockets and addresses, folders and warm= need a restart of the daemon"
    ]
    told = kinds(programs.kvctl("events", "--json", daemon=daemon))
    assert told == ["started", "reloaded", "reload-failed", "reloaded"]


def test_version(kvctl: Kvctl, programs: Programs, site: Site) -> None:
    own = programs.kvctl("--version").out
    result = kvctl("version")
    number = own.split()[1]
    assert (result.rc, result.out) == (DONE, f"{own}kvcachedd {number}, GPU 0, protocol 1\n")
    (answer,) = json.loads(kvctl("version", "--json").out)
    assert answer == {"kvctl_version": number, "gpu": 0, "daemon_version": number, "protocol_version": 1}
    result = programs.kvctl("--socket", str(site.run / "none"), "version")
    assert (result.rc, result.out) == (NO_DAEMON, own)


# ---- Several GPUs ----


def test_all(programs: Programs, site: Site) -> None:
    folder = site.run / "kvcached"
    folder.mkdir()
    for gpu in (1, 0):
        daemon = programs.daemon(
            "1G,1G", name=f"gpu{gpu}", arguments=("--gpu", str(gpu)), socket_path=folder / f"gpu{gpu}.sock"
        )
        programs.kvctl("limit", f"on-{gpu}", "1M", daemon=daemon)
    (folder / "gpu7.sock.ctl").touch()

    def ask(*words: str) -> Result:
        return programs.kvctl("--all", *words, XDG_RUNTIME_DIR=str(site.run), RUNTIME_DIRECTORY="")

    told = json.loads(ask("list", "--json").out)
    assert [(one["gpu"], one["ipc"]) for one in told] == [(0, "on-0"), (1, "on-1")]
    headings = [line for line in ask("list").out.splitlines() if line.startswith("GPU ")]
    assert [line[:5] for line in headings] == ["GPU 0", "GPU 1"]
    assert [one["gpu"]["index"] for one in json.loads(ask("info", "--json").out)] == [0, 1]
    assert [one["gpu"] for one in json.loads(ask("version", "--json").out)] == [0, 1]
    assert ask("reload").out.count("has read its configuration") == 2
    assert [one["ipc"] for one in json.loads(ask("list", "--json", "on-1").out)] == ["on-1"]
    assert [one["ipc"] for one in json.loads(ask("info", "--json", "on-1").out)] == ["on-1"]
    result = ask("list", "nowhere")
    assert (result.rc, result.err) == (FAILED, "kvctl: No daemon has all of these instances\n")
    result = ask("events", "--follow")
    assert (result.rc, result.err) == (USAGE, "kvctl: --follow follows one daemon; leave out --all\n")


def test_a_leftover_in_an_earlier_folder(programs: Programs, site: Site) -> None:
    """It hides no daemon that listens in a later one, as little with --all as with --gpu."""
    early, late = site.run / "early", site.run / "kvcached"
    for folder in (early, late):
        folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as leftover:
        leftover.bind(str(early / "gpu0.sock.ctl"))
    programs.kvctl("limit", "a", "1M", daemon=programs.daemon(socket_path=late / "gpu0.sock"))
    for where in (("--gpu", "0"), ("--all",)):
        result = programs.kvctl(
            *where, "list", "--json", XDG_RUNTIME_DIR=str(site.run), RUNTIME_DIRECTORY=str(early)
        )
        assert (result.rc, result.err) == (DONE, ""), where
        assert [one["ipc"] for one in result.json()] == ["a"], where


def test_all_of_none(programs: Programs, tmp_path: Path) -> None:
    result = programs.kvctl("--all", "list", XDG_RUNTIME_DIR=str(tmp_path), RUNTIME_DIRECTORY="")
    assert (result.rc, result.out) == (NO_DAEMON, "")
    assert result.err.startswith("kvctl: No daemon is running: nobody listens in ")


def test_a_challenge_is_answered_while_others_are_silent(site: Site) -> None:
    """A daemon gives ten seconds for a handshake, which is how long kvctl waits for a silent one."""
    folder = site.run / "kvcached"
    folder.mkdir()
    command = [str(site.program("kvctl/kvctl")), "--all", "version"]
    environment = site.environment(XDG_RUNTIME_DIR=str(site.run), RUNTIME_DIRECTORY="")
    with Silent(folder / "gpu0.sock.ctl"), Challenging(folder / "gpu1.sock.ctl") as challenging:
        program = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        try:
            eventually(lambda: CHALLENGE_REPLY in challenging.heard, within=8)
            assert program.poll() is None
        finally:
            program.kill()
            program.communicate()
