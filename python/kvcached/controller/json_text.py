# SPDX-License-Identifier: Apache-2.0
"""JSON that clients and engines have written, read in bounded time and memory: what one of them makes of a
text must not keep all others waiting."""

from __future__ import annotations

import gc
import json
from typing import Any

MOST_PARTS = 1 << 20
"""Brackets, braces and commas, in strings as well: they bound what comes of a text, which may be thirty times
as large. A prompt of a million tokens has fewer."""


class TooManyParts(ValueError):
    pass


def parse(text: bytes | bytearray) -> Any:
    """ValueError: it is no JSON, or TooManyParts. The collector would look at all that is made again and
    again, and nothing of it is garbage: without it this is several times as fast."""
    if len(text) > MOST_PARTS and len(text) - len(text.translate(None, b"[{,")) > MOST_PARTS:
        raise TooManyParts(f"it has more than {MOST_PARTS} brackets, braces and commas")
    collects = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        if collects:
            gc.enable()
