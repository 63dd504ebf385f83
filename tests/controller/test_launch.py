# SPDX-License-Identifier: Apache-2.0
"""kvcached-launch with real processes: they are started once, run again when they fail, and end with all that
they began, whoever is killed when."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.launching import Launch, exists, free_port
from harness.broker import eventually


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    made = Launch(tmp_path)
    yield made
    assert made.clean() == []


def test_life(launch: Launch) -> None:
    launch.configure("a", "b, engine: sglang", more="launch_delay_seconds: 0.01")
    done = launch.run()
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["a is started", "b is started"]
    launch.serves("b")
    first = launch.serves("a")
    assert f"process {first['pid']}, http://127.0.0.1:{launch.ports['a']}" in lines[0]
    found = launch.one("a")
    log = str(launch.state / "a/log")
    assert {key: found[key] for key in ("state", "supervised", "healthy", "pid", "restarts", "log")} == {
        "state": "running",
        "supervised": True,
        "healthy": True,
        "pid": first["pid"],
        "restarts": 0,
        "log": log,
    }
    table = launch.run("status")
    assert table.status == 0
    assert table.out.splitlines()[0].split() == [
        *("NAME", "STATE", "HEALTH", "PID", "SINCE", "RESTARTS", "EXIT", "ADDRESS")
    ]
    assert table.out.splitlines()[1].split()[:4] == ["a", "running", "ok", str(first["pid"])]
    assert launch.run("--list-sessions", config=False).out == "kvcached-a\nkvcached-b\n"

    # Once is enough, with whatever spelling.
    assert launch.run("start").out == "a runs already\nb runs already\n"
    assert launch.one("a")["pid"] == first["pid"]

    stopped = launch.run("stop", "a")
    assert (stopped.status, stopped.out, stopped.err) == (0, "a is stopped\n", "")
    assert launch.get("a") is None
    assert launch.run("stop", "a").out == "a did not run\n"
    assert launch.run("status", "a").status == 3
    assert launch.run("status").status == 3
    assert launch.run("status", "b").status == 0
    found = launch.one("a")
    assert (found["state"], found["pid"], found["healthy"], found["exit"]) == (
        "stopped",
        None,
        None,
        "signal SIGTERM",
    )
    again = launch.run("restart")
    assert (again.status, again.err) == (0, "")
    assert again.out.splitlines()[0] == "b is stopped"
    assert launch.serves("a")["pid"] != first["pid"]
    assert launch.run("--kill-all", config=False).out == "a is stopped\nb is stopped\n"
    assert launch.left() == []


def test_what_an_engine_is_given(launch: Launch) -> None:
    launch.configure("a, kvcached_env: [KVCACHED_GPU_UTILIZATION=0.5]", more="kvcached: {log_level: x}")
    problem = launch.run("start")
    assert problem.status == 2
    assert problem.err.startswith(f"kvcached-launch: {launch.config}:1: kvcached.log_level is unknown")
    launch.configure(
        "a, kvcached_env: [KVCACHED_PAGE_SIZE_MB=4]", more="kvcached: {kvcached_log_level: DEBUG}"
    )
    launch.start()
    engine = launch.serves("a")
    assert engine["arguments"] == ["serve", "m/m", "--port", str(launch.ports["a"]), "--host", "127.0.0.1"]
    given = engine["environment"]
    assert given["PATH"].split(":")[0] == str(launch.folder / "venv/bin")
    assert {key: given[key] for key in given if "KVCACHED" in key and "LAUNCH" not in key} == {
        "ENABLE_KVCACHED": "true",
        "KVCACHED_AUTOPATCH": "true",
        "KVCACHED_IPC_NAME": "a",
        "KVCACHED_LOG_LEVEL": "DEBUG",
        "KVCACHED_PAGE_SIZE_MB": "4",
    }
    assert given["KVCACHED_LAUNCH_ID"] == launch.record("a")["id"]
    assert engine["folder"] == str(launch.folder)
    # Secrets of an environment are nowhere else.
    assert given["LAUNCH_TEST_MARK"] not in (launch.state / "a/record.json").read_text()
    # No terminal's end is theirs.
    for pid in (engine["pid"], launch.record("a")["supervisor"][0], launch.record("a")["scribe"][0]):
        assert os.getsid(pid) == pid
    assert (launch.state / "a").stat().st_mode & 0o077 == 0


def test_all_that_an_engine_began_ends(launch: Launch) -> None:
    launch.configure("a")
    launch.start("--stop-timeout", "0.5")
    launch.tell("a", "stubborn")
    kinds = [launch.tell("a", f"fork?{kind}") for kind in ("plain", "orphan", "naked")]
    assert all(map(exists, kinds))
    assert launch.run("stop").out == "a is stopped\n"
    assert not any(map(exists, kinds))
    assert launch.one("a")["exit"] == "signal SIGKILL"


def test_stop_waits_for_an_engine_that_works_on(launch: Launch) -> None:
    """SIGTERM comes first, and SIGKILL when the command says so, or is given again."""
    launch.configure("a")
    launch.start("--stop-timeout", "1000")
    launch.tell("a", "stubborn")
    pid = launch.serves("a")["pid"]
    with launch.begin("stop") as stopping:
        eventually(lambda: launch.one("a")["state"] == "stopping")
        assert exists(pid)
        assert launch.run("status", "a").status == 3
        os.kill(launch.record("a")["supervisor"][0], signal.SIGTERM)
        out, err = stopping.communicate(timeout=30)
    assert (out, err) == (b"a is stopped\n", b"")
    launch.start("--stop-timeout", "1000")
    launch.tell("a", "stubborn")
    assert launch.run("stop", "--stop-timeout", "0.2").out == "a is stopped\n"
    assert launch.left() == []


def test_an_engine_that_fails_is_run_again(launch: Launch) -> None:
    launch.configure("a")
    launch.start("--restart-delay", "0.05", "--stop-timeout", "0.5")
    first = launch.serves("a")["pid"]
    left = launch.tell("a", "fork?orphan")
    launch.tell("a", "exit_now?7")
    second = eventually(lambda: (found := launch.get("a")) and found["pid"] != first and found["pid"])
    assert not exists(left)
    found = launch.one("a")
    assert (found["state"], found["restarts"], found["exit"]) == ("running", 1, "status 7")
    launch.tell("a", f"kill?{signal.SIGKILL.value}")
    eventually(lambda: (found := launch.get("a")) and found["pid"] not in (first, second))
    assert launch.one("a")["exit"] == "signal SIGKILL"
    assert "the engine ended with status 7; it is started again in 0.05 s" in launch.log("a")
    # vLLM's server does so when its engine has died.
    third = launch.serves("a")["pid"]
    launch.tell("a", "exit_now?0")
    eventually(lambda: (found := launch.get("a")) and found["pid"] != third)
    found = launch.one("a")
    assert (found["state"], found["restarts"], found["exit"]) == ("running", 3, "status 0")


def test_an_engine_that_always_fails(launch: Launch) -> None:
    launch.configure("a, engine_env: [FAKE_EXIT=3]")
    assert launch.run("start", "--restarts", "2", "--restart-delay", "0.01").status == 0
    found = eventually(lambda: (found := launch.one("a"))["state"] == "failed" and found)
    assert (found["restarts"], found["exit"]) == (2, "status 3")
    said = "the engine failed again and again, at last with status 3"
    assert found["error"] == said
    assert f"a: {said}\n" in launch.run("status").out
    assert launch.log("a").count("the engine begins") == 3
    assert launch.left() == []
    launch.configure("a")
    launch.start()
    assert launch.one("a")["error"] is None


def test_stop_ends_the_waiting_for_another_start(launch: Launch) -> None:
    launch.configure("a, engine_env: [FAKE_EXIT=3]")
    assert launch.run("start", "--restart-delay", "60").status == 0
    eventually(lambda: launch.one("a")["state"] == "backoff")
    assert launch.run("start").out == "a is being started already, and has ended with status 3\n"
    assert launch.run("stop").out == "a is stopped\n"
    assert (launch.one("a")["state"], launch.left()) == ("stopped", [])


def test_a_killed_supervisor(launch: Launch) -> None:
    """The engine serves on, is found, and is taken over."""
    launch.configure("a")
    launch.start("--restart-delay", "0.05", "--stop-timeout", "0.5")
    pid = launch.serves("a")["pid"]
    orphan = launch.tell("a", "fork?orphan")
    launch.kill_supervisor("a")
    found = launch.one("a")
    assert (found["state"], found["supervised"], found["pid"]) == ("running", False, pid)
    assert "the supervisor was killed" in found["error"]
    assert launch.run("status").status == 0
    launch.tell("a", "say?100000")
    eventually(lambda: f"{999:099}\n" in launch.log("a"))

    again = launch.run("start", "--restart-delay", "0.05", "--stop-timeout", "0.5")
    address = f"http://127.0.0.1:{launch.ports['a']}"
    says = f"a runs already, and has a supervisor again: process {pid}, {address}\n"
    assert (again.status, again.out, again.err) == (0, says, "")
    found = launch.one("a")
    assert (found["state"], found["supervised"], found["pid"], found["error"]) == ("running", True, pid, None)
    assert launch.serves("a")["pid"] == pid
    # The new one notices the end of what is no child of its, and what is left of it.
    launch.tell("a", "exit_now?5")
    eventually(lambda: (found := launch.get("a")) and found["pid"] != pid)
    assert not exists(orphan)
    assert launch.one("a")["exit"] == "an unknown status"
    launch.tell("a", "say?200000")
    eventually(lambda: f"{1999:099}\n" in launch.log("a"))
    assert launch.run("stop").out == "a is stopped\n"
    assert launch.left() == []


def test_stop_after_a_killed_supervisor(launch: Launch) -> None:
    launch.configure("a")
    launch.start("--stop-timeout", "0.5")
    orphan = launch.tell("a", "fork?orphan")
    launch.kill_supervisor("a")
    assert launch.run("stop").out == "a is stopped\n"
    assert not exists(orphan)
    assert (launch.one("a")["state"], launch.left()) == ("stopped", [])


def test_killed_supervisor_and_engine(launch: Launch) -> None:
    """Who is left is found without them, and is not in the way of the next."""
    launch.configure("a")
    launch.start()
    orphan = launch.tell("a", "fork?orphan")
    launch.kill_supervisor("a")
    launch.tell("a", f"kill?{signal.SIGKILL.value}")
    eventually(lambda: launch.one("a")["state"] == "failed")
    assert exists(orphan)
    launch.start()
    assert not exists(orphan)
    assert launch.one("a")["state"] == "running"


def test_a_killed_scribe(launch: Launch) -> None:
    """The engine writes on."""
    launch.configure("a")
    launch.start()
    first = launch.record("a")["scribe"][0]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: (launch.record("a")["scribe"] or [first])[0] != first)
    launch.tell("a", "say?1000000")
    eventually(lambda: f"{9999:099}\n" in launch.log("a"))
    assert launch.one("a")["restarts"] == 0


def test_a_killed_scribe_and_supervisor(launch: Launch) -> None:
    """There is a scribe again with the next supervisor."""
    launch.configure("a")
    launch.start()
    scribe = launch.record("a")["scribe"][0]
    pid = launch.serves("a")["pid"]
    launch.kill_supervisor("a")
    os.kill(scribe, signal.SIGKILL)
    eventually(lambda: not exists(scribe))
    launch.start()
    launch.tell("a", "say?100000")
    eventually(lambda: f"{999:099}\n" in launch.log("a"))
    assert launch.serves("a")["pid"] == pid


def test_numbers_of_others_are_not_taken_for_ours(launch: Launch) -> None:
    """Neither after a start of the machine, nor when a number is another's."""
    launch.configure("a")
    launch.start()
    assert launch.run("stop").status == 0
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        record = launch.record("a")
        start = int(Path(f"/proc/{bystander.pid}/stat").read_text().rsplit(") ", 1)[1].split()[19])
        for boot, began in (("another", start), (record["boot"], start - 1)):
            who = [bystander.pid, began]
            record.update(boot=boot, state="running", supervisor=who, engine=who, scribe=who)
            (launch.state / "a/record.json").write_text(json.dumps(record))
            found = launch.one("a")
            assert (found["state"], found["pid"]) == ("stopped" if boot == "another" else "failed", None)
            assert launch.run("stop").status == 0
            assert bystander.poll() is None
            launch.start()
            assert launch.run("stop").out == "a is stopped\n"
            record = launch.record("a")
        assert bystander.poll() is None
        bystander.kill()


