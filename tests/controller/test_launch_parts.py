# SPDX-License-Identifier: Apache-2.0
"""kvcached-launch's parts: what is run, when again, and how logs are kept."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvcached.controller.config import parse
from kvcached.controller.launch import main, record
from kvcached.controller.launch.errors import LaunchError
from kvcached.controller.launch.instances import Begun
from kvcached.controller.launch.logs import Tail
from kvcached.controller.launch.plan import Plan, check_port, is_here, plan
from kvcached.controller.launch.processes import Family, Process, look, this_process
from kvcached.controller.launch.restarts import LONGEST_SECONDS, STEADY_SECONDS, Restarts
from kvcached.controller.launch.scribe import Log

CALLER = {"PATH": "/nowhere", "HOME": "/home", "KVCACHED_IPC_NAME": "shell's", "PYTHONHOME": "/python"}


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    for name in ("vllm", "python"):
        (programs / name).touch(0o755)
    return programs


def made(venv: Path, lines: str, more: str = "") -> Plan:
    folder = venv.parent.parent
    text = f"{more}\ninstances: [{{name: a, model: org/m, using_venv: true, venv_path: venv, {lines}}}]"
    config = parse(text, "c.yaml")
    return plan(config, config.instances[0], folder, CALLER)


def test_what_a_start_says() -> None:
    """An engine may have ended before it is told of."""
    engine = Process(7, 1)
    for begun, says in (
        (Begun(True, False, engine, "http://x:1", None), "runs already"),
        (Begun(True, False, None, "http://x:1", None), "is being started already, and has no process so far"),
        (Begun(False, False, engine, "http://x:1", "status 1"), "is started: process 7, http://x:1"),
        (Begun(False, False, None, "http://x:1", "status 1"), "was started, and has ended with status 1"),
    ):
        assert begun.sentence() == says


def test_vllm(venv: Path) -> None:
    run = made(venv, "engine: vllm")
    assert run.command == (str(venv / "vllm"), "serve", "org/m", "--host", "127.0.0.1", "--port", "8000")
    assert (run.address, run.host, run.port) == ("http://127.0.0.1:8000", "127.0.0.1", 8000)
    assert run.environment == {
        "PATH": f"{venv}:/nowhere",
        "VIRTUAL_ENV": str(venv.parent),
        "HOME": "/home",
        "ENABLE_KVCACHED": "true",
        "KVCACHED_AUTOPATCH": "true",
        "KVCACHED_IPC_NAME": "a",
        "PYTHONUNBUFFERED": "1",
        "SPT_NOENV": "1",
    }
    run = made(venv, "engine: vllm, engine_args: '--host 0.0.0.0 --port=9 -x', served_model_name: m")
    assert run.command[3:] == ("--host", "0.0.0.0", "--port=9", "-x", "--served-model-name", "m")
    assert (run.address, run.host, run.port) == ("http://127.0.0.1:9", "0.0.0.0", 9)
    run = made(venv, "engine: vllm, engine_args: '--served-model-name m'")
    assert run.command.count("--served-model-name") == 1


def test_sglang(venv: Path) -> None:
    run = made(venv, "engine: sgl, url: 'http://[::1]:7'")
    program = (str(venv / "python"), "-m", "sglang.launch_server", "--model-path", "org/m")
    assert run.command == (*program, "--host", "::1", "--port", "7")


def test_sleep(venv: Path) -> None:
    """What engines need so that they can sleep, if they are to."""
    auto = "sleep_manager: {auto_sleep_enabled: true}"
    run = made(venv, "engine: vllm", auto)
    assert run.command[-1] == "--enable-sleep-mode"
    assert run.environment["VLLM_SERVER_DEV_MODE"] == "1"
    run = made(venv, "engine: vllm, engine_args: --no-enable-sleep-mode", auto)
    assert "--enable-sleep-mode" not in run.command
    assert "VLLM_SERVER_DEV_MODE" not in run.environment
    run = made(venv, "engine: vllm, engine_args: --enable-sleep-mode")
    assert run.environment["VLLM_SERVER_DEV_MODE"] == "1"
    run = made(venv, "engine: vllm, engine_env: [VLLM_SERVER_DEV_MODE=0]", auto)
    assert run.environment["VLLM_SERVER_DEV_MODE"] == "0"
    assert made(venv, "engine: sgl", auto).command[-1] == "--enable-memory-saver"
    run = made(venv, "engine: sgl, engine_args: --enable-memory-saver", auto)
    assert run.command.count("--enable-memory-saver") == 1
    assert "--enable-memory-saver" not in made(venv, "engine: sgl").command


def test_environment(venv: Path) -> None:
    """Who is nearer to the engine wins."""
    all_ = "kvcached: {kvcached_a: all, kvcached_b: all, kvcached_c: all, enable_kvcached: false}"
    own = "kvcached_env: [KVCACHED_B=kv, KVCACHED_C=kv], engine_env: [KVCACHED_C=own, HOME=/own]"
    given = made(venv, f"engine: vllm, ipc_name: i, gpu: [2, 3], {own}", all_).environment
    assert [given[f"KVCACHED_{x}"] for x in "ABC"] == ["all", "kv", "own"]
    assert given["HOME"] == "/own"
    assert given["ENABLE_KVCACHED"] == given["KVCACHED_AUTOPATCH"] == "false"
    assert given["KVCACHED_IPC_NAME"] == "i"
    assert (given["CUDA_DEVICE_ORDER"], given["CUDA_VISIBLE_DEVICES"]) == ("PCI_BUS_ID", "2,3")
    given = made(venv, "engine: vllm, gpu: 1, kvcached_env: [KVCACHED_IPC_NAME=n]").environment
    assert (given["CUDA_VISIBLE_DEVICES"], given["KVCACHED_IPC_NAME"]) == ("1", "n")


def test_without_environment_of_its_own(venv: Path) -> None:
    config = parse("instances: [{model: m, engine: vllm}]", "c.yaml")
    found = plan(config, config.instances[0], venv, {"PATH": f"/nowhere:{venv}"})
    assert found.command[0] == str(venv / "vllm")
    assert "VIRTUAL_ENV" not in found.environment
    with pytest.raises(LaunchError, match="needs the program vllm, which is not in the folders of PATH"):
        plan(config, config.instances[0], venv, {"PATH": "/nowhere"})


def test_here() -> None:
    config = parse(
        """
