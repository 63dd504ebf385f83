# SPDX-License-Identifier: Apache-2.0
"""Peers that leave descriptors in their sockets.

The kernel counts the descriptors that a user has sent and nobody has received yet, over all sockets, and
refuses to send more than RLIMIT_NOFILE. It exempts root, so the daemon here is another user's, with a small
table; the attacks are a domain's, the victim is in another.
"""

from __future__ import annotations

import os

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.observer import MIB, Observer
from harness.raw import RawPeer, start_raw

SERVICE_UID = 54322
VICTIM_UID = 54321
TABLE = 512
PACKET = 64
FEW = 20  # fit into one packet


@pytest.fixture
def daemon(programs: Programs) -> Daemon:
    """Another user's, with so few descriptors that a few peers can hold all that may be in flight."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a daemon of another user")
    site = programs.site
    for folder in (site.run, site.emulate_dir.parent):
        os.chown(folder, SERVICE_UID, SERVICE_UID)
        folder.chmod(0o755)
    state = site.run / "state"
    state.mkdir()
    os.chown(state, SERVICE_UID, SERVICE_UID)
    libraries = [site.publish(f"tests/cuemu/{name}") for name in ("libcuda.so.1", "libnvidia-ml.so.1")]
    become = ("setpriv", f"--reuid={SERVICE_UID}", f"--regid={SERVICE_UID}", "--clear-groups")
    daemon = programs.daemon(
        "4G",
        prefix=("prlimit", f"--nofile={TABLE}:{TABLE}", *become),
        state_dir=state,
        config="[daemon]\nutilization=1\nheadroom=0\n",
        environment={"KVCACHED_EMULATOR_DIR": str(libraries[0].parent)},
    )
    for path in (daemon.socket, daemon.control):
        path.chmod(0o666)
    return daemon


@pytest.fixture
def victim(programs: Programs, daemon: Daemon, observer: Observer) -> RawPeer:
    """A decent engine of another user, which comes when the attack is on."""
    assert observer.daemon is daemon
    peer = start_raw(programs, daemon, "victim")
    peer.do(f"become {VICTIM_UID}")
    return peer


def is_served(victim: RawPeer) -> None:
    victim.open()
    region = victim.open_region()
    assert victim.give_back(*victim.take(region, 10)).name == "Returned"


def attack(programs: Programs, daemon: Daemon, observer: Observer, name: str) -> RawPeer:
    """Has a packet of descriptors sent to a socket, as many as may be, and doesn't receive it."""
    before = observer.info().number("granted_bytes")
    attacker = start_raw(programs, daemon, name)
    attacker.open()
    attacker.post("Take", region=attacker.open_region(), pages=PACKET)
    eventually(lambda: observer.info().number("granted_bytes") == before + PACKET * 2 * MIB)
    return attacker


def test_packets_that_nobody_receives(
    programs: Programs, daemon: Daemon, observer: Observer, victim: RawPeer
) -> None:
    for i in range(TABLE // PACKET):
        attack(programs, daemon, observer, f"attacker-{i}")
    is_served(victim)
    observer.is_served()


def test_packets_in_sockets_of_the_disconnected(
    programs: Programs, daemon: Daemon, observer: Observer, victim: RawPeer
) -> None:
    """The daemon has closed its end; what it sent stays in flight until the other end is closed, too."""
    for i in range(20):
        attack(programs, daemon, observer, f"attacker-{i}").packet(b"garbage")
        eventually(lambda: observer.info().number("granted_bytes") == 0)
    is_served(victim)
    observer.is_served()


def leave_unread(
    programs: Programs, daemon: Daemon, observer: Observer, name: str, ids: list[int]
) -> RawPeer:
    """Takes what it knows the ids of, says that it has come, and gives it back, having received nothing."""
    before = observer.info().number("granted_bytes")
    attacker = start_raw(programs, daemon, name)
    attacker.open()
    request = attacker.post("Take", region=attacker.open_region(), pages=len(ids))
    eventually(lambda: observer.info().number("granted_bytes") > before)
    attacker.post("GrantAck", request)
    attacker.post("Return", extents=ids)
    return attacker


@pytest.mark.parametrize("end", ["connected", "disconnected"])
def test_packets_that_are_returned_unread(
    programs: Programs, daemon: Daemon, observer: Observer, victim: RawPeer, end: str
) -> None:
    """Ids can be known from an earlier answer, and an acknowledgement is only a word. But what lies unread
    counts as long as it does, so soon there is no packet any more that has room for all of them."""
    first = start_raw(programs, daemon, "first")
    first.open()
    ids = first.take(first.open_region(), FEW)
    assert first.give_back(*ids).name == "Returned"
    for i in range(TABLE // FEW + 10):
        attacker = leave_unread(programs, daemon, observer, f"attacker-{i}", ids)
        if end == "disconnected":
            attacker.packet(b"garbage")
        try:
            eventually(lambda: observer.info().number("granted_bytes") == 0, within=5)
        except AssertionError:
            break
    is_served(victim)
    observer.is_served()
