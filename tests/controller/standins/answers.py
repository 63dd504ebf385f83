# SPDX-License-Identifier: Apache-2.0
"""What a stand-in says to whom, so that an answer that is lost, cut, doubled or another's is seen.

The id of a request is its body's "user"; each chunk's text carries it, and the chunk's number.
"""

from __future__ import annotations

import json
from typing import Any

DONE = b"data: [DONE]"


def text_of(identity: str, number: int, n_bytes: int) -> str:
    """Of one chunk; at least so long that it can be told."""
    return f"<{identity}:{number}>".ljust(n_bytes, ".")


def whole_text(identity: str, n_chunks: int, n_bytes: int = 0) -> str:
    return "".join(text_of(identity, number, n_bytes) for number in range(n_chunks))


def events(data: bytes) -> list[dict[str, Any]]:
    """Of a stream that must be whole: what it says between its first byte and [DONE]."""
    blocks = data.split(b"\n\n")
    assert blocks[-2:] == [DONE, b""], f"a stream ends with {data[-200:]!r}"
    found = []
    for block in blocks[:-2]:
        assert block.startswith(b"data: "), block
        found.append(json.loads(block[len(b"data: ") :]))
    return found


def stream_text(data: bytes) -> str:
    """Of a whole stream of either kind: the text, put together."""
    parts = []
    for event in events(data):
        for choice in event["choices"]:
            parts.append(choice["text"] if "text" in choice else choice["delta"].get("content") or "")
    return "".join(parts)


def answer_text(data: bytes) -> str:
    """Of an answer that is no stream."""
    choice = json.loads(data)["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def completion(model: str, identity: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
    """A request's body."""
    return {"model": model, "prompt": "a b c", "user": identity, "stream": stream, **more}


def chat(model: str, identity: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "a b c"}]
    return {"model": model, "messages": messages, "user": identity, "stream": stream, **more}
