# SPDX-License-Identifier: Apache-2.0
"""What JSON is read, and at what cost."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator

import pytest

from kvcached.controller import json_text
from kvcached.controller.json_text import MOST_PARTS, TooManyParts, parse


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """It works again, whatever came of the text."""
    yield
    assert gc.isenabled()


def test_without_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    worked = []

    def loads(text: bytes) -> object:
        worked.append(gc.isenabled())
        return json.JSONDecoder().decode(text.decode())

    monkeypatch.setattr(json_text.json, "loads", loads)  # type: ignore[attr-defined]
    assert parse(b'{"a": [1]}') == {"a": [1]}
    assert worked == [False]


def test_it_stays_as_it_was() -> None:
    gc.disable()
    try:
        parse(b"[]")
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "Expecting value"),
        (b"{]", "Expecting property name"),
        (b"\xff", "invalid start byte"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=("nothing", "wrong", "no UTF-8", "deep"),
)
def test_none(text: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text)


@pytest.mark.parametrize("part", [b"[", b"{", b","])
def test_parts(part: bytes) -> None:
    """As many as are allowed, and one more, with and without others beside them."""
    text = b'"' + part * MOST_PARTS + b'"'
    assert parse(bytearray(text)) == part.decode() * MOST_PARTS
    for more in (b"[", b"{", b","):
        with pytest.raises(TooManyParts, match="more than 1048576 brackets, braces and commas"):
            parse(b'"' + part * MOST_PARTS + more + b'"')


def test_a_large_one_of_few_parts() -> None:
    assert len(parse(b'{"image": "' + b"A" * (8 << 20) + b'"}')["image"]) == 8 << 20
