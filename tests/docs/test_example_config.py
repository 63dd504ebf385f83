# SPDX-License-Identifier: Apache-2.0
"""docs/examples/kvcachedd.conf has every key, and is right as it stands and with everything uncommented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.sources import ROOT, config_keys
from harness.broker import Result, run_program
from harness.stage import Stage

EXAMPLE = ROOT / "docs/examples/kvcachedd.conf"

# A section or a setting, in a comment or not; explanations have neither at their beginning.
ENTRY = re.compile(r"^(?:# )?(\[[^\]]+\]|[a-z-]+ = .*)$", re.MULTILINE)


def check(stage: Stage, path: Path) -> Result:
    return run_program([str(stage.find("bin/kvcachedd")), "--check-config", "--config", str(path)], {})


def uncommented() -> str:
    return re.sub(r"^# (?=\[|[a-z-]+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)


def test_as_it_stands(stage: Stage) -> None:
    assert check(stage, EXAMPLE) == Result(0, "", "")
    assert stage.find("doc/kvcached/examples/kvcachedd.conf").read_text() == EXAMPLE.read_text()


def test_with_all_of_it(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "all.conf"
    path.write_text(uncommented())
    assert check(stage, path) == Result(0, "", "")


def test_each_key_is_there() -> None:
    sections: dict[str, list[str]] = {}
    kind = ""
    for entry in ENTRY.findall(EXAMPLE.read_text()):
        if entry.startswith("["):
            kind = entry[1:-1].split()[0]
        else:
            sections.setdefault(kind, []).append(entry.split()[0])
    keys = config_keys()
    assert set(sections.pop("gpu")) < set(keys["daemon"])
    assert {name: sorted(set(found)) for name, found in sections.items()} == {
        name: sorted(known) for name, known in keys.items()
    }
    assert sections["daemon"] == keys["daemon"], "the order is that of the sources"


@pytest.mark.parametrize("key", [key for keys in config_keys().values() for key in keys])
def test_a_wrong_value_is_told_with_its_place(key: str, stage: Stage, tmp_path: Path) -> None:
    """File, line, key, and what would be accepted."""
    lines = uncommented().splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith(f"{key} = "))
    lines[number] = f"{key} ="
    path = tmp_path / "wrong.conf"
    path.write_text("\n".join(lines))
    result = check(stage, path)
    assert result.rc == 1
    assert result.err.startswith(f"kvcachedd: error: {path}:{number + 1}: {key}=: expected ")
