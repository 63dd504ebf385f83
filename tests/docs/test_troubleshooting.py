# SPDX-License-Identifier: Apache-2.0
"""Each message that docs/TROUBLESHOOTING.md explains is said by some program, and each error has its row."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from docs.sources import ROOT, read_files

PAGE = (ROOT / "docs/TROUBLESHOOTING.md").read_text()

STRING = r'"(?:[^"\\\n]|\\.)*"'
LITERALS = re.compile(
    rf"(?:{STRING}|\b[A-Z_][A-Z0-9_a-z]*\b)(?:\s*(?:{STRING}|\b(?:PRI\w+|[A-Z_]{{3,}})\b))*"
)
DIRECTIVE = re.compile(r"%%|%[-+ #0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh|h|ll|l|z|j)?[a-zA-Z]")
DEFINE = re.compile(rf"^#define (\w+) ((?:{STRING}\s*)+)$", re.MULTILINE)


def plain(text: str) -> str:
    """With "…" for whatever a program puts in."""
    return DIRECTIVE.sub(lambda found: "%" if found[0] == "%%" else "…", text)


def c_messages(text: str, defines: dict[str, str]) -> set[str]:
    """Strings, those that stand side by side joined, with what macros put between them."""
    found = set()
    for literals in LITERALS.findall(text):
        parts = []
        for part in re.findall(rf"{STRING}|\w+", literals):
            if part.startswith('"'):
                parts.append(part[1:-1].replace('\\"', '"').replace("\\n", "\n"))
            else:
                parts.append("lu" if part.startswith("PRI") else defines.get(part, ""))
        found.add(plain("".join(parts)))
    return found


def python_messages(text: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts = (str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values)
            found.add("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@cache
def messages() -> frozenset[str]:
    c = read_files(["daemon", "libclient", "proto", "kvctl", "python/ext"], ".c", ".h")
    defines = {
        name: "".join(s[1:-1] for s in re.findall(STRING, value))
        for text in c.values()
        for name, value in DEFINE.findall(text)
    }
    found = {message for text in c.values() for message in c_messages(text, defines)}
    for text in read_files(["python/kvcached"], ".py").values():
        found |= python_messages(text)
    return frozenset(found)


def said_somewhere(message: str) -> bool:
    """As it stands, or as a part of what a program says; "…" at an end may be anything."""
    wanted = message.strip("…").strip()
    return any(wanted in said for said in messages())


def headings() -> list[str]:
    return re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)


def quoted() -> list[str]:
    """Sentences in the text, too: spans of code with several words that are no commands."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", PAGE)
    return [span for span in spans if len(span.split()) > 3 and not span.startswith(("kvctl ", "kvcachedd "))]


def test_there_are_many() -> None:
    assert len(headings()) == len(set(headings())) > 60


@pytest.mark.parametrize("message", sorted({*headings(), *quoted()}))
def test_message_is_one(message: str) -> None:
    assert said_somewhere(message)


def test_messages_that_other_pages_quote() -> None:
    text = (ROOT / "docs/KUBERNETES.md").read_text().split("## When it does not work")[1]
    messages = re.findall(r"^- `(.+)`:", text, re.MULTILINE)
    assert len(messages) == 4
    for message in messages:
        assert said_somewhere(re.sub(r"user \d+…", "user …", message).replace("GPU-…", "…")), message


def test_what_is_no_message_is_noticed() -> None:
    assert not said_somewhere("There is no kvcachedd: … is on holiday")
    assert not said_somewhere("No daemon listened at …")
    assert said_somewhere("nor the user kvcached")


def test_errors_have_rows() -> None:
    header = (ROOT / "libclient/include/kvclient.h").read_text()
    numbers = re.findall(r"^    (KVC_E_\w+) = -", header, re.MULTILINE)
    rows = dict(re.findall(r"^\| `(KVC_E_\w+)` \| `([^`]+)` \|", PAGE, re.MULTILINE))
    assert list(rows) == numbers
    texts = dict(re.findall(r"\[-(KVC_E_\w+)\] = \"([^\"]+)\"", (ROOT / "libclient/error.c").read_text()))
    assert rows == texts


def test_contents() -> None:
    """The list at the top leads to the sections."""
    listed = re.findall(r"^- \[(.+)\]\(#(.+)\)$", PAGE, re.MULTILINE)
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert [title for title, _ in listed] == sections
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in sections}
    assert {anchor for _, anchor in listed} == anchors
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
