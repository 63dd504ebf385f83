# SPDX-License-Identifier: Apache-2.0
"""Peers that break the protocol: each is told why and disconnected, and nobody else notices."""

from __future__ import annotations

import re

import pytest

from harness.broker import Daemon
from harness.observer import MIB, Observer
from harness.raw import FRAME_SIZE_MAX, LEASES, ORDERS, RESERVATIONS, RawPeer, frame

HELLO, CHALLENGE_REPLY, WELCOME, REGION_OPEN, TAKE, GRANT, GRANT_ACK, RETURN = 1, 3, 4, 16, 20, 21, 22, 23
LIST, SET_LIMIT, DELETE, INFO = 64, 66, 68, 70

# ---- Packets ----

UNFOLDING = b"\x7a\x00" * 32000

BROKEN_PACKETS = {
    "empty": (b"", 0, "empty"),
    "empty_with_descriptors": (b"", 3, "empty"),
    "short": (frame(HELLO)[:19], 0, "shorter than a header"),
    "garbage": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 0, "not of this protocol"),
    "zeros": (bytes(4096), 0, "not of this protocol"),
    "magic": (frame(HELLO, magic=0x4443564C), 0, "not of this protocol"),
    "cut": (frame(HELLO, b"\x08\x01", length=3), 0, "disagree"),
    "too_much": (frame(HELLO, b"\x08\x01", length=1), 0, "disagree"),
    "length_wraps": (frame(HELLO, length=2**32 - 20), 0, "disagree"),
    "reserved": (frame(HELLO, reserved=1), 0, "reserved"),
    "type_0": (frame(0), 0, "unknown message type 0"),
    "type_65535": (frame(65535), 0, "unknown message type 65535"),
    "no_such_descriptors": (frame(HELLO, n_fds=1), 0, "announces 1"),
    "too_many_announced": (frame(HELLO, n_fds=65), 0, "more descriptors"),
    "uninvited_descriptor": (frame(HELLO), 1, "descriptors were sent"),
    "announced_descriptor": (frame(HELLO, n_fds=1), 1, "descriptors were sent"),
    "many_descriptors": (frame(HELLO, n_fds=64), 253, "descriptors were sent"),
    "oversized": (frame(HELLO, bytes(FRAME_SIZE_MAX)), 0, "larger than"),
    "oversized_garbage": (bytes(150_000), 0, "larger than"),
    "no_body": (frame(TAKE, b"\x08"), 0, "not a valid Take"),
    "group": (frame(TAKE, b"\x0b\x0c"), 0, "not a valid Take"),
    "nul_in_name": (frame(HELLO, b"\x2a\x03a\x00b"), 0, "not a valid Hello"),
    "endless_fields": (frame(TAKE, UNFOLDING), 0, "not a valid Take"),
    "endless_names": (frame(LIST, b"\x0a\x00" * 32000), 0, "not a valid List"),
}


@pytest.mark.parametrize("name", BROKEN_PACKETS)
@pytest.mark.parametrize("state", ["stranger", "member", "admin"])
def test_broken_packet(raw: RawPeer, daemon: Daemon, observer: Observer, state: str, name: str) -> None:
    packet, n_fds, reason = BROKEN_PACKETS[name]
    raw.connect(daemon.control if state == "admin" else None)
    if state != "stranger":
        assert raw.hello().name == "Welcome"
    raw.packet(packet, n_fds)
    raw.check_ended("ERROR_PROTOCOL", reason)
    observer.is_served()


def test_broken_packet_costs_what_was_held(raw: RawPeer, observer: Observer) -> None:
    """Its memory is destroyed once its process has ended, and stays charged until then."""
    raw.open()
    held = raw.take(raw.open_region(), 5)
    raw.packet(b"garbage")
    raw.check_ended("ERROR_PROTOCOL")
    observer.is_served()
    info = observer.info()
    assert info.number("limbo_bytes") + info.number("destroying_bytes") == len(held) * 2 * MIB
    assert "raw" in observer.instances()


# ---- States ----


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CHALLENGE_REPLY, b""),
        (WELCOME, b""),
        (REGION_OPEN, b""),
        (TAKE, b"\x08\x01\x10\x01"),
        (GRANT, b""),
        (GRANT_ACK, b""),
        (RETURN, b""),
        (LIST, b""),
        (SET_LIMIT, b""),
        (INFO, b""),
    ],
)
@pytest.mark.parametrize("socket", ["engine", "control"])
def test_message_before_hello(raw: RawPeer, daemon: Daemon, socket: str, kind: int, body: bytes) -> None:
    raw.connect(daemon.control if socket == "control" else None)
    raw.packet(frame(kind, body))
    raw.check_ended("ERROR_PROTOCOL")


