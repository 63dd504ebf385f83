# SPDX-License-Identifier: Apache-2.0
"""What clients are told, compared with what OpenAI's client libraries read."""

from __future__ import annotations

import json
import math
import string

import pytest

from kvcached.controller import errors
from kvcached.controller.errors import KINDS, reply


def test_body() -> None:
    answer = reply("model_not_found", model='"a/b"')
    assert answer.status == 404
    assert answer.headers == {}
    assert answer.body == {
        "error": {
            "message": 'There is no model "a/b" here; /v1/models lists them',
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid_json", 400),
        ("missing_model", 400),
        ("invalid_api_key", 401),
        ("model_not_found", 404),
        ("unknown_url", 404),
        ("method_not_allowed", 405),
        ("body_too_large", 413),
        ("internal_error", 500),
        ("engine_unreachable", 502),
        ("engine_broke_off", 502),
        ("model_asleep", 503),
        ("queue_full", 503),
        ("queue_timeout", 503),
        ("no_room", 503),
        ("wake_failed", 503),
        ("engine_dead", 503),
        ("shutting_down", 503),
        ("engine_timeout", 504),
    ],
)
def test_status(code: str, status: int) -> None:
    assert reply(code).status == status


@pytest.mark.parametrize("code", KINDS)
def test_each_kind(code: str) -> None:
    """Each has a body of four fields, of text or null, whose words are filled in or marked."""
    kind = KINDS[code]
    words = {name: f"<{name}>" for _, name, _, _ in string.Formatter().parse(kind.text) if name}
    answer = reply(code, None, **words)
    error = json.loads(json.dumps(answer.body))["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == code
    assert error["type"] == ("server_error" if kind.status >= 500 else "invalid_request_error")
    assert all(f"<{name}>" in error["message"] for name in words)
    assert "{" not in error["message"]
    assert ("?" in reply(code).body["error"]["message"]) == bool(words)  # type: ignore[operator]
    assert ("Retry-After" in answer.headers) == kind.retry == (kind.status == 503)


def test_words_are_not_templates() -> None:
    message = reply("wake_failed", detail="{model} {0}").body["error"]["message"]
    assert message == "The model could not be woken: {model} {0}"


def test_parameter() -> None:
    answer = reply("invalid_parameter", name="window", value="x", accepted="a number of seconds")
    assert answer.body["error"]["param"] == "window"
    assert answer.body["error"]["message"] == "window is x, and must be a number of seconds"


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(None, "1"), (0, "1"), (0.2, "1"), (1, "1"), (1.01, "2"), (60, "60"), (-5, "1"), (math.inf, "86400")],
)
def test_retry_after(seconds: float | None, header: str) -> None:
    assert reply("queue_full", retry_after=seconds).headers == {"Retry-After": header}


def test_other_headers() -> None:
    assert reply("method_not_allowed", allow="GET, HEAD", method="PUT", path="/x").headers == {
        "Allow": "GET, HEAD"
    }
    assert reply("invalid_api_key").headers == {"WWW-Authenticate": "Bearer"}


def test_unknown_code() -> None:
    with pytest.raises(KeyError):
        errors.reply("no such thing")
