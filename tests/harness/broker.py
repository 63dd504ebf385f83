# SPDX-License-Identifier: Apache-2.0
"""The product's programs as Python objects, for tests: a daemon, engines, kvctl.

Everything happens in a Site, the private surroundings of one test: a run folder for sockets, state and logs,
and a folder for the emulated device. Nothing here waits by the clock: each wait ends when what it waits for
happens, and the time limits only bound a failing test.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

# Generous, since sanitized programs on a busy machine are slow; a test that passes never waits so long.
LIMIT_S = 30.0
POLL_INTERVAL_S = 0.01


def on_gpu() -> bool:
    """Whether this run is on hardware, not on the emulated driver."""
    return os.environ.get("KVCACHED_TEST_DRIVER") == "gpu"


def eventually(condition: Callable[[], T], within: float = LIMIT_S) -> T:
    """Calls `condition` until its result is true, and returns that.

    For what nobody announces: the contents of a listing, a process of somebody else. An AssertionError that
    the condition raises counts as "not yet". After `within` seconds it, or the last result, is the test's
    failure.
    """
    deadline = time.monotonic() + within
    tick = threading.Event()
    while True:
        problem: AssertionError | None = None
        result: T | None = None
        try:
            result = condition()
            if result:
                return result
        except AssertionError as error:
            problem = error
        if time.monotonic() >= deadline:
            raise problem or AssertionError(f"after {within:g} s still {result!r}")
        tick.wait(POLL_INTERVAL_S)


@dataclass
class Site:
    """Where one test's programs run.

    emulate_dir does not exist at first; the emulated driver makes it, and whoever leaves it last removes it.
    SIGKILL of the last one is the exception: then nobody is left to do so, which `killed` notes.
    """

    build: Path
    run: Path
    emulate_dir: Path
    killed: bool = False

    def program(self, name: str) -> Path:
        """A program of the build, by its path there."""
        path = self.build / name
        assert path.exists(), f"{path} has not been built"
        return path

    def publish(self, name: str) -> Path:
        """A copy of that file of the build for other users, who perhaps may not enter its folder."""
        copy = self.run / "public" / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.program(name), copy)
        self.run.chmod(0o755)
        return copy

    def environment(self, **extra: str) -> dict[str, str]:
        """The caller's environment without its own kvcached settings."""
        dropped = self.foreign_settings()
        return {k: v for k, v in os.environ.items() if k not in dropped} | self.settings() | extra

    def foreign_settings(self) -> list[str]:
        """Variables that the caller's environment has for kvcached."""
        return [name for name in os.environ if name.startswith("KVCACHED_") or name == "NOTIFY_SOCKET"]

    def settings(self) -> dict[str, str]:
        """Where the emulated driver and its devices are."""
        if on_gpu():
            return {}
        return {
            "KVCACHED_EMULATE_DIR": str(self.emulate_dir),
            "KVCACHED_EMULATOR_DIR": str(self.build / "tests" / "cuemu"),
        }

    def check_clean(self) -> None:
        """The emulated device's folder is gone with its last user."""
        if not self.killed:
            assert not self.emulate_dir.exists(), f"left in place: {sorted(self.emulate_dir.rglob('*'))}"


@dataclass
class Result:
    """What a program that has ended said."""

    rc: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


def run_program(command: list[str], environment: dict[str, str], limit_s: float = LIMIT_S) -> Result:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


