# SPDX-License-Identifier: Apache-2.0
"""Whoever follows a page does what it says, and notices when that doesn't work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.pages import Block, Reader, check_syntax, is_as_expected, read_blocks


def page(text: str) -> list[Block]:
    return read_blocks(text.replace("~~~", "```"), "p.md")


def follow(folder: Path, text: str, *has: str) -> Reader:
    reader = Reader(folder, dict(os.environ), has)
    reader.follow(page(text))
    return reader


def test_blocks() -> None:
    text = "# A\n~~~sh\na\n~~~\n\n~~~text\nb\n~~~\n"
    text += "  ~~~sh background: it is: up\n  c\n    d\n  ~~~\n~~~c\ne\n~~~\n"
    first, output, second, third = page(text)
    assert (first.line, first.mark, first.text, first.expected) == (2, "", "a\n", "b\n")
    assert (second.mark, second.detail, second.text) == ("background", "it is: up", "c\n  d\n")
    assert (output.language, third.language, second.expected) == ("text", "c", None)
    assert [block.detail for block in page("~~~sh not run: a reason\n~~~\n~~~sh needs: torch\n~~~\n")] == [
        "a reason",
        "torch",
    ]


@pytest.mark.parametrize(
    ("expected", "output", "right"),
    [
        ("a b\n", "a   b\n", True),
        ("a b\n", "a b", True),
        ("a b\n", "ab\n", False),
        ("pid …, up\n", "pid 17, up\n", True),
        ("pid …\n", "pid 1\nmore\n", False),
        ("…\nlast\n", "1\n2\nlast\n", True),
        ("first\n…\n", "first\n", True),
        ("…\nlast\n", "last\nmore\n", False),
        ("", "", True),
        ("", "x\n", False),
        ("(.*)\n", "x\n", False),
    ],
)
def test_expectations(expected: str, output: str, right: bool) -> None:
    assert is_as_expected(expected, output) is right


def test_one_shell_for_the_whole_page(tmp_path: Path) -> None:
    first = "~~~sh\nexport A='x  y'; mkdir -p f; cd f\n~~~\n"
    text = first + '~~~sh\necho "$A" $(basename $PWD)\n~~~\n~~~text\nx y f\n~~~\n'
    assert follow(tmp_path, text).ran == 2


def test_what_is_not_run_is_read(tmp_path: Path) -> None:
    text = "~~~sh not run: it removes everything\nexit 7\n~~~\n~~~sh needs: torch\nexit 8\n~~~\n"
    assert follow(tmp_path, text).ran == 0
    with pytest.raises(AssertionError, match=r"p\.md:4: 8"):
        follow(tmp_path, text, "torch")
    for wrong in ("~~~sh not run: x\nif\n~~~\n", "~~~sh needs: torch\n'\n~~~\n"):
        with pytest.raises(AssertionError, match=r"syntax error|unexpected EOF"):
            follow(tmp_path, wrong)
    with pytest.raises(AssertionError, match="no reason is given"):
        follow(tmp_path, "~~~sh not run\ntrue\n~~~\n")
    with pytest.raises(AssertionError, match="there is no mark later"):
        follow(tmp_path, "~~~sh later\ntrue\n~~~\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("~~~sh\nfalse\ntrue\n~~~\n", "p.md:1: 1"),
        ("~~~sh fails\ntrue\n~~~\n", "p.md:1: 0"),
        ("~~~sh\necho a\n~~~\n~~~text\nb\n~~~\n", "p.md:1 expects"),
        ("~~~sh background: up\necho down\n~~~\n", "it ended"),
    ],
)
def test_what_does_not_work_is_noticed(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        follow(tmp_path, text)


def test_what_runs_ends_with_the_page(tmp_path: Path) -> None:
    background = "~~~sh background: up\necho $$ >pid; echo up; exec sleep 1000\n~~~\n"
    follow(tmp_path, background + "~~~sh\nkill -0 $(cat pid)\n~~~\n")
    assert subprocess.run(["kill", "-0", (tmp_path / "pid").read_text().strip()], check=False).returncode != 0
    with pytest.raises(AssertionError, match=r"p\.md:5: 1"):
        follow(tmp_path, background + "\n~~~sh\nfalse\n~~~\n")
    assert subprocess.run(["kill", "-0", (tmp_path / "pid").read_text().strip()], check=False).returncode != 0


def test_a_program_that_the_page_kills(tmp_path: Path) -> None:
    background = "~~~sh background: up\necho $$ >pid; echo up; exec sleep 1000\n~~~\n"
    assert follow(tmp_path, background + "~~~sh\nkill -KILL $(cat pid)\n~~~\n").ran == 2
    with pytest.raises(AssertionError, match=r"p\.md:1: (status|it ended)"):
        follow(
            tmp_path,
            "~~~sh background: up\ntrap 'exit 3' TERM; echo up; while :; do read -t 9 <>pid; done\n~~~\n",
        )


def test_asking_again(tmp_path: Path) -> None:
    text = "~~~sh again\necho x >>n; wc -l <n\n~~~\n~~~text\n3\n~~~\n"
    assert follow(tmp_path, text).ran == 1
    assert (tmp_path / "n").read_text() == "x\n" * 3


def test_syntax() -> None:
    check_syntax(Block("p", 1, "sh", "", "", "for a in b; do :; done\n"))
    with pytest.raises(AssertionError, match="p:1"):
        check_syntax(Block("p", 1, "sh", "", "", "for a in b\n"))
