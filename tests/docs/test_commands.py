# SPDX-License-Identifier: Apache-2.0
"""The commands of the manual: whoever types them gets what the pages say. A page joins by being listed; what
stands within a sentence names commands and options that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.broker import run_program
from harness.pages import Reader, read_blocks
from harness.stage import Desk, Stage, make_controller

ROOT = Path(__file__).resolve().parents[2]
ALL = [path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]]
MANUAL = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/man/*.scd")]
PAGES = [
    "README.md",
    "docs/CONTROLLER.md",
    "docs/QUICKSTART.md",
    "docs/TUTORIAL.md",
    "docs/examples/README.md",
]
# Of which nothing can be run here: the syntax is checked, and that there are reasons.
READ_ONLY = ["CONTRIBUTING.md", "docs/CONTAINERS.md", "docs/KUBERNETES.md", "docs/SGLANG.md", "docs/VLLM.md"]
IN_A_MACHINE = ["docs/SYSTEMD.md"]  # of its own, by tests/vm
PROGRAMS = ("./dev", "kvcached-controller", "kvcachedd", "kvctl", "kvtop")
OTHERS = ("apt", "curl", "kubectl", "meson", "pip", "python", "systemctl")

pytestmark = pytest.mark.emulator


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, desk: Desk) -> None:
    reader = Reader(desk.folder, desk.environment)
    reader.follow(read_blocks((ROOT / page).read_text(), page))
    assert reader.ran > 0


@pytest.mark.parametrize("page", READ_ONLY)
def test_page_is_read(page: str, tmp_path: Path) -> None:
    blocks = read_blocks((ROOT / page).read_text(), page)
    reader = Reader(tmp_path, {})
    reader.follow(blocks)
    assert reader.ran == 0
    assert blocks


def test_every_page_is_followed() -> None:
    for page in ALL:
        for block in read_blocks((ROOT / page).read_text(), page):
            first = block.text.split(maxsplit=1)[0]
            assert block.language or first not in PROGRAMS + OTHERS, f"{block.where()}: mark it as sh"
            if block.language == "sh":
                assert page in PAGES + READ_ONLY + IN_A_MACHINE
            if block.language == "python":
                compile(block.text, block.where(), "exec")


def commands_in(text: str, man: bool) -> list[list[str]]:
    """The words of what a page names of our programs' commands, in a line of its own or within a sentence."""
    blocks = "".join(re.findall(r"^ *```(?:sh.*)?\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL))
    found = re.findall(rf"^(?:sudo )?((?:{'|'.join(PROGRAMS)}) .*)$", blocks, re.MULTILINE)
    spans = r"\*([^*\n]+)\*(?!\()" if man else r"`([^`\n]+)`"
    found += [span for span in re.findall(spans, text) if span.split(" ", 1)[0] in PROGRAMS]
    return [re.split(r"  #| [|&>]", line)[0].replace("\\", "").split() for line in found]


def words_of_help(program: str, *words: str) -> set[str]:
    asked = run_program([program, *words], {"PATH": "/usr/bin:/bin"})
    assert asked.rc == 0, asked
    return {word.strip() for word in re.findall(r"--?[a-z][\w-]*|^  [a-z][\w-]*", asked.out, re.MULTILINE)}


def words_that_are_known(stage: Stage, folder: Path) -> dict[str, set[str]]:
    """What may follow a program's name, of commands and options."""
    paths = {program: str(stage.find(f"bin/{program}")) for program in ("kvcachedd", "kvctl", "kvtop")}
    paths["kvcached-controller"] = str(make_controller(folder))
    known = {program: words_of_help(path, "--help") for program, path in paths.items()}
    for command in [word for word in known["kvctl"] if not word.startswith("-") and word != "exit"]:
        known["kvctl"] |= words_of_help(paths["kvctl"], "help", command)
    known["./dev"] = words_of_help(str(ROOT / "dev"), "help") | {"-k"}  # which is pytest's
    for source in [*ROOT.glob("tests/bench/*.py"), ROOT / "tests/replay/table"]:
        known["./dev"] |= set(re.findall(r'"(--[\w-]+)"', source.read_text()))
    return known


def test_commands_that_sentences_name(stage: Stage, tmp_path: Path) -> None:
    known = words_that_are_known(stage, tmp_path)
    checked = 0
    for page in ALL + MANUAL:
        for program, *words in commands_in((ROOT / page).read_text(), page in MANUAL):
            options = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
            command = words[0] if program in ("./dev", "kvctl") and words else ""
            if re.fullmatch(r"[a-z][a-z-]+", command):
                options.append(command)
            for word in options:
                assert word in known[program], f"{page}: {program} {' '.join(words)}: {word}"
            checked += 1
    assert checked > 50


def test_files_that_commands_name() -> None:
    """What is not run names files that are there."""
    for page in PAGES + READ_ONLY:
        for block in read_blocks((ROOT / page).read_text(), page):
            for name in re.findall(r"(?:docs|packaging)/[\w/.-]+", block.text):
                assert (ROOT / name).exists(), f"{block.where()}: {name}"