def describe_end(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


class Notifications:
    """The receiving end of sd_notify()."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        path.chmod(0o666)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> None:
        """Takes in what has arrived; a datagram may hold several assignments."""
        while select.select([self], [], [], 0)[0]:
            self.received += self._socket.recv(4096).decode().splitlines()

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)


class Daemon:
    """A running kvcachedd.

        daemon = Daemon(site, "1G", budget="512M")
        ...
        daemon.stop()

    Starting returns when the daemon has said READY=1 to the service manager that this object plays, and fails
    at once, with what the daemon wrote, when it ends before that.
    """

    def __init__(
        self,
        site: Site,
        size: str = "1G",
        *,
        name: str = "gpu0",
        budget: str | None = None,
        metrics: str | None = "off",
        config: str | None = None,
        arguments: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        socket_path: Path | None = None,
        state_dir: Path | None = None,
    ) -> None:
        """size: of the emulated devices, as --emulate takes it (a GPU has the size it has). name: tells
        several daemons of one site apart. metrics: where it serves them; None: where it wants
        to. config: text of the configuration file. prefix: a command that executes the daemon under other
        circumstances. environment: added to the site's."""
        self.site = site
        self.name = name
        self.socket = socket_path or site.run / f"{name}.sock"
        self.control = self.socket.with_name(self.socket.name + ".ctl")
        self.state_dir = state_dir or site.run / f"{name}.state"
        self.state_dir.mkdir(exist_ok=True)
        self.log_path = site.run / f"{name}.log"

        command = [str(site.program("daemon/kvcachedd")), "--socket", str(self.socket)]
        command += ["--state-dir", str(self.state_dir)]
        if not on_gpu():
            command += ["--emulate", size]
        if budget is not None:
            command += ["--budget", budget]
        if metrics is not None:
            command += ["--metrics-listen", metrics]
        if config is not None:
            config_path = site.run / f"{name}.conf"
            config_path.write_text(config)
            command += ["--config", str(config_path)]
        self.command = [*prefix, *command, *arguments]

        self.notifications = Notifications(site.run / f"{name}.notify")
        variables = site.environment(NOTIFY_SOCKET=str(self.notifications.path)) | (environment or {})
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=variables, stdin=subprocess.DEVNULL, stderr=log)
        try:
            self.wait_for("READY=1")
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        """Everything that the daemon has written to stderr."""
        return self.log_path.read_text(errors="replace")

    def wait_for(self, notification: str, within: float = LIMIT_S) -> None:
        """Waits until the daemon has told the service manager this."""
        deadline = time.monotonic() + within
        pidfd = os.pidfd_open(self.pid)
        try:
            while notification not in self.notifications.received:
                left = max(0.0, deadline - time.monotonic())
                readable = select.select([self.notifications, pidfd], [], [], left)[0]
                self.notifications.receive()
                if notification in self.notifications.received:
                    return
                assert readable, f"no {notification} within {within:g} s\n{self.log()}"
                if pidfd in readable:
                    end = describe_end(self.process.wait())
                    raise AssertionError(f"the daemon ended before {notification}: {end}\n{self.log()}")
        finally:
            os.close(pidfd)

    def wait(self, within: float = LIMIT_S) -> int:
        """Waits for the end of the process; its status, negative for a signal."""
        try:
            status = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon still ran after {within:g} s\n{self.log()}") from None
        self.notifications.receive()
        self.notifications.close()
        return status

    def stop(self) -> str:
        """SIGTERM; the daemon must end well and leave nothing. Returns its log."""
        self.process.send_signal(signal.SIGTERM)
        status = self.wait()
        log = self.log()
        assert status == 0, f"{describe_end(status)}\n{log}"
        assert "STOPPING=1" in self.notifications.received
        for path in (self.socket, self.control):
            assert not path.exists(), f"{path} is left behind"
        self.site.killed = False
        return log

    def kill(self) -> None:
        """SIGKILL."""
        self.site.killed = True
        self.process.kill()
        self.process.wait()
        self.notifications.close()

    def is_running(self) -> bool:
        return self.process.poll() is None


