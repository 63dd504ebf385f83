# SPDX-License-Identifier: Apache-2.0
"""One instance, as a command sees it: what runs, to start it, to stop it. Commands may be killed at any
moment, and so may supervisors: what is done next begins with a look at what there is."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import errors, processes
from .errors import LaunchError
from .processes import Family, Process
from .record import Folder, Record, Spec

_ANSWER_SECONDS = 60.0
_HEALTH_SECONDS = 2.0
_SETTLE_SECONDS = 10.0
# That a supervisor has beyond the engine's time to end: for the dying, and for the log.
_MORE_SECONDS = 90.0
_PACKAGES = str(Path(__file__).resolve().parents[3])


@dataclass
class Found:
    """record: None where nothing of this start of the machine is known."""

    record: Record | None
    supervised: bool = False
    engine: bool = False
    family: Family | None = None

    @property
    def runs(self) -> bool:
        return self.supervised or self.engine


@dataclass
class Status:
    name: str
    state: str
    supervised: bool
    healthy: bool | None  # None: there is nothing that could be
    pid: int | None
    since: float | None
    restarts: int
    exit: str | None
    address: str | None
    error: str | None
    log: str

    def json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def runs(self) -> bool:
        return self.state == "running"


def look(folder: Folder) -> Found:
    record = folder.read()
    if record is None or record.boot != processes.boot_id():
        return Found(None)
    family = Family(record.engine, record.mark, record.pipe)
    supervised = record.supervisor is not None and record.supervisor.is_alive()
    engine = record.engine is not None and record.engine.is_alive()
    return Found(record, supervised, engine, family)


def _look_closely(folder: Folder) -> Found:
    """What is so now, not what a supervisor is about to write that has just begun, or is just ending."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        held = folder.is_held()
        found = look(folder)
        if found.supervised or not held:
            return found
        if time.monotonic() > deadline:
            raise LaunchError(f"has a supervisor that is not to be seen from here, which holds {folder.path}")
        time.sleep(0.05)


def status(folder: Folder, elsewhere: str | None) -> Status:
    """elsewhere: the address of an instance that is not this machine's to start."""
    found = look(folder)
    record = found.record
    if record is None:
        state = "elsewhere" if elsewhere else "stopped"
        before = folder.read() if not elsewhere else None
        error = "the machine was started anew" if before and before.supervisor else None
        address = elsewhere or (before.address if before else None)
        healthy = is_healthy(elsewhere) if elsewhere else None
        return Status(
            folder.name, state, False, healthy, None, None, 0, None, address, error, str(folder.log)
        )
    state, error = record.state, record.error
    if not found.supervised and found.engine:
        state, error = "running", "the supervisor was killed; start has another one take over"
    elif not found.supervised and record.supervisor is not None:
        state, error = "failed", "supervisor and engine were killed"
        if found.family and found.family.members():
            error = "the supervisor was killed, and has left processes; stop ends them"
    pid = record.engine.pid if record.engine and found.engine else None
    healthy = is_healthy(record.address) if pid is not None else None
    return Status(
        folder.name,
        state,
        found.supervised,
        healthy,
        pid,
        record.since,
        record.restarts,
        record.exit,
        record.address,
        error,
        str(folder.log),
    )


def is_healthy(address: str) -> bool:
    """Whether /health answers with 200."""
    # An engine is not asked through a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/health", timeout=_HEALTH_SECONDS) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):
        return False
    except Exception:  # what is no HTTP
        return False


@dataclass
class Begun:
    """What a start has found, or done."""

    supervised: bool  # already, and so nothing was done
    taken_over: bool
    engine: Process | None  # that runs now
    address: str
    exit: str | None  # how an engine ended last

    def sentence(self) -> str:
        if self.engine is None:
            ended = f"has ended with {self.exit}" if self.exit else "has no process so far"
            return f"{'is being started already' if self.supervised else 'was started'}, and {ended}"
        if self.supervised:
            return "runs already"
        how = "runs already, and has a supervisor again" if self.taken_over else "is started"
        return f"{how}: process {self.engine.pid}, {self.address}"