def test_a_supervisor_that_is_killed_as_it_starts(launch: Launch) -> None:
    """Its engine may not have been written down; it is found by what was."""
    launch.configure("a")
    with launch.begin("start") as command:
        eventually(lambda: (launch.state / "a/record.json").exists())
        os.kill(launch.record("a")["supervisor"][0], signal.SIGKILL)
        command.wait(30)
    assert launch.run("start").status == 0
    pid = launch.serves("a")["pid"]
    assert launch.one("a")["pid"] == pid
    # One more time, with a record of that moment.
    launch.kill_supervisor("a")
    record = launch.record("a")
    (launch.state / "a/record.json").write_text(json.dumps(dict(record, engine=None, state="starting")))
    found = launch.one("a")
    assert (found["state"], found["error"]) == (
        "failed",
        "the supervisor was killed, and has left processes; stop ends them",
    )
    assert launch.run("stop").out == "a is stopped\n"
    assert launch.left() == []


def test_whatever_is_killed(launch: Launch, seed: int) -> None:
    """In any order: a start has one engine serve, and a stop leaves nothing."""
    rng = random.Random(seed)
    launch.configure("a")
    options = ("--restart-delay", "0.05", "--stop-timeout", "0.3", "--restarts", "1000")

    def engines() -> list[int]:
        """Those that lead a session."""
        program = str(launch.folder / "venv/bin/vllm").encode()
        found = []
        for pid in launch.left():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if program in words and os.getsid(pid) == pid:
                    found.append(pid)
        return found

    def kill(who: str) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            process = launch.record("a")[who]
            if process and process[0] in launch.left():
                os.kill(process[0], signal.SIGKILL)

    for _ in range(14):
        what = rng.choice(["start", "starts", "stop", "supervisor", "supervisor", "scribe", "engine", "fork"])
        print(what)
        if what == "start":
            assert (done := launch.run("start", *options)).status == 0, done
        elif what == "starts":
            both = [launch.begin("start", *options) for _ in range(2)]
            for each in both:
                out, err = each.communicate(timeout=60)
                assert each.returncode == 0, (out, err)
        elif what == "stop":
            assert (done := launch.run("stop")).status == 0, done
            assert launch.left() == []
        elif what == "fork":
            launch.tell("a", f"fork?{rng.choice(['plain', 'orphan'])}")
        else:
            kill(what)
        if what.startswith("start"):
            launch.serves("a")
            eventually(lambda: len(engines()) == 1)
    assert launch.run("stop").status == 0
    assert launch.left() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "x"}', "null"])
