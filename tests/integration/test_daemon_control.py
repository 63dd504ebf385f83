# SPDX-License-Identifier: Apache-2.0
"""The control socket where kvctl doesn't reach: full disks, names that cannot be, and limits at work."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs
from harness.control import info, open_control
from harness.raw import RawPeer, start_holder, start_raw

MIB = 1 << 20


def limits_file(daemon: Daemon) -> Path:
    (path,) = daemon.state_dir.glob("GPU-*/limits.json")
    return path


def limit_of(control: RawPeer, name: str) -> tuple[int, str]:
    answer = control.request("Info", instance=name).text
    line = answer[answer.index(" instance=") :]
    words = dict(word.split("=", 1) for word in line.replace("{", " ").split() if "=" in word)
    return int(words["limit_bytes"]), words["limit_source"]


def test_limits_survive_a_restart(programs: Programs) -> None:
    daemon = programs.daemon()
    control = open_control(programs, daemon)
    control.request("SetLimit", instance="tenant/llama", bytes=64 * MIB)
    control.request("SetLimit", instance="uid:7/qwen", ppm=250000)
    control.request("SetLimit", instance="uid:7/gone", bytes=1)
    control.request("Delete", instance="uid:7/gone")
    daemon.kill()
    assert len(json.loads(limits_file(daemon).read_text())["limits"]) == 2

    daemon = programs.daemon()
    control = open_control(programs, daemon)
    assert limit_of(control, "tenant/llama") == (64 * MIB, "LIMIT_SOURCE_ADMIN")
    assert limit_of(control, "uid:7/qwen") == (256 * MIB, "LIMIT_SOURCE_ADMIN")
    control.request("Info", instance="uid:7/gone").check_refused("ERROR_NOT_FOUND")
    daemon.stop()

    bigger = programs.daemon("2G")
    control = open_control(programs, bigger)
    assert limit_of(control, "uid:7/qwen") == (512 * MIB, "LIMIT_SOURCE_ADMIN")


def test_limits_by_source(programs: Programs) -> None:
    """An administrator's word comes before the configuration's, and that before the engine's wish."""
    daemon = programs.daemon(budget="512M", config="[instance c]\nlimit=128M\n")
    control = open_control(programs, daemon)
    for name in ("a", "c", "e", "b"):
        control.request("SetLimit", instance=name, bytes=0)
        engine = start_raw(programs, daemon, name)
        engine.open(limit_ppm=0 if name == "b" else 62500)
        if name != "a":
            control.request("Delete", instance=name).check_refused("ERROR_BUSY", str(engine.pid))
    assert limit_of(control, "a") == (0, "LIMIT_SOURCE_ADMIN")
    for name in ("c", "e", "b"):
        engine = start_raw(programs, daemon, f"{name}-fresh" if name != "c" else "c2")
        engine.open(limit_ppm=0 if name == "b" else 62500)
    assert limit_of(control, "e-fresh") == (64 * MIB, "LIMIT_SOURCE_ENGINE")
    assert limit_of(control, "b-fresh") == (512 * MIB, "LIMIT_SOURCE_BUDGET")


def test_the_configurations_limit(programs: Programs) -> None:
    daemon = programs.daemon(budget="512M", config="[instance c*]\nlimit=25%\n")
    control = open_control(programs, daemon)
    start_raw(programs, daemon, "c").open(limit_ppm=62500)
    assert limit_of(control, "c") == (256 * MIB, "LIMIT_SOURCE_CONFIG")


def test_zero_is_a_limit_and_raising_restores(programs: Programs, daemon: Daemon) -> None:
    control = open_control(programs, daemon)
    engine = start_raw(programs, daemon, "a")
    engine.open()
    region = engine.open_region()
    kept = engine.take(region, 4)
    control.request("SetLimit", instance="a", bytes=0)
    refusal = engine.request("Take", region=region, pages=1)
    refusal.check_refused("ERROR_LIMIT", "limit of 0 B, of which 8.00 MB are in use")
    assert refusal.number("limit_bytes") == 0
    assert refusal.number("used_bytes") == 8 * MIB
    engine.give_back(kept[0])
    engine.request("Take", region=region, pages=1).check_refused("ERROR_LIMIT")
    control.request("SetLimit", instance="a", ppm=1000000)
    assert len(engine.take(region, 10)) == 10


def test_storage_that_is_full(programs: Programs, daemon: Daemon) -> None:
    """A limit that cannot be kept is not set."""
    control = open_control(programs, daemon)
    start_raw(programs, daemon, "a").open()
    control.request("SetLimit", instance="a", bytes=8 * MIB)
    before = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    control.request("SetLimit", instance="a", bytes=MIB).check_refused("ERROR_STORAGE", "cannot be kept in")
    control.request("SetLimit", instance="new", bytes=MIB).check_refused("ERROR_STORAGE")
    control.request("Delete", instance="a", force=1).check_refused("ERROR_STORAGE")
    assert limit_of(control, "a") == (8 * MIB, "LIMIT_SOURCE_ADMIN")
    control.request("Info", instance="new").check_refused("ERROR_NOT_FOUND")
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, before)
    assert control.request("SetLimit", instance="a", bytes=MIB).name == "LimitReply"
    assert sorted(path.name for path in limits_file(daemon).parent.iterdir()) == ["limits.json"]


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({"instance": "", "bytes": 1}, "ERROR_NAME", "cannot be the name"),
        ({"instance": "d/", "bytes": 1}, "ERROR_NAME", "cannot be the name"),
        ({"instance": "d/.hidden", "bytes": 1}, "ERROR_NAME", "cannot be the name"),
        ({"instance": "x" * 65, "bytes": 1}, "ERROR_NAME", "cannot be the name"),
        ({"instance": "a"}, "ERROR_INVALID", "missing"),
        ({"instance": "a", "ppm": 1000001}, "ERROR_INVALID", "100 percent"),
        ({"instance": "a", "bytes": 1 << 60}, "ERROR_INVALID", "larger than any GPU"),
        ({"instance": "a", "bytes": (1 << 64) - 1}, "ERROR_INVALID", "larger than any GPU"),
    ],
)
def test_limits_that_cannot_be(
    programs: Programs, daemon: Daemon, fields: dict[str, object], error: str, reason: str
) -> None:
    control = open_control(programs, daemon)
    control.request("SetLimit", **fields).check_refused(error, reason)
    assert "instance=" not in control.request("List").text
    assert not list(daemon.state_dir.iterdir())


def test_delete_by_force_leaves_the_living_in_limbo(programs: Programs, daemon: Daemon) -> None:
    control = open_control(programs, daemon)
    engine = start_holder(programs, daemon, "a", 10)
    idle = start_raw(programs, daemon, "a")
    idle.open()
    answer = control.request("Delete", instance="a", force=1)
    assert answer.name == "DeleteReply"
    assert f"pid={engine.pid}" in answer.text
    engine.check_ended("ERROR_FROZEN", "deleted")
    idle.check_ended("ERROR_FROZEN", "deleted")
    assert info(control).number("limbo_bytes") == 20 * MIB
    assert "frozen=1" in control.request("Info", instance="a").text
    idle.connect()
    idle.hello().check_refused("ERROR_FROZEN", "froze")
    engine.kill()
    idle.connect()
    daemon.site.killed = False
