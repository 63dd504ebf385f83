# SPDX-License-Identifier: Apache-2.0
"""One engine is one, however its address is written, and one model's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvcached.controller.config import Instance, parse, parse_instances
from kvcached.controller.document import ConfigError
from kvcached.controller.places import address_of, once_each


def text(*instances: dict[str, Any]) -> str:
    return json.dumps({"instances": [{"model": "m", "engine": "vllm", **one} for one in instances]})


def named(**places: str) -> tuple[Instance, ...]:
    """By URL, or by name in DNS."""
    return tuple(
        one
        for name, place in places.items()
        for one in parse_instances(text({"name": name, "url" if "/" in place else "dns": place}), "d.yaml")
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("http://127.0.0.1:8001", "http://localhost:8001"),
        ("http://127.0.0.1:8001", "http://LOCALHOST.:8001/"),
        ("http://127.0.0.1:8001", "http://[::1]:8001"),
        ("http://127.0.0.1:8001", "http://0.0.0.0:8001"),
        ("http://127.0.0.1:8001", "http://[::ffff:127.0.0.1]:8001"),
        ("http://10.0.0.1:8001", "http://[::ffff:a00:1]:8001"),
        ("http://[::1]:8001", "http://[0:0:0:0:0:0:0:1]:8001"),
        ("http://[fd00::a]:8001", "http://[FD00:0::A]:8001"),
        ("http://gpu-7", "http://gpu-7:80"),
        ("https://gpu-7", "https://gpu-7.:443"),
        ("http://gpu-7:8001", "HTTP://GPU-7:8001"),
        ("http://gpu-7:8001", "https://gpu-7:8001"),
        ("http://gpu-7:8001", "http://gpu-7:08001"),
        ("http://gpu-7:8001", "http://gpu-7:8001//"),
        ("http://gpu-7/a%62", "http://gpu-7/ab"),
        ("http://b\u00fccher.example", "http://xn--bcher-kva.example"),
    ],
)
def test_two_spellings(a: str, b: str) -> None:
    assert address_of(a) == address_of(b)
    with pytest.raises(ConfigError, match=r"instances\[1\] is at .*, as a is, and must be elsewhere"):
        parse(text({"name": "a", "url": a}, {"name": "b", "url": b}), "c.yaml")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("http://127.0.0.1:8001", "http://127.0.0.1:8002"),
        ("http://127.0.0.1:8001", "http://127.0.0.2:8001"),
        ("http://gpu-7:8001", "http://gpu-8:8001"),
        ("http://gpu-7:8001/a", "http://gpu-7:8001/A"),
        ("http://gpu-7", "https://gpu-7"),
    ],
)
def test_two_engines(a: str, b: str) -> None:
    assert address_of(a) != address_of(b)
    assert len(parse(text({"name": "a", "url": a}, {"name": "b", "url": b}), "c.yaml").instances) == 2


@pytest.mark.parametrize("path", ["/a/../b", "/a/.", "/%2E%2e/b"])
def test_paths_that_mean_another_one(path: str) -> None:
    with pytest.raises(ConfigError, match=r"instances\[0\].url is .*, and must be the address of an engine"):
        parse(text({"url": f"http://gpu-7{path}"}), "c.yaml")


@pytest.mark.parametrize(
    ("a", "b"), [("a.svc:80", "A.SVC.:80"), ("http://a.svc", "a.svc:80"), ("http://10.0.0.1", "10.0.0.1:80")]
)
def test_names_in_dns(a: str, b: str) -> None:
    places = [{"url" if "/" in place else "dns": place} for place in (a, b)]
    with pytest.raises(ConfigError, match=rf"instances\[1\] is at {b}, as a is, and must be elsewhere"):
        parse(text(*({"name": name, **place} for name, place in zip("ab", places))), "c.yaml")


def test_who_is_named_first_has_it() -> None:
    instances = named(a="http://gpu-7:80", b="gpu-8:80", c="http://GPU-7", d="GPU-8:80", e="http://gpu-9")
    kept, addresses, ignored = once_each(instances, {})
    assert [instance.name for instance in kept] == ["a", "b", "e"]
    assert addresses == {("gpu-8", 80): ()}
    assert ignored == (
        "Instance c is ignored at http://GPU-7, for a is there",
        "Instance d is ignored at GPU-8:80, for b is there",
    )


def test_what_is_named_counts_before_what_is_resolved() -> None:
    instances = named(a="a.svc:80", b="b.svc:80", c="http://10.0.0.3")
    known = {
        ("a.svc", 80): ("http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.3:80"),
        ("b.svc", 80): ("http://10.0.0.2:80", "http://10.0.0.4:80"),
    }
    kept, addresses, ignored = once_each(instances, known)
    assert kept == instances
    assert addresses == {
        ("a.svc", 80): ("http://10.0.0.1:80", "http://10.0.0.2:80"),
        ("b.svc", 80): ("http://10.0.0.4:80",),
    }
    assert ignored == (
        "Instance a is ignored at http://10.0.0.3:80, for c is there",
        "Instance b is ignored at http://10.0.0.2:80, for a is there",
    )


def test_one_machine_with_two_addresses_has_one_engine() -> None:
    instances = named(a="localhost:80", b="10.0.0.1:80")
    known = {
        ("localhost", 80): ("http://127.0.0.1:80", "http://[::1]:80"),
        ("10.0.0.1", 80): ("http://10.0.0.1:80",),
    }
    expected = {**known, ("localhost", 80): ("http://127.0.0.1:80",)}
    assert once_each(instances, known) == (instances, expected, ())