@pytest.mark.parametrize("kind", [HELLO, CHALLENGE_REPLY, WELCOME, GRANT, LIST, SET_LIMIT, DELETE, INFO])
def test_message_that_engines_do_not_send(raw: RawPeer, kind: int) -> None:
    raw.open()
    raw.packet(frame(kind))
    raw.check_ended("ERROR_PROTOCOL")


@pytest.mark.parametrize("kind", [HELLO, CHALLENGE_REPLY, WELCOME, REGION_OPEN, TAKE, GRANT_ACK, RETURN])
def test_message_that_administrators_do_not_send(raw: RawPeer, daemon: Daemon, kind: int) -> None:
    raw.connect(daemon.control)
    raw.hello()
    raw.packet(frame(kind))
    raw.check_ended("ERROR_PROTOCOL")


def test_acknowledgement_of_nothing(raw: RawPeer) -> None:
    raw.open()
    raw.post("GrantAck")
    raw.check_ended("ERROR_PROTOCOL")


def test_acknowledgement_of_something_else(raw: RawPeer) -> None:
    raw.open()
    grant = raw.request("Take", region=raw.open_region(), pages=1)
    raw.post("GrantAck", grant.number("request") + 1)
    raw.check_ended("ERROR_PROTOCOL")


# ---- Hello ----


@pytest.mark.parametrize(("lowest", "highest"), [(2, 9), (0, 0), (2, 1), (2**32 - 1, 2**32 - 1)])
def test_no_common_version(raw: RawPeer, lowest: int, highest: int) -> None:
    raw.connect()
    raw.hello(min_version=lowest, max_version=highest).check_refused("ERROR_VERSION", "version")
    assert raw.next().name == "closed"


def test_newer_client_is_served(raw: RawPeer) -> None:
    raw.connect()
    welcome = raw.hello(min_version=0, max_version=9, features=2**64 - 1)
    assert welcome.name == "Welcome"
    assert welcome.number("version") == 1
    assert welcome.number("features") == LEASES | ORDERS | RESERVATIONS


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-option", "a/b", "a b", "a\nb", "käse", "x" * 65, "a*", "../../etc"]
)
def test_malformed_instance_name(raw: RawPeer, name: str) -> None:
    raw.connect()
    raw.hello(instance=name).check_refused("ERROR_NAME", "name")
    assert raw.next().name == "closed"


@pytest.mark.parametrize("uuid", ["GPU-00000000-0000-0000-0000-000000000000", "0", "x" * 60000])
def test_another_gpu(raw: RawPeer, uuid: str) -> None:
    raw.connect()
    raw.hello(gpu_uuid=uuid).check_refused("ERROR_DEVICE", "GPU-")
    assert raw.next().name == "closed"


@pytest.mark.parametrize("role", ["ROLE_UNSPECIFIED", 4, 5, 2**31 - 1])
def test_no_such_role(raw: RawPeer, role: str | int) -> None:
    raw.connect()
    assert raw.hello(role=role).name == "Refused"
    assert raw.next().name == "closed"


def test_limit_of_more_than_everything(raw: RawPeer) -> None:
    raw.connect()
    assert raw.hello(limit_ppm=1_000_001).name == "Refused"
    assert raw.next().name == "closed"


def test_program_is_shown_clean(raw: RawPeer, observer: Observer) -> None:
    raw.open(program="\x1b[2Jvllm\n" + "x" * 1000)
    shown = re.findall(r" program=(\S*)", observer.admin.request("List").text)
    program = next(name for name in shown if "vllm" in name)
    assert "%1b" not in program
    assert "%0a" not in program
    assert len(program) <= 64 * len("%20")


def test_scheduler_owns_no_memory(raw: RawPeer) -> None:
    raw.open(role="ROLE_SCHEDULER")
    raw.request("RegionOpen", segments=1, capacity_pages=1, page_extents=(1, 0, 0, 0)).check_refused(
        "ERROR_PERMISSION"
    )
    raw.request("Take", region=1, pages=1).check_refused("ERROR_PERMISSION")
    raw.give_back(1).check_refused("ERROR_PERMISSION")
