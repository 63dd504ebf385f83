# SPDX-License-Identifier: Apache-2.0
"""What clients are told when something fails: status and body as OpenAI's clients know them,

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

all in one table. What an engine answers itself is passed on as it came, and is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_REQUEST = "invalid_request_error"
_SERVER = "server_error"


@dataclass(frozen=True)
class Kind:
    """One thing that can go wrong. `text` has the names of what reply() is given in braces."""

    status: int
    type: str
    text: str
    param: str | None = None
    retry: bool = False  # the same request may do better later, so the reply says when


KINDS: dict[str, Kind] = {
    # The request.
    "invalid_http": Kind(400, _REQUEST, "The request is not as HTTP has it: {detail}"),
    "head_timeout": Kind(408, _REQUEST, "The request's head did not arrive in time"),
    "head_too_large": Kind(431, _REQUEST, "{part} has more than {limit} bytes"),
    "invalid_json": Kind(400, _REQUEST, "The body is not JSON: {detail}"),
    "invalid_body": Kind(400, _REQUEST, "The body must be a JSON object"),
    "missing_model": Kind(400, _REQUEST, 'The body must name a "model"', "model"),
    "invalid_model": Kind(400, _REQUEST, '"model" must be a string', "model"),
    "invalid_parameter": Kind(400, _REQUEST, "{name} is {value}, and must be {accepted}", "{name}"),
    "invalid_api_key": Kind(401, _REQUEST, "The API key is missing or wrong: Authorization: Bearer KEY"),
    "model_not_found": Kind(404, _REQUEST, "There is no model {model} here; /v1/models lists them", "model"),
    "unknown_url": Kind(404, _REQUEST, "There is no {method} {path}"),
    "method_not_allowed": Kind(405, _REQUEST, "{path} takes {allow}, not {method}"),
    "body_timeout": Kind(408, _REQUEST, "The body did not arrive in time"),
    "body_too_large": Kind(413, _REQUEST, "The body is larger than {limit} bytes"),
    "body_too_complex": Kind(413, _REQUEST, "The body has more than {limit} brackets, braces and commas"),
    # The controller.
    "internal_error": Kind(500, _SERVER, "The controller failed; its log has more under this request's id"),
    "shutting_down": Kind(503, _SERVER, "The controller is shutting down", retry=True),
    # The model.
    "model_asleep": Kind(503, _SERVER, "The model is asleep: {detail}", retry=True),
    "queue_full": Kind(503, _SERVER, "Too many requests wait for the model to wake", retry=True),
    "queue_timeout": Kind(503, _SERVER, "The model did not wake in time", retry=True),
    "no_room": Kind(503, _SERVER, "The GPU had no room for the model in time", retry=True),
    "wake_failed": Kind(503, _SERVER, "The model could not be woken: {detail}", retry=True),
    "engine_dead": Kind(503, _SERVER, "The model's engine does not answer: {detail}", retry=True),
    # The engine, once it is asked.
    "engine_unreachable": Kind(502, _SERVER, "The model's engine could not be connected to: {detail}"),
    "engine_broke_off": Kind(502, _SERVER, "The model's engine broke off: {detail}"),
    "engine_timeout": Kind(504, _SERVER, "The model's engine was silent for {seconds} seconds"),
}


@dataclass(frozen=True)
class Reply:
    status: int
    body: dict[str, dict[str, str | None]]
    headers: dict[str, str] = field(default_factory=dict)


class _Words(dict[str, object]):
    def __missing__(self, name: str) -> str:
        return "?"


def reply(code: str, retry_after: float | None = None, **words: object) -> Reply:
    """The answer for `code`, a key of KINDS; retry_after: seconds. A word that the text wants and nobody has
    given is "?": who reports a failure must not fail. KeyError: there is no such code."""
    kind, known = KINDS[code], _Words(words)
    message = _text(kind.text, known)
    headers = {}
    if kind.retry:
        headers["Retry-After"] = str(retry_after_seconds(retry_after or 0))
    if "allow" in words:
        headers["Allow"] = str(words["allow"])
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    param = None if kind.param is None else _text(kind.param, known)
    return Reply(
        kind.status,
        {"error": {"message": message, "type": kind.type, "param": param, "code": code}},
        headers,
    )


def retry_after_seconds(seconds: float) -> int:
    """As the header has it: whole, at least one, and not shorter than it takes. Infinity is a day."""
    return max(1, math.ceil(min(seconds, 86400)))


def _text(template: str, words: Mapping[str, Any]) -> str:
    return template.format_map(words)
