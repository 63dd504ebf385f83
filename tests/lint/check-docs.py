#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The documentation names what exists: each file of the tree that docs/ARCHITECTURE.md mentions is there, and
each relative link of a Markdown file leads somewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tree import parse_root, report, source_files

ARCHITECTURE = "docs/ARCHITECTURE.md"
SUFFIXES = r"\.(?:c|h|cc|py|sh|md|proto|def|map|build|patch|scd|service|socket|conf)"
WORD = re.compile(r"(?<![\w./<>$-])[\w.-][\w./-]*(?:\{[\w,.-]+\}[\w./-]*)*")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")


def expand_braces(word: str) -> list[str]:
    """fdset.{h,c} -> fdset.h, fdset.c"""
    match = re.search(r"\{([^}]*)\}", word)
    if not match:
        return [word]
    parts = match[1].split(",")
    return [w for part in parts for w in expand_braces(word[: match.start()] + part + word[match.end() :])]


def code_spans(text: str) -> list[tuple[int, str]]:
    """(line, text) of everything that is set as code: fenced blocks and `spans`."""
    spans, fenced = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced:
            spans.append((number, line))
        else:
            spans += [(number, span) for span in re.findall(r"`([^`]+)`", line)]
    return spans


def is_file_name(word: str, top: set[str]) -> bool:
    """A path below one of the tree's folders, or a bare name with a suffix that our files have."""
    if "/" in word:
        return word.split("/", 1)[0] in top
    return re.fullmatch(r"[\w-]+" + SUFFIXES, word) is not None


def check_names(root: Path, files: list[str]) -> list[str]:
    complaints = []
    top = {f.split("/", 1)[0] for f in files if "/" in f}
    base_names = {Path(f).name for f in files}
    for number, span in code_spans((root / ARCHITECTURE).read_text()):
        for word in (w.rstrip(".") for token in WORD.findall(span) for w in expand_braces(token)):
            there = (root / word).exists() or ("/" not in word and word in base_names)
            if is_file_name(word, top) and not there:
                complaints.append(f"{ARCHITECTURE}:{number}: there is no {word}")
    return complaints


def check_links(root: Path, name: str) -> list[str]:
    complaints = []
    for number, line in enumerate((root / name).read_text().splitlines(), start=1):
        for target in LINK.findall(line):
            path = target.split("#", 1)[0]
            elsewhere = not path or "://" in path or path.startswith("mailto:")
            if not elsewhere and not ((root / name).parent / path).exists():
                complaints.append(f"{name}:{number}: the link to {path} leads nowhere")
    return complaints


def main() -> int:
    root = parse_root(__doc__)
    files = source_files(root)
    complaints = check_names(root, files) if ARCHITECTURE in files else []
    for name in files:
        if name.endswith(".md"):
            complaints += check_links(root, name)
    return report(complaints)


if __name__ == "__main__":
    sys.exit(main())
