# SPDX-License-Identifier: Apache-2.0
"""kvcached-launch, the command."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kvcached.controller.config import Config, Instance, parse
from kvcached.controller.document import ConfigError

from . import errors, instances, logs
from .errors import LaunchError
from .plan import check_port, is_here, plan
from .record import Folder, Spec, default_state_dir, folders

PROGRAM = "kvcached-launch"
COMMANDS = ("start", "stop", "restart", "status", "logs")
USAGE, NOT_RUNNING, UNKNOWN = 2, 3, 4
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass
class Launcher:
    """What a command works with."""

    options: argparse.Namespace
    state_dir: Path
    config_path: Path | None
    config: Config | None

    def configured(self) -> dict[str, Instance]:
        return {i.name: i for i in self.config.instances} if self.config else {}

    def folder(self, name: str) -> Folder:
        return Folder(self.state_dir, name)

    def names(self, asked: Sequence[str]) -> list[str]:
        """Those that are meant: the configuration's, and what was started of it when it had others; without
        configuration what was started."""
        known = list(self.configured())
        for name in folders(self.state_dir):
            if name not in known and (self.config is None or self._is_ours(name)):
                known.append(name)
        for name in asked:
            if name not in known:
                shown = f"; there are {', '.join(known)}" if known else ", and no other"
                raise LaunchError(f"there is no instance {name}{shown}", UNKNOWN)
        return list(dict.fromkeys(asked)) or known

    def _is_ours(self, name: str) -> bool:
        record = self.folder(name).read()
        return record is not None and record.config == str(self.config_path)

    def elsewhere(self, name: str) -> str | None:
        instance = self.configured().get(name)
        if instance is None or is_here(instance):
            return None
        return instance.url or "{}:{}".format(*instance.dns or ("", 0))

    def spec(self, name: str) -> tuple[Spec, str, int]:
        """And where its engine listens."""
        assert self.config is not None
        assert self.config_path is not None
        instance = self.configured().get(name)
        if instance is None:
            raise LaunchError(f"is not in {self.config_path} any more", UNKNOWN)
        run = plan(self.config, instance, self.config_path.parent, os.environ)
        options = self.options
        spec = Spec(
            name=name,
            state_dir=str(self.state_dir),
            config=str(self.config_path),
            command=list(run.command),
            environment=run.environment,
            folder=run.folder,
            address=run.address,
            log_bytes=options.log_size,
            log_files=options.log_files,
            restarts=options.restarts,
            restart_seconds=options.restart_delay,
            stop_seconds=30.0 if options.stop_timeout is None else options.stop_timeout,
        )
        return spec, run.host, run.port


def start(launcher: Launcher, names: Sequence[str], asked: bool) -> int:
    """All that can be started are; asked: whether they were named."""
    if launcher.config is None:
        raise LaunchError("start needs --config FILE", USAGE)
    started = False

    def one(name: str) -> None:
        nonlocal started
        if not asked and launcher.elsewhere(name):
            return
        spec, host, port = launcher.spec(name)
        folder = launcher.folder(name)
        folder.make()
        if started:
            time.sleep(launcher.config.launch_delay_seconds if launcher.config else 0)
        with folder.locked():
            found = instances.look(folder)
            if found.runs and found.record and found.record.config != spec.config:
                raise LaunchError(f"runs already, from {found.record.config}; --state-dir keeps them apart")
            begun = instances.start(folder, spec, lambda: check_port(host, port))
        started = started or not (begun.supervised or begun.taken_over)
        say(f"{name} {begun.sentence()}")

    return each(names, one)


def stop(launcher: Launcher, names: Sequence[str], asked: bool) -> int:
    # All at a time: an engine may take long.
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        done = {name: pool.submit(_stop, launcher, name) for name in names}

    def one(name: str) -> None:
        if done[name].result():
            say(f"{name} is stopped")
        elif asked:
            say(f"{name} did not run")

    return each(names, one)


def _stop(launcher: Launcher, name: str) -> bool:
    folder = launcher.folder(name)
    if not folder.path.exists():
        return False
    with folder.locked():
        had = instances.stop(folder, launcher.options.stop_timeout)
        instances.settle(folder)
    return had


def restart(launcher: Launcher, names: Sequence[str], asked: bool) -> int:
    if launcher.config is None:
        raise LaunchError("restart needs --config FILE", USAGE)
    # Before anything is stopped: it would not come back.
    here = [name for name in names if asked or not launcher.elsewhere(name)]
    status = each(here, lambda name: launcher.spec(name) and None)
    return status or stop(launcher, here, False) or start(launcher, here, asked)


def status(launcher: Launcher, names: Sequence[str], asked: bool) -> int:
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        found = list(
            pool.map(lambda name: instances.status(launcher.folder(name), launcher.elsewhere(name)), names)
        )
    if launcher.options.json:
        print(json.dumps([each.json() for each in found], indent=2))
    else:
        print_table(found)
    mine = [each for each in found if asked or each.state != "elsewhere"]
    return 0 if all(each.runs for each in mine) else NOT_RUNNING


def print_table(found: Sequence[instances.Status]) -> None:
    rows = [("NAME", "STATE", "HEALTH", "PID", "SINCE", "RESTARTS", "EXIT", "ADDRESS")]
    for each in found:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.since)) if each.since else "-"
        health = {True: "ok", False: "no answer", None: "-"}[each.healthy]
        rows.append(
            (
                each.name,
                each.state,
                health,
                str(each.pid or "-"),
                since,
                str(each.restarts),
                each.exit or "-",
                each.address or "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip())
    for each in found:
        if each.error:
            print(f"{each.name}: {each.error}")


def show_logs(launcher: Launcher, names: Sequence[str], _asked: bool) -> int:
    tails = {name: logs.Tail(launcher.folder(name).log, launcher.options.lines) for name in names}

    def show(name: str, line: bytes) -> None:
        prefix = f"{name}: ".encode() if len(tails) > 1 else b""
        sys.stdout.buffer.write(prefix + line + b"\n")

    for name, tail in tails.items():
        for line in tail.first:
            show(name, line)
    if launcher.options.follow:
        sys.stdout.buffer.flush()
        for name, line in logs.follow(tails):
            show(name, line)
            sys.stdout.buffer.flush()
    for name, tail in tails.items():
        if rest := tail.rest():
            show(name, rest)
    return 0


def list_sessions(launcher: Launcher) -> int:
    for name in launcher.names([]):
        if instances.look(launcher.folder(name)).runs:
            print(f"kvcached-{name}")
    return 0


def each(names: Sequence[str], one: Callable[[str], object]) -> int:
    """The first failure's status; the others are done all the same."""
    status = 0
    for name in names:
        try:
            one(name)
        except LaunchError as error:
            complain(f"{name}: {error}")
            status = status or error.status
        except OSError as error:
            complain(f"{name}: {errors.of(error, str(error.filename or 'failed'))}")
            status = status or 1
    return status


