# SPDX-License-Identifier: Apache-2.0
"""Memory that a controller has promised to an instance before its engines ask: on the wire, and as engines,
others and administrators see it.

Honest controllers first; then those that ask for what cannot be, or are gone.
"""

from __future__ import annotations

import re
import signal

import pytest

from harness.broker import Daemon, Peer, Programs, eventually
from harness.control import open_control
from harness.observer import MIB, Observer
from harness.raw import LEASES, ORDERS, RESERVATIONS, Message, RawPeer, start_raw
from harness.tasks import stopped

PAGE = 2 * MIB
HUGE = 2**64 - 1


def start_controller(
    programs: Programs, daemon: Daemon, instance: str = "raw", limit_ppm: int = 0
) -> RawPeer:
    """A controller of that instance."""
    controller = start_raw(programs, daemon, instance)
    welcome = controller.open(role="ROLE_CONTROLLER", features=RESERVATIONS, limit_ppm=limit_ppm)
    assert welcome.number("features") == RESERVATIONS
    assert welcome.number("fds") == 1
    return controller


def reserve(controller: RawPeer, size: int = 0, foreign: int = 0) -> Message:
    return controller.request("Reserve", bytes=size, foreign_bytes=foreign)


def instance(control: RawPeer, name: str = "raw") -> Message:
    """What List says of it, without its peers."""
    listed = control.request("List", instances=name).text
    return Message(
        "InstanceInfo", re.sub(r"\w+=\{[^{}]*\}", "", listed[listed.index("{") + 1 : listed.rindex("}")])
    )


def loaded(engine: Peer, size: int) -> str:
    """The engine takes memory from the driver by itself; what it was given."""
    return engine.do(f"alloc {size}")


@pytest.fixture
def small(programs: Programs) -> Daemon:
    """A daemon with a budget of 32 pages."""
    return programs.daemon("1G", budget=str(32 * PAGE))


@pytest.fixture
def controller(programs: Programs, daemon: Daemon, observer: Observer) -> RawPeer:
    """Under observation: in the end nothing is left of it."""
    assert observer.daemon is daemon
    return start_controller(programs, daemon)


# ---- What is reserved ----


def test_reserved_for_its_own(programs: Programs, small: Daemon) -> None:
    """Others are refused, its engines find it, and what is left is free with the release."""
    control = open_control(programs, small)
    controller = start_controller(programs, small)
    assert reserve(controller, 24 * PAGE).name == "Reserved"
    other, own = start_raw(programs, small, "other"), start_raw(programs, small)
    other.open()
    region = other.open_region()
    other.request("Take", region=region, pages=9).check_refused("ERROR_BUDGET", "48.00 MB are in use")
    other.take(region, 8)
    own.open()
    own.take(own.open_region(), 10)
    seen = instance(control)
    assert seen.number("used_bytes") == 24 * PAGE
    assert seen.number("granted_bytes") == 10 * PAGE
    assert seen.number("reserved_bytes") == 14 * PAGE
    assert control.request("Info").number("reserved_bytes") == 14 * PAGE
    other.request("Take", region=region, pages=1).check_refused("ERROR_BUDGET")
    assert controller.request("Release").name == "Released"
    other.take(region, 14)
    assert instance(control).number("used_bytes") == 10 * PAGE


def test_leases_come_out_of_it(programs: Programs, small: Daemon) -> None:
    controller = start_controller(programs, small)
    other, own = start_raw(programs, small, "other"), start_raw(programs, small)
    other.open()
    assert reserve(controller, 24 * PAGE).name == "Reserved"
    other.take(other.open_region(), 8)
    own.open(features=LEASES)
    region = own.open_region()
    assert own.request("Lease", region=region, pages=20).name == "Leased"
    own.request("Lease", region=region, pages=5).check_refused("ERROR_BUDGET")
    own.request("Lease", region=region, pages=1, courtesy=1).check_refused("ERROR_BUDGET")
    assert own.request("Lease", region=region, pages=4).name == "Leased"


def test_others_give_back_for_it(programs: Programs, small: Daemon) -> None:
    """It waits as a Take does."""
    other = start_raw(programs, small, "other")
    other.open(features=LEASES)
    region = other.open_region()
    extents = other.take(region, 30)
    other.hint(region, 20)
    controller = start_controller(programs, small)
    request = controller.post("Reserve", bytes=12 * PAGE)
    notice = other.next()
    assert notice.name == "Notice", notice.text
    assert notice.number("bytes") == 10 * PAGE
    other.hint(region, 10)
    assert other.give_back(*extents[:10]).name == "Returned"
    answer = controller.next()
    assert answer.name == "Reserved", answer.text
    assert answer.number("request") == request


