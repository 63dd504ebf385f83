# SPDX-License-Identifier: Apache-2.0
"""Each claim of docs/SECURITY.md that names a test names one that is there, and each table row does."""

from __future__ import annotations

import re

from docs.sources import ROOT

PAGE = (ROOT / "docs/SECURITY.md").read_text()


def python_tests() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))
    return found


def test_tests_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 35
    assert named - python_tests() == set()


def test_c_tests_are_there() -> None:
    for case, program in re.findall(r"case\s+`(\w+)`\s+of\s+`([\w/.-]+)`", PAGE):
        assert f"TEST({case})" in (ROOT / program).read_text()
    for path in re.findall(r"`(tests/[\w/.-]+)`", PAGE):
        assert (ROOT / path).exists(), path


def test_each_claim_has_a_test() -> None:
    """In tables whose last column is about tests."""
    tables = re.findall(r"^\|[^\n]*\| test \|\n\|[-| ]+\|\n((?:\|[^\n]*\n)+)", PAGE, re.MULTILINE)
    assert len(tables) == 5
    for row in "".join(tables).splitlines():
        assert re.search(r"`test_\w+`[^|]*\|$", row), row
