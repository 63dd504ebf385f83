# SPDX-License-Identifier: Apache-2.0
"""An instance's own process: runs the engine, runs it again when it fails, ends it and all that it began, and
keeps the record.

It is told what to run on standard input, inherits the lock that says that there is a supervisor, and answers
once, on standard output, whether the engine runs. SIGTERM tells it to end the engine, a second one to end it
at once. Where an engine runs whose supervisor was killed, it takes over: that engine serves on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import NoReturn

from . import processes, scribe
from .errors import LaunchError
from .processes import Family, Process
from .record import MARK, Folder, Record, Spec
from .restarts import Restarts

_SCRIBE_SECONDS = 10.0  # to write what is left, when the engine has ended
_LEFTOVER_SECONDS = 10.0  # for what a failed engine left behind, before the next one is started


class Supervisor:
    def __init__(self, spec: Spec, lock: int) -> None:
        self._spec = spec
        self._folder = Folder(Path(spec.state_dir), spec.name)
        self._restarts = Restarts(spec.restarts, spec.restart_seconds)
        self._asked = 0  # how often it was asked to end
        self._wake, wake = os.pipe()
        for fd in (self._wake, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        # Handlers, for what is ignored would be ignored by the engine, too.
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        os.set_inheritable(lock, False)  # held until this process has ended
        processes.become_subreaper()
        self._engine_exit: str | None = None  # while the engine runs; else how it ended
        self._began = self._scribe_due = time.monotonic()
        self._handles: dict[int, str] = {}  # pidfds of those that are no children: "engine", "scribe"
        self._log = scribe.Log(self._folder.log, spec.log_bytes, spec.log_files)
        former = self._folder.read()
        # What is written from here on has the numbers by which the engine is found, before there is one.
        if former and former.boot == processes.boot_id() and former.engine and former.engine.is_alive():
            self._take_over(former)
        else:
            self._begin()

    def _ask(self, *_: object) -> None:
        self._asked += 1

    def _begin(self) -> None:
        self._pipe, self._sink = os.pipe()
        spec = self._spec
        self._record = Record(
            id=uuid.uuid4().hex,
            boot=processes.boot_id(),
            config=spec.config,
            state="starting",
            since=time.time(),
            address=spec.address,
            command=spec.command,
            stop_seconds=spec.stop_seconds,
            supervisor=processes.this_process(),
            pipe=os.fstat(self._pipe).st_ino,
        )
        self._family = Family(None, self._record.mark, self._record.pipe, os.getpid())
        self._folder.write(self._record)
        self._start_scribe()
        try:
            self._start_engine()
        except OSError as error:
            self._finish("failed", self._cannot_run(error))
            raise LaunchError(self._cannot_run(error)) from None

    def _cannot_run(self, error: OSError) -> str:
        return f"cannot run {error.filename or self._spec.command[0]}: {error.strerror}"

    def _take_over(self, former: Record) -> None:
        self._record = former
        engine = former.engine
        assert engine is not None
        handle = engine.handle()
        if handle is not None:
            self._handles[handle] = "engine"
        else:
            self._engine_exit = "an unknown status"
        # The pipe is the engine's as long as it lives; the next one gets the same.
        self._pipe, self._sink = self._open_pipe(engine.pid)
        self._family = Family(engine, former.mark, former.pipe, os.getpid())
        self._family.by_traces = True
        former.pipe = os.fstat(self._pipe).st_ino
        former.supervisor = processes.this_process()
        former.stop_seconds = self._spec.stop_seconds
        handle = former.scribe.handle() if former.scribe else None
        if handle is None or former.scribe is None:
            self._start_scribe()
        else:
            self._handles[handle] = "scribe"
            self._family.outsiders.add(former.scribe.pid)
        former.state, former.error, former.config = "running", None, self._spec.config
        self._folder.write(former)
        self._say("the supervisor was killed; this one has taken over")

    def _open_pipe(self, pid: int) -> tuple[int, int]:
        for number in (1, 2):
            path = Path(f"/proc/{pid}/fd/{number}")
            with contextlib.suppress(OSError):
                if str(path.readlink()) == f"pipe:[{self._record.pipe}]":
                    reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                    os.set_blocking(reading, True)
                    return reading, os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        return os.pipe()

    def _start_scribe(self) -> None:
        """A fork: what cannot be found or loaded any more is no trouble to it. Without success, and when it
        dies at once, it is tried again a second later."""
        self._scribe_due = time.monotonic() + 1
        try:
            pid = os.fork()
        except OSError:
            return
        if pid == 0:
            self._be_scribe()
        self._family.outsiders.add(pid)
        seen = processes.look(pid)
        self._record.scribe = seen.process if seen else None

    def _be_scribe(self) -> NoReturn:
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(-1)
            os.setsid()
            os.dup2(self._pipe, 0)
            for entry in [*Path("/proc/self/fd").iterdir()]:
                if int(entry.name) > 2:
                    with contextlib.suppress(OSError):
                        os.close(int(entry.name))
            scribe.keep(0, self._log)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _start_engine(self) -> None:
        spec = self._spec
        engine = subprocess.Popen(
            spec.command,
            env={**spec.environment, MARK: self._record.id},
            cwd=spec.folder,
            stdin=subprocess.DEVNULL,
            stdout=self._sink,
            stderr=self._sink,
            start_new_session=True,
        )
        engine.returncode = 0  # it is waited for here, not there
        self._record.command, self._record.address = spec.command, spec.address
        seen = processes.look(engine.pid)
        assert seen is not None, "a child that is not waited for has a number"
        self._record.engine = self._family.engine = seen.process
        self._engine_exit = None
        self._began = time.monotonic()
        self._save("running")

    def run(self) -> None:
        while True:
            while self._engine_exit is None and not self._asked:
                self._wait(None)
            if self._asked:
                self._save("stopping")
                self._finish("stopped", None, self._record.stop_seconds)
                return
            self._record.exit, self._record.engine = self._engine_exit, None
            patience = min(_LEFTOVER_SECONDS, self._record.stop_seconds)
            left = processes.end(self._family, patience, self._pause)
            if left:
                self._finish("failed", _remains(left))
                return
            # Also with status 0, with which vLLM's server ends when its engine has died under it.
            delay = self._restarts.after(time.monotonic() - self._began)
            if delay is None:
                self._finish("failed", f"the engine failed again and again, at last with {self._engine_exit}")
                return
            if self._again(delay):
                self._began = time.monotonic()

    def _again(self, delay: float) -> bool:
        """Waits, and starts the engine, unless asked to end."""
        self._say(f"the engine ended with {self._engine_exit}; it is started again in {delay:g} s")
        self._record.restarts += 1
        self._save("backoff")
        due = time.monotonic() + delay
        while not self._asked and (left := due - time.monotonic()) > 0:
            self._wait(left)
        if self._asked:
            return False
        self._family.by_traces = False  # all that there is descends from here
        try:
            self._start_engine()
        except OSError as error:
            self._record.error = self._cannot_run(error)
            self._say(self._record.error)
            self._engine_exit = "status 127"
        else:
            self._record.error = None
        return True

    def _finish(self, state: str, error: str | None, seconds: float = _LEFTOVER_SECONDS) -> None:
        left = processes.end(self._family, seconds, self._pause)
        if left:
            state, error = "failed", _remains(left)
        if error:
            self._say(error)
        if self._engine_exit is not None:
            self._record.exit = self._engine_exit
        os.close(self._sink)
        self._sink = -1
        deadline = time.monotonic() + _SCRIBE_SECONDS
        while self._record.scribe and (wait := deadline - time.monotonic()) > 0:
            self._wait(wait)
        if self._record.scribe:
            self._record.scribe.signal(signal.SIGKILL)
        self._record.scribe = self._record.supervisor = None
        if not left:
            self._record.engine = None
        self._record.error = error
        self._save(state)

    def _pause(self, seconds: float) -> bool:
        self._wait(seconds)
        return self._asked > 1

    def _wait(self, seconds: float | None) -> None:
        """Until something happens, or for that long."""
        if self._record.scribe is None and self._sink >= 0:
            if time.monotonic() >= self._scribe_due:
                self._start_scribe()
                self._save(self._record.state)
            seconds = 1 if seconds is None else min(seconds, 1)
        ready, _, _ = select.select([self._wake, *self._handles], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake, 512):
                pass
        for fd in ready:
            if fd in self._handles:
                os.close(fd)
                self._ended(self._handles.pop(fd), "an unknown status")
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if self._record.engine and pid == self._record.engine.pid:
                    self._ended("engine", _described(status))
                elif self._record.scribe and pid == self._record.scribe.pid:
                    self._ended("scribe", "")

    def _ended(self, who: str, how: str) -> None:
        if who == "engine":
            self._engine_exit = how
        elif self._record.scribe:
            self._family.outsiders.discard(self._record.scribe.pid)
            self._record.scribe = None

    def _save(self, state: str) -> None:
        """The engine doesn't suffer from a full disk: it is found by what was written when there was room."""
        if state != self._record.state:
            self._record.state, self._record.since = state, time.time()
        try:
            self._folder.write(self._record)
        except LaunchError as error:
            with contextlib.suppress(OSError):
                print(error, file=sys.stderr, flush=True)

    def _say(self, sentence: str) -> None:
        """In the engine's log. A pipe that is full is no reason to wait."""
        line = f"kvcached-launch: {time.strftime('%Y-%m-%dT%H:%M:%S%z')} {self._spec.name}: {sentence}\n"
        with contextlib.suppress(OSError):
            # The description that the engine has stays one that waits.
            fd = os.open(f"/proc/self/fd/{self._sink}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)


def _described(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"signal {signal.Signals(number).name}"
        except ValueError:
            return f"signal {number}"
    return f"status {os.WEXITSTATUS(status)}"


def _remains(left: list[Process]) -> str:
    return f"process {', '.join(str(p.pid) for p in left)} cannot be ended"


def main() -> int:
    answer = os.dup(1)
    text = sys.stdin.read()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    problem = ""
    supervisor = None
    try:
        supervisor = Supervisor(Spec(**json.loads(text)), int(sys.argv[2]))
    except LaunchError as error:
        problem = str(error)
    with contextlib.suppress(OSError):
        os.write(answer, json.dumps({"error": problem}).encode())
    os.close(answer)
    if supervisor is None:
        return 1
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