def test_a_damaged_record(launch: Launch, text: str) -> None:
    launch.configure("a")
    (launch.state / "a").mkdir(parents=True)
    (launch.state / "a/record.json").write_text(text)
    found = launch.one("a")
    assert (found["state"], found["restarts"]) == ("stopped", 0)
    assert launch.run("stop").status == 0


def test_two_starts_at_once(launch: Launch) -> None:
    launch.configure("a")
    both = [launch.begin("start") for _ in range(3)]
    said = sorted(each.communicate(timeout=60)[0].decode().split(":")[0] for each in both)
    assert said == ["a is started", "a runs already\n", "a runs already\n"]
    launch.serves("a")
    assert launch.log("a").count("the engine begins") == 1


@pytest.mark.parametrize("file", ["lock", "supervisor.log", "supervisor", "record.json", "log"])
def test_a_command_that_is_killed(launch: Launch, file: str) -> None:
    """In the midst of a start, when there is that file already: the next command has one engine run."""
    launch.configure("a")
    with launch.begin("start") as command:
        eventually(lambda: (launch.state / "a" / file).exists())
        command.kill()
    done = launch.run("start")
    assert (done.status, done.err) == (0, "")
    launch.serves("a")
    assert launch.log("a").count("the engine begins") == 1
    assert launch.run("stop").out == "a is stopped\n"
    assert launch.left() == []


