# SPDX-License-Identifier: Apache-2.0
"""kvctl as an administrator meets it: what it prints, what it refuses, and every exit status."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import socket
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs, Result, Site, eventually
from harness.raw import RawPeer, start_raw

DONE, FAILED, USAGE, NO_DAEMON = 0, 1, 2, 3
COMMANDS = (
    *("list", "limit", "limit-percent", "watch", "delete", "info", "why", "events", "reload", "version"),
    *("shell", "help"),
)

MIB = 1 << 20
GIB = 1 << 30

Kvctl = Callable[..., Result]


def check_complaint(result: Result, status: int, sentence: str) -> None:
    """One line on stderr, nothing on stdout."""
    assert (result.rc, result.out) == (status, ""), result
    assert sentence in result.err
    assert result.err.startswith("kvctl: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")


def kvctl_command(site: Site, socket_path: Path, *words: str) -> list[str]:
    return [str(site.program("kvctl/kvctl")), "--socket", str(socket_path), *words]


# ---- Without a daemon ----


@pytest.mark.parametrize("words", [["help"], ["--help"], ["-h"]])
def test_help(programs: Programs, words: list[str]) -> None:
    result = programs.kvctl(*words)
    assert (result.rc, result.err) == (DONE, "")
    for command in COMMANDS:
        assert f"\n  {command} " in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_on_a_command(programs: Programs, command: str) -> None:
    by_word, by_option = programs.kvctl("help", command), programs.kvctl(command, "--help")
    assert by_word == by_option
    assert (by_word.rc, by_word.err) == (DONE, "")
    assert by_word.out.startswith(f"Usage: kvctl {command} ")
    assert max(len(line) for line in by_word.out.splitlines()) <= 110


def test_version(programs: Programs) -> None:
    result = programs.kvctl("--version")
    assert (result.rc, result.err) == (DONE, "")
    assert result.out.startswith("kvctl 0.")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lsit"], "There is no command lsit"),
        (["help", "me"], "There is no command me"),
        (["\033[2Jlist"], "There is no command \\x1b[2Jlist"),
        (["--json"], "--json needs a command; `kvctl help` lists them"),
        (["events", "-n", "1"], "`kvctl events` has no option --interval"),
        (["list", "--follow"], "`kvctl list` has no option --follow"),
        (["limit", "a", "1G", "--all"], "`kvctl limit` has no option --all"),
        (["why"], "Usage: kvctl why <ipc>"),
        (["--josn", "list"], "There is no option --josn"),
        (["list", "--force"], "`kvctl list` has no option --force"),
        (["help", "--json"], "`kvctl help` has no option --json"),
        (["help", "list", "info"], "Usage: kvctl help [command]"),
        (["list", "--json=1"], "--json=1: this option takes no value"),
        (["list", "--socket"], "--socket needs a value"),
        (["list", "--socket", ""], "--socket needs a value"),
        (["--socket=", "list"], "--socket needs a value"),
        (["list", "--socket", "a", "--gpu", "0"], "Give either --socket or --gpu"),
        (["list", "--all", "--gpu", "0"], "Give either --all or one daemon"),
        (["list", "--gpu", "x"], "x is neither the number of a GPU nor a UUID"),
        (["limit", "a"], "Usage: kvctl limit <ipc> <size>"),
        (["limit", "a", "1G", "b"], "Usage: kvctl limit <ipc> <size>"),
        (["limit-percent", "a"], "Usage: kvctl limit-percent <ipc> <pct>"),
        (["limit-percent", "a", "1", "b"], "Usage: kvctl limit-percent <ipc> <pct>"),
        (["info", "a", "b"], "Usage: kvctl info [<ipc>]"),
        (["delete"], "Usage: kvctl delete <ipc>"),
        (["delete", "a", "b"], "Usage: kvctl delete <ipc>"),
        (["delete", ""], "An argument of `kvctl delete` is empty"),
        (["info", ""], "An argument of `kvctl info` is empty"),
        (["limit", "a", "8Q"], "8Q is not a size"),
        (["limit", "a", "--", "-8G"], "-8G is not a size"),
        (["limit", "a", "16777216T"], "16777216T is not a size"),
        (["limit-percent", "a", "100.0001"], "100.0001 is not a percentage"),
        (["limit-percent", "a", "50%"], "50% is not a percentage"),
        (["limit-percent", "a", "nan"], "nan is not a percentage"),
        (["limit-percent", "a", "--", "-5"], "-5 is not a percentage"),
        (["limit-percent", "a", "-5"], "There is no option -5"),
    ],
)
def test_usage(programs: Programs, words: list[str], sentence: str) -> None:
    check_complaint(programs.kvctl(*words, KVCACHED_SOCKET="/nowhere"), USAGE, sentence)


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["info"],
        ["info", "a"],
        ["limit", "a", "1G"],
        ["limit-percent", "a", "1"],
        ["delete", "a"],
        ["watch"],
        ["why", "a"],
        ["events"],
        ["reload"],
    ],
)
def test_no_daemon(programs: Programs, site: Site, words: list[str]) -> None:
    path = site.run / "gpu0.sock"
    check_complaint(
        programs.kvctl("--socket", str(path), *words), NO_DAEMON, f"No daemon listens at {path}.ctl"
    )


def test_the_environment_names_the_socket(programs: Programs) -> None:
    check_complaint(
        programs.kvctl("list", KVCACHED_SOCKET="/nowhere/s"), NO_DAEMON, "No daemon listens at /nowhere/s.ctl"
    )
    result = programs.kvctl("list", "--gpu", "977", KVCACHED_SOCKET="/nowhere/s", XDG_RUNTIME_DIR="/nowhere")
    check_complaint(result, NO_DAEMON, "No daemon for GPU 977 is running")


def bind(path: Path, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_a_stale_socket(programs: Programs, site: Site) -> None:
    path = site.run / "gpu0.sock"
    bind(site.run / "gpu0.sock.ctl").close()
    check_complaint(programs.kvctl("--socket", str(path), "list"), NO_DAEMON, "No daemon listens at")


@pytest.mark.parametrize("file_kind", ["file", "stream"])
def test_not_a_daemons_socket(programs: Programs, site: Site, file_kind: str) -> None:
    path = site.run / "gpu0.sock.ctl"
    if file_kind == "file":
        path.touch()
        sentence = f"No daemon listens at {path}"  # the kernel says only that the connection was refused
    else:
        listener = bind(path, socket.SOCK_STREAM)
        sentence = f"{path} is not the socket of a daemon"
    check_complaint(programs.kvctl("--socket", str(path.with_suffix("")), "list"), NO_DAEMON, sentence)
    if file_kind == "stream":
        listener.close()


def test_a_listener_that_hangs_up(site: Site) -> None:
    listener = bind(site.run / "gpu0.sock.ctl")
    command = kvctl_command(site, site.run / "gpu0.sock", "list")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as kvctl:
        listener.accept()[0].close()
        out, err = kvctl.communicate()
    listener.close()
    check_complaint(Result(kvctl.returncode, out, err), FAILED, "closed the connection")


def test_a_listener_that_babbles(site: Site) -> None:
    listener = bind(site.run / "gpu0.sock.ctl")
    command = kvctl_command(site, site.run / "gpu0.sock", "list")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as kvctl:
        connection = listener.accept()[0]
        connection.send(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
        out, err = kvctl.communicate()
        connection.close()
    listener.close()
    check_complaint(Result(kvctl.returncode, out, err), FAILED, "does not speak our protocol")


@pytest.mark.parametrize("words", [["help"], ["--version"]])
def test_output_that_cannot_be_written(site: Site, words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [site.program("kvctl/kvctl"), *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == FAILED
    assert done.stderr == "kvctl: The output could not be written: No space left on device\n"


# ---- With a daemon ----


def engine(
    programs: Programs,
    daemon: Daemon,
    name: str,
    pages: int = 0,
    *,
    program: str = "engine",
    at: Path | None = None,
) -> RawPeer:
    """An engine that holds pages of one extent of 2 MiB each."""
    peer = start_raw(programs, daemon, name)
    peer.socket_path = at or daemon.socket
    peer.open(program=program)
    if pages:
        peer.take(peer.open_region(), pages)
    return peer


def row(name: str, limit: str, used: str, percent: str) -> str:
    return f"{name:<24}{limit:>13}{used:>13}{percent:>8}"


HEAD = row("IPC", "Limit", "Used", "%")


def table(kvctl: Kvctl, *names: str) -> list[str]:
    result = kvctl("list", *names)
    assert (result.rc, result.err) == (DONE, ""), result
    return result.out.splitlines()


def test_an_empty_list(kvctl: Kvctl) -> None:
    assert kvctl("list") == Result(DONE, "No active KVCached segments found.\n", "")
    assert kvctl("list", "--json").json() == []


def test_list(programs: Programs) -> None:
    daemon = programs.daemon("1G", budget="512M")
    peer = engine(programs, daemon, "vllm", 4, program="python3 -m vllm")
    result = programs.kvctl("list", daemon=daemon)
    assert result == Result(DONE, f"{HEAD}\n{row('vllm', '512.00 MB', '8.00 MB', '1.6 %')}\n", "")
    (instance,) = programs.kvctl("--json", "list", "vllm", daemon=daemon).json()
    assert instance.pop("serial") > 0
    assert instance == {
        "ipc": "vllm",
        "gpu": 0,
        "cached_bytes": 0,
        "pinned_bytes": 0,
        "wanted_bytes": 0,
        "total_granted_bytes": 8 * MIB,
        "total_returned_bytes": 0,
        "refusals": 0,
        "domain": f"uid:{os.getuid()}",
        "limit_bytes": 512 * MIB,
        "limit_source": "budget",
        "used_bytes": 8 * MIB,
        "granted_bytes": 8 * MIB,
        "limbo_bytes": 0,
        "pending_bytes": 0,
        "leased_bytes": 0,
        "reserved_bytes": 0,
        "over_limit": False,
        "missed_notice": False,
        "frozen": False,
        "peers": [{"pid": peer.pid, "role": "engine", "program": "python3 -m vllm", "connected": True}],
    }


def test_list_names(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    for name in ("a", "b", "c"):
        engine(programs, daemon, name)
    assert [line.split()[0] for line in table(kvctl)] == ["IPC", "a", "b", "c"]
    assert [line.split()[0] for line in table(kvctl, "c", "a")] == ["IPC", "a", "c"]
    check_complaint(kvctl("list", "a", "x"), FAILED, "There is no instance x")


def test_many_instances_are_paged(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    names = [f"{i:03}_{'x' * 60}" for i in range(300)]
    domain = "d" * 180  # so that one packet of 64 KiB cannot hold them all
    administrator = start_raw(programs, daemon)
    administrator.connect(daemon.control)
    assert administrator.request("Hello", min_version=1, max_version=1).name == "Welcome"
    for name in names:
        assert administrator.request("SetLimit", instance=f"{domain}/{name}", bytes=MIB).name == "LimitReply"
    assert [instance["ipc"] for instance in kvctl("list", "--json").json()] == names


def test_text_from_engines_is_harmless(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine(programs, daemon, "a", program="\033]0;root\a\u009b2J")
    for words in (["list"], ["list", "--json"], ["info", "a"], ["info", "a", "--json"]):
        result = kvctl(*words)
        assert result.rc == DONE
        assert all(" " <= c <= "~" for c in result.out.replace("\n", "").replace("\t", "")), words
    check_complaint(kvctl("info", "\033[2J"), FAILED, "\\x1b[2J")


def test_limit(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    engine(programs, daemon, "a", 4)
    result = kvctl("limit", "a", "0.25G")
    assert result == Result(DONE, "Updated kv cache limit for a to 256.00 MB (268435456 bytes)\n", "")
    assert table(kvctl)[1] == row("a", "256.00 MB", "8.00 MB", "3.1 %")
    (instance,) = kvctl("list", "--json").json()
    assert (instance["limit_bytes"], instance["limit_source"]) == (256 * MIB, "admin")
    assert kvctl("limit", "a", "16M", "--json").json() == instance | {"limit_bytes": 16 * MIB}


def test_a_limit_below_use(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    peer = engine(programs, daemon, "a", 4)
    result = kvctl("limit", "a", "2M")
    assert (result.rc, result.err) == (DONE, "")
    assert result.out.splitlines() == [
        "Updated kv cache limit for a to 2.00 MB (2097152 bytes)",
        "a uses 8.00 MB, 6.00 MB more than that: it gets nothing new until it has returned as much.",
    ]
    assert table(kvctl)[1] == row("a", "2.00 MB", "8.00 MB", "400.0 %") + "  over limit"
    assert "Over limit    by 6.00 MB" in kvctl("info", "a").out
    peer.request("Take", region=1, pages=1).check_refused("ERROR_LIMIT")
    assert kvctl("limit", "a", "0").rc == DONE
    assert table(kvctl)[1] == row("a", "0 B", "8.00 MB", "-") + "  over limit"


def test_a_limit_above_the_budget(programs: Programs) -> None:
    daemon = programs.daemon("1G", budget="512M")
    engine(programs, daemon, "a")
    result = programs.kvctl("limit", "a", "1T", daemon=daemon)
    assert (result.rc, result.err) == (DONE, "")
    assert result.out.splitlines() == [
        "Updated kv cache limit for a to 1.00 TB (1099511627776 bytes)",
        "The daemon's budget is smaller: at present a may use 512.00 MB.",
    ]
    result = programs.kvctl("limit-percent", "a", "100", daemon=daemon)
    assert (result.rc, result.err) == (DONE, "")
    assert result.out.splitlines() == [
        "Updated kv cache limit for a to 1.00 GB (1073741824 bytes)",
        "The daemon's budget is smaller: at present a may use 512.00 MB.",
    ]


def test_a_limit_for_somebody_to_come(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    result = kvctl("limit", "later", "16M")
    assert (result.rc, result.err) == (DONE, "")
    assert result.out.splitlines()[1:] == [
        "Nobody runs under that name now; the limit waits for who will, "
        f"in the trust domain uid:{os.getuid()}."
    ]
    assert table(kvctl)[1] == row("later", "16.00 MB", "0 B", "0.0 %")
    engine(programs, daemon, "later", 4)
    assert table(kvctl)[1] == row("later", "16.00 MB", "8.00 MB", "50.0 %")
    check_complaint(kvctl("limit", "no name", "1G"), FAILED, "name of an instance")


@pytest.mark.parametrize(
    ("percent", "limit_bytes"),
    [("50", 512 * MIB), ("0", 0), ("12.5", 128 * MIB), ("33.3333", 357913583), ("0.0001", 1073)],
)
def test_limit_percent(programs: Programs, percent: str, limit_bytes: int) -> None:
    daemon = programs.daemon("1G")
    engine(programs, daemon, "a")
    result = programs.kvctl("limit-percent", "a", percent, daemon=daemon)
    assert (result.rc, result.err) == (DONE, "")
    assert result.out.startswith("Updated kv cache limit for a to ")
    assert f"({limit_bytes} bytes)\n" in result.out
    (instance,) = programs.kvctl("list", "--json", daemon=daemon).json()
    assert (instance["limit_bytes"], instance["limit_source"]) == (limit_bytes, "admin")
    assert programs.kvctl("limit-percent", "a", percent, "--json", daemon=daemon).json() == instance


def test_a_limit_outlives_the_daemon(programs: Programs) -> None:
    first = programs.daemon("1G")
    assert programs.kvctl("limit", "a", "16M", daemon=first).rc == DONE
    first.stop()
    second = programs.daemon("1G")
    (instance,) = programs.kvctl("list", "--json", daemon=second).json()
    assert (instance["ipc"], instance["limit_bytes"], instance["limit_source"]) == ("a", 16 * MIB, "admin")


def test_delete(kvctl: Kvctl) -> None:
    check_complaint(kvctl("delete", "a"), FAILED, "There is no instance a")
    kvctl("limit", "a", "16M")
    assert kvctl("delete", "a") == Result(DONE, "Deleted a\n", "")
    assert kvctl("list", "--json").json() == []
    kvctl("limit", "a", "16M")
    assert kvctl("delete", "a", "--json").json() == {"ipc": "a", "disconnected": []}
    kvctl("limit", "a", "16M")
    assert kvctl("delete", "a", "--force") == Result(DONE, "Deleted a\n", "")


def test_delete_with_processes(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    peer = engine(programs, daemon, "a", 4, program="vllm")
    complaint = f"a is in use by pid {peer.pid} (vllm); --force disconnects them"
    check_complaint(kvctl("delete", "a"), FAILED, complaint)
    other = engine(programs, daemon, "a", program="")
    complaint = f"a is in use by pid {peer.pid} (vllm), pid {other.pid}; --force disconnects them"
    for words in ([], ["--json"]):
        check_complaint(kvctl("delete", "a", *words), FAILED, complaint)
    assert len(peer.take(1)) == 1


def test_delete_by_force(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    peer = engine(programs, daemon, "a", 4, program="vllm")
    result = kvctl("delete", "a", "--force")
    assert (result.rc, result.err) == (DONE, "")
    assert result.out.splitlines() == [
        f"Disconnected pid {peer.pid} (vllm) from a",
        "What they hold stays charged to it until they exit.",
    ]
    peer.check_ended("ERROR_FROZEN")
    (instance,) = kvctl("list", "--json").json()
    assert instance["frozen"]
    assert (instance["used_bytes"], instance["limbo_bytes"]) == (8 * MIB, 8 * MIB)
    assert not instance["peers"][0]["connected"]
    assert "has disconnected and is still running" in kvctl("info", "a").out
    peer.close()
    eventually(lambda: kvctl("list", "--json").json() == [])


def test_delete_by_force_as_json(programs: Programs, daemon: Daemon, kvctl: Kvctl) -> None:
    peer = engine(programs, daemon, "a", 4, program="vllm")
    (process,) = kvctl("info", "a", "--json").json()["peers"]
    deletion = kvctl("delete", "a", "--force", "--json").json()
    assert deletion == {"ipc": "a", "disconnected": [process | {"connected": False}]}
    peer.check_ended("ERROR_FROZEN")


def test_info(programs: Programs) -> None:
    daemon = programs.daemon("1G", budget="512M")
    engine(programs, daemon, "a", 4)
    info = programs.kvctl("info", "--json", daemon=daemon).json()
    assert info["gpu"]["index"] == 0
    assert info["gpu"]["uuid"].startswith("GPU-")
    assert info["socket"] == str(daemon.control)
    assert (info["total_bytes"], info["budget_bytes"]) == (GIB, 512 * MIB)
    assert (info["granted_bytes"], info["instances"], info["peers"]) == (8 * MIB, 1, 1)
    states = ("creating", "pool", "granted", "limbo", "destroying")
    assert info["held_bytes"] == sum(info[f"{state}_bytes"] for state in states)
    text = programs.kvctl("info", daemon=daemon).out
    assert f"GPU           0, {info['gpu']['name']}, {info['gpu']['uuid']}\n" in text
    assert "Budget           512.00 MB  (536870912 bytes)" in text


@pytest.mark.emulator
def test_info_says_that_the_gpu_is_emulated(site: Site, kvctl: Kvctl) -> None:
    gpu = kvctl("info", "--json").json()["gpu"]
    assert gpu["emulated"]
    assert Path(gpu["emulated_folder"]) == site.emulate_dir
    assert f"Emulated in   {gpu['emulated_folder']}\n" in kvctl("info").out


def test_info_about_an_instance(programs: Programs, kvctl: Kvctl, daemon: Daemon) -> None:
    peer = engine(programs, daemon, "a", 4, program="vllm")
    kvctl("limit", "a", "16M")
    result = kvctl("info", "a")
    assert (result.rc, result.err) == (DONE, "")
    lines = result.out.splitlines()
    assert "IPC           a" in lines
    assert "  source      set with kvctl" in lines
    assert "Used               8.00 MB  (8388608 bytes), 50.0 % of the limit" in lines
    assert f"Processes     pid {peer.pid} (vllm), engine" in lines
    assert [kvctl("info", "a", "--json").json()] == kvctl("list", "--json").json()
    check_complaint(kvctl("info", "b"), FAILED, "There is no instance b")


def test_equal_names_in_two_domains(programs: Programs, site: Site) -> None:
    tenant = site.run / "tenant" / "gpu0.sock"
    daemon = programs.daemon("1G", config=f"[domain tenant]\nsocket = {tenant}\n")
    own = f"uid:{os.getuid()}"
    engine(programs, daemon, "a", 1)
    engine(programs, daemon, "a", 2, at=tenant)
    engine(programs, daemon, "b", 3)

    def kvctl(*words: str) -> Result:
        return programs.kvctl(*words, daemon=daemon)

    assert [line.split()[0] for line in table(kvctl)] == ["IPC", f"{own}/a", "tenant/a", "b"]
    for words in (["limit", "a", "1M"], ["limit-percent", "a", "1"], ["delete", "a"], ["info", "a"]):
        result = kvctl(*words)
        check_complaint(result, FAILED, f"{own}/a")
        assert "tenant/a" in result.err
    assert kvctl("limit", "tenant/a", "8M").rc == DONE
    limits = {i["domain"]: i["limit_source"] for i in kvctl("list", "a", "--json").json()}
    assert limits == {own: "budget", "tenant": "admin"}
    assert [line.split()[0] for line in table(kvctl, "tenant/a")] == ["IPC", "a"]


def test_gpu_by_number_and_uuid(programs: Programs, site: Site) -> None:
    uuid = programs.kvctl("info", "--json", daemon=programs.daemon()).json()["gpu"]["uuid"]
    (site.run / f"{uuid}.sock.ctl").symlink_to("gpu0.sock.ctl")  # as the daemon does at its default place
    for gpu in ("0", uuid):
        result = programs.kvctl("info", "--json", "--gpu", gpu, RUNTIME_DIRECTORY=str(site.run))
        assert (result.rc, result.err) == (DONE, ""), gpu
        assert result.json()["gpu"]["uuid"] == uuid


# ---- Who may ----


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
STRANGER = 4321


def as_stranger(site: Site, daemon: Daemon, *words: str, group: int = STRANGER) -> Result:
    """kvctl run by somebody without rights, who is in one group."""
    _, *arguments = kvctl_command(site, daemon.socket, *words)
    done = subprocess.run(
        [str(site.publish("kvctl/kvctl")), *arguments],
        env=site.environment(),
        user=STRANGER,
        group=group,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@needs_root
def test_strangers_may_not_even_read(site: Site, daemon: Daemon) -> None:
    check_complaint(as_stranger(site, daemon, "list"), FAILED, f"You may not connect to {daemon.control}")


@needs_root
def test_the_sockets_group_may_read_and_not_change(programs: Programs, site: Site, daemon: Daemon) -> None:
    os.chown(daemon.control, -1, STRANGER)
    engine(programs, daemon, "a", 4)
    assert as_stranger(site, daemon, "list", "--json").json()[0]["used_bytes"] == 8 * MIB
    assert as_stranger(site, daemon, "info").rc == DONE
    for words in (
        ["limit", "a", "1G"],
        ["limit-percent", "a", "1"],
        ["delete", "a"],
        ["delete", "a", "--force"],
    ):
        check_complaint(as_stranger(site, daemon, *words), FAILED, "may change things")
    assert programs.kvctl("list", "--json", daemon=daemon).json()[0]["limit_source"] == "budget"


@needs_root
def test_a_strangers_daemon_is_not_believed(site: Site, programs: Programs) -> None:
    site.run.chmod(0o777)
    os.seteuid(STRANGER)
    try:
        listener = bind(site.run / "gpu0.sock.ctl")
    finally:
        os.seteuid(0)
    result = programs.kvctl("--socket", str(site.run / "gpu0.sock"), "list")
    check_complaint(result, NO_DAEMON, f"belongs to user {STRANGER}")
    listener.close()


# ---- Where output goes ----


def test_a_full_disk(site: Site, daemon: Daemon) -> None:
    command = kvctl_command(site, daemon.socket, "list", "--json")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == FAILED
    assert done.stderr == "kvctl: The output could not be written: No space left on device\n"


def on_terminal(site: Site, daemon: Daemon, columns: int, **environment: str) -> str:
    """What `kvctl list` writes to a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
    command = kvctl_command(site, daemon.socket, "list")
    clean = {k: v for k, v in site.environment().items() if k != "NO_COLOR"}
    subprocess.run(command, env=clean | environment, stdout=theirs, check=True)
    os.close(theirs)
    output = b""
    with contextlib.suppress(OSError):  # at the end
        while chunk := os.read(ours, 65536):
            output += chunk
    os.close(ours)
    return output.decode().replace("\r\n", "\n")


def test_colours(programs: Programs, site: Site, daemon: Daemon, kvctl: Kvctl) -> None:
    for name, limit in (("green", "20M"), ("yellow", "16M"), ("red", "10M")):
        engine(programs, daemon, name, 4)
        kvctl("limit", name, limit)
    lines = on_terminal(site, daemon, 80).splitlines()
    assert [line.split("\033[")[1][:2] for line in lines[1:]] == ["32", "33", "31"]
    assert "\033" in on_terminal(site, daemon, 80, NO_COLOR="")
    assert "\033" not in on_terminal(site, daemon, 80, NO_COLOR="1")
    assert "\033" not in kvctl("list").out


def test_a_narrow_terminal(programs: Programs, site: Site, daemon: Daemon) -> None:
    engine(programs, daemon, "kvcached_vLLM_12345", 4)
    lines = on_terminal(site, daemon, 40, NO_COLOR="1").splitlines()
    assert lines == ["IPC                         Used       %", "kvcached_vLLM_12345      8.00 MB   0.8 %"]
