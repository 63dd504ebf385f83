# SPDX-License-Identifier: Apache-2.0
"""Who may ask: API keys, one a line of a file, and the names of requests in the log."""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections.abc import Iterable
from pathlib import Path

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class KeysError(ValueError):
    """One sentence about the file."""


class Keys:
    """Those of some files. None of them is kept, only what tells whether one is right."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def fit(self, authorization: str | None) -> bool:
        """Of the header "Authorization: Bearer KEY". Takes as long for a wrong key as for a right one."""
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        right = False
        for one in self._digests:
            right |= hmac.compare_digest(one, digest)
        return right and scheme.lower() == "bearer"


def read_keys(path: str) -> list[str]:
    """Empty lines, and those that begin with #, are none. KeysError: it cannot be read, or has no key."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise KeysError(f"{path} cannot be read: {getattr(fault, 'strerror', None) or fault}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise KeysError(f"{path} has no key: one a line is expected")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def request_id(given: str | None) -> str:
    """The client's own, where it can stand in a log and in a header."""
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
