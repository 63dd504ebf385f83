# SPDX-License-Identifier: Apache-2.0
"""Peers that come in masses."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs, Site, eventually
from harness.observer import MIB, Observer, descriptors, resident_bytes
from harness.raw import RawPeer, start_raw

CYCLES = 10_000
NOISE = 250


@pytest.fixture
def daemon(programs: Programs) -> Daemon:
    """One that, where it is built with ASan, doesn't hoard what it frees."""
    options = os.environ.get("ASAN_OPTIONS", "")
    return programs.daemon(
        environment={"ASAN_OPTIONS": f"{options}:quarantine_size_mb=0:thread_local_quarantine_size_kb=0"}
    )


def test_full_descriptor_table(raw: RawPeer, daemon: Daemon, observer: Observer) -> None:
    """Connections are shed, those that exist go on, and it is over when there is room again."""
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    room = max(int(entry.name) for entry in Path(f"/proc/{daemon.pid}/fd").iterdir()) + 20
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (room, limits[1]))
    raw.do(f"more 100 {raw.socket_path}")
    observer.info()
    assert daemon.is_running()
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    raw.kill()
    eventually(lambda: observer.count_connections() == observer.connections)
    observer.is_served()


def test_log_is_not_flooded_by_refusals(programs: Programs) -> None:
    """Each grant in between makes a refusal worth a line again, and costs its client nothing."""
    daemon = programs.daemon(name="small", budget="8M", arguments=("--log-level", "info"))
    raw = start_raw(programs, daemon, "greedy")
    raw.open()
    region = raw.open_region()
    for _ in range(30):
        held = raw.take(region)
        raw.request("Take", region=region, pages=10).check_refused("ERROR_BUDGET")
        assert raw.give_back(*held).name == "Returned"
    assert 1 <= daemon.log().count("was refused memory") <= 20, daemon.log()


def come_and_go(programs: Programs, daemon: Daemon) -> None:
    noisy = start_raw(programs, daemon, "noisy")
    for _ in range(NOISE):
        noisy.open()
        noisy.do("close")


def violate(programs: Programs, daemon: Daemon) -> None:
    noisy = start_raw(programs, daemon, "noisy")
    for _ in range(NOISE):
        noisy.connect()
        noisy.packet(b"noise")
        noisy.check_ended("ERROR_PROTOCOL")


def scribble(programs: Programs, daemon: Daemon) -> None:
    noisy = start_raw(programs, daemon, "noisy")
    noisy.open(features=1)
    for _ in range(NOISE):
        region = noisy.open_region()
        noisy.request("Lease", region=region, pages=4)
        noisy.scribble(region, 5)
        noisy.request("Lease", region=region, pages=1)
        noisy.request("RegionClose", region=region)


def cross_the_limit(programs: Programs, daemon: Daemon) -> None:
    noisy = start_raw(programs, daemon, "noisy")
    noisy.open()
    noisy.take(noisy.open_region(), 4)
    admin = start_raw(programs, daemon, "admin")
    admin.open(daemon.control)
    for i in range(NOISE):
        admin.request("SetLimit", instance="noisy", bytes=8 * MIB if i % 2 else 1)


@pytest.mark.parametrize(
    ("make_noise", "n_limits"), [(come_and_go, 0), (violate, 0), (scribble, 0), (cross_the_limit, NOISE)]
)
def test_noise_of_one_domain(
    programs: Programs, site: Site, make_noise: Callable[[Programs, Daemon], None], n_limits: int
) -> None:
    """So much of it is noted, that there was more is said, and others are heard. What administrators do is
    noted always."""
    socket = site.run / "quiet" / "gpu0.sock"
    daemon = programs.daemon(config=f"[domain quiet]\nsocket = {socket}\n")
    begun = time.monotonic()
    make_noise(programs, daemon)
    n_periods = 1 + int((time.monotonic() - begun) / 10)  # one, but on a very busy machine
    quiet = start_raw(programs, daemon, "quiet")
    quiet.open(socket)
    told = [json.loads(line) for line in programs.kvctl("events", "--json", daemon=daemon).out.splitlines()]
    of_noisy = [event["kind"] for event in told if event["domain"] == f"uid:{os.getuid()}"]
    assert 1 <= of_noisy.count("suppressed") <= n_periods, of_noisy
    n_noted = len([kind for kind in of_noisy if kind not in ("limit", "suppressed")])
    assert 100 <= n_noted <= 100 * n_periods
    assert of_noisy.count("limit") == n_limits
    assert [event["kind"] for event in told if event["domain"] == "quiet"] == ["joined"]
    assert daemon.log().count("\n") <= 20 * n_periods, daemon.log()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_crowds_of_several_users(programs: Programs) -> None:
    """However many connections some users have, the next user gets some, and the administrator, too."""
    daemon = programs.daemon(name="small", prefix=("prlimit", "--nofile=512:512"))
    daemon.site.run.chmod(0o755)
    daemon.socket.chmod(0o666)
    for uid in (54321, 54322, 54323):
        crowd = start_raw(programs, daemon, f"crowd-{uid}")
        crowd.do(f"become {uid}")
        crowd.do(f"more 200 {daemon.socket}")
        crowd.connect()
        crowd.check_ended("ERROR_RESOURCES", "as many connections")
    decent = start_raw(programs, daemon, "decent")
    decent.open()
    assert decent.take(decent.open_region(), 10)
    admin = start_raw(programs, daemon, "admin")
    admin.open(daemon.control)
    assert admin.request("Info").number("instances") == 1


@pytest.mark.emulator
@pytest.mark.timeout(300)
def test_ten_thousand_crashes(raw: RawPeer, daemon: Daemon, observer: Observer, build_dir: Path) -> None:
    """The daemon's memory, descriptors, log and device stay as they are, whenever peers crash.

    Under ASan forking is slow and the allocator takes long to reach its size; but there the leak check at the
    daemon's end looks at the same, and more sharply.
    """
    n, allowed = (CYCLES // 5, 8 * MIB) if is_sanitized(build_dir) else (CYCLES, MIB // 4)
    raw.do(f"cycles 600 {daemon.socket}", within=120)
    observer.check_nothing_left()
    memory, names, device = resident_bytes(daemon.pid), descriptors(daemon.pid), device_files(daemon)
    raw.do(f"cycles {n} {daemon.socket}", within=240)
    observer.check_nothing_left()
    assert resident_bytes(daemon.pid) - memory < allowed
    assert daemon.log().count("\n") < 100, daemon.log()
    eventually(lambda: abs(len(descriptors(daemon.pid)) - len(names)) <= 64)
    eventually(lambda: abs(len(device_files(daemon)) - len(device)) <= 64)


def is_sanitized(build_dir: Path) -> bool:
    options = json.loads((build_dir / "meson-info/intro-buildoptions.json").read_text())
    return any(option["name"] == "b_sanitize" and "address" in option["value"] for option in options)


def device_files(daemon: Daemon) -> list[Path]:
    return [path for path in daemon.site.emulate_dir.rglob("*") if path.is_file()]
