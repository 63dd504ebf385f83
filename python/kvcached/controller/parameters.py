# SPDX-License-Identifier: Apache-2.0
"""What a request's path and query say, or the Problem with them."""

from __future__ import annotations

import json
from urllib.parse import unquote

from aiohttp import web

from kvcached.controller.model import Model
from kvcached.controller.node import Node

_SAID_CHARS = 200  # of a name that nobody has: it may be as long as a body


class Problem(Exception):
    """An answer that says no: errors.reply() of the code."""

    def __init__(self, code: str, retry_after: float | None = None, **words: object) -> None:
        super().__init__(code)
        self.code, self.retry_after, self.words = code, retry_after, words


def model_called(node: Node, name: str) -> Model:
    model = node.models.get(name)
    if model is None:
        raise Problem("model_not_found", model=name[:_SAID_CHARS])
    return model


def model_in_path(node: Node, request: web.Request) -> Model:
    """Of a path: with its slashes as they are, or encoded, once or twice."""
    name = request.match_info["model"]
    return model_called(node, name if name in node.models else unquote(name))


def flag(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "false").lower()
    if text not in ("true", "1", "false", "0"):
        raise Problem("invalid_parameter", name=name, value=json.dumps(text[:60]), accepted="true or false")
    return text in ("true", "1")


def seconds(request: web.Request, name: str, default: float, most: float, least: float = 1e-3) -> float:
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        accepted = f"a number of seconds from {least:g} to {most:g}"
        raise Problem("invalid_parameter", name=name, value=json.dumps(text[:60]), accepted=accepted)
    return int(value) if value.is_integer() else value