def test_logs(launch: Launch) -> None:
    launch.configure("a", "b")
    launch.start("--log-size", "20K", "--log-files", "3")
    launch.tell("a", "say?200000")
    files = [launch.state / "a" / name for name in ("log", "log.1", "log.2")]
    eventually(lambda: f"{1999:099}" in launch.run("logs", "a", "-n", "1").out)
    assert sorted(p.name for p in (launch.state / "a").glob("log*")) == ["log", "log.1", "log.2"]
    text = "".join(path.read_text() for path in reversed(files))
    assert text == "".join(f"{i:099}\n" for i in range(2000))[-len(text) :]
    assert max(path.stat().st_size for path in files) < (20 << 10) + (64 << 10)
    done = launch.run("logs", "a", "-n", "3")
    assert done.out.split() == [f"{i:099}" for i in (1997, 1998, 1999)]
    both = launch.run("logs", "--lines", "1")
    assert both.out == f"a: {1999:099}\nb: the engine begins\n"
    assert launch.run("logs", "a", "-n", "0").out == ""

    with launch.begin("logs", "a", "--follow", "-n", "1") as following:
        assert following.stdout is not None
        assert following.stdout.readline().decode() == f"{1999:099}\n"
        launch.tell("a", "say?50000")  # over two files
        assert [int(following.stdout.readline()) for _ in range(500)] == [*range(500)]
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 130
        assert following.stderr is not None
        assert following.stderr.read() == b""