def test_weights_are_expected(programs: Programs) -> None:
    """The budget falls by them at once, stays while they are loaded, and they are there."""
    daemon = programs.daemon("1G", config="[daemon]\nutilization=1.0\n")
    control = open_control(programs, daemon)
    left = control.request("Info").number("budget_bytes") - 600 * MIB
    controller = start_controller(programs, daemon, "engine")
    assert reserve(controller, 100 * MIB, 600 * MIB).name == "Reserved"
    info = control.request("Info")
    assert info.number("budget_bytes") == left
    assert info.number("expected_bytes") == 600 * MIB
    other = start_raw(programs, daemon, "other")
    other.open()
    region = other.open_region()
    assert other.take_or_none(region, 400) is None
    engine = programs.peer(daemon, "engine")
    engine.do("open")
    foreign = control.request("Info").number("foreign_bytes")

    def seen(size: int) -> bool:
        info = control.request("Info")
        assert info.number("budget_bytes") <= left
        return info.number("foreign_bytes") == foreign + size

    loaded(engine, 300 * MIB)
    eventually(lambda: seen(300 * MIB))
    loaded(engine, 300 * MIB)
    eventually(lambda: seen(600 * MIB))
    assert control.request("Info").number("expected_bytes") == 0
    assert controller.request("Release").name == "Released"
    assert control.request("Info").number("budget_bytes") <= left


def test_the_pool_makes_room_for_weights(programs: Programs) -> None:
    """What nobody uses is with the driver again before the answer."""
    daemon = programs.daemon("1G", config="[daemon]\nutilization=1.0\n")
    user = start_raw(programs, daemon, "user")
    user.open()
    region = user.open_region()
    assert user.give_back(*user.take(region, 350)).name == "Returned"
    controller = start_controller(programs, daemon)
    assert reserve(controller, 0, 600 * MIB).name == "Reserved"
    info = open_control(programs, daemon).request("Info")
    assert info.number("held_bytes") + info.number("foreign_bytes") + 600 * MIB <= 1024 * MIB
    assert info.number("free_bytes") >= 600 * MIB


def test_its_end_ends_it(programs: Programs, small: Daemon) -> None:
    """However it goes: it leaves, it is killed, it closes its socket and lives on."""
    other = start_raw(programs, small, "other")
    other.open()
    region = other.open_region()

    def all_is_free() -> bool:
        extents = other.take_or_none(region, 32)
        return extents is not None and other.give_back(*extents).name == "Returned"

    for end in (RawPeer.close, RawPeer.kill, lambda peer: peer.do("close")):
        controller = start_controller(programs, small)
        assert reserve(controller, 16 * PAGE, 8 * PAGE).name == "Reserved"
        assert other.take_or_none(region, 17) is None
        end(controller)
        eventually(all_is_free)


def test_a_stopped_controller_keeps_it(programs: Programs, small: Daemon) -> None:
    other = start_raw(programs, small, "other")
    other.open()
    region = other.open_region()
    controller = start_controller(programs, small)
    assert reserve(controller, 16 * PAGE).name == "Reserved"
    with stopped(controller):
        assert other.take_or_none(region, 17) is None
        assert other.take_or_none(region, 16) is not None
    assert controller.request("Release").name == "Released"


# ---- Whose it is ----


def test_a_controller_opens_nothing(programs: Programs, small: Daemon) -> None:
    """Its wish for a limit isn't heard, and the engine's is, though the controller was there first."""
    control = open_control(programs, small)
    controller = start_controller(programs, small, limit_ppm=1)
    assert reserve(controller, 8 * PAGE).name == "Reserved"
    engine = start_raw(programs, small)
    engine.open(limit_ppm=15_625)
    assert instance(control).number("limit_bytes") == 16 * MIB
    assert instance(control)["limit_source"] == "LIMIT_SOURCE_ENGINE"
    controller.request("Reserve", bytes=1).check_refused("ERROR_INVALID")
    assert controller.request("Release").name == "Released"
    reserve(controller, 9 * PAGE).check_refused("ERROR_LIMIT", "limit of 16.00 MB")
    assert reserve(controller, 8 * PAGE, 100 * MIB).name == "Reserved"


def test_the_configuration_limits_it(programs: Programs) -> None:
    daemon = programs.daemon("1G", config="[instance raw]\nlimit=32M\n")
    controller = start_controller(programs, daemon)
    reserve(controller, 17 * PAGE).check_refused("ERROR_LIMIT", "limit of 32.00 MB")
    assert reserve(controller, 16 * PAGE).name == "Reserved"


def test_a_lowered_limit(programs: Programs, small: Daemon) -> None:
    """What is reserved stays; nothing is granted beyond the limit."""
    control = open_control(programs, small)
    controller = start_controller(programs, small)
    assert reserve(controller, 16 * PAGE).name == "Reserved"
    assert control.request("SetLimit", instance="raw", bytes=8 * PAGE).name == "LimitReply"
    own = start_raw(programs, small)
    own.open()
    region = own.open_region()
    own.request("Take", region=region, pages=1).check_refused("ERROR_LIMIT")
    assert control.request("SetLimit", instance="raw", bytes=16 * PAGE).name == "LimitReply"
    assert len(own.take(region, 16)) == 16


