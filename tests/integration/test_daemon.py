# SPDX-License-Identifier: Apache-2.0
"""kvcachedd and one engine: the handshake, regions, and extents on their way there and back."""

from __future__ import annotations

import pytest

from harness.broker import Daemon, Programs, Site, eventually
from harness.observer import descriptors
from harness.raw import RawPeer, start_holder, start_raw

MIB = 1 << 20


@pytest.fixture
def engine(programs: Programs, daemon: Daemon) -> RawPeer:
    return start_raw(programs, daemon, "engine-a")


def held(control: RawPeer) -> int:
    return control.request("Info").number("held_bytes")


def test_welcome_describes_the_device(engine: RawPeer, daemon: Daemon) -> None:
    welcome = engine.open()
    assert welcome.number("fds") == 1
    assert welcome.number("version") == 1
    assert welcome["gpu_uuid"].startswith("GPU-")
    assert welcome["emulated_folder"] == str(daemon.site.emulate_dir)
    assert welcome.number("total_bytes") == 1024 * MIB
    assert welcome.number("granularity_bytes") == 2 * MIB
    assert welcome.numbers("class_bytes") == [2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB]


def test_extents_go_out_and_come_back(engine: RawPeer, control: RawPeer) -> None:
    engine.open()
    region = engine.open_region(2, 1)
    extents = engine.take(region, 3)
    assert len(set(extents)) == 9
    info = control.request("Info")
    assert info.number("granted_bytes") == 3 * (2 * 2 + 8) * MIB
    engine.give_back(*extents)
    info = control.request("Info")
    assert info.number("granted_bytes") == 0
    assert info.number("pool_bytes") >= 3 * (2 * 2 + 8) * MIB


def test_many_extents_take_several_packets(engine: RawPeer) -> None:
    engine.open()
    extents = engine.take(engine.open_region(), 200)
    assert len(set(extents)) == 200
    assert engine.give_back(*extents).name == "Returned"


def test_region_must_be_empty_to_close(engine: RawPeer) -> None:
    engine.open()
    region = engine.open_region()
    extents = engine.take(region, 2)
    engine.request("RegionClose", region=region).check_refused("ERROR_INVALID", "not been returned")
    engine.give_back(*extents)
    assert engine.request("RegionClose", region=region).name == "RegionClosed"
    engine.request("Take", region=region, pages=1).check_refused("ERROR_INVALID", "no such region")


def test_bytes_of_a_killed_engine_are_back(programs: Programs, control: RawPeer, daemon: Daemon) -> None:
    engine = start_holder(programs, daemon, pages=100)
    assert held(control) >= 200 * MIB
    engine.kill()
    eventually(lambda: control.request("Info").number("instances") == 0, within=1)
    info = control.request("Info")
    assert info.number("granted_bytes") == info.number("limbo_bytes") == info.number("destroying_bytes") == 0
    assert info.number("free_bytes") == info.number("total_bytes") - info.number("held_bytes")
    daemon.site.killed = False


def test_who_does_not_acknowledge_keeps_nobody_waiting(programs: Programs) -> None:
    """The descriptors that a sleeper doesn't fetch serve others; once awake, it gets what it was granted."""
    daemon = programs.daemon(config="[daemon]\nwarm=200\nutilization=1\nheadroom=0\n")
    sleeper, other = start_raw(programs, daemon, "sleeper"), start_raw(programs, daemon, "other")
    sleeper.open()
    other.open()
    first = sleeper.request("Take", region=sleeper.open_region(), pages=160)
    assert first.number("remaining") == 96
    region = other.open_region()
    others = other.take(region, 150)

    extents = first.numbers("extents")
    sleeper.give_back(extents[0], extents[0] + 100).check_refused("ERROR_INVALID")
    while True:
        sleeper.post("GrantAck", first.number("request"))
        if len(extents) == 160:
            break
        grant = sleeper.next()
        assert grant.number("fds") == len(grant.numbers("extents"))
        extents += grant.numbers("extents")
    assert len({*extents, *others}) == 310
    assert sleeper.give_back(*extents).name == "Returned"
    assert other.give_back(*others).name == "Returned"


def test_cold_grant_of_a_disconnected_engine(programs: Programs, site: Site) -> None:
    """Descriptors that come when nobody is there any more to send them to are not kept."""
    costs = site.run / "costs"
    costs.write_text("cuMemExportToShareableHandle call:5000\n")
    daemon = programs.daemon(
        config="[daemon]\nreserve=0\n", environment={"KVCACHED_EMULATE_COSTS": str(costs)}
    )
    sleeper = start_raw(programs, daemon, "sleeper")
    sleeper.open()
    region = sleeper.open_region()
    before = len(descriptors(daemon.pid))
    first = sleeper.request("Take", region=region, pages=128)
    eventually(lambda: len(descriptors(daemon.pid)) == before)
    sleeper.post("GrantAck", first.number("request"))
    sleeper.do("close")
    other = start_raw(programs, daemon, "other")
    other.open()
    assert other.take(other.open_region())  # its export stood behind the others
    assert len(descriptors(daemon.pid)) < before + 16


def test_cold_grant_of_a_dead_engine(programs: Programs) -> None:
    daemon = programs.daemon(config="[daemon]\nwarm=200\nutilization=1\nheadroom=0\n")
    sleeper, other = start_raw(programs, daemon, "sleeper"), start_raw(programs, daemon, "other")
    sleeper.open()
    other.open()
    assert sleeper.request("Take", region=sleeper.open_region(), pages=160).name == "Grant"
    region = other.open_region()
    other.give_back(*other.take(region, 150))
    sleeper.kill()
    assert len(other.take(region, 200)) == 200
    daemon.site.killed = False
