# SPDX-License-Identifier: Apache-2.0
"""Peers that die in the middle of something, or are somebody else."""

from __future__ import annotations

import os
import signal

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.observer import MIB, Observer
from harness.raw import RawPeer, start_raw

STRANGER_UID = 54321


# ---- Dying ----


def test_half_close(raw: RawPeer, observer: Observer) -> None:
    """End-of-file ends the connection; the living process keeps its bytes charged."""
    raw.open()
    held = raw.take(raw.open_region(), 4)
    raw.do("shutdown")
    assert raw.next().name == "closed"
    assert observer.info().number("limbo_bytes") == len(held) * 2 * MIB
    assert "raw" in observer.instances()
    raw.kill()
    eventually(lambda: "raw" not in observer.instances(), within=2)


def test_close_without_anything_held(raw: RawPeer, observer: Observer) -> None:
    raw.open()
    raw.give_back(*raw.take(raw.open_region(), 4))
    raw.do("close")
    eventually(lambda: "raw" not in observer.instances(), within=2)


def test_forked_child_keeps_the_socket(raw: RawPeer, observer: Observer) -> None:
    """The process that was welcomed has died; a child with its socket is nobody."""
    raw.open()
    raw.take(raw.open_region(), 4)
    child = int(raw.do("fork"))
    try:
        raw.kill()
        eventually(lambda: "raw" not in observer.instances(), within=2)
        assert observer.count_connections() == observer.connections
    finally:
        end(child)


@pytest.mark.emulator
def test_forked_child_keeps_descriptors(raw: RawPeer, observer: Observer) -> None:
    """What they refer to is still on the device, so it stays charged, and is destroyed when they close."""
    raw.open()
    raw.do("keep")
    held = raw.take(raw.open_region(), 4)
    child = int(raw.do("fork"))
    try:
        raw.kill()
        eventually(lambda: observer.info().number("destroying_bytes") == len(held) * 2 * MIB, within=2)
        observer.is_served()
        assert observer.info().number("destroying_bytes") == len(held) * 2 * MIB
    finally:
        end(child)
    eventually(lambda: observer.info().number("destroying_bytes") == 0, within=2)


def test_death_after_a_grant(raw: RawPeer, observer: Observer) -> None:
    """A single descriptor is closed a little after it was sent; it doesn't keep the memory of the dead."""
    raw.open()
    assert len(raw.take(raw.open_region())) == 1
    raw.kill()
    observer.check_nothing_left()


def test_death_behind_a_request(raw: RawPeer, daemon: Daemon, observer: Observer) -> None:
    """The daemon finds the request, and the end of who asked, in one turn."""
    raw.open()
    region = raw.open_region()
    daemon.process.send_signal(signal.SIGSTOP)
    raw.post("Take", region=region, pages=1)
    raw.kill()
    daemon.process.send_signal(signal.SIGCONT)
    observer.check_nothing_left()


def test_death_with_a_grant_in_the_socket(raw: RawPeer, observer: Observer) -> None:
    """Descriptors that were never received are released with the socket."""
    raw.open()
    region = raw.open_region()
    raw.post("Take", region=region, pages=64)
    eventually(lambda: observer.info().number("granted_bytes") >= 128 * MIB)
    raw.kill()
    eventually(lambda: "raw" not in observer.instances(), within=2)


def end(pid: int) -> None:
    """Ends a grandchild that has become our child, and reaps it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# ---- Rights ----


@pytest.fixture
def stranger(programs: Programs, daemon: Daemon, observer: Observer) -> RawPeer:
    """A process of another user, on this test's sockets, under observation."""
    assert observer.daemon is daemon
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    daemon.site.run.chmod(0o755)
    for path in (daemon.socket, daemon.control):
        path.chmod(0o666)
    peer = start_raw(programs, daemon, "stranger")
    peer.do(f"become {STRANGER_UID}")
    return peer


def test_names_of_another_user(stranger: RawPeer, observer: Observer) -> None:
    """Names are unique within a trust domain; a stranger's "decent" is another one."""
    assert stranger.open(instance="decent").name == "Welcome"
    eventually(lambda: observer.instances().count("decent") == 2)
    observer.is_served()


def test_extents_of_another_user(stranger: RawPeer, raw: RawPeer) -> None:
    raw.open()
    held = raw.take(raw.open_region(), 2)
    stranger.open()
    stranger.give_back(*held).check_refused("ERROR_INVALID")
    assert raw.give_back(*held).name == "Returned"


def test_used_memory_never_reaches_another_user(stranger: RawPeer, raw: RawPeer) -> None:
    raw.open()
    region = raw.open_region()
    used: set[int] = set()
    for _ in range(3):
        held = raw.take(region, 64)
        used.update(held)
        raw.give_back(*held)
    stranger.open()
    assert not used.intersection(stranger.take(stranger.open_region(), 64))


def test_strangers_change_nothing(stranger: RawPeer, daemon: Daemon, observer: Observer) -> None:
    stranger.connect(daemon.control)
    assert stranger.hello().name == "Welcome"
    stranger.request("SetLimit", instance="decent", bytes=0).check_refused("ERROR_PERMISSION")
    stranger.request("Delete", instance="decent", force=1).check_refused("ERROR_PERMISSION")
    assert stranger.request("List").name == "ListReply"
    observer.is_served()


@pytest.mark.parametrize("instance", ["", "/", "a b", "decent/", "x" * 60000])
def test_limit_of_what_cannot_be(raw: RawPeer, daemon: Daemon, instance: str) -> None:
    raw.connect(daemon.control)
    raw.hello()
    assert raw.request("SetLimit", instance=instance, bytes=1).name == "Refused"
    raw.request("Delete", instance=instance).check_refused("ERROR_NOT_FOUND")