def test_a_full_disk(launch: Launch) -> None:
    """The engine serves on, and what was lost is told once there is room."""
    launch.configure("a")
    log = launch.state / "a/log"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    launch.start()
    launch.tell("a", "say?1000000")
    assert launch.one("a")["healthy"]
    log.unlink()
    launch.tell("a", "say?100")
    eventually(lambda: "bytes of the log were lost: No space left on device\n" in launch.log("a"))
    launch.tell("a", "say?1000")
    eventually(lambda: f"{9:099}\n" in launch.log("a"))
    assert launch.one("a")["restarts"] == 0


def test_health(launch: Launch) -> None:
    launch.configure("a")
    launch.start()
    launch.tell("a", "ill?503")
    assert launch.one("a")["healthy"] is False
    table = launch.run("status")
    assert table.status == 0
    assert table.out.splitlines()[1].split()[1:4] == ["running", "no", "answer"]


def test_instances_that_are_elsewhere(launch: Launch) -> None:
    launch.configure(
        "a", "b, url: 'http://192.0.2.1:8000', engine_args: ''", "c, dns: 'n:1', engine_args: ''"
    )
    launch.start()
    assert launch.run("status").status == 0
    assert [(each["name"], each["state"]) for each in launch.status()] == [
        *(("a", "running"), ("b", "elsewhere"), ("c", "elsewhere"))
    ]
    done = launch.run("start", "b")
    assert done.status == 1
    assert done.err.startswith("kvcached-launch: b: is at http://192.0.2.1:8000, which is not this machine")


def test_another_configuration(launch: Launch) -> None:
    """What is no more in the configuration can be stopped; what another one has is left alone."""
    launch.configure("a", "b")
    launch.start()
    launch.configure("b")
    assert [each["name"] for each in launch.status()] == ["b", "a"]
    assert launch.run("stop", "a").out == "a is stopped\n"
    other = launch.folder / "other.yaml"
    other.write_text(launch.config.read_text())
    done = launch.run("start", "--config", str(other), config=False)
    assert done.status == 1
    assert done.err == (
        f"kvcached-launch: b: runs already, from {launch.config}; --state-dir keeps them apart\n"
    )


