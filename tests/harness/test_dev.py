# SPDX-License-Identifier: Apache-2.0
"""./dev installs what is missing, only that, and explains each of its commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

DEV = Path(__file__).parents[2] / "dev"


def run_dev(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if path:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run([DEV, *arguments], env=environment, capture_output=True, text=True, check=False)


def wanted_packages() -> list[str]:
    return [word for array in re.findall(r"^apt_packages\w*=\((.*?)\)", DEV.read_text(), re.M | re.S)
            for word in array.split()]  # fmt: skip


@pytest.fixture
def fake_apt(tmp_path: Path) -> Path:
    """Programs that note what they are asked; dpkg-query knows what is in the file "installed"."""
    programs = {
        "dpkg-query": f"sed 's/^/installed /' {tmp_path}/installed",
        "apt-get": f'echo "$@" >>{tmp_path}/asked',
        "sudo": 'exec "$@"',
    }
    for name, code in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_setup_installs_only_what_is_missing(fake_apt: Path) -> None:
    present = [name for name in wanted_packages() if name not in {"meson", "shellcheck"}]
    (fake_apt / "installed").write_text("\n".join(present) + "\n")
    done = run_dev("setup", path=fake_apt)
    assert done.returncode == 0, done.stderr
    update, install = (fake_apt / "asked").read_text().splitlines()
    assert update.split()[-1] == "update"
    assert install.split()[-2:] == ["meson", "shellcheck"]


def test_setup_asks_for_nothing_where_all_is_there(fake_apt: Path) -> None:
    (fake_apt / "installed").write_text("\n".join(wanted_packages()) + "\n")
    done = run_dev("setup", path=fake_apt)
    assert done.returncode == 0, done.stderr
    assert not (fake_apt / "asked").exists()


def test_every_command_is_explained() -> None:
    manual = run_dev("help").stdout
    commands = re.findall(r"^cmd_(\w+)\(\)", DEV.read_text(), re.M)
    assert {"setup", "build", "test", "demo"} < set(commands)
    for command in commands:
        assert re.search(rf"^  {command}\b", manual, re.M), command
        if command not in {"demo", "replay", "bench"}:
            assert run_dev(command, "--help").stdout.startswith(command)


def test_an_unknown_command_is_refused() -> None:
    done = run_dev("frobnicate")
    assert done.returncode == 1
    assert done.stderr == "dev: there is no command frobnicate; ./dev help lists them\n"