def start(folder: Folder, spec: Spec, check: Callable[[], None]) -> Begun:
    """The folder is locked. check: raises LaunchError where an engine could not run."""
    found = _look_closely(folder)
    if found.supervised and found.record and found.record.state != "stopping":
        record = found.record
        return Begun(True, False, record.engine, record.address, record.exit)
    if found.supervised:
        raise LaunchError("is being stopped")
    if found.family is not None and not found.engine:
        _end(found, 0.0)  # what a killed supervisor, and a dead engine, left behind
    if not found.engine:
        check()
    # The supervisor inherits the lock: there is no moment at which another could begin.
    lock = folder.hold()
    try:
        _supervise(folder, spec, lock)
    finally:
        os.close(lock)
    now = folder.read()
    if now is None:
        raise LaunchError(f"has no record any more in {folder.path}")
    former = found.record.engine if found.record and found.engine else None
    return Begun(False, now.engine is not None and now.engine == former, now.engine, now.address, now.exit)


def _supervise(folder: Folder, spec: Spec, lock: int) -> None:
    environment = dict(os.environ)
    # The supervisor is of the same package as this command, wherever that lies.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [_PACKAGES, environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "kvcached.controller.launch.supervisor", folder.name, str(lock)]
    try:
        with folder.supervisor_log.open("wb") as log:
            supervisor = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock],
            )
    except OSError as error:
        raise errors.of(error, f"cannot start a supervisor with {folder.supervisor_log}") from None
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    with supervisor.stdin as asked, supervisor.stdout as answer:
        with contextlib.suppress(BrokenPipeError):
            asked.write(json.dumps(asdict(spec)).encode())
            asked.close()
        reply = _read(answer.fileno())
    if reply == b"":
        raise LaunchError(
            f"has no supervisor: it ended with status {supervisor.wait()}; see {folder.supervisor_log}"
        )
    problem = json.loads(reply)["error"]
    if problem:
        supervisor.wait()
        raise LaunchError(problem)
    supervisor.returncode = 0  # it stays when this command ends


def _read(fd: int) -> bytes:
    found = b""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(fd, 65536)
        if not part:
            return found
        found += part
    raise LaunchError(f"has a supervisor that does not answer within {_ANSWER_SECONDS:g} s")


def stop(folder: Folder, seconds: float | None) -> bool:
    """Whether there was something to stop. The folder is locked. seconds: until SIGKILL, if that is earlier
    than was said when it was started. LaunchError: something is left."""
    found = _look_closely(folder)
    record = found.record
    if record is None:
        return False
    if found.supervised and record.supervisor is not None:
        supervisor, patience = record.supervisor, record.stop_seconds
        supervisor.signal(signal.SIGTERM)
        if seconds is not None and seconds < patience:
            patience = seconds
            if not supervisor.wait(seconds):
                supervisor.signal(signal.SIGTERM)  # the second one: at once
        if supervisor.wait(patience + _MORE_SECONDS):
            record = folder.read() or record
            if record.supervisor is None:
                if record.error and record.state == "failed":
                    raise LaunchError(record.error)
                return True
        else:
            supervisor.signal(signal.SIGKILL)
            supervisor.wait(_MORE_SECONDS)
        found = look(folder)
    had = found.engine or record.supervisor is not None
    patience = record.stop_seconds if seconds is None else seconds
    return _end(found, patience if found.engine else 0.0) or had


def _end(found: Found, seconds: float) -> bool:
    """Where no supervisor does. Whether there was somebody."""
    record, family = found.record, found.family
    if record is None or family is None:
        return False
    scribe = record.scribe
    if scribe:
        family.outsiders.add(scribe.pid)
    had = bool(family.members())
    left = processes.end(family, seconds, _pause)
    if left:
        raise LaunchError(f"has process {', '.join(str(p.pid) for p in left)}, which cannot be ended")
    # It ends when it has written what is left.
    if scribe and not scribe.wait(5):
        scribe.signal(signal.SIGKILL)
    return had


def settle(folder: Folder) -> None:
    """Writes that the instance is stopped, where no supervisor did."""
    found = look(folder)
    record = found.record
    if record is not None and not found.runs and record.state != "stopped":
        record.supervisor = record.scribe = record.engine = None
        record.state, record.since, record.error = "stopped", time.time(), None
        folder.write(record)


def _pause(seconds: float) -> bool:
    time.sleep(seconds)
    return False
