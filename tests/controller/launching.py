# SPDX-License-Identifier: Apache-2.0
"""kvcached-launch as people call it, with engines that are none; and what it leaves behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.broker import eventually

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path(__file__).with_name("fake_engine.py")
LIMIT_S = 60
MARK = "LAUNCH_TEST_MARK"


class Begun(subprocess.Popen[bytes]):
    """A program that is not waited for by who has failed."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, exception, traceback)


@dataclass
class Done:
    status: int
    out: str
    err: str


@dataclass
class Launch:
    """A configuration, an environment of Python that has engines, a state directory."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.folder / "config.yaml"
        self.state = self.folder / "state"
        programs = self.folder / "venv/bin"
        programs.mkdir(parents=True)
        (programs / "vllm").write_text(f"#!{sys.executable}\n{ENGINE.read_text()}")
        (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} {ENGINE} "$@"\n')
        for program in programs.iterdir():
            program.chmod(0o755)

    def configure(self, *instances: str, more: str = "") -> None:
        """Lines of an instance's mapping, of which the name is the first: "a, engine_env: [A=1]"."""
        lines = []
        for each in instances:
            name = each.split(",")[0]
            port = self.ports.setdefault(name, free_port())
            keys = "model: m/m, engine: vllm, using_venv: true, venv_path: venv"
            given = "" if "engine_args:" in each else f", engine_args: --port {port}"
            if "engine: sglang" in each:
                keys = keys.replace("engine: vllm, ", "")
            lines.append(f"- {{name: {each.replace('PORT', str(port))}, {keys}{given}}}")
        self.config.write_text("\n".join([more, "instances:", *lines, ""]))

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
        ours = {name: value for name, value in os.environ.items() if "KVCACHED" not in name}
        return {**ours, "PYTHONPATH": path.rstrip(os.pathsep), MARK: self.mark}

    def command(self, *words: str, config: bool = True) -> list[str]:
        chosen = ["--config", str(self.config)] if config else []
        program = [sys.executable, "-m", "kvcached.controller.launch.main"]
        return [*program, "--state-dir", str(self.state), *chosen, *words]

    def run(self, *words: str, config: bool = True) -> Done:
        done = subprocess.run(
            self.command(*words, config=config),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        return Begun(
            self.command(*words),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # A shell has its background jobs ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def start(self, *words: str) -> None:
        """With engines that answer afterwards."""
        done = self.run("start", *words)
        assert (done.status, done.err) == (0, "")
        for each in self.status():
            if each["state"] == "running":
                self.serves(each["name"])

    def serves(self, name: str) -> dict[str, Any]:
        found = eventually(lambda: self.get(name))
        assert found
        return found

    def get(self, name: str) -> dict[str, Any] | None:
        """What the engine is, as it says; None: it doesn't answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/", timeout=10) as reply:
                found: dict[str, Any] = json.load(reply)
        except (OSError, http.client.HTTPException):
            return None
        return found

    def tell(self, name: str, what: str) -> Any:
        """None, too, if it dies of it."""
        url = f"http://127.0.0.1:{self.ports[name]}/{what}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, b""), timeout=10) as reply:
                return json.load(reply)
        except (OSError, http.client.HTTPException):
            return None

    def status(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("status", "--json", *words).out)
        return found

    def one(self, name: str) -> dict[str, Any]:
        (found,) = self.status(name)
        return found

    def record(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / name / "record.json").read_text())
        return found

    def log(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.state / name / "log").read_text()
        return ""

    def left(self) -> list[int]:
        """Processes that began with this environment, or below one of them."""
        return with_environment(f"{MARK}={self.mark}")

    def kill_supervisor(self, name: str) -> None:
        """And whoever is its parent notices."""
        pid = self.record(name)["supervisor"][0]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not exists(pid))

    def clean(self) -> Sequence[int]:
        """Ends all; returns those who would have been left otherwise."""
        self.run("--kill-all", config=False)
        left = self.left()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left


def with_environment(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if word.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def exists(pid: int) -> bool:
    """Zombies are none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text[text.rindex(")") + 2] not in "ZX"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
