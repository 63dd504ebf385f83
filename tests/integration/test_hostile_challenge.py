# SPDX-License-Identifier: Apache-2.0
"""Peers on a kernel that cannot name the process behind a socket, which must prove who they are."""

from __future__ import annotations

import os

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.observer import MIB, Observer, resident_bytes
from harness.raw import Message, RawPeer, frame, start_raw

HELLO, CHALLENGE_REPLY = 1, 3


@pytest.fixture
def daemon(programs: Programs) -> Daemon:
    """One that does without what such a kernel lacks, and under ASan doesn't hoard what it frees."""
    options = os.environ.get("ASAN_OPTIONS", "")
    return programs.daemon(
        environment={
            "KVCACHED_TEST_NO_PEERPIDFD": "1",
            "ASAN_OPTIONS": f"{options}:quarantine_size_mb=0:thread_local_quarantine_size_kb=0",
        }
    )


def challenged(raw: RawPeer, **fields: object) -> Message:
    raw.connect()
    challenge = raw.hello(**fields)
    assert challenge.name == "Challenge", challenge.text
    assert len(challenge["nonce"]) == 32
    return challenge


def test_proof_is_accepted(raw: RawPeer) -> None:
    challenge = challenged(raw)
    assert raw.prove(challenge).name == "Welcome"
    assert raw.give_back(*raw.take(raw.open_region())).name == "Returned"


def test_each_nonce_is_new(raw: RawPeer) -> None:
    assert len({challenged(raw)["nonce"] for _ in range(10)}) == 10


@pytest.mark.parametrize("size", [0, 15, 16, 17, 1000])
def test_wrong_nonce(raw: RawPeer, size: int) -> None:
    challenged(raw)
    raw.request("ChallengeReply", nonce=bytes(size)).check_refused("ERROR_IDENTITY", "wrongly")
    assert raw.next().name == "closed"


def test_old_nonce(raw: RawPeer) -> None:
    old = challenged(raw)
    challenged(raw)
    raw.prove(old).check_refused("ERROR_IDENTITY", "wrongly")


def test_another_process_answers(raw: RawPeer) -> None:
    """A child has the socket and the nonce, and is still not who connected."""
    nonce = challenged(raw)["nonce"]
    raw.do(f"child send ChallengeReply 2 nonce={nonce}")
    raw.check_ended("ERROR_IDENTITY", "another process")


def test_descriptors_with_the_answer(raw: RawPeer) -> None:
    nonce = bytes.fromhex(challenged(raw)["nonce"])
    raw.packet(frame(CHALLENGE_REPLY, b"\x0a\x10" + nonce), 5)
    raw.check_ended("ERROR_PROTOCOL", "descriptors were sent")


@pytest.mark.parametrize("n_fds", [1, 253])
def test_descriptors_with_hello(raw: RawPeer, n_fds: int) -> None:
    raw.connect()
    raw.packet(frame(HELLO), n_fds)
    raw.check_ended("ERROR_PROTOCOL", "descriptors were sent")


def test_descriptors_after_welcome(raw: RawPeer) -> None:
    challenge = challenged(raw)
    assert raw.prove(challenge).name == "Welcome"
    raw.packet(frame(HELLO), 1)
    raw.check_ended("ERROR_PROTOCOL", "descriptors were sent")


@pytest.mark.parametrize("kind", [HELLO, 20, 64])
def test_anything_but_the_answer(raw: RawPeer, kind: int) -> None:
    challenged(raw)
    raw.packet(frame(kind))
    raw.check_ended("ERROR_PROTOCOL")


def test_large_hellos(programs: Programs, daemon: Daemon) -> None:
    """What a Hello holds beyond its meaning is not kept while its sender thinks about the challenge."""
    padding = b"\xfa\x07\x01a" * 9000
    before = resident_bytes(daemon.pid)
    for i in range(40):
        peer = start_raw(programs, daemon, f"padded-{i}")
        peer.connect()
        peer.packet(frame(HELLO, b"\x08\x01\x10\x01\x20\x01\x2a\x01a" + padding))
        assert peer.next().name == "Challenge"
    assert resident_bytes(daemon.pid) - before < 8 * MIB


def test_slow_handshakes(raw: RawPeer, programs: Programs, daemon: Daemon, observer: Observer) -> None:
    """Connections that don't get to the point are ended, and hold up nobody meanwhile."""
    raw.connect()
    raw.do(f"more 50 {raw.socket_path}")
    other = start_raw(programs, daemon, "other")
    challenged(other)
    observer.is_served()
    for peer in (raw, other):
        peer.check_ended("ERROR_PROTOCOL", "handshake")
    eventually(lambda: observer.count_connections() == observer.connections)
