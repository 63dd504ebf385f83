# SPDX-License-Identifier: Apache-2.0
"""Where engines are: what may be a host's name, and which spellings mean one place."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from kvcached.controller.config import Instance

# Parts of a name in DNS, and what some resolvers take for a number: 127.1, 0x7f000001.
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_HOST_CHARS = 253
HOST = (
    "an IP address, or a name of parts between dots, each of 1 to 63 letters, digits, dashes and underscores"
)

# URLs of what `dns` names.
Addresses = Mapping[tuple[str, int], tuple[str, ...]]


def is_host(text: str) -> bool:
    """Whether it can be looked up, and has one meaning only."""
    if _ip_address(text):
        return True
    if len(text) > _HOST_CHARS:
        return False
    try:
        name = text.removesuffix(".").encode("idna").decode()
    except UnicodeError:
        return False
    labels = name.split(".")
    fits = len(name) <= _HOST_CHARS and all(_LABEL.fullmatch(label) for label in labels)
    return fits and not _NUMBER.fullmatch(labels[-1])


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def address_of(url: str) -> str:
    """What all spellings of an engine's URL have in common. A name and its addresses have different ones; all
    that mean this machine have one."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return _address(parts.hostname or "", port) + unquote(parts.path).rstrip("/")


def _address(host: str, port: int) -> str:
    ip = _ip_address(host)
    if ip is None:
        host = host.removesuffix(".").encode("idna").decode().lower()
    else:
        ip = getattr(ip, "ipv4_mapped", None) or ip
        host = "localhost" if ip.is_unspecified or str(ip) in ("127.0.0.1", "::1") else str(ip)
    return f"[{host}]:{port}"


def place_of(instance: Instance) -> str:
    return address_of(instance.url) if instance.url else _address(*instance.dns or ("", 0))


def shown_place(instance: Instance) -> str:
    return instance.url or "{}:{}".format(*instance.dns or ())


def once_each(
    instances: tuple[Instance, ...], addresses: Addresses
) -> tuple[tuple[Instance, ...], Addresses, tuple[str, ...]]:
    """Who is at no engine of another's, and a sentence about each that is left out: two models that have one
    engine would put it to sleep under each other's requests. Who is named first has it, but what DNS answers
    counts only after all that is named."""
    owners: dict[str, Instance] = {}
    ignored = []

    def takes(instance: Instance, place: str, shown: str) -> bool:
        owner = owners.setdefault(place, instance)
        if owner is not instance:
            ignored.append(f"Instance {instance.name} is ignored at {shown}, for {owner.name} is there")
        return owner is instance

    kept = tuple(one for one in instances if takes(one, place_of(one), shown_place(one)))
    left: dict[tuple[str, int], tuple[str, ...]] = {}
    for instance in kept:
        if instance.dns:
            urls = {address_of(url): url for url in reversed(addresses.get(instance.dns, ()))}
            left[instance.dns] = tuple(
                url for place, url in reversed(urls.items()) if takes(instance, place, url)
            )
    return kept, left, tuple(ignored)
