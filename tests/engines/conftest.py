# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with real engines, which live in Pythons of their own: $KVCACHED_VLLM_PYTHON, or
$KVCACHED_SGLANG_PYTHON, or what ./dev engines makes in .venv-engines. Without one, its tests are skipped.

Importing an engine takes many times longer than a test does, so its processes are kept and have one engine
after another. A process has one emulated device for its life: all share one, and each test has a daemon of
its own on it, whose budget is the size of the GPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.vllm_support import GPU, GROWING, LONG, LONG_TOKENS, MIXED, TOKENS, Said
from harness.blocks import Kvctl
from harness.broker import Daemon, Peer, Programs, Site

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
DEVICE_SIZE = "256M"
SLOW_S = 300.0  # a machine that is busy takes a minute to import vLLM


class SharedSite(Site):
    """Engines stay on the device."""

    def check_clean(self) -> None:
        pass


def python_of(engine: str) -> str:
    """Skips the test where there is none."""
    chosen = os.environ.get(f"KVCACHED_{engine.upper()}_PYTHON")
    python = chosen or str(ROOT / f".venv-engines/{engine.lower()}/bin/python")
    if not Path(python).exists():
        pytest.skip(f"no {engine}: {python} does not exist (./dev engines makes it)")
    return python


@pytest.fixture(scope="session")
def vllm_python() -> str:
    return python_of("vLLM")


@pytest.fixture(scope="session")
def sglang_python() -> str:
    return python_of("SGLang")


@pytest.fixture(scope="session")
def package(build_dir: Path) -> Iterator[Path]:
    """A folder with the build's Python package, and its entry points, as a wheel has them."""
    folder = Path(tempfile.mkdtemp(prefix="kvc-engines-", dir="/tmp"))
    install = ["meson", "install", "-C", str(build_dir), "--no-rebuild", "--tags", "python-runtime"]
    subprocess.run([*install, "--destdir", str(folder / "stage")], check=True, stdout=subprocess.DEVNULL)
    found = [p.parent for p in (folder / "stage").rglob("kvcached/__init__.py")]
    if not found:
        pytest.skip("this build has no Python package")
    about = found[0].parent / "kvcached-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kvcached\nVersion: 0\n")
    (about / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nkvcached = kvcached.integration.vllm.plugin:register\n"
    )
    yield found[0].parent
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def devices() -> Iterator[Path]:
    """The emulated device of this session."""
    memory = Path(tempfile.mkdtemp(prefix="kvcached-test-", dir="/dev/shm"))
    yield memory / "devices"
    shutil.rmtree(memory)


@pytest.fixture(scope="session")
def shared_site(build_dir: Path, devices: Path) -> Iterator[Site]:
    run = Path(tempfile.mkdtemp(prefix="kvc-", dir="/tmp"))
    yield SharedSite(build=build_dir, run=run, emulate_dir=devices)
    shutil.rmtree(run)


@pytest.fixture
def programs(build_dir: Path, tmp_run: Path, devices: Path) -> Iterator[Programs]:
    started = Programs(SharedSite(build=build_dir, run=tmp_run, emulate_dir=devices))
    yield started
    started.end()


