# SPDX-License-Identifier: Apache-2.0
"""The controller's manual lists what there is, all of it and nothing else."""

from __future__ import annotations

import importlib
import re
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

from kvcached.controller import config, main

ROOT = Path(__file__).resolve().parents[2]
MAN = (ROOT / "docs/man/kvcached-controller.1.scd").read_text()
# Sizes are said in units.
_SIZES = {32 << 20: "32M"}


def section(name: str) -> str:
    found = re.search(rf"^# {name}\n(.*?)(?=^# |\Z)", MAN, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


def entries(name: str) -> dict[str, str]:
    """What a section's terms say, by word; those that share a term say the same."""
    found = {}
    for term, text in re.findall(r"^(\*.*)\n((?:\t.*\n)+)", section(name), re.MULTILINE):
        for word in re.findall(r"\*([\w-]+)\*", term.split(": ")[0]):
            assert word not in found, word
            found[word] = " ".join(text.split())
    return found


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.parse_arguments(["--help"])
    assert ended.value.code == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
    listed = set(re.findall(r"\*(--?[a-z][\w-]*)\*", section("OPTIONS")))
    assert listed == known
    assert set(re.findall(r"\*(--[a-z][\w-]*)\*", section("SYNOPSIS"))) <= known


@pytest.mark.parametrize("where", ["router", "sleep_manager", "instances"])
def test_keys(where: str) -> None:
    """Each has its place, and says what holds without it."""
    defaults = {key: default for part, key, default in config.documented() if part == where}
    listed = entries(where)
    assert set(listed) == set(defaults)
    for key, default in defaults.items():
        says = said_default(listed[key])
        if where == "instances":
            assert (says is None) == (key in ("model", "engine")), key
            continue
        assert says is not None, key
        if isinstance(default, bool):
            assert says == str(default).lower(), key
        elif default is None:
            assert says.startswith("none"), key
        else:
            assert default is not MISSING
            assert says == _SIZES.get(default, str(default)), key  # type: ignore[call-overload]


def said_default(text: str) -> str | None:
    found = re.search(r"Default: (.*)\.$", text)
    assert found or text.endswith("No default."), text
    return found[1] if found else None


def test_sections() -> None:
    """Keys of the whole file are what it is read for."""
    with pytest.raises(config.ConfigError) as fault:
        config.parse("nonsense: 1", "c.yaml")
    known = str(fault.value).split("keys are ")[1].split(", ")
    assert set(entries("CONFIGURATION")) == set(known)


def test_signals_and_restarts() -> None:
    """What a reload cannot change is listed."""
    listed = set(re.findall(r"\*([a-z_]+)\*", section("SIGNALS")))
    assert listed == set(main.where(config.Router()))


def test_the_command_is_one() -> None:
    """Of the package, as it is installed."""
    project = (ROOT / "pyproject.toml").read_text()
    script = re.search(r'^kvcached-controller = "([\w.]+):(\w+)"$', project, re.MULTILINE)
    assert script
    module: Any = importlib.import_module(script[1])
    assert getattr(module, script[2]) is main.main
