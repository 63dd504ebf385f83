# SPDX-License-Identifier: Apache-2.0
"""The state directory: a folder for each instance, with

    record.json     what is known of it; its supervisor writes it, or a command where there is none
    lock            held while a command starts or stops it
    supervisor      held by its supervisor as long as that lives
    supervisor.log  what a supervisor dies of; empty, if all is well
    log, log.1...   what the engine says, the newest first

A record is of one start of the machine, and numbers of processes in it come with the time of their beginning.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from . import errors
from .errors import LaunchError
from .processes import Process

MARK = "KVCACHED_LAUNCH_ID"
_LOCK_SECONDS = 300.0
_STEP_SECONDS = 0.05


@dataclass
class Record:
    id: str  # of this life of the instance, under any number of supervisors
    boot: str
    config: str
    state: str  # starting, running, backoff, stopping; without supervisor stopped, failed
    since: float  # that it is in this state; seconds since 1970
    address: str
    command: list[str]
    stop_seconds: float
    supervisor: Process | None = None
    scribe: Process | None = None
    engine: Process | None = None
    pipe: int = 0
    restarts: int = 0
    exit: str | None = None  # how the engine ended last: "status 1", "signal SIGSEGV"
    error: str | None = None

    @property
    def mark(self) -> str:
        return f"{MARK}={self.id}"


@dataclass(frozen=True)
class Spec:
    """What a supervisor is told."""

    name: str
    state_dir: str
    config: str
    command: list[str]
    environment: Mapping[str, str] = field(repr=False)
    folder: str
    address: str
    log_bytes: int
    log_files: int
    restarts: int
    restart_seconds: float
    stop_seconds: float


class Folder:
    """Of one instance."""

    def __init__(self, state_dir: Path, name: str) -> None:
        self.name = name
        self.path = state_dir / name
        self.log = self.path / "log"
        self.supervisor_log = self.path / "supervisor.log"

    def make(self) -> None:
        try:
            # Logs have what people asked models.
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise errors.of(error, f"cannot make the folder {self.path}") from None

    def read(self) -> Record | None:
        """None: nothing is known, or what is written makes no sense."""
        path = self.path / "record.json"
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise errors.of(error, f"cannot read {path}") from None
        try:
            return _record(json.loads(text))
        except (ValueError, TypeError, AttributeError):
            return None

    def write(self, record: Record) -> None:
        path = self.path / "record.json"
        new = self.path / "record.json.new"  # of one writer at a time
        try:
            new.write_text(json.dumps(asdict(record), indent=2) + "\n")
            new.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            raise errors.of(error, f"cannot write {path}") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time."""
        fd = self._open("lock")
        try:
            deadline = time.monotonic() + _LOCK_SECONDS
            while not _take(fd):
                if time.monotonic() > deadline:
                    raise LaunchError("is being started or stopped by another command")
                time.sleep(_STEP_SECONDS)
            yield
        finally:
            os.close(fd)

    def hold(self) -> int:
        """The supervisor's lock, for as long as the descriptor is open. LaunchError: another holds it."""
        fd = self._open("supervisor")
        if _take(fd):
            return fd
        os.close(fd)
        raise LaunchError("has a supervisor already")

    def is_held(self) -> bool:
        fd = self._open("supervisor")
        try:
            return not _take(fd)
        finally:
            os.close(fd)

    def _open(self, name: str) -> int:
        path = self.path / name
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise errors.of(error, f"cannot open {path}") from None


def folders(state_dir: Path) -> list[str]:
    """Names of instances that something is known of."""
    try:
        return sorted(p.name for p in state_dir.iterdir() if (p / "record.json").exists())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise errors.of(error, f"cannot read {state_dir}") from None


def default_state_dir(environ: Mapping[str, str], uid: int) -> Path:
    if uid == 0:
        return Path("/var/lib/kvcached/launch")
    state = environ.get("XDG_STATE_HOME") or ""
    return (Path(state) if state.startswith("/") else Path.home() / ".local/state") / "kvcached/launch"


def _take(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _record(read: Any) -> Record:
    known = {each.name for each in fields(Record)}
    record = Record(**{key: value for key, value in read.items() if key in known})
    record.supervisor, record.scribe, record.engine = map(
        _process, (record.supervisor, record.scribe, record.engine)
    )
    return record


def _process(read: Any) -> Process | None:
    return None if read is None else Process(int(read[0]), int(read[1]))