class Engine(Peer):
    """A process that vllm_engine.py runs, in a process group of its own."""

    def __init__(
        self, site: Site, python: str, model: Path, instance: str, environment: dict[str, str]
    ) -> None:
        self.site = site
        self.instance = instance
        self.log_path = site.run / f"engine-{instance}-{os.urandom(4).hex()}.log"
        variables = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "KVCACHED_IPC_NAME": instance,
        }
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [python, str(HERE / "vllm_engine.py"), str(model)],
                env=site.environment(**(variables | environment)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                process_group=0,
            )
        self._buffer = b""
        self.started = False
        self.ready = False

    def call(self, name: str, *arguments: Any) -> Any:
        """A command that must succeed."""
        answer = self.answer(name, *arguments)
        assert "ok" in answer, f"{self.instance}: {name}: {answer['error']}\n{self.log()[-6000:]}"
        return answer["ok"]

    def answer(self, name: str, *arguments: Any) -> dict[str, Any]:
        if not self.ready:
            self.receive(SLOW_S)
            self.ready = True
        self.send(json.dumps([name, *arguments]))
        answer: dict[str, Any] = json.loads(self.receive(SLOW_S))
        return answer

    def begin(self, daemon: Daemon | None, environment: dict[str, str] | None = None, **options: Any) -> str:
        """Starts an engine, of the daemon's memory."""
        assert not self.started
        where = {"KVCACHED_MAX_CACHED_TOKENS": "16000"}
        if daemon is not None:
            where["KVCACHED_SOCKET"] = str(daemon.socket)
        kind = str(self.call("start", where | (environment or {}), options))
        self.started = True
        return kind

    def end(self) -> None:
        if self.started:
            self.started = False
            self.call("stop")

    def kill(self) -> None:
        """SIGKILL, of all that the process has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        super().kill()


class Engines:
    """The processes of a session, by name, each started when first asked for."""

    def __init__(self, site: Site, python: str, model: Path, package: Path) -> None:
        self._made: dict[str, Engine] = {}
        self._arguments = (site, python, model)
        self._package = package

    def get(self, name: str, **environment: str) -> Engine:
        engine = self._made.get(name)
        if engine is None or not engine.is_running():
            variables = {
                "PYTHONPATH": str(self._package),
                "ENABLE_KVCACHED": "true",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            }
            engine = Engine(*self._arguments, name, variables | environment)
            self._made[name] = engine
        return engine

    def stop(self) -> None:
        """Engines that a test has left."""
        for engine in self._made.values():
            if engine.is_running() and engine.started:
                try:
                    engine.end()
                except AssertionError:
                    engine.kill()

    def close(self) -> None:
        for engine in self._made.values():
            if engine.is_running():
                engine.kill()


@pytest.fixture(scope="session")
def models(vllm_python: str) -> Iterator[Callable[[str], Path]]:
    """Folders of models, each made when first asked for: of tiny_llama.py's kinds."""
    folder = Path(tempfile.mkdtemp(prefix="kvc-models-", dir="/tmp"))

    def make(kind: str) -> Path:
        made = folder / kind
        if not made.exists():
            maker = [vllm_python, str(HERE / "tiny_llama.py"), str(made), kind]
            subprocess.run(maker, check=True, capture_output=True)
        return made

    yield make
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def model(models: Callable[[str], Path]) -> Path:
    return models("llama")


@pytest.fixture(scope="session")
def all_engines(shared_site: Site, vllm_python: str, model: Path, package: Path) -> Iterator[Engines]:
    engines = Engines(shared_site, vllm_python, model, package)
    yield engines
    engines.close()


@pytest.fixture(scope="session")
def says(all_engines: Engines, models: Callable[[str], Path]) -> Callable[[str], Said]:
    """What vLLM says without kvcached, and in one process, with a kind of model."""
    said: dict[str, Said] = {}

    def ask(kind: str) -> Said:
        if kind not in said:
            engine = all_engines.get("plain-models", ENABLE_KVCACHED="false")
            model = str(models(kind))
            engine.begin(None, model=model, num_gpu_blocks_override=800, gpu_memory_utilization=0.2)
            said[kind] = {}
            for asked, tokens in ((MIXED | GROWING, TOKENS), (LONG, LONG_TOKENS)):
                answers = engine.call("generate", list(asked.values()), tokens)
                said[kind] |= dict(zip(asked, answers, strict=True))
            engine.end()
        return said[kind]

    return ask


@pytest.fixture
def engines(all_engines: Engines, programs: Programs) -> Iterator[Engines]:
    """They end before the daemons of `programs` do."""
    del programs
    yield all_engines
    all_engines.stop()


@pytest.fixture
def daemon(programs: Programs) -> Daemon:
    return programs.daemon(DEVICE_SIZE, budget=str(GPU))


@pytest.fixture
def kvctl(programs: Programs, daemon: Daemon) -> Kvctl:
    return lambda *arguments: programs.kvctl(*arguments, daemon=daemon)
