# SPDX-License-Identifier: Apache-2.0
"""What listens where a daemon's control socket is expected, and is none."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path
from typing import Self

from harness.raw import frame

REFUSED = 5
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


class Refusing(Silent):
    """Every connection is turned away, with this sentence (of less than 128 bytes)."""

    def __init__(self, path: Path, sentence: str) -> None:
        super().__init__(path)
        text = sentence.encode()
        self._answer = bytes([1 << 3, ERROR_IDENTITY, 2 << 3 | 2, len(text)]) + text
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            with connection:
                hello = connection.recv(65536)
                if hello:
                    request = struct.unpack("<IHHIIHH", hello[:20])[4]
                    connection.send(frame(REFUSED, self._answer, request=request))

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        super().__exit__()
