# SPDX-License-Identifier: Apache-2.0
"""The daemon's HTTP side, as clients see it: decent ones, and sockets for others."""

from __future__ import annotations

import http.client
import json
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from harness.broker import LIMIT_S, Daemon, Programs
from harness.control import info, open_control

ANY_PORT = "127.0.0.1:0"
SAMPLE = re.compile(r"^([a-zA-Z_][a-zA-Z0-9_]*)(\{(.*)\})? (\S+)$")
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """What was answered; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    def samples(self) -> dict[tuple[str, Labels], float]:
        """Of metrics: by name and labels. No series is there twice."""
        found: dict[tuple[str, Labels], float] = {}
        for line in self.text.splitlines():
            if line.startswith("#"):
                continue
            sample = SAMPLE.match(line)
            assert sample, line
            labels = frozenset(LABEL.findall(sample[3] or ""))
            key = (sample[1], labels)
            assert key not in found, line
            found[key] = float(sample[4])
        return found

    def sample(self, name: str, /, **labels: str) -> float:
        return self.samples()[name, frozenset(labels.items())]


class Web:
    """Where a daemon that was started with metrics="127.0.0.1:0" or so is."""

    def __init__(self, programs: Programs, daemon: Daemon) -> None:
        control = open_control(programs, daemon)
        self.address = unquote(info(control)["metrics_address"])
        control.close()
        host, _, port = self.address.rpartition(":")
        self.host, self.port = host.strip("[]"), int(port)

    def client(self, timeout: float = LIMIT_S) -> http.client.HTTPConnection:
        """A connection that several requests can be made over."""
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request over a connection of its own. Header names have _ for -."""
        client = self.client()
        try:
            return ask(client, method, path, body, **headers)
        finally:
            client.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, **headers)

    def connect(self, timeout: float = LIMIT_S) -> socket.socket:
        """A connection to say anything over."""
        return socket.create_connection((self.host, self.port), timeout)

    def say(self, data: bytes) -> bytes:
        """What comes back until the server ends the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)


def ask(
    client: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **headers: str
) -> Answer:
    client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = client.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, response.read())


def read_all(connection: socket.socket) -> bytes:
    """Until the other side ends it, in order or not."""
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def start_web(programs: Programs, size: str = "1G", **options: Any) -> tuple[Daemon, Web]:
    """A daemon with metrics."""
    daemon = programs.daemon(size, **({"metrics": ANY_PORT} | options))
    return daemon, Web(programs, daemon)
