# SPDX-License-Identifier: Apache-2.0
"""kvctl's shell: at a terminal as its users meet it, and fed by a script."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs, Result, Site, eventually
from harness.listeners import Listing
from harness.screen import Screen
from harness.terminal import Terminal

DONE, FAILED, USAGE, NO_DAEMON = 0, 1, 2, 3
PROMPT = "kvcached> "


@pytest.fixture
def home(site: Site) -> Path:
    path = site.run / "home"
    path.mkdir()
    return path


@pytest.fixture
def shell(site: Site, daemon: Daemon, home: Path) -> Iterator[Terminal]:
    command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket)]
    with Terminal(command, site.environment(HOME=str(home))) as terminal:
        prompt(terminal)
        yield terminal


def prompt(terminal: Terminal) -> str:
    """Waits for the prompt, and until it takes keys; what came before it."""
    text = terminal.expect(PROMPT).removesuffix(PROMPT)
    eventually(terminal.takes_keys)
    return text


def run(terminal: Terminal, line: str) -> str:
    """What the line prints, without itself and the next prompt."""
    terminal.type(line + "\r")
    terminal.expect("\n")
    return prompt(terminal)


def script(site: Site, daemon: Daemon, text: str) -> Result:
    command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket), "shell"]
    done = subprocess.run(
        command, input=text, env=site.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


# ---- At a terminal ----


def test_the_references_session(site: Site, programs: Programs, daemon: Daemon, home: Path) -> None:
    """What the manual of the system that we follow shows, in its order."""
    command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket)]
    with Screen(command, site.environment(HOME=str(home))) as shell:
        prompt(shell)
        help_text = run(shell, "help")
        for line in (
            "list [<ipc>...]",
            "limit <ipc> <size>",
            "limit-percent <ipc> <pct>",
            "watch [-n <seconds>] [<ipc>...]",
            "kvtop [-r <seconds>] [<ipc>...]",
            "help [command]",
            "delete <ipc>",
            "!<command>",
            "exit | quit",
        ):
            assert f"\n  {line}" in help_text
        assert "Updated kv cache limit for llama to 8.00 GB (8589934592 bytes)" in run(
            shell, "limit llama 8G"
        )
        assert "Updated kv cache limit for qwen to 512.00 MB" in run(shell, "limit-percent qwen 50")
        listed = run(shell, "list")
        assert [line.split()[0] for line in listed.splitlines()] == ["IPC", "llama", "qwen"]
        assert run(shell, "list llama").count("\n") == 2
        watch(shell, programs, daemon)
        look_at_bars(shell, "kvtop", ["IPC: llama", "IPC: qwen", "GPU Memory Usage"])
        look_at_bars(shell, "kvtop qwen --refresh 0.2", ["IPC: qwen", "GPU Memory Usage"])
        assert run(shell, "!echo from the system").strip() == "from the system"
        assert "Deleted qwen" in run(shell, "delete qwen")
        assert "There is no instance qwen" in run(shell, "list qwen")
        shell.type("exit\r")
        assert shell.end() == DONE


def watch(shell: Screen, programs: Programs, daemon: Daemon) -> None:
    """Two looks, of which each takes the whole screen, and Ctrl-C."""

    def shown(*names: str) -> Callable[[list[str]], bool]:
        table = ["IPC", *names]
        return lambda lines: [line.split()[0] for line in lines if line] == table

    shell.type("watch -n 1\r")
    shell.await_lines(shown("llama", "qwen"))
    programs.kvctl("limit", "phi", "1G", daemon=daemon)
    shell.await_lines(shown("llama", "qwen", "phi"))
    shell.type("\x03")
    prompt(shell)
    assert "Deleted phi" in run(shell, "delete phi")


def look_at_bars(shell: Screen, line: str, titles: list[str]) -> None:
    """Until q; then the terminal is as programs expect it."""

    def bars(lines: list[str]) -> bool:
        shown = [above for above, bar in pairwise(lines) if re.fullmatch(r"\[[=#-]{60}\]", bar)]
        return lines[0] == "KVCache Memory Usage" and shown == titles

    shell.type(line + "\r")
    shell.await_lines(bars)
    assert not shell.shows_cursor()
    shell.type("q")
    prompt(shell)
    assert shell.shows_cursor()
    modes = run(shell, "!stty -a").replace(";", " ").split()
    assert {"icanon", "echo", "isig", "icrnl", "opost", "onlcr"} <= set(modes)


def test_interrupts(shell: Terminal) -> None:
    """Ctrl-C ends a command, or the line that is being written; never the shell."""
    run(shell, "limit a 1M")
    shell.type("watch -n 0.1\r")
    shell.expect("IPC ")
    shell.expect("IPC ")
    shell.type("\x03")
    prompt(shell)
    shell.type("!echo ready; cat\r")
    shell.expect("\nready\n")
    shell.type("here\r")
    shell.expect("here\nhere\n")
    shell.type("\x03")
    prompt(shell)
    shell.type("delete every")
    shell.expect("every")
    shell.type("\x03")
    prompt(shell)
    assert "There is no command every" not in run(shell, "version")
    shell.type("\x04")
    assert shell.end() == DONE


def test_completion(shell: Terminal) -> None:
    run(shell, "limit llama-big 512M")
    shell.type("why lla\t\r")
    shell.expect("uses 0 B of 512.00 MB")
    prompt(shell)
    shell.type("li\t")
    shell.expect("list")
    shell.expect("limit-percent")
    shell.type("st\r")
    shell.expect("llama-big")
    prompt(shell)
    shell.type("quit\r")
    assert shell.end() == DONE


def test_names_that_are_none_complete_nothing(site: Site, home: Path) -> None:
    """They would go to the terminal, and into the line, as they are."""
    socket_path = site.run / "odd.sock"
    command = [str(site.program("kvctl/kvctl")), "--socket", str(socket_path)]
    names = [b"x-\x1b[2Jevil", b"x-y z", b"x-'q", b"x-llama", b"x-qwen"]
    with (
        Listing(socket_path.with_name("odd.sock.ctl"), names),
        Terminal(command, site.environment(HOME=str(home))) as terminal,
    ):
        prompt(terminal)
        terminal.type("list x\t\t")
        shown = terminal.expect("x-qwen")
        assert shown.split("\n")[-1].split() == ["x-llama", "x-qwen"]
        terminal.type("q\t\r")
        assert "\\x1b[2Jevil" in terminal.expect("x-qwen  ")  # the list itself shows what there is
        prompt(terminal)
        assert "\x1b[2J" not in terminal.raw


def test_history(shell: Terminal, site: Site, daemon: Daemon, home: Path) -> None:
    run(shell, "limit llama 1G")
    shell.type("exit\r")
    assert shell.end() == DONE
    path = home / ".kvctl_history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket)]
    with Terminal(command, site.environment(HOME=str(home))) as again:
        prompt(again)
        again.type("\x1b[A\x1b[A\r")
        again.expect("Updated kv cache limit for llama")


def test_a_home_that_cannot_be_written(site: Site, daemon: Daemon) -> None:
    command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket)]
    with Terminal(command, site.environment(HOME="/proc/self/none")) as terminal:
        prompt(terminal)
        assert "kvctl 0." in run(terminal, "version")


def test_a_daemon_that_goes_and_comes(shell: Terminal, programs: Programs, daemon: Daemon) -> None:
    daemon.stop()
    assert "No daemon listens at" in run(shell, "list")
    programs.daemon()
    assert "kvcachedd 0." in run(shell, "version")


# ---- Fed by a script ----


def test_a_script(site: Site, daemon: Daemon) -> None:
    result = script(site, daemon, "limit 'a' 1G # the first\n\n  list a\n!echo x\nquit\nlimit b 1G\n")
    assert (result.rc, result.err) == (DONE, "")
    assert PROMPT not in result.out
    lines = result.out.splitlines()
    assert lines[0].startswith("Updated kv cache limit for a to 1.00 GB")
    assert lines[-2].split()[0] == "a"
    assert lines[-1] == "x"


@pytest.mark.parametrize(
    ("line", "status", "sentence"),
    [
        ("lsit", USAGE, "There is no command lsit; `kvctl help` lists them"),
        ("why nobody", FAILED, "There is no instance nobody"),
        ("limit a 'b", USAGE, "A quote is not closed"),
        ("list " + "x " * 300, USAGE, "That line has too many words"),
        ("shell", USAGE, "This is the shell already"),
        ("--socket /nowhere list", NO_DAEMON, "No daemon listens at /nowhere.ctl"),
        ("list --gpu 977", NO_DAEMON, "No daemon for GPU 977 is running"),
    ],
)
def test_what_fails(site: Site, daemon: Daemon, line: str, status: int, sentence: str) -> None:
    """The rest is run, and the exit status tells of it."""
    result = script(site, daemon, f"{line}\nversion\n")
    assert result.rc == status
    assert result.err.startswith(f"kvctl: {sentence}")
    assert result.out.startswith("kvctl 0.")


def test_what_the_system_says(site: Site, daemon: Daemon) -> None:
    assert script(site, daemon, "!exit 7\nlist\n").rc == 7
    result = script(site, daemon, "!kill -9 $$\nversion\n")
    assert result.rc == 128 + 9
    assert "The command was ended by signal 9" in result.err
    assert "kvctl 0." in result.out


def test_no_command_is_the_shell(site: Site, daemon: Daemon) -> None:
    command = [str(site.program("kvctl/kvctl")), "--socket", str(daemon.socket)]
    done = subprocess.run(
        command, input="version\n", env=site.environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (DONE, "")
    assert done.stdout.startswith("kvctl 0.")
