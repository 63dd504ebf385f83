# SPDX-License-Identifier: Apache-2.0
"""What the tests of kvcached-launch have for an engine: it answers at --host and --port, and does what it is
told by POST /WHAT?ARGUMENT. FAKE_EXIT=N in its environment: it ends with that status at once."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

STATE = {"status": 200, "stubborn": 0}


def sleep_on() -> NoReturn:
    while True:
        time.sleep(3600)


def exit_now(argument: str) -> None:
    os._exit(int(argument))


def kill(argument: str) -> None:
    os.kill(os.getpid(), int(argument))


def stubborn(_argument: str) -> None:
    """From the answer on it ignores SIGTERM."""
    STATE["stubborn"] = 1


def terminated(*_: object) -> None:
    if not STATE["stubborn"]:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def fork(argument: str) -> int:
    """A child; "orphan": a grandchild without parent, in a session of its own, that ignores SIGTERM; "naked":
    a child that has neither environment nor standard output."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        if argument == "orphan":
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() != 0:
                os._exit(0)
        os.write(writing, str(os.getpid()).encode())
        if argument == "naked":
            nothing = os.open(os.devnull, os.O_RDWR)
            for fd in (1, 2):
                os.dup2(nothing, fd)
            program = "import time; time.sleep(3600)"
            os.execve(sys.executable, [sys.executable, "-c", program], {})
        sleep_on()
    return int(os.read(reading, 64))


def say(argument: str) -> None:
    """That many bytes of log, in lines of a hundred."""
    for i in range(int(argument) // 100):
        sys.stdout.write(f"{i:099}\n")
    sys.stdout.flush()


def ill(argument: str) -> None:
    STATE["status"] = int(argument)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(STATE["status"], None)
        else:
            about = {"pid": os.getpid(), "arguments": sys.argv[1:], "environment": dict(os.environ)}
            self.answer(200, {**about, "folder": str(Path.cwd())})

    def do_POST(self) -> None:
        asked = urlsplit(self.path)
        what = {f.__name__: f for f in (exit_now, kill, stubborn, fork, say, ill)}[asked.path[1:]]
        self.answer(200, what(asked.query))

    def answer(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, form: str, *words: object) -> None:
        pass


def main() -> None:
    print("the engine begins", flush=True)
    if status := os.environ.get("FAKE_EXIT"):
        sys.exit(int(status))
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    options, _ = parser.parse_known_args()
    signal.signal(signal.SIGTERM, terminated)
    http.server.ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
