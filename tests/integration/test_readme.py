# SPDX-License-Identifier: Apache-2.0
"""What the README shows of configuration and code; what it tells people to type is run with the manual's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from harness.broker import Site, run_program

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """The code block of that language that has these words."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in text]
    assert len(found) == 1, f"{len(found)} blocks with {containing}"
    return str(found[0])


def test_configuration(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "kvcachedd.conf"
    config.write_text(block("ini", "[daemon]"))
    result = run_program(
        [str(site.program("daemon/kvcachedd")), "--config", str(config), "--check-config"],
        site.environment(),
    )
    assert (result.rc, result.err) == (0, "")


def test_engine_in_c(tmp_path: Path) -> None:
    source = tmp_path / "engine.c"
    source.write_text(block("c", "kvc_open"))
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "libclient/include")]
    command += ["-c", str(source), "-o", str(tmp_path / "engine.o")]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr


def test_files_that_it_links() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.replace("\n", " "))
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link
