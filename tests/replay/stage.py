# SPDX-License-Identifier: Apache-2.0
"""Private surroundings for a few programs, of which nothing stays: no process, no socket, no shared memory,
no folder, whether the script ends by itself, by a signal, or by SIGKILL.

    async with Stage() as stage:
        daemon = await stage.daemon(budget="6G", emulate="80G")
        result = await stage.output([...], daemon)

Programs die with the script: the kernel kills them when their parent is gone. Folders need somebody who
outlives it: the janitor, a process in a session of its own, which Ctrl-C doesn't reach. It reads the names
of folders from a pipe. Everyone here holds the pipe's other end, so its end-of-file says that the last of
them is gone; then it removes the folders, and ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# How long a program may take to end when asked to, before it is made to.
END_WITHIN_S = 5.0
READY_WITHIN_S = 30.0

libc = ctypes.CDLL(None, use_errno=True)


class StageError(Exception):
    """A program did not do what it was started for; the text says which and why."""


def die_with(parent: int) -> Callable[[], None]:
    """For a child between fork and exec: SIGKILL when the parent is gone, also if that was before."""

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)

    return prepare


class Program:
    """A running program. Its output goes to a log file unless `stdout` says otherwise."""

    def __init__(self, command: list[str], log: Path, **options: Any) -> None:
        self.command = command
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is for the script, which ends things in order
                preexec_fn=die_with(os.getpid()),
                **options,
            )
        self.pidfd = os.pidfd_open(self.process.pid)

    async def wait(self) -> int:
        """Status of the ended program."""
        if self.process.returncode is None:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            loop.add_reader(self.pidfd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(self.pidfd)
            self.process.wait()
        return self.process.returncode

    async def end(self) -> None:
        """SIGTERM, and SIGKILL if that doesn't help."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.wait(), END_WITHIN_S)
            except TimeoutError:
                self.process.kill()
                await self.wait()
        self.close()

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pidfd = -1

    def last_words(self) -> str:
        """The last line that it wrote to its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Daemon:
    """A kvcachedd that is ready, and what clients need to find it."""

    def __init__(self, program: Program, socket_path: Path, environment: dict[str, str]) -> None:
        self.program = program
        self.socket = socket_path
        self.environment = environment

    async def end(self) -> None:
        await self.program.end()


class Stage:
    def __init__(self) -> None:
        self.build = Path(os.environ.get("KVCACHED_BUILD_DIR", Path(__file__).parents[2] / "build"))
        self.programs: list[Program] = []
        self.folders: list[Path] = []
        self.numbers = itertools.count()  # for names that nobody else has

    async def __aenter__(self) -> Self:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        reading, self.alive = os.pipe()
        self.janitor = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        os.close(reading)
        self.run = self.folder(Path("/tmp"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in reversed(self.programs):
            await program.end()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(self.alive)
        self.janitor.wait()

    def folder(self, parent: Path) -> Path:
        """A new folder; the janitor knows of it before it exists."""
        path = parent / f"kvcached-{os.getpid()}-{secrets.token_hex(4)}"
        os.write(self.alive, f"{path}\n".encode())
        path.mkdir(mode=0o700)
        self.folders.append(path)
        return path

    def program(self, name: str, *arguments: str, environment: dict[str, str], **options: Any) -> Program:
        """Starts a program of the build, by its path there."""
        log = self.run / f"{next(self.numbers)}-{Path(name).name}.log"
        command = [str(self.build / name), *arguments]
        program = Program(command, log, env=environment, pass_fds=(self.alive,), **options)
        self.programs.append(program)
        return program

    async def daemon(self, budget: str, emulate: str | None) -> Daemon:
        """Starts kvcachedd and returns when it is ready. emulate: size of the device, None for the GPU."""
        place = self.run / f"{next(self.numbers)}-daemon"
        place.mkdir()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KVCACHED_")}
        arguments = ["--socket", str(place / "gpu0.sock"), "--state-dir", str(place), "--budget", budget]
        arguments += ["--metrics-listen", "off"]
        if emulate is not None:
            # Two emulated devices are as good as two GPUs, though they have the same name.
            environment["KVCACHED_EMULATE_DIR"] = str(self.folder(Path("/dev/shm")) / "devices")
            environment["KVCACHED_EMULATOR_DIR"] = str(self.build / "tests/cuemu")
            environment["RUNTIME_DIRECTORY"] = str(place)
            arguments += ["--emulate", emulate]
        notify = place / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notifications:
            notifications.bind(str(notify))
            program = self.program(
                "daemon/kvcachedd",
                *arguments,
                environment=environment | {"NOTIFY_SOCKET": str(notify)},
                stdout=subprocess.DEVNULL,
            )
            await wait_ready(program, notifications)
        return Daemon(program, place / "gpu0.sock", environment)

    async def output(self, name: str, *arguments: str, daemon: Daemon) -> str:
        """What a client of the daemon prints; StageError when it fails."""
        out = self.run / f"{next(self.numbers)}-output"
        with out.open("wb") as stdout:
            program = self.program(
                name,
                "--socket",
                str(daemon.socket),
                *arguments,
                environment=daemon.environment,
                stdout=stdout,
            )
        status = await program.wait()
        if status != 0:
            raise StageError(f"{Path(name).name} ended with status {status}: {program.last_words()}")
        program.close()
        self.programs.remove(program)
        program.log.unlink()
        text = out.read_text()
        out.unlink()
        return text


async def wait_ready(program: Program, notifications: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.ensure_future(program.wait())
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            while True:
                message = asyncio.ensure_future(loop.sock_recv(notifications, 4096))
                await asyncio.wait({message, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    message.cancel()
                    raise StageError(f"kvcachedd did not start: {program.last_words()}")
                if "READY=1" in message.result().decode().splitlines():
                    return
    except TimeoutError:
        raise StageError(f"kvcachedd is not ready after {READY_WITHIN_S:g} s") from None
    finally:
        ended.cancel()


def run(main: Callable[[], Any]) -> int:
    """Runs a coroutine to its end, or until SIGINT, SIGTERM or SIGHUP cancels it; the exit status."""
    caught: list[int] = []

    async def guarded() -> int:
        task = asyncio.ensure_future(main())
        loop = asyncio.get_running_loop()

        def on_signal(number: int) -> None:
            if not caught:
                task.cancel()
            caught.append(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, on_signal, number)
        try:
            return int(await task)
        except asyncio.CancelledError:
            if not caught:
                raise
            return 128 + caught[0]

    try:
        return asyncio.run(guarded())
    except StageError as error:
        print(error, file=sys.stderr)
        return 1


def janitor() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for folder in sys.stdin.read().splitlines():
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    janitor()
