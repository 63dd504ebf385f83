# SPDX-License-Identifier: Apache-2.0
"""Starting kvcachedd: what it refuses, in one sentence and with the right exit status, and what it finds."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from harness.broker import Programs, Result, Site, run_program
from harness.raw import RawPeer, start_raw

FAILED = 1
USAGE = 2


def kvcachedd(site: Site, *arguments: str, **environment: str) -> Result:
    """A daemon that is expected to end by itself."""
    return run_program([str(site.program("daemon/kvcachedd")), *arguments], site.environment(**environment))


def start(site: Site, *arguments: str, **environment: str) -> Result:
    """With everything that one needs to start."""
    places = ["--socket", str(site.run / "x.sock"), "--state-dir", str(site.run / "state")]
    return kvcachedd(site, "--emulate", "1G", *places, *arguments, **environment)


def check_complaint(result: Result, status: int, sentence: str) -> None:
    assert result.rc == status, result
    assert result.out == ""
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("kvcachedd: error: ")
    assert sentence in result.err


def test_help_and_version(site: Site) -> None:
    asked = kvcachedd(site, "--help")
    assert (asked.rc, asked.err) == (0, "")
    assert "--emulate SIZE" in asked.out
    asked = kvcachedd(site, "--version")
    assert (asked.rc, asked.err) == (0, "")
    assert asked.out.startswith("kvcachedd ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--bogus"], "--bogus is not an option"),
        (["--version=3"], "--version=3 is not an option"),
        (["-x"], "-x is not an option"),
        (["--budget"], "--budget needs a value"),
        (["extra"], "extra is one argument too many"),
        (["--budget", "12Q"], '--budget: "12Q" is not a size'),
        (["--budget", "0"], '--budget: "0" is not a size'),
        (["--emulate", "80X"], '--emulate: "80X" is not a size'),
        (["--emulate", "80G,,1G"], '--emulate: "" is not a size'),
        (["--utilization", "1.2"], "is not above 0 and at most 1"),
        (["--utilization", "0"], "is not above 0 and at most 1"),
        (["--log-level", "loud"], "is none of error, warning, notice, info, debug"),
        (["--gpu", ""], "--gpu needs a number or a UUID"),
        (["--metrics-listen", "9470"], '--metrics-listen: "9470" is not an address and a port such as'),
        (
            ["--metrics-listen", "localhost:9470"],
            "is not an address and a port such as 127.0.0.1:9470 or [::1]",
        ),
        (["--metrics-listen", "[::1]"], "is not an address and a port such as"),
        (["--metrics-listen", "127.0.0.1:65536"], "is not an address and a port such as"),
    ],
)
def test_usage(site: Site, arguments: list[str], sentence: str) -> None:
    check_complaint(kvcachedd(site, *arguments), USAGE, sentence)


def test_sizes_in_the_environment(site: Site) -> None:
    complaint = 'KVCACHED_EMULATE: "80X" is not a size such as 80G'
    check_complaint(kvcachedd(site, KVCACHED_EMULATE="80X"), USAGE, complaint)
    check_complaint(kvcachedd(site, "--check-config", KVCACHED_EMULATE="80X"), USAGE, complaint)


def test_empty_variables_say_nothing(site: Site) -> None:
    names = ("KVCACHED_SOCKET", "KVCACHED_EMULATE", "KVCACHED_EMULATE_DIR")
    assert kvcachedd(site, "--check-config", **dict.fromkeys(names, "")).rc == 0


@pytest.mark.emulator
def test_an_empty_folder_of_the_emulator(site: Site) -> None:
    """It is looked for where it is installed, not in the root folder."""
    result = start(site, "--gpu", "7", KVCACHED_EMULATOR_DIR="")
    assert result.rc == FAILED
    assert " /libcuda.so.1" not in result.err


@pytest.mark.emulator
def test_a_folder_of_devices_with_too_long_a_name(site: Site) -> None:
    result = start(site, KVCACHED_EMULATE_DIR=f"/dev/shm/{5000 * 'x'}")
    check_complaint(result, FAILED, "KVCACHED_EMULATE_DIR is longer than 4095 characters")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[daemon]\nbudget=much\n", "x.conf:2: budget=much: expected a size such as 512M or 40G"),
        ("[daemon]\n\ncolour=red\n", "x.conf:3: colour is not a key of [daemon]"),
        ("[domain a]\ngroup=x\n", "[domain a] has no socket"),
        (
            "[daemon]\nmetrics-listen=on\n",
            "x.conf:2: metrics-listen=on: expected an address and a port such as",
        ),
        ("what\n", "x.conf:1: expected [section] or key=value"),
    ],
)
def test_configuration(site: Site, text: str, sentence: str) -> None:
    path = site.run / "x.conf"
    path.write_text(text)
    check_complaint(start(site, "--config", str(path)), FAILED, sentence)
    check_complaint(kvcachedd(site, "--config", str(path), "--check-config"), FAILED, sentence)


def test_configuration_that_is_fine(site: Site) -> None:
    path = site.run / "x.conf"
    path.write_text("[daemon]\nbudget=1G\n[instance a]\nlimit=50%\n")
    checked = kvcachedd(site, "--config", str(path), "--check-config")
    assert (checked.rc, checked.out, checked.err) == (0, "", "")


def test_configuration_that_is_not_there(site: Site) -> None:
    result = start(site, "--config", "/nowhere.conf")
    check_complaint(result, FAILED, "Cannot read /nowhere.conf: No such file or directory")


def test_a_group_that_is_not_there(site: Site) -> None:
    path = site.run / "x.conf"
    path.write_text("[daemon]\nsocket-group=nobody-has-this\n")
    check_complaint(start(site, "--config", str(path)), FAILED, "There is no group nobody-has-this")


@pytest.mark.emulator
def test_no_driver(site: Site) -> None:
    result = kvcachedd(site)
    check_complaint(result, FAILED, "libcuda.so.1")
    assert "--emulate 80G" in result.err


@pytest.mark.emulator
def test_no_emulator(site: Site) -> None:
    check_complaint(start(site, KVCACHED_EMULATOR_DIR="/nowhere"), FAILED, "/nowhere/libcuda.so.1")


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("gpu", "sentence"),
    [
        ("7", "There is no GPU 7; the driver sees 1"),
        ("GPU-00000000-0000-0000-0000-000000000000", "There is no GPU GPU-00000000"),
        ("first", '"first" is neither a number nor a UUID'),
    ],
)
def test_no_such_gpu(site: Site, gpu: str, sentence: str) -> None:
    check_complaint(start(site, "--gpu", gpu), FAILED, sentence)


def test_gpu_by_uuid(programs: Programs) -> None:
    first = programs.daemon("1G,1G", arguments=("--gpu", "1"))
    engine = start_raw(programs, first)
    uuid = engine.open()["gpu_uuid"]
    second = programs.daemon("1G,1G", name="other")
    first.stop()
    third = programs.daemon("1G,1G", name="again", arguments=("--gpu", uuid.upper()))
    welcome = start_raw(programs, third).open()
    assert welcome["gpu_uuid"] == uuid
    assert welcome.number("gpu_index") == 1
    assert start_raw(programs, second).open().number("gpu_index") == 0


def test_a_second_daemon_on_the_same_gpu(programs: Programs, site: Site) -> None:
    daemon = programs.daemon()
    uuid = start_raw(programs, daemon).open()["gpu_uuid"]
    check_complaint(start(site), FAILED, f"Another kvcachedd serves {uuid}")
    assert not (site.run / "x.sock").exists()
    assert start_raw(programs, daemon).open().name == "Welcome"


def test_a_second_daemon_on_the_same_socket(programs: Programs, site: Site) -> None:
    daemon = programs.daemon("1G,1G")
    result = kvcachedd(site, "--emulate", "1G,1G", "--gpu", "1", "--socket", str(daemon.socket))
    check_complaint(result, FAILED, f"Another kvcachedd serves {daemon.socket}")
    assert start_raw(programs, daemon).open().name == "Welcome"


def listen(path: Path, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    listener.listen()
    return listener


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_another_programs_socket_stays(site: Site, kind: int) -> None:
    path = site.run / "x.sock"
    with listen(path, kind):
        check_complaint(start(site), FAILED, f"{path} is in use by another program")
        assert path.is_socket()


def test_a_file_in_the_sockets_place_stays(site: Site) -> None:
    (site.run / "x.sock").write_text("precious")
    check_complaint(start(site), FAILED, "exists and is not a socket")
    assert (site.run / "x.sock").read_text() == "precious"


def test_a_dead_daemons_sockets_are_replaced(programs: Programs) -> None:
    daemon = programs.daemon()
    daemon.kill()
    assert daemon.socket.is_socket()
    assert start_raw(programs, programs.daemon()).open().name == "Welcome"


def test_a_name_that_is_too_long(site: Site) -> None:
    result = kvcachedd(site, "--emulate", "1G", "--socket", f"/tmp/{'x' * 200}")
    check_complaint(result, FAILED, "too long for a socket's name")


def test_a_state_file_that_is_broken(programs: Programs, site: Site) -> None:
    daemon = programs.daemon()
    uuid = start_raw(programs, daemon).open()["gpu_uuid"]
    daemon.stop()
    path = daemon.state_dir / uuid / "limits.json"
    path.parent.mkdir()
    path.write_text("{")
    check_complaint(
        start(site, "--state-dir", str(daemon.state_dir)), FAILED, f"{path} is not a list of limits"
    )


def test_default_places(programs: Programs, site: Site) -> None:
    """Sockets in the unit's folder, with links by UUID; nothing of that stays."""
    run, state = site.run / "runtime", site.run / "state"
    environment = site.environment(RUNTIME_DIRECTORY=str(run), STATE_DIRECTORY=str(state))
    command = [str(site.program("daemon/kvcachedd")), "--emulate", "1G,1G", "--gpu", "1"]
    command += ["--metrics-listen", "off"]
    notify = site.run / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notify))
        process = subprocess.Popen(command, env=environment | {"NOTIFY_SOCKET": str(notify)})
        try:
            manager.settimeout(30)
            assert b"READY=1" in manager.recv(4096)
            (lock,) = run.glob("GPU-*.lock")
            uuid = lock.stem
            assert str((run / f"{uuid}.sock").readlink()) == "gpu1.sock"
            assert str((run / f"{uuid}.sock.ctl").readlink()) == "gpu1.sock.ctl"
            peer = RawPeer(site, run / f"{uuid}.sock")
            programs.peers.append(peer)
            assert peer.open()["gpu_uuid"] == uuid
            peer.close()
        finally:
            process.terminate()
            assert process.wait(30) == 0
    assert list(run.iterdir()) == []