class Peer:
    """An engine: a kvpeer process, which reads commands from its stdin and answers each with one line.

    The first word of an answer is "ok" or "error".
    """

    program = "tests/harness/kvpeer"

    def __init__(
        self,
        site: Site,
        socket_path: Path,
        instance: str = "engine",
        *,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.site = site
        self.instance = instance
        self.log_path = site.run / f"peer-{instance}-{time.monotonic_ns()}.log"
        variables = {"KVCACHED_SOCKET": str(socket_path), "KVCACHED_IPC_NAME": instance} | (environment or {})
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command(), *arguments],
                env=site.environment(**variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        self._buffer = b""

    def command(self) -> list[str]:
        """What is run."""
        return [str(self.site.program(self.program))]

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        return stdin, stdout

    def send(self, command: str) -> None:
        """Starts a command; receive() gets its answer."""
        self._pipes()[0].write(command.encode() + b"\n")

    def receive(self, within: float = LIMIT_S) -> str:
        """The answer to the oldest command that has none yet."""
        output = self._pipes()[1]
        deadline = time.monotonic() + within
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([output], [], [], left)[0], f"{self.instance}: no answer within {within:g} s"
            data = os.read(output.fileno(), 65536)
            assert data, f"{self.instance} ended: {describe_end(self.process.wait())}\n{self.log()}"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def ask(self, command: str, within: float = LIMIT_S) -> str:
        """The answer to a command, whatever it is."""
        self.send(command)
        return self.receive(within)

    def do(self, command: str, within: float = LIMIT_S) -> str:
        """A command that must succeed; returns what follows "ok"."""
        answer = self.ask(command, within)
        verdict, _, rest = answer.partition(" ")
        assert verdict == "ok", f"{self.instance}: {command}: {answer}"
        return rest

    def refused(self, command: str, within: float = LIMIT_S) -> str:
        """A command that must fail; returns what follows "error"."""
        answer = self.ask(command, within)
        verdict, _, rest = answer.partition(" ")
        assert verdict == "error", f"{self.instance}: {command}: {answer}"
        return rest

    def close(self) -> None:
        """End of input: the engine closes its client and must end well."""
        for pipe in self._pipes():
            pipe.close()
        try:
            status = self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.instance} did not end with its input\n{self.log()}") from None
        assert status == 0, f"{self.instance}: {describe_end(status)}\n{self.log()}"

    def kill(self) -> None:
        """SIGKILL, as an engine that the system takes down."""
        self.site.killed = True
        self.process.kill()
        self.process.wait()
        for pipe in self._pipes():
            pipe.close()

    def is_running(self) -> bool:
        return self.process.poll() is None


class Ranks(Peer):
    """A scheduler over the workers of several daemons: a kvranks process."""

    program = "tests/harness/kvranks"


@dataclass
class Programs:
    """Starts programs in a site, and ends at the test's end what the test has not ended itself."""

    site: Site
    daemons: list[Daemon] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)

    def daemon(self, size: str = "1G", **options: Any) -> Daemon:
        """Arguments as of Daemon."""
        daemon = Daemon(self.site, size, **options)
        self.daemons.append(daemon)
        return daemon

    def peer(self, daemon: Daemon, instance: str = "engine", **options: Any) -> Peer:
        """Arguments as of Peer."""
        peer = Peer(self.site, daemon.socket, instance, **options)
        self.peers.append(peer)
        return peer

    def ranks(self, instance: str = "engine", **options: Any) -> Ranks:
        """Arguments as of Peer."""
        ranks = Ranks(self.site, self.site.run / "none.sock", instance, **options)
        self.peers.append(ranks)
        return ranks

    def kvctl(self, *arguments: str, daemon: Daemon | None = None, **environment: str) -> Result:
        """Runs kvctl against a daemon, or as the environment says."""
        where = ["--socket", str(daemon.socket)] if daemon else []
        command = [str(self.site.program("kvctl/kvctl")), *where, *arguments]
        return run_program(command, self.site.environment(**environment))

    def end(self) -> None:
        """Engines first, as they would at a shutdown; every daemon must end well."""
        try:
            for peer in self.peers:
                if peer.is_running():
                    peer.close()
            for daemon in self.daemons:
                if daemon.is_running():
                    daemon.stop()
            self.site.check_clean()
        finally:
            running: list[Peer | Daemon] = [*self.peers, *self.daemons]
            for program in running:
                if program.is_running():
                    program.kill()
