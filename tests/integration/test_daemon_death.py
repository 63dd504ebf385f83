# SPDX-License-Identifier: Apache-2.0
"""What engines leave behind when they end, and when only their connection does."""

from __future__ import annotations

import os
import signal

from harness.broker import Daemon, Peer, Programs, eventually
from harness.control import books_are_right, info
from harness.raw import RawPeer, start_holder, start_raw
from harness.tasks import stopped

MIB = 1 << 20


def mapper(programs: Programs, daemon: Daemon, pages: int = 50) -> Peer:
    """An engine that has mapped so many pages of 2 MiB."""
    engine = programs.peer(daemon, "mapper")
    engine.do("open")
    engine.do(f"region r page=2M pages={pages}")
    engine.do(f"map r 0-{pages - 1}")
    return engine


def accounts(control: RawPeer) -> dict[str, int]:
    now = info(control)
    return {name: now.number(f"{name}_bytes") // MIB for name in ("granted", "limbo", "destroying")}


def line_of(control: RawPeer, instance: str) -> str:
    """What the list says about an instance."""
    parts = control.request("List").text.split(" instances=")
    (line,) = [part for part in parts if f"instance={instance} " in part]
    return line


def orphan(programs: Programs, daemon: Daemon, control: RawPeer, instance: str) -> int:
    """The child of an engine that is dead: it has the descriptors of 50 pages. Its pid."""
    engine = start_holder(programs, daemon, instance)
    child = int(engine.do("fork"))
    engine.kill()
    eventually(lambda: accounts(control) == {"granted": 0, "limbo": 0, "destroying": 100})
    return child


def check_all_is_back(daemon: Daemon, control: RawPeer) -> None:
    """Soon after the last engine's death; so the daemon will be the last on its device, and clean up."""
    eventually(lambda: info(control).number("instances") == 0, within=1)
    eventually(lambda: books_are_right(control), within=1)
    daemon.site.killed = False


def test_sigkill(programs: Programs, daemon: Daemon, control: RawPeer) -> None:
    engine = mapper(programs, daemon)
    assert accounts(control) == {"granted": 100, "limbo": 0, "destroying": 0}
    engine.kill()
    check_all_is_back(daemon, control)


def test_a_stopped_engine_keeps_what_it_has(programs: Programs, daemon: Daemon, control: RawPeer) -> None:
    engine = mapper(programs, daemon)
    other = start_raw(programs, daemon, "other")
    other.open()
    with stopped(engine):
        other.give_back(*other.take(other.open_region(), 10))
        assert accounts(control)["granted"] == 100
    engine.do("unmap r 0-49")
    assert accounts(control)["granted"] == 0


def test_a_connection_that_ends_while_the_process_lives(
    programs: Programs, daemon: Daemon, control: RawPeer
) -> None:
    """What it holds stays charged to its instance, and nobody gets it, until the process is gone."""
    engine = start_holder(programs, daemon, "leaver")
    engine.do("close")
    eventually(lambda: accounts(control) == {"granted": 0, "limbo": 100, "destroying": 0})
    line = line_of(control, "leaver")
    assert "used_bytes=104857600" in line
    assert "limbo_bytes=104857600" in line
    assert f"pid={engine.pid}" in line
    assert "connected=1" not in line
    engine.kill()
    check_all_is_back(daemon, control)


def test_a_connection_that_ends_with_nothing_in_hand_is_forgotten(
    programs: Programs, daemon: Daemon, control: RawPeer
) -> None:
    engine = start_raw(programs, daemon, "leaver")
    engine.open()
    engine.give_back(*engine.take(engine.open_region(), 5))
    engine.do("close")
    eventually(lambda: info(control).number("instances") == 0)
    assert info(control).number("limbo_bytes") == 0


def test_an_instance_comes_back_beside_its_past(programs: Programs, daemon: Daemon, control: RawPeer) -> None:
    """A new process of the name is charged for what the old one's child still holds."""
    child = orphan(programs, daemon, control, "phoenix")

    again = start_raw(programs, daemon, "phoenix")
    again.open()
    again.take(again.open_region(), 10)
    line = line_of(control, "phoenix")
    assert f"used_bytes={120 * MIB}" in line
    os.kill(child, signal.SIGKILL)
    eventually(lambda: accounts(control) == {"granted": 20, "limbo": 0, "destroying": 0}, within=2)
    daemon.site.killed = False


def test_a_forked_child_keeps_the_bytes_charged(programs: Programs, daemon: Daemon, control: RawPeer) -> None:
    """The process is dead, but the driver does not show its memory free while a child holds descriptors."""
    child = orphan(programs, daemon, control, "parent")
    assert info(control).number("free_bytes") <= 1024 * MIB - 100 * MIB
    other = start_raw(programs, daemon, "other")
    other.open()
    region = other.open_region()
    budget = info(control).number("budget_bytes")
    other.request("Take", region=region, pages=budget // (2 * MIB)).check_refused("ERROR_BUDGET")
    os.kill(child, signal.SIGKILL)
    eventually(lambda: accounts(control) == {"granted": 0, "limbo": 0, "destroying": 0}, within=1)
    eventually(lambda: books_are_right(control))
    daemon.site.killed = False


def test_descriptors_that_nobody_fetched_die_with_their_socket(
    programs: Programs, daemon: Daemon, control: RawPeer
) -> None:
    engine = start_raw(programs, daemon, "deaf")
    engine.open()
    engine.post("Take", region=engine.open_region(), pages=50)
    eventually(lambda: accounts(control)["granted"] == 100)
    engine.kill()
    check_all_is_back(daemon, control)
