# SPDX-License-Identifier: Apache-2.0
"""What listens where a daemon's control socket is expected, and is none."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path
from typing import Self

from harness.raw import frame

HELLO, CHALLENGE, CHALLENGE_REPLY, WELCOME, REFUSED = 1, 2, 3, 4, 5
LIST, LIST_REPLY = 64, 65
INSTANCE_FIELD = 2  # of an InstanceInfo
ERROR_IDENTITY = 3


class Silent:
    """Connections succeed, since the kernel takes them; nobody ever answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._listener.bind(str(path))
        self._listener.listen(64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)


class Answering(Silent):
    """Each kind of request has its answer: a kind and a body. `heard` are the kinds so far."""

    def __init__(self, path: Path, answers: dict[int, tuple[int, bytes]]) -> None:
        super().__init__(path)
        self._answers = answers
        self.heard: list[int] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        """One connection after the other, until the listener is shut down."""
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):
                while packet := connection.recv(65536):
                    _, _, kind, _, request, _, _ = struct.unpack("<IHHIIHH", packet[:20])
                    self.heard.append(kind)
                    answer, body = self._answers[kind]
                    connection.send(frame(answer, body, request=request))

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        super().__exit__()


def text(field: int, value: bytes) -> bytes:
    """A field of a protobuf message, of less than 128 bytes."""
    return bytes([field << 3 | 2, len(value)]) + value


class Refusing(Answering):
    """Everybody is turned away, with this sentence."""

    def __init__(self, path: Path, sentence: str) -> None:
        refusal = bytes([1 << 3, ERROR_IDENTITY]) + text(2, sentence.encode())
        super().__init__(path, {HELLO: (REFUSED, refusal)})


class Challenging(Answering):
    """Wants to know first who it is, as a daemon does on a kernel that doesn't say."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, {HELLO: (CHALLENGE, text(1, bytes(16))), CHALLENGE_REPLY: (WELCOME, b"")})


class Listing(Answering):
    """A daemon that has instances of these names, which no real one would take."""

    def __init__(self, path: Path, names: list[bytes]) -> None:
        instances = b"".join(text(1, text(INSTANCE_FIELD, name)) for name in names)
        super().__init__(path, {HELLO: (WELCOME, b""), LIST: (LIST_REPLY, instances)})
