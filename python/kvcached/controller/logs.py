# SPDX-License-Identifier: Apache-2.0
"""The log, on stderr: a line each, as text or as one JSON object. What else is known of a line, a request's
id for example, is in its fields.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any, TextIO

FORMATS = ("text", "json")
# As syslog's, which the journal understands.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Text(logging.Formatter):
    def __init__(self, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        text = _one_line(record.getMessage() + fields + _fault_of(record))
        if self._journal:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}"
        return f"{_time(record)} {record.levelname.lower()} {text}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "message": record.getMessage()}
        fault = _fault_of(record).strip()
        return json.dumps({**line, **fields_of(record), **({"fault": fault} if fault else {})}, default=str)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Given as extra={"fields": {...}}."""
    found: dict[str, Any] = getattr(record, "fields", {})
    return {name: value for name, value in found.items() if value is not None}


def _fault_of(record: logging.LogRecord) -> str:
    return f" {logging.Formatter().formatException(record.exc_info)}" if record.exc_info else ""


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _one_line(text: str) -> str:
    """What a client sent cannot make a line of its own."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\\n" if c == "\n" else "?" for c in text)


def begin(form: str, level: str, stream: TextIO = sys.stderr) -> None:
    handler = logging.StreamHandler(stream)
    journal = "JOURNAL_STREAM" in os.environ and not stream.isatty()
    handler.setFormatter(_Json() if form == "json" else _Text(journal))
    root = logging.getLogger("kvcached.controller")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
    for name in ("aiohttp", "asyncio"):
        other = logging.getLogger(name)
        other.handlers[:] = [handler]
        other.propagate = False
        other.setLevel(logging.WARNING)