def say(sentence: str) -> None:
    print(sentence, flush=True)


def complain(sentence: str) -> None:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr, flush=True)


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", text.upper())
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no size, such as 16M")
    return int(match[1]) * _UNITS[match[2]]


def _number(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} on")
        return int(text)

    return read


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return float(text)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} --config FILE [start|stop|restart|status|logs] [NAME...] [options]",
        description="Runs a configuration's engines as supervised processes. Without a command, starts them.",
    )
    add = made.add_argument
    add(
        "words",
        nargs="*",
        metavar="COMMAND, NAME",
        help="what to do, and with which instances; else with all",
    )
    add("--config", type=Path, metavar="FILE", help="the controller's configuration")
    add("--state-dir", type=Path, metavar="DIR", help="where logs, and what is known of processes, are kept")
    add("--json", action="store_true", help="status: as JSON")
    add("-f", "--follow", action="store_true", help="logs: go on with what comes")
    add("-n", "--lines", type=_number(0), default=100, metavar="N", help="logs: how many; 100")
    add("--stop-timeout", type=_seconds, metavar="SECONDS", help="from SIGTERM to SIGKILL; 30")
    add("--restarts", type=_number(0), default=5, metavar="N", help="start: failures in a row to forgive; 5")
    add(
        "--restart-delay", type=_seconds, default=1.0, metavar="SECONDS", help="start: after the first one; 1"
    )
    add("--log-size", type=_size, default=16 << 20, metavar="SIZE", help="start: of a log's file; 16M")
    add("--log-files", type=_number(1), default=5, metavar="N", help="start: files of a log; 5")
    add("--kill-all", action="store_true", help="stop all")
    add("--list-sessions", action="store_true", help="names of what runs")
    return made


def load(path: Path) -> Config:
    try:
        return parse(path.read_text(), str(path))
    except OSError as error:
        raise LaunchError(f"cannot read {path}: {error.strerror}", USAGE) from None
    except UnicodeDecodeError:
        raise LaunchError(f"cannot read {path}: it is not UTF-8", USAGE) from None
    except ConfigError as error:
        raise LaunchError(str(error), USAGE) from None


def run(arguments: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(arguments)
    command, names = (options.words[0], options.words[1:]) if options.words else ("start", [])
    if options.kill_all or options.list_sessions:
        if options.words:
            raise LaunchError("--kill-all and --list-sessions come without a command", USAGE)
        command = "stop"
    if command not in COMMANDS:
        raise LaunchError(f"{command} is no command; commands are {', '.join(COMMANDS)}", USAGE)
    try:
        config_path = options.config.expanduser().resolve() if options.config else None
        state_dir = (options.state_dir or default_state_dir(os.environ, os.geteuid())).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise LaunchError(f"cannot find a folder: {error}", USAGE) from None
    config = load(config_path) if config_path else None
    launcher = Launcher(options, state_dir, config_path, config)
    if options.list_sessions:
        return list_sessions(launcher)
    act = {"start": start, "stop": stop, "restart": restart, "status": status, "logs": show_logs}[command]
    meant = launcher.names(names)
    if not meant and config is None and command == "start":
        raise LaunchError("start needs --config FILE", USAGE)
    return act(launcher, meant, bool(names))


def main() -> int:
    try:
        return run(sys.argv[1:])
    except LaunchError as error:
        complain(str(error))
        return error.status
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # who reads has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 128 + signal.SIGPIPE
        complain(str(errors.of(error, str(error.filename or "failed"))))
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
