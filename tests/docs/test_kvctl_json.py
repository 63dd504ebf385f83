# SPDX-License-Identifier: Apache-2.0
"""docs/KVCTL-JSON.md says what kvctl prints: every key and value that the sources know, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/KVCTL-JSON.md").read_text()
SOURCE = (ROOT / "kvctl/json.c").read_text()
WORDS = (ROOT / "kvctl/text.c").read_text()


def keys_of_the_source() -> set[str]:
    adders = r'(?:add_\w+|cJSON_Add\w+ToObject)\(\s*object,\s*"(\w+)"'
    return set(re.findall(adders, SOURCE))


def names_of_the_page() -> set[str]:
    return set(re.findall(r"`([a-z_-]+)`", PAGE))


def test_every_key_is_documented() -> None:
    keys = keys_of_the_source()
    assert len(keys) > 50
    assert keys - names_of_the_page() == set()


def test_every_documented_key_exists() -> None:
    """The first columns of the tables hold keys."""
    columns = re.findall(r"^\| (`[^|]*) \|", PAGE, re.MULTILINE)
    named = {name for column in columns for name in re.findall(r"`(\w+)`", column)}
    assert len(named) > 50
    assert named - keys_of_the_source() == set()


def test_every_word_is_documented() -> None:
    """Kinds of events, and what memory can be."""
    for function in ("text_event_kind", "text_holding"):
        body = WORDS[WORDS.index(f"const char *{function}(") :]
        words = set(re.findall(r'"([a-z-]+)"', body[: body.index("\n}\n")]))
        assert len(words) > 5
        assert words - names_of_the_page() == set()
