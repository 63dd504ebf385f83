# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the Python package, which is the one installed in the Python that runs them, under
CPython 3.9 and later. ./dev python runs them with each Python there is.

A process has one emulated device for its life, so these tests share one of 1 GiB, and each has a daemon of
its own. Whatever a test leaves fails it: processes, descriptors, handles of the driver, memory.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from harness import leaks
from harness.broker import LIMIT_S, Daemon, Programs, Result, Site, eventually

try:
    from kvcached import _native, runtime
    from kvcached.integration.vllm import interfaces as kvi
except ImportError as missing:
    raise pytest.UsageError(f"{missing}; ./dev python builds and installs what these tests test") from None

DEVICE_SIZE = "1G"


class DriverStats(ctypes.Structure):
    """struct cuemu_stats of proto/cuda/emulator.h."""

    OWN = ("handles", "mappings", "reservations", "allocations", "streams", "events", "contexts")
    _fields_ = [(name, ctypes.c_uint64) for name in (*OWN, "exported", "used_bytes")]

    def own(self) -> dict[str, int]:
        """What this process has."""
        return {name: getattr(self, name) for name in self.OWN}


class Driver:
    """The emulated driver in this process."""

    def __init__(self, folder: Path, emulate_dir: Path) -> None:
        self.folder = folder
        self.emulate_dir = emulate_dir
        self._library = ctypes.CDLL(str(folder / "libcuda.so.1"))
        error = ctypes.create_string_buffer(512)
        where = str(emulate_dir).encode()
        r = self._library.cuemuConfigure(where, DEVICE_SIZE.encode(), error, ctypes.c_size_t(len(error)))
        assert r == 0, error.value
        assert self._library.cuInit(0) == 0

    def stats(self) -> DriverStats:
        stats = DriverStats()
        assert self._library.cuemuGetStats(ctypes.byref(stats)) == 0
        return stats

    def leave(self) -> None:
        self._library.cuemuLeave()


class SharedSite(Site):
    """This process stays on the device, so its folder does, too; its memory doesn't."""

    def check_clean(self) -> None:
        assert self.emulate_dir.exists()


@pytest.fixture(scope="session", autouse=True)
def orphans_are_ours() -> None:
    leaks.adopt_orphans()


@pytest.fixture(scope="session", autouse=True)
def collections_are_cheap() -> None:
    """What has been imported stays, so that looking for garbage after each test doesn't look at that."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def driver(build_dir: Path) -> Iterator[Driver]:
    memory = Path(tempfile.mkdtemp(prefix="kvcached-test-", dir="/dev/shm"))
    loaded = Driver(build_dir / "tests" / "cuemu", memory / "devices")
    yield loaded
    loaded.leave()
    shutil.rmtree(memory)


@pytest.fixture(autouse=True)
def nothing_left(driver: Driver, request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before, hence checked after, everything that the test itself asks for."""
    if "torch" in request.fixturenames:
        request.getfixturevalue("torch")  # before a daemon is started in vain
    gc.collect()
    descriptors, handles = leaks.open_descriptors(), driver.stats().own()
    yield
    gc.collect()
    try:
        eventually(lambda: not leaks.live_children(), within=2)
    except AssertionError:
        left = leaks.live_children()
        leaks.end_children()
        pytest.fail(f"processes are left: {left}")
    opened = {
        fd: name
        for fd, name in leaks.open_descriptors().items()
        if descriptors.get(fd) != name and not name.startswith(str(driver.emulate_dir))
    }
    assert not opened, f"descriptors are left: {opened}"
    assert driver.stats().own() == handles
    assert driver.stats().used_bytes == 0


@pytest.fixture
def site(build_dir: Path, tmp_run: Path, driver: Driver) -> Site:
    """Folders for this test's programs."""
    return SharedSite(build=build_dir, run=tmp_run, emulate_dir=driver.emulate_dir)


@pytest.fixture
def programs(site: Site) -> Iterator[Programs]:
    """Starts further daemons, engines and kvctl, and ends what the test leaves running. Daemons are of the
    device's size; a budget bounds them."""
    started = Programs(site)
    yield started
    started.end()


@pytest.fixture
def daemon(programs: Programs) -> Daemon:
    """A running kvcachedd: daemon.socket, daemon.log(), daemon.kill() and so on."""
    return programs.daemon(DEVICE_SIZE)


@pytest.fixture
def kvctl(programs: Programs, daemon: Daemon) -> Callable[..., Result]:
    """kvctl("list", "--json") against `daemon`; its result has rc, out, err and json()."""
    return lambda *arguments: programs.kvctl(*arguments, daemon=daemon)


@pytest.fixture
def kvcached_environment(
    site: Site, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """The environment of a process that uses `daemon`, for kvcached in this process, which ends it with
    shutdown(). Further variables: kvcached_environment.setenv(name, value)."""
    for name in site.foreign_settings():
        monkeypatch.delenv(name)
    for name, value in {**site.settings(), "KVCACHED_SOCKET": str(daemon.socket)}.items():
        monkeypatch.setenv(name, value)
    yield monkeypatch
    runtime.shutdown()


@pytest.fixture
def client(kvcached_environment: pytest.MonkeyPatch) -> Iterator[_native.Client]:
    """A client of `daemon`, instance "engine", that keeps nothing ready in the background."""
    opened = _native.Client(instance="engine", min_reserved_pages=0)
    yield opened
    opened.close()


@pytest.fixture
def run_python(site: Site, daemon: Daemon) -> Callable[..., Result]:
    """run_python(code, rc=0, limit_s=30, arguments=(), **environment): a new interpreter that has `daemon`
    for its kvcached, and must end with that exit status in that time. Returns its output."""

    def run(
        code: str, *, rc: int = 0, limit_s: float = LIMIT_S, arguments: tuple[str, ...] = (), **extra: str
    ) -> Result:
        command = [sys.executable, "-X", "faulthandler", *arguments, "-c", textwrap.dedent(code)]
        variables = site.environment(**{"KVCACHED_SOCKET": str(daemon.socket), **extra})
        try:
            done = subprocess.run(
                command, env=variables, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired as expired:
            pytest.fail(f"not done within {limit_s:g} s\n{expired.stdout!r}\n{expired.stderr!r}")
        assert done.returncode == rc, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def torch() -> Any:
    """Torch, where there is one."""
    imported = "torch" in sys.modules
    torch = pytest.importorskip("torch", reason="no torch in this Python")
    if not imported:
        gc.freeze()
    return torch


@pytest.fixture
def engine(kvcached_environment: Any) -> None:
    """Without preallocation, so that exactly what is used is mapped."""
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", "false")
    kvi.init_kvcached(tp_rank=0, tp_size=1, is_worker=False, device="cuda:0", async_sched=False)


@pytest.fixture(params=["true", "false"])
def either(kvcached_environment: Any, request: Any) -> None:
    """With preallocation, and without: it changes speed, never what happens."""
    kvcached_environment.setenv("KVCACHED_PAGE_PREALLOC_ENABLED", request.param)
    kvi.init_kvcached()


@pytest.fixture
def send(daemon: Any) -> Iterator[Callable[[int], None]]:
    """send(SIGSTOP): the daemon answers nothing any more, until send(SIGCONT) or the end."""
    yield daemon.process.send_signal
    daemon.process.send_signal(signal.SIGCONT)