class TestErrors:
    """One sentence each, and the others go on."""

    def test_port_in_use(self, launch: Launch) -> None:
        launch.configure("a", "b")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", launch.ports["a"]))
            taken.listen()
            done = launch.run("start")
        assert done.status == 1
        assert done.err == (
            f"kvcached-launch: a: cannot have port {launch.ports['a']} of 127.0.0.1: Address already in use\n"
        )
        assert done.out.startswith("b is started")

    def test_no_program(self, launch: Launch) -> None:
        launch.configure("a")
        programs = launch.folder / "venv/bin"
        (programs / "vllm").unlink()
        done = launch.run("start")
        assert (done.status, done.err) == (
            1,
            f"kvcached-launch: a: needs the program vllm, which is not in {programs}\n",
        )

    def test_program_that_cannot_run(self, launch: Launch) -> None:
        launch.configure("a")
        program = launch.folder / "venv/bin/vllm"
        program.write_text("#!/nonexistent/python\n")
        done = launch.run("start")
        assert done.status == 1
        assert done.err == f"kvcached-launch: a: cannot run {program}: No such file or directory\n"
        found = launch.one("a")
        assert (found["state"], found["error"]) == (
            "failed",
            f"cannot run {program}: No such file or directory",
        )

    def test_unknown(self, launch: Launch) -> None:
        launch.configure("a")
        for command in ("start", "stop", "restart", "status", "logs"):
            done = launch.run(command, "x")
            assert (done.status, done.out) == (4, "")
            assert done.err == "kvcached-launch: there is no instance x; there are a\n"

    def test_usage(self, launch: Launch) -> None:
        launch.configure("a")
        assert launch.run("begin").err == (
            "kvcached-launch: begin is no command; commands are start, stop, restart, status, logs\n"
        )
        assert launch.run("start", config=False).err == "kvcached-launch: start needs --config FILE\n"
        assert launch.run("--kill-all", "start").status == 2
        assert launch.run("start", "--restarts", "-1").status == 2
        assert "x is no size, such as 16M" in launch.run("start", "--log-size", "x").err

    def test_configuration(self, launch: Launch) -> None:
        done = launch.run("start")
        assert (done.status, done.err) == (
            2,
            f"kvcached-launch: cannot read {launch.config}: No such file or directory\n",
        )
        launch.configure("a, ipc_name: i, kvcached_env: [KVCACHED_IPC_NAME=j]")
        done = launch.run("start")
        assert (done.status, done.err) == (
            2,
            "kvcached-launch: a: has ipc_name i, and KVCACHED_IPC_NAME=j, too\n",
        )

    def test_state_directory(self, launch: Launch) -> None:
        launch.configure("a")
        launch.state.write_text("in the way")
        done = launch.run("start")
        assert done.status == 1
        assert done.err == f"kvcached-launch: cannot read {launch.state}: Not a directory\n"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_permission(self, launch: Launch) -> None:
        launch.configure("a")
        launch.state.mkdir(mode=0o500)
        done = launch.run("start")
        assert done.err == (
            f"kvcached-launch: a: cannot make the folder {launch.state / 'a'}: Permission denied\n"
        )

    def test_restart_of_what_cannot_start(self, launch: Launch) -> None:
        """It isn't stopped either."""
        launch.configure("a")
        launch.start()
        pid = launch.serves("a")["pid"]
        (launch.folder / "venv/bin/vllm").unlink()
        assert launch.run("restart").status == 1
        assert launch.serves("a")["pid"] == pid

    def test_held_by_who_is_not_seen(self, launch: Launch) -> None:
        """As from within another container with the same state directory."""
        launch.configure("a")
        launch.start()
        record = launch.record("a")
        hidden = dict(record, supervisor=[free_port(), 1], engine=None)
        (launch.state / "a/record.json").write_text(json.dumps(hidden))
        done = launch.run("start")
        assert done.status == 1
        assert "has a supervisor that is not to be seen from here" in done.err
        (launch.state / "a/record.json").write_text(json.dumps(record))
