# SPDX-License-Identifier: Apache-2.0
"""What the sources say of themselves, for tests that compare the manual with it: keys, options, variables,
functions."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Who reads variables, and where its sources are. proto/ is in whoever links it, and reads none.
READERS = {
    "kvcachedd": ["daemon"],
    "kvctl": ["kvctl"],
    "libkvclient": ["libclient"],
    "Python package": ["python/kvcached", "python/ext"],
    "emulated driver": ["tests/cuemu"],
    "proto": ["proto"],
}

# A variable's name as a string by itself, which sources have for no other reason than to look it up, or, in a
# module of Python, to set it.
NAME = re.compile(r"\"((?:ENABLE_)?KVCACHED(?:_[A-Z]+)*)\"")


def read_files(folders: list[str], *suffixes: str) -> dict[str, str]:
    """The text of each source below these folders, by path."""
    paths = [
        path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in suffixes
    ]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def variables() -> dict[str, set[str]]:
    """Environment variables, each with those who read it."""
    found: dict[str, set[str]] = {}
    for reader, folders in READERS.items():
        for text in read_files(folders, ".c", ".h", ".py").values():
            for name in NAME.findall(text):
                found.setdefault(name, set()).add(reader)
    return found


def config_keys() -> dict[str, list[str]]:
    """Keys of the configuration by kind of section, in the order of daemon/config_keys.c."""
    text = (ROOT / "daemon/config_keys.c").read_text()
    tables = re.findall(r"config_key (\w+)_keys\[\] = \{\n(.*?)\n\};", text, re.DOTALL)
    return {name: re.findall(r'^    \{"([\w-]+)",', table, re.MULTILINE) for name, table in tables}


def daemon_options() -> list[str]:
    """Of kvcachedd, as its table has them."""
    text = (ROOT / "daemon/options.c").read_text()
    table = re.search(r"long_options\[\] = \{\n(.*?)\n\};", text, re.DOTALL)
    assert table
    return [f"--{name}" for name in re.findall(r'\{"([\w-]+)",', table[1])]


def public_functions() -> set[str]:
    """Of kvclient.h."""
    text = (ROOT / "libclient/include/kvclient.h").read_text()
    return set(re.findall(r"^KVC_API\b[^;(]*?\b(kvc_\w+)\(", text, re.MULTILINE))
