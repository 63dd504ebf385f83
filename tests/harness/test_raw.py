# SPDX-License-Identifier: Apache-2.0
"""The raw peer sends what it is told to; and what docs/PROTOCOL.md shows is what is sent."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.broker import Site
from harness.raw import Message, RawPeer, frame

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/PROTOCOL.md"


@pytest.fixture
def listener(tmp_run: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_run / "socket"))
        listening.listen()
        yield listening


@pytest.fixture
def other_end(
    build_dir: Path, tmp_run: Path, listener: socket.socket
) -> Iterator[tuple[RawPeer, socket.socket]]:
    """A raw peer, and the socket that it is connected to."""
    peer = RawPeer(Site(build=build_dir, run=tmp_run, emulate_dir=tmp_run / "devices"), tmp_run / "socket")
    peer.connect()
    connection, _ = listener.accept()
    with connection:
        yield peer, connection
        if peer.is_running():
            peer.close()


def documented_bytes() -> list[bytes]:
    """The packets of the document's code blocks: lines that begin with bytes, without their comments."""
    packets = []
    for block in re.findall(r"```\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        lines = [
            re.match(r"(?:[0-9a-f]{2} {1,2})*[0-9a-f]{2}(?=\s)", line) for line in block.splitlines(True)
        ]
        if lines[0]:
            packets.append(bytes.fromhex("".join(line[0] for line in lines if line)))
    return packets


def test_documented_bytes_are_sent(other_end: tuple[RawPeer, socket.socket]) -> None:
    peer, connection = other_end
    hello, take = documented_bytes()
    peer.post(
        "Hello",
        1,
        min_version=1,
        max_version=1,
        role="ROLE_ENGINE",
        instance="llama",
        limit_ppm=500000,
        program="sh",
    )
    assert connection.recv(65536) == hello
    peer.post("Take", 0x01020304, region=3, pages=200)
    assert connection.recv(65536) == take


def test_documented_messages_are_those_of_the_code() -> None:
    code = re.findall(
        r"^    X\((\d+), [A-Z_]+, (\w+),", (ROOT / "proto/wire/codec.h").read_text(), re.MULTILINE
    )
    document = re.findall(r"^\| (\d+) \| (\w+) \| [EC ]+[→←] ", DOCUMENT.read_text(), re.MULTILINE)
    assert document == code


def test_what_is_received_is_shown(other_end: tuple[RawPeer, socket.socket]) -> None:
    peer, connection = other_end
    connection.send(frame(67, b"\x0a\x09\x12\x02ab\x5a\x03\x1a\x01c", request=7))
    answer = peer.next()
    assert answer.name == "LimitReply"
    assert answer.number("request") == 7
    assert " instance=ab " in answer.text
    assert " program=c " in answer.text
    connection.send(b"")
    assert peer.next().name == "violation"
    assert peer.next(within=0.01).name == "nothing"
    connection.close()
    assert peer.next().name == "closed"


def test_bytes_and_descriptors_are_sent_as_they_are(other_end: tuple[RawPeer, socket.socket]) -> None:
    peer, connection = other_end
    peer.packet(b"", 2)
    data, descriptors, _, _ = socket.recv_fds(connection, 100, 10)
    for fd in descriptors:
        socket.close(fd)
    assert data == b""
    assert len(descriptors) == 2
    peer.packet(b"\x00\xff", 0)
    assert connection.recv(100) == b"\x00\xff"


def test_flood_ends_where_nobody_reads(other_end: tuple[RawPeer, socket.socket]) -> None:
    peer, _ = other_end
    assert 0 < int(peer.do("flood 100000 Info 1")) < 100000


@pytest.mark.parametrize(
    "command", ["", "bla", "send", "send Nothing 1", "send Take 1 pages=-1", "raw 0", "raw zz"]
)
def test_what_is_no_command_is_refused(other_end: tuple[RawPeer, socket.socket], command: str) -> None:
    other_end[0].refused(command)


def test_fields_are_the_message_s_own() -> None:
    message = Message(
        "ListReply", "ListReply request=1 instances={ a=2 peers={ b=3 },{ b=4 } },{ a=5 } next=6"
    )
    assert message.number("next") == 6
    with pytest.raises(AssertionError):
        message["b"]
    assert Message("Grant", "Grant extents=1,2 remaining=0").numbers("extents") == [1, 2]
    assert Message("Grant", "Grant extents= remaining=0").numbers("extents") == []
