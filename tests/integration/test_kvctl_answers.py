# SPDX-License-Identifier: Apache-2.0
"""kvctl and answers that a daemon gives only in a race, or that only a broken one gives: by a script."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from harness.broker import Result, Site
from harness.raw import frame

DONE, FAILED = 0, 1

WELCOME, REFUSED = 4, 5
LIST, LIST_REPLY = 64, 65
SET_LIMIT, LIMIT_REPLY = 66, 67
DELETE, DELETE_REPLY = 68, 69
INFO, INFO_REPLY = 70, 71
NOT_FOUND, BUSY = 12, 14


def number(field: int, value: int) -> bytes:
    """A field of a protobuf message; of values below 128."""
    return bytes([field << 3, value])


def text(field: int, value: bytes) -> bytes:
    """Likewise, of less than 128 bytes."""
    return bytes([field << 3 | 2, len(value)]) + value


@dataclass
class Step:
    """A request that must come, and its answer."""

    request: int
    answer: int
    body: bytes = b""


def refuse(request: int, error: int, reason: bytes) -> Step:
    return Step(request, REFUSED, number(1, error) + text(2, reason))


BUSY_AT_FIRST = refuse(DELETE, BUSY, b"a has processes")


@pytest.fixture
def kvctl(site: Site) -> Iterator[Callable[..., Result]]:
    """kvctl([steps], "list"): against a daemon that welcomes it and follows these steps."""
    path = site.run / "gpu0.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{path}.ctl")
    listener.listen()

    def run(steps: list[Step], *words: str) -> Result:
        command = [str(site.program("kvctl/kvctl")), "--socket", str(path), *words]
        pipe = subprocess.PIPE
        with (
            subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as program,
            listener.accept()[0] as connection,
        ):
            for step in [Step(1, WELCOME), *steps]:
                _, _, kind, _, request, _, _ = struct.unpack("<IHHIIHH", connection.recv(65536)[:20])
                assert kind == step.request
                connection.send(frame(step.answer, step.body, request=request))
            out, err = program.communicate()
            assert connection.recv(1) == b""  # it has asked for nothing else
        return Result(program.returncode, out, err)

    yield run
    listener.close()


@pytest.mark.parametrize(
    ("words", "steps", "sentence"),
    [
        ("info a", [Step(INFO, INFO_REPLY)], "The daemon said nothing about the instance"),
        ("info a --json", [Step(INFO, INFO_REPLY)], "The daemon said nothing about the instance"),
        ("limit a 1G", [Step(SET_LIMIT, LIMIT_REPLY)], "The daemon didn't say which limit it has set"),
        ("limit a 1G --json", [Step(SET_LIMIT, LIMIT_REPLY)], "The daemon didn't say which limit it has set"),
        ("limit-percent a 1", [Step(SET_LIMIT, LIMIT_REPLY)], "The daemon didn't say which limit it has set"),
        ("list", [Step(LIST, INFO_REPLY)], "The daemon answered InfoReply where ListReply was due"),
        ("info", [Step(INFO, LIST_REPLY)], "The daemon answered ListReply where InfoReply was due"),
        (
            "limit a 1",
            [Step(SET_LIMIT, INFO_REPLY)],
            "The daemon answered InfoReply where LimitReply was due",
        ),
        ("delete a", [Step(DELETE, INFO_REPLY)], "The daemon answered InfoReply where DeleteReply was due"),
        (
            "delete a",
            [BUSY_AT_FIRST, Step(INFO, INFO_REPLY)],
            "a is in use by processes that just left; --force disconnects them",
        ),
        (
            "delete a",
            [BUSY_AT_FIRST, refuse(INFO, NOT_FOUND, b"There is no instance a")],
            "There is no instance a",
        ),
        ("delete a", [refuse(DELETE, NOT_FOUND, b"There is no \033[2J")], "There is no \\x1b[2J"),
    ],
)
def test_complaints(kvctl: Callable[..., Result], words: str, steps: list[Step], sentence: str) -> None:
    assert kvctl(steps, *words.split()) == Result(FAILED, "", f"kvctl: {sentence}\n")


def test_more_processes_than_a_line_holds(kvctl: Callable[..., Result]) -> None:
    """They are named as far as that goes."""
    peers = b"".join(text(1, number(1, pid) + text(3, b"x" * 64)) for pid in range(1, 41))
    result = kvctl([Step(DELETE, DELETE_REPLY, peers)], "delete", "a", "--force")
    assert (result.rc, result.err) == (DONE, "")
    first, second = result.out.splitlines()
    assert first.startswith(f"Disconnected pid 1 ({'x' * 64}), pid 2 ({'x' * 64}), ")
    assert first.endswith(" from a")
    assert 1000 < len(first) < 1100
    assert second == "What they hold stays charged to it until they exit."