def test_delete_names_it(programs: Programs, small: Daemon) -> None:
    control = open_control(programs, small)
    controller = start_controller(programs, small)
    assert reserve(controller, 16 * PAGE).name == "Reserved"
    control.request("Delete", instance="raw").check_refused("ERROR_BUSY", str(controller.pid))
    assert control.request("Delete", instance="raw", force=1).name == "DeleteReply"
    controller.check_ended("ERROR_FROZEN")
    eventually(lambda: control.request("Info").number("reserved_bytes") == 0)


def test_a_daemon_that_stops(programs: Programs, small: Daemon) -> None:
    controller = start_controller(programs, small)
    assert reserve(controller, 16 * PAGE, 16 * PAGE).name == "Reserved"
    small.process.send_signal(signal.SIGTERM)
    controller.check_ended("ERROR_SHUTDOWN")
    assert small.wait() == 0


def test_as_an_administrator_sees_it(programs: Programs, small: Daemon) -> None:
    """A column, lines and words of its own, and none of them where nothing is reserved."""

    def kvctl(*words: str) -> str:
        return programs.kvctl(*words, daemon=small).out

    controller = start_controller(programs, small)
    own = start_raw(programs, small)
    own.open()
    own.take(own.open_region(), 2)
    assert "Reserved" not in kvctl("list") + kvctl("info")
    assert reserve(controller, 16 * PAGE, 20 * MIB).name == "Reserved"
    header, row = kvctl("list").splitlines()
    assert header.split() == ["IPC", "Limit", "Used", "Reserved", "%"]
    assert row.split()[1:7] == ["64.00", "MB", "36.00", "MB", "32.00", "MB"]
    assert "Reserved          32.00 MB" in kvctl("info")
    assert "Expected          20.00 MB" in kvctl("info")
    assert "reserved        32.00 MB" in kvctl("info", "raw")
    assert f"pid {controller.pid}, controller" in kvctl("info", "raw")
    why = kvctl("why", "raw")
    assert f"reserved      32.00 MB  promised to what it asks for next; pid {controller.pid}; for " in why
    assert "joined as controller" in kvctl("events")


# ---- What cannot be ----


@pytest.mark.parametrize(
    ("size", "foreign"),
    [(HUGE, 0), (0, HUGE), (HUGE, HUGE), (1 << 56, 1 << 56), (2**63, 2**63), (0, 1 << 40)],
)
def test_more_than_there_is(controller: RawPeer, observer: Observer, size: int, foreign: int) -> None:
    reserve(controller, size, foreign).check_refused("ERROR_BUDGET", "budget")
    observer.is_served()
    assert reserve(controller, PAGE, PAGE).name == "Reserved"


def test_nothing(controller: RawPeer) -> None:
    reserve(controller).check_refused("ERROR_INVALID", "nothing is to be reserved")
    assert reserve(controller, 1).name == "Reserved"


def test_twice(controller: RawPeer, observer: Observer) -> None:
    assert reserve(controller, PAGE).name == "Reserved"
    reserve(controller, PAGE).check_refused("ERROR_INVALID", "open already")
    assert observer.info().number("reserved_bytes") == PAGE
    assert controller.request("Release").name == "Released"
    controller.request("Release").check_refused("ERROR_INVALID", "nothing is reserved")


def test_release_of_nothing(controller: RawPeer) -> None:
    controller.request("Release").check_refused("ERROR_INVALID", "nothing is reserved")


def test_a_release_that_overtakes_the_answer(programs: Programs, small: Daemon) -> None:
    """What was asked for is refused, then the release is answered."""
    other = start_raw(programs, small, "other")
    other.open(features=LEASES)
    region = other.open_region()
    other.take(region, 30)
    other.hint(region, 20)
    controller = start_controller(programs, small)
    asked = controller.post("Reserve", bytes=12 * PAGE)
    assert other.next().name == "Notice"
    again = controller.post("Reserve", bytes=PAGE)
    controller.next().check_refused("ERROR_INVALID", "open already", again)
    released = controller.post("Release")
    controller.next().check_refused("ERROR_INVALID", "released", asked)
    answer = controller.next()
    assert (answer.name, answer.number("request")) == ("Released", released)
    assert reserve(controller, PAGE).name == "Reserved"


