# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests. A test asks for `programs` and starts what it needs:

    def test_memory_comes_back(programs: Programs) -> None:
        daemon = programs.daemon("1G", budget="512M")
        engine = programs.peer(daemon, "engine-a")
        ...
        assert programs.kvctl("list", "--json", daemon=daemon).json() == []

Whatever it starts is ended for it, and must end well; a process, a descriptor or a device folder that is left
fails the test.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import leaks
from harness.broker import Daemon, Programs, Result, Site, eventually
from harness.control import open_control
from harness.observer import Observer
from harness.pair import Pair, start_pair
from harness.raw import RawPeer, start_raw


@pytest.fixture(scope="session", autouse=True)
def orphans_are_ours() -> None:
    leaks.adopt_orphans()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Set up before, hence checked after, everything that the test itself asks for."""
    before = leaks.open_descriptors()
    yield
    try:
        eventually(lambda: not leaks.live_children(), within=2)
    except AssertionError:
        left = leaks.live_children()
        leaks.end_children()
        pytest.fail(f"processes are left: {left}")
    after = leaks.open_descriptors()
    opened = {fd: name for fd, name in after.items() if before.get(fd) != name}
    assert not opened, f"descriptors are left: {opened}"


@pytest.fixture
def site(build_dir: Path, tmp_run: Path) -> Iterator[Site]:
    """The surroundings of this test, with an emulated device of its own."""
    memory = Path(tempfile.mkdtemp(prefix="kvcached-test-", dir="/dev/shm"))
    memory.chmod(0o755)
    yield Site(build=build_dir, run=tmp_run, emulate_dir=memory / "devices")
    shutil.rmtree(memory)


@pytest.fixture
def programs(site: Site) -> Iterator[Programs]:
    """Starts daemons, engines and kvctl, and ends what the test leaves running."""
    started = Programs(site)
    yield started
    started.end()


@pytest.fixture
def daemon(programs: Programs) -> Daemon:
    """A daemon with an emulated device of 1 GiB, for tests that don't care."""
    return programs.daemon()


@pytest.fixture
def kvctl(programs: Programs, daemon: Daemon) -> Callable[..., Result]:
    """kvctl("list", "--json") against `daemon`."""
    return lambda *arguments: programs.kvctl(*arguments, daemon=daemon)


@pytest.fixture
def control(programs: Programs, daemon: Daemon) -> RawPeer:
    """An administrator's connection to `daemon`."""
    return open_control(programs, daemon)


@pytest.fixture
def observer(programs: Programs, daemon: Daemon) -> Iterator[Observer]:
    """The daemon with two decent peers; afterwards, that it is as it was."""
    watching = Observer(programs, daemon)
    yield watching
    for peer in programs.peers:
        if peer.is_running() and peer not in (watching.engine, watching.admin):
            peer.close()
    watching.check_nothing_left()


@pytest.fixture
def raw(programs: Programs, daemon: Daemon, observer: Observer) -> RawPeer:
    """A peer that is about to misbehave, under observation; not connected."""
    assert observer.daemon is daemon
    return start_raw(programs, daemon)


@pytest.fixture
def pair(programs: Programs, daemon: Daemon, observer: Observer) -> Pair:
    """A scheduler and a worker, under observation: in the end nothing is left of them."""
    assert observer.daemon is daemon
    return start_pair(programs, daemon)