instances:
- {name: a, model: m, engine: vllm}
- {name: b, model: m, engine: vllm, url: "http://localhost:1"}
- {name: c, model: m, engine: vllm, url: "http://192.0.2.1:1"}
- {name: d, model: m, engine: vllm, url: "http://nowhere.invalid:1"}
- {name: e, model: m, engine: vllm, dns: "localhost:2"}
""",
        "c.yaml",
    )
    assert [i.name for i in config.instances if is_here(i)] == ["a", "b"]


def test_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            with pytest.raises(
                LaunchError, match=f"cannot have port {port} of {host}: Address already in use"
            ):
                check_port(host, port)
    check_port("localhost", port)
    with pytest.raises(LaunchError, match=r"cannot have port 1024 of 192.0.2.1: Cannot assign"):
        check_port("192.0.2.1", 1024)
    with pytest.raises(LaunchError, match=r"listens at no..where, which is no address"):
        check_port("no..where", 1)


def test_restarts() -> None:
    restarts = Restarts(limit=4, first_seconds=1.5)
    assert [restarts.after(0) for _ in range(5)] == [1.5, 3, 6, 12, None]
    assert restarts.after(STEADY_SECONDS - 0.1) is None
    assert restarts.after(STEADY_SECONDS) == 1.5
    assert (restarts.in_a_row, restarts.total) == (1, 5)
    assert Restarts(0, 1).after(STEADY_SECONDS) is None
    many = Restarts(limit=10**6, first_seconds=1)
    assert [many.after(0) for _ in range(2000)][-1] == LONGEST_SECONDS


def test_log_rotates(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", size=10, files=3)
    for text in (b"one\ntw", b"o\nthree\n", b"four\nfive", b"\nsix", b"\nseven\n", b"eight"):
        log.write(text)
    log.close()
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"log.2": b"four\nfive\n", "log.1": b"six\nseven\n", "log": b"eight"}


def test_log_of_one_file(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", size=10, files=1)
    log.write(b"0123456789\n")
    log.write(b"next\n")
    log.close()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("log", b"next\n")]


def test_log_on_a_full_disk(tmp_path: Path) -> None:
    """What is lost is counted, and told when there is room."""
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    log = Log(path, 1000, 2)
    log.write(b"lost\n")
    log.write(b"and this\n")
    path.unlink()
    log.write(b"kept\n")
    log.close()
    assert path.read_text() == (
        "kvcached-launch: 14 bytes of the log were lost: No space left on device\nkept\n"
    )


def test_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path, 5)
    assert (tail.first, [*tail.lines()], tail.rest()) == ([], [], b"")
    log = Log(path, size=20, files=3)
    log.write(b"one\ntwo\nthr")
    assert [*tail.lines()] == [b"one", b"two"]
    log.write(b"ee\nfour\nfive\n")  # and another file
    log.write(b"six\n")
    assert [*tail.lines()] == [b"three", b"four", b"five", b"six"]
    assert Tail(path, 1).first == [b"six"]
    assert Tail(path, 3).first == [b"four", b"five", b"six"]
    assert Tail(path, 0).first == []
    path.write_bytes(b"")  # by somebody else
    assert [*tail.lines()] == []
    with path.open("ab") as file:
        file.write(b"seven\nei")
    assert [*tail.lines()] == [b"seven"]
    assert tail.rest() == b"ei"
    path.write_bytes(b"x" * 200000 + b"\nlast\n")
    assert [len(line) for line in Tail(path, 2).first] == [200000, 4]


def test_processes() -> None:
    """A number with another beginning is nobody."""
    mine = this_process()
    assert mine.is_alive()
    other = Process(mine.pid, mine.start + 1)
    assert not other.is_alive()
    assert other.handle() is None
    assert other.wait(0)
    other.signal(9)
    assert not mine.wait(0)
    assert look(2**22 + 1) is None


def test_traces() -> None:
    """A process is known by its environment or by the pipe that it writes to, whatever its name."""
    reading, writing = os.pipe()
    pipe = os.fstat(reading).st_ino
    program = [sys.executable, "-c", "print(flush=True); input()"]
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(program, env={"M": "1"}, **quiet) as marked,  # type: ignore[call-overload]
        subprocess.Popen(program, env={"M": "11"}, **quiet) as other,  # type: ignore[call-overload]
        subprocess.Popen(program, env={}, stdin=subprocess.PIPE, stdout=writing) as writer,
    ):
        os.close(writing)
        for reader in (marked.stdout.fileno(), other.stdout.fileno(), reading):
            assert os.read(reader, 1) == b"\n"
        members = [each.pid for each in Family(None, "M=1", pipe).members()]
        for each in (marked, other, writer):
            each.kill()
    os.close(reading)
    assert members == sorted((marked.pid, writer.pid))


def test_default_state_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/me")
    where = record.default_state_dir
    assert str(where({}, 0)) == "/var/lib/kvcached/launch"
    assert str(where({}, 1)) == "/people/me/.local/state/kvcached/launch"
    assert str(where({"XDG_STATE_HOME": "/s"}, 1)) == "/s/kvcached/launch"
    assert str(where({"XDG_STATE_HOME": "relative"}, 1)) == "/people/me/.local/state/kvcached/launch"


def test_words_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("instances: [{name: a, model: m, engine: vllm}]")
    for words in (["status", "--json", "a"], ["--json", "status", "a"], ["status", "a", "--json"]):
        assert main.run(["--state-dir", str(tmp_path / "s"), *words, "--config", str(config)]) == 3
        assert '"state": "stopped"' in capsys.readouterr().out


def rotate(path: Path, kept: int) -> None:
    """As the scribe does."""
    for number in range(kept - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if newer.exists():
            newer.rename(older)
    path.touch()


def test_a_follower_misses_no_file(tmp_path: Path) -> None:
    """However many have been filled since it looked last; but for those that are gone."""
    path = tmp_path / "log"
    path.write_text("0\n")
    tail = Tail(path, 1)
    assert tail.first == [b"0"]
    with path.open("a") as file:
        file.write("1\n")
    for number in (2, 3, 4):
        rotate(path, 5)
        path.write_text(f"{number}\n")
    assert list(tail.lines()) == [b"1", b"2", b"3", b"4"]
    assert list(tail.lines()) == []
    for older in tmp_path.glob("log.*"):
        older.unlink()
    for number in (5, 6, 7):
        rotate(path, 2)
        path.write_text(f"{number}\n")
    assert list(tail.lines()) == [b"6", b"7"]
