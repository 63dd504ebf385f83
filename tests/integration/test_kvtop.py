# SPDX-License-Identifier: Apache-2.0
"""kvtop in a terminal: its screens, keys, sizes, and a daemon that goes and comes back."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs, Site
from harness.listeners import Refusing, Silent
from harness.raw import start_holder
from harness.screen import Screen

DONE, FAILED, USAGE, NO_DAEMON = 0, 1, 2, 3


def command_of(site: Site, daemon: Daemon) -> list[str]:
    return [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket), "kvtop", "--refresh", "0.1"]


@pytest.fixture
def top(site: Site, daemon: Daemon) -> Iterator[Screen]:
    with Screen(command_of(site, daemon), site.environment()) as screen:
        yield screen


def shows(text: str) -> Callable[[list[str]], bool]:
    return lambda lines: any(text in line for line in lines)


def test_screen_of_an_instance(programs: Programs, daemon: Daemon, top: Screen) -> None:
    programs.kvctl("limit", "a", "16M", daemon=daemon)
    start_holder(programs, daemon, "a", pages=4)
    expected = [
        "IPC: a",
        "[" + 30 * "#" + 30 * "-" + "]",
        "Prealloc: 0 B | Used: 8.00 MB / 16.00 MB (50.0 %) | Free: 8.00 MB",
    ]
    top.await_lines(
        lambda lines: (
            lines[0] == "KVCache Memory Usage"
            and lines[2:5] == expected
            and lines[7] == "GPU Memory Usage"
            and lines[23] == "Press 'q' to quit, 'h' for help; sorted by used"
        )
    )
    top.type("q")
    assert top.end() == DONE


def test_keys(programs: Programs, daemon: Daemon, top: Screen) -> None:
    for name in ("apple", "pear"):
        programs.kvctl("limit", name, "16M", daemon=daemon)
    top.await_lines(lambda lines: shows("IPC: apple")(lines) and shows("IPC: pear")(lines))
    top.type("/pe")
    top.await_lines(lambda lines: lines[2] == "IPC: pear" and lines[23] == "Filter: pe_")
    top.type("\r")
    top.await_lines(lambda lines: lines[23] == "Filter: pe")
    top.type("\x1b")
    top.await_lines(lambda lines: lines[2] == "IPC: apple")
    top.type("n")
    top.await_lines(lambda lines: lines[23].endswith("sorted by name"))
    top.type("h")
    top.await_lines(lambda lines: lines[2] == "q             quit")
    top.type("h")
    top.await_lines(lambda lines: lines[2] == "IPC: apple")
    top.type("\x03")
    assert top.end() == DONE


def test_scrolling(programs: Programs, daemon: Daemon, top: Screen) -> None:
    for number in range(10):
        programs.kvctl("limit", f"i{number}", "16M", daemon=daemon)
    top.resize(80, 60)
    top.type("n")
    top.await_lines(shows("IPC: i9"))
    top.resize(80, 24)
    top.await_lines(lambda lines: lines[2] == "IPC: i0" and lines[22] == "IPC: i4")
    top.type("\x1b[B")
    top.await_lines(lambda lines: lines[6] == "IPC: i1" and lines[0] == "KVCache Memory Usage")
    top.type("\x1b[A")
    top.await_lines(lambda lines: lines[2] == "IPC: i0")
    top.type("\x1b[6~")
    top.await_lines(lambda lines: lines[2] == "IPC: i4")
    top.type("\x1b[6~" * 5)
    top.await_lines(lambda lines: lines[19] == "GPU Memory Usage")
    top.type("\x1b[5~" * 5)
    top.await_lines(lambda lines: lines[2] == "IPC: i0")
    top.type("q")
    assert top.end() == DONE


def button(number: int, column: int, row: int) -> str:
    """What a terminal sends when one goes down there, or up."""
    return "\x1b[M" + "".join(chr(32 + part) for part in (number, column + 1, row + 1))


def click(column: int, row: int) -> str:
    return button(0, column, row) + button(3, column, row)


def test_mouse(programs: Programs, daemon: Daemon, top: Screen) -> None:
    for number in range(10):
        programs.kvctl("limit", f"i{number}", "16M", daemon=daemon)
    top.resize(80, 60)
    top.await_lines(shows("IPC: i9"))
    top.resize(80, 24)
    top.await_lines(lambda lines: lines[2] == "IPC: i0" and lines[23].endswith("sorted by used"))
    for order in ("name", "share", "rate", "used"):
        top.type(click(40, 23))
        top.await_lines(shows(f"sorted by {order}"))
    top.type(button(65, 0, 0))
    top.await_lines(lambda lines: lines[4] == "IPC: i1")
    assert not top.is_reversed(4)
    top.type(click(10, 5))
    top.await_lines(lambda _: top.is_reversed(4))
    top.type(button(64, 0, 0))
    top.await_lines(lambda lines: lines[7] == "IPC: i1" and top.is_reversed(7))
    top.type(click(10, 7))
    top.await_lines(lambda _: not top.is_reversed(7))
    top.type("q")
    assert top.end() == DONE
    assert "\x1b[?1000l" in top.raw


def test_resizing(programs: Programs, daemon: Daemon, top: Screen) -> None:
    programs.kvctl("limit", "a", "16M", daemon=daemon)
    top.await_lines(lambda lines: lines[3] == "[" + 60 * "-" + "]")
    top.resize(42, 10)
    top.await_lines(lambda lines: lines[3] == "[" + 40 * "-" + "]" and lines[9].startswith("Press 'q'"))
    top.resize(30, 5)
    top.await_lines(lambda lines: lines == ["Too small for kvtop", "", "", "", ""])
    top.resize(80, 24)
    top.await_lines(lambda lines: lines[3] == "[" + 60 * "-" + "]")


def test_a_daemon_that_goes_and_comes_back(programs: Programs, daemon: Daemon, top: Screen) -> None:
    top.await_lines(shows("GPU Memory Usage"))
    daemon.stop()
    top.await_lines(lambda lines: shows("GPU 0: unknown. ")(lines) and not shows("GPU Memory Usage")(lines))
    programs.daemon(socket_path=daemon.socket)
    top.await_lines(shows("GPU Memory Usage"))


def test_a_daemon_that_hangs_leaves_the_keyboard(daemon: Daemon, top: Screen) -> None:
    top.resize(250, 24)
    top.await_lines(shows("GPU Memory Usage"))
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        lines = top.await_lines(shows("has not answered for "))
        assert shows("has not answered for 1 s; trying again")(lines), "\n".join(lines)
        top.type("q")
        assert top.end() == DONE
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def test_no_daemon(site: Site, tmp_path: Path) -> None:
    socket = tmp_path / "none.sock"
    command = [str(site.program("kvctl/kvctl")), "--socket", str(socket), "kvtop"]
    with Screen(command, site.environment()) as screen:
        assert screen.end() == NO_DAEMON
        assert screen.text == f"kvctl: No daemon listens at {socket}.ctl\n"


def test_names_of_which_one_is_missing(programs: Programs, site: Site, daemon: Daemon) -> None:
    for name in ("a", "b"):
        programs.kvctl("limit", name, "16M", daemon=daemon)
    with Screen([*command_of(site, daemon), "a", "later"], site.environment()) as screen:
        screen.await_lines(lambda lines: lines[2] == "IPC: a" and lines[7] == "GPU Memory Usage")
        programs.kvctl("limit", "later", "16M", daemon=daemon)
        screen.await_lines(
            lambda lines: lines[2] == "IPC: a" and lines[7] == "IPC: later" and not shows("IPC: b")(lines)
        )


def test_ctrl_c_does_not_wait_for_the_next_look(site: Site, daemon: Daemon) -> None:
    with Screen([*command_of(site, daemon)[:-1], "3600"], site.environment()) as screen:
        screen.await_lines(shows("GPU Memory Usage"))
        screen.type("\x03")
        assert screen.end() == DONE


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours(site: Site, daemon: Daemon, no_color: str) -> None:
    with Screen(command_of(site, daemon), site.environment(NO_COLOR=no_color)) as screen:
        screen.await_lines(shows("GPU Memory Usage"))
        coloured = re.search(r"\x1b\[(\d+;)*3[1-7](;\d+)*m", screen.raw)
        assert (coloured is None) == bool(no_color)
        screen.type("q")
        assert screen.end() == DONE


def test_several_gpus(programs: Programs, site: Site) -> None:
    folder = site.run / "kvcached"
    folder.mkdir()
    daemons = [
        programs.daemon(
            "1G,1G", name=f"gpu{gpu}", arguments=("--gpu", str(gpu)), socket_path=folder / f"gpu{gpu}.sock"
        )
        for gpu in (0, 1)
    ]
    for gpu, daemon in enumerate(daemons):
        programs.kvctl("limit", f"on-{gpu}", "16M", daemon=daemon)
    command = [str(site.program("kvctl/kvctl")), "kvtop", "--all", "--refresh", "0.1"]
    environment = site.environment(XDG_RUNTIME_DIR=str(site.run), RUNTIME_DIRECTORY="")
    with Screen(command, environment) as screen:
        screen.await_lines(
            lambda lines: (
                [lines[2], lines[7]] == ["IPC: on-0", "GPU 0 Memory Usage"]
                and [lines[11], lines[16]] == ["IPC: on-1", "GPU 1 Memory Usage"]
            )
        )
        daemons[0].stop()
        screen.await_lines(
            lambda lines: (
                lines[2].startswith("GPU 0: unknown. No daemon listens at ")
                and lines[3:6] == ["IPC: on-0  unknown", "", "IPC: on-1"]
                and lines[10] == "GPU 1 Memory Usage"
            )
        )
        screen.type("q")
        assert screen.end() == DONE


def test_daemons_that_never_answer(programs: Programs, site: Site) -> None:
    """Keys are heeded at once, however many there are, and the others are shown."""
    folder = site.run / "kvcached"
    folder.mkdir()
    daemon = programs.daemon(socket_path=folder / "gpu0.sock")
    programs.kvctl("limit", "a", "16M", daemon=daemon)
    environment = site.environment(XDG_RUNTIME_DIR=str(site.run), RUNTIME_DIRECTORY="")
    command = [str(site.program("kvctl/kvctl")), "kvtop", "--all", "--refresh", "0.1"]
    with contextlib.ExitStack() as stack:
        for gpu in range(1, 9):
            stack.enter_context(Silent(folder / f"gpu{gpu}.sock.ctl"))
        stack.enter_context(Refusing(folder / "gpu9.sock.ctl", "Nobody may look"))
        screen = stack.enter_context(Screen(command, environment, columns=160, rows=40))
        screen.await_lines(lambda lines: lines[2] == "IPC: a" and lines[7].endswith(" Memory Usage"))
        silent = [
            f"GPU {gpu}: unknown. The daemon at {folder}/gpu{gpu}.sock.ctl has not answered for 1 s; "
            "trying again"
            for gpu in range(1, 9)
        ]
        refused = "GPU 9: unknown. Nobody may look; trying again"
        screen.await_lines(lambda lines: {*silent, refused} <= set(lines))
        started = time.monotonic()
        for key, order in 5 * [("n", "name"), ("p", "share"), ("r", "rate"), ("u", "used")]:
            screen.type(key)
            screen.await_lines(shows(f"sorted by {order}"))
            # Waiting for one of the silent ones with each key would take 20 s.
            assert time.monotonic() - started < 10
        screen.type("q")
        assert screen.end() == DONE


def test_a_daemon_that_hangs_and_goes_on(programs: Programs, daemon: Daemon, top: Screen) -> None:
    programs.kvctl("limit", "a", "16M", daemon=daemon)
    top.await_lines(shows("16.00 MB"))
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        top.await_lines(
            lambda lines: (
                lines[2].startswith("GPU 0: unknown. ")
                and lines[3] == "IPC: a  unknown"
                and not any(unit in line for line in lines for unit in (" B", "MB", "GB"))
            )
        )
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    top.await_lines(shows("16.00 MB"))


def test_without_a_terminal(programs: Programs, daemon: Daemon) -> None:
    done = programs.kvctl("kvtop", daemon=daemon)
    assert (done.rc, done.err) == (FAILED, "kvctl: kvtop needs a terminal; `kvctl watch` doesn't\n")
    done = programs.kvctl("kvtop", "--refresh", "x", daemon=daemon)
    assert (done.rc, done.err) == (USAGE, "kvctl: x is not a number of seconds from 0.1 to 86400\n")


def test_unknown_terminals(site: Site, daemon: Daemon) -> None:
    with Screen(command_of(site, daemon), site.environment(), kind="no-such-kind") as screen:
        assert screen.end() == FAILED
        assert "kvtop doesn't know this kind of terminal; look at $TERM" in screen.text


def test_a_program_by_itself(site: Site, daemon: Daemon, tmp_path: Path) -> None:
    program = tmp_path / "kvtop"
    program.symlink_to(site.program("kvctl/kvctl"))
    with Screen([str(program), "--socket", str(daemon.socket)], site.environment()) as screen:
        screen.await_lines(shows("GPU Memory Usage"))
        screen.type("q")
        assert screen.end() == DONE
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: kvctl kvtop ")