def test_gone_while_it_is_undecided(programs: Programs, small: Daemon) -> None:
    other = start_raw(programs, small, "other")
    other.open(features=LEASES)
    region = other.open_region()
    extents = other.take(region, 30)
    other.hint(region, 20)
    controller = start_controller(programs, small)
    controller.post("Reserve", bytes=12 * PAGE, foreign_bytes=PAGE)
    assert other.next().name == "Notice"
    controller.close()
    control = open_control(programs, small)
    eventually(lambda: "instance=raw" not in control.request("List").text)
    assert other.give_back(*extents).name == "Returned"
    info = control.request("Info")
    assert info.number("reserved_bytes") == info.number("expected_bytes") == 0


def test_only_controllers(raw: RawPeer) -> None:
    raw.open(features=RESERVATIONS)
    raw.request("Reserve", bytes=PAGE).check_refused("ERROR_PERMISSION")
    raw.request("Release").check_refused("ERROR_PERMISSION")
    assert raw.take(raw.open_region())


def test_a_controller_holds_nothing(controller: RawPeer) -> None:
    opened = controller.request("RegionOpen", segments=1, capacity_pages=1, page_extents=(1, 0, 0, 0))
    opened.check_refused("ERROR_PERMISSION")
    controller.request("Take", region=1, pages=1).check_refused("ERROR_PERMISSION")
    controller.give_back(1).check_refused("ERROR_PERMISSION")
    assert reserve(controller, PAGE).name == "Reserved"


def test_a_controller_has_no_lease_file(programs: Programs, daemon: Daemon) -> None:
    controller = start_raw(programs, daemon)
    welcome = controller.open(role="ROLE_CONTROLLER", features=LEASES | ORDERS | RESERVATIONS)
    assert welcome.number("features") == RESERVATIONS
    assert welcome.number("fds") == 1
    controller.post("Lease", region=1, pages=1)
    controller.check_ended("ERROR_PROTOCOL", "no place here")


def test_without_the_feature(raw: RawPeer) -> None:
    raw.connect()
    assert raw.hello(role="ROLE_CONTROLLER").name == "Refused"
    assert raw.next().name == "closed"
    raw.open()
    raw.post("Reserve", bytes=PAGE)
    raw.check_ended("ERROR_PROTOCOL", "no place here")


def test_on_the_control_socket(programs: Programs, daemon: Daemon) -> None:
    control = open_control(programs, daemon)
    control.post("Reserve", bytes=PAGE)
    control.check_ended("ERROR_PROTOCOL", "no place here")


def test_before_hello(raw: RawPeer) -> None:
    raw.connect()
    raw.post("Reserve", bytes=PAGE)
    raw.check_ended("ERROR_PROTOCOL", "no place here")


def test_a_flood(controller: RawPeer, observer: Observer) -> None:
    """Who reserves and releases all the time, and reads nothing, hurts itself alone."""
    controller.do("flood 2000 Reserve 7 bytes=2097152 foreign_bytes=2097152", 60)
    observer.is_served()
    controller.do("flood 2000 Release 8", 60)
    observer.is_served()


# ---- With the library ----


def test_a_model_is_woken(programs: Programs) -> None:
    """The whole of it: reserved, loaded and mapped while others want everything, and released."""
    daemon = programs.daemon("1G", config="[daemon]\nutilization=1.0\n")
    controller = programs.peer(daemon, "model")
    controller.do("open role=controller")
    assert controller.do("device").endswith("ordinal=-1 classes=2097152,8388608,33554432,134217728")
    controller.do(f"reserve {200 * MIB} {500 * MIB}")
    assert controller.refused(f"reserve {MIB} 0").startswith("KVC_E_INVALID")
    greedy = start_raw(programs, daemon, "greedy")
    greedy.open()
    region = greedy.open_region()
    while greedy.take_or_none(region, 16):
        pass
    model = programs.peer(daemon, "model")
    model.do("open")
    for _ in range(5):
        loaded(model, 100 * MIB)
        assert greedy.take_or_none(region, 16) is None
    control = open_control(programs, daemon)
    eventually(lambda: control.request("Info").number("foreign_bytes") == 500 * MIB)
    model.do("region kv page=2M pages=100")
    model.do("map kv 0-99")
    controller.do("release")
    assert controller.refused("release").startswith("KVC_E_INVALID")
    assert instance(control, "model").number("used_bytes") == 200 * MIB
    controller.do("close")
    eventually(lambda: control.request("Info").number("expected_bytes") == 0)


def test_no_room_for_a_model(programs: Programs, small: Daemon) -> None:
    """The reason names both amounts, and nothing is left of the try."""
    controller = programs.peer(small, "model")
    controller.do("open role=controller")
    refusal = controller.refused(f"reserve {32 * MIB} {1 << 30}")
    assert refusal.startswith("KVC_E_BUDGET")
    assert "32.00 MB and 1.00 GB beside it more would exceed the budget" in refusal
    assert controller.refused(f"reserve {65 * MIB} 0").startswith("KVC_E_BUDGET")
    controller.do(f"reserve {64 * MIB} 0")
