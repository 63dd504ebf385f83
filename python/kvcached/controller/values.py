# SPDX-License-Identifier: Apache-2.0
"""What a key of the configuration may be: a reader for each kind of value, which has it or says what is
accepted."""

from __future__ import annotations

import math
import re
import shlex
from urllib.parse import unquote, urlsplit

import yaml

from kvcached.controller.document import Item, Reader
from kvcached.controller.places import HOST, is_host

ENGINES = {"vllm": "vllm", "sgl": "sglang", "sglang": "sglang"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNITS = {"": 0, "b": 0, "k": 10, "kb": 10, "m": 20, "mb": 20, "g": 30, "gb": 30, "t": 40, "tb": 40}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def text(item: Item) -> str:
    value = item.scalar("text")
    if not value.strip() or not value.isprintable():
        item.refuse("text that can be printed, and not empty")
    return value


def boolean(item: Item) -> bool:
    value = item.scalar("true or false").lower()
    if value not in ("true", "yes", "on", "false", "no", "off"):
        item.refuse("true or false")
    return value in ("true", "yes", "on")


def whole(least: int, most: int) -> Reader:
    accepted = f"a whole number from {least} to {most}"

    def read(item: Item) -> int:
        value = item.scalar(accepted)
        if not re.fullmatch(r"[0-9]{1,18}", value) or not least <= int(value) <= most:
            item.refuse(accepted)
        return int(value)

    return read


def seconds(positive: bool = False) -> Reader:
    accepted = f"a number of seconds{' above 0' if positive else ', 0 or more'}"

    def read(item: Item) -> float:
        value = item.scalar(accepted)
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or (positive and float(value) == 0):
            item.refuse(accepted)
        return float(value)

    return read


def size(least: int = 1) -> Reader:
    """As kvctl has it."""
    accepted = "a number of bytes, such as 8G, 512M or 1.5GB"

    def read(item: Item) -> int:
        match = re.fullmatch(r"([0-9]{1,18})(\.[0-9]{1,18})?([a-zA-Z]*)", item.scalar(accepted))
        if not match or match[3].lower() not in _UNITS:
            item.refuse(accepted)
        unit = 1 << _UNITS[match[3].lower()]
        value = int(match[1]) * unit + math.floor(float(match[2] or 0) * unit)
        if not least <= value < 1 << 63:
            item.refuse(f"{accepted}, from {least}")
        return value

    return read


def or_null(reader: Reader) -> Reader:
    return lambda item: None if item.is_null() else reader(item)


def engine(item: Item) -> str:
    value = item.scalar("vllm, sgl or sglang").lower()
    if value not in ENGINES:
        item.refuse("vllm, sgl or sglang")
    return ENGINES[value]


def name(item: Item) -> str:
    accepted = "a name of letters, digits, dots, dashes and underscores, 64 at most"
    value = item.scalar(accepted)
    if not NAME.fullmatch(value):
        item.refuse(accepted)
    return value


def variable(item: Item) -> str:
    value = item.scalar("the name of an environment variable")
    if not _VARIABLE.fullmatch(value):
        item.refuse("the name of an environment variable")
    return value


def kvcached(item: Item) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in item.members().items():
        name = key.upper()
        if not _VARIABLE.fullmatch(name) or not re.match(r"KVCACHED_|ENABLE_KVCACHED$", name):
            value.fail(
                f"is unknown ({value.shown()}); keys are kvcached_..., environment variables of kvcached"
            )
        if name in found:
            value.fail("is given twice")
        found[name] = value.scalar("text, a number, true or false")
    return found


def environment(item: Item) -> dict[str, str]:
    found = {}
    for element in item.elements("a list of NAME=VALUE"):
        name, equals, value = element.scalar("NAME=VALUE").partition("=")
        if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
            element.refuse("NAME=VALUE")
        found[name] = value
    return found


def arguments(item: Item) -> tuple[str, ...]:
    """One text, or a list of them, each of words as a shell splits them."""
    accepted = "a command line's arguments, as text or a list of texts"
    if isinstance(item.node, yaml.SequenceNode):
        found = []
        for element in item.elements(accepted):
            inner = isinstance(element.node, yaml.SequenceNode)
            for part in element.elements(accepted) if inner else [element]:
                found += _words(part, accepted)
        return tuple(found)
    return () if item.is_null() else tuple(_words(item, accepted))


def _words(item: Item, accepted: str) -> list[str]:
    try:
        return shlex.split(item.scalar(accepted))
    except ValueError as error:
        item.refuse(f"{accepted} ({error})")


def url(item: Item) -> str:
    accepted = "the address of an engine, http://HOST:PORT"
    value = item.scalar(accepted).rstrip("/")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        item.refuse(accepted)
    odd = parts.query or parts.fragment or "@" in parts.netloc or not value.isprintable() or " " in value
    odd = odd or not {".", ".."}.isdisjoint(unquote(parts.path).split("/"))
    if parts.scheme not in ("http", "https") or not host or port == 0 or odd:
        item.refuse(accepted)
    if not is_host(host):
        item.refuse(f"{accepted}, where HOST is {HOST}")
    return value


def dns(item: Item) -> tuple[str, int]:
    accepted = "a name that DNS knows, and a port: NAME:PORT"
    match = re.fullmatch(r"([A-Za-z0-9._-]{1,253}):([0-9]{1,5})", item.scalar(accepted))
    if not match or not 1 <= int(match[2]) <= 65535:
        item.refuse(accepted)
    if not is_host(match[1]):
        item.refuse(f"{accepted}, where NAME is {HOST}")
    return match[1], int(match[2])


def gpu(item: Item) -> tuple[int, ...]:
    one = whole(0, 1023)
    if isinstance(item.node, yaml.SequenceNode) and item.node.value:
        return tuple(one(element) for element in item.elements("a list of GPUs"))
    return (one(item),)
