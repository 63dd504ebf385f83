# SPDX-License-Identifier: Apache-2.0
"""In the virtual machine: as much of vLLM as a controller asks for, without anything that is not in Python.

    python3 engine.py PORT HOLD

While there is a file HOLD, answers stop in the middle.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

asleep = False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path in ("/health", "/is_sleeping"):
            self.say({"is_sleeping": asleep})
        else:
            self.say({}, 404)

    def do_POST(self) -> None:
        global asleep
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        if path in ("/sleep", "/wake_up"):
            asleep = path == "/sleep"
            self.say({})
        elif path == "/v1/completions":
            self.stream(str(json.loads(body)["prompt"]))
        else:
            self.say({}, 404)

    def stream(self, prompt: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.chunk(b'data: {"choices": [{"text": "begun"}]}\n\n')
        while Path(sys.argv[2]).exists():
            time.sleep(0.1)
        self.chunk(b"data: " + json.dumps({"choices": [{"text": f"heard {prompt}"}]}).encode() + b"\n\n")
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
