# SPDX-License-Identifier: Apache-2.0
"""The benchmark works, and its arithmetic is right. How fast anything is, no test says."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import proxy, rows
from bench import report as reports
from bench.run import difference, parse_instructions, parse_summary, without_meeting

ROOT = Path(__file__).resolve().parents[2]


def case(pages: int = 1, costs: str = "none", cores: int = 1, **p50: int) -> reports.Case:
    """Medians of mapping by side; unmapping takes 1 us everywhere."""
    values = dict.fromkeys(reports.SIDES, 1000) | {name.replace("_", "-"): n for name, n in p50.items()}
    timings = {
        side: {"map": reports.Timing(n, 2 * n, 20), "unmap": reports.Timing(1000, 2000, 20)}
        for side, n in values.items()
    }
    return reports.Case(reports.Place(costs, cores, pages), timings)


def report(*cases: reports.Case, judged: bool = True) -> reports.Report:
    gpu = {"index": 0, "name": "Emulated", "emulated": True}
    return reports.Report("0.1.0", gpu, {}, judged, list(cases))


def test_timings() -> None:
    assert reports.Timing.of([5]) == reports.Timing(5, 5, 1)
    assert reports.Timing.of([30, 10, 20]) == reports.Timing(20, 30, 3)
    assert reports.Timing.of([1, 2]) == reports.Timing(1.5, 2, 2)
    assert reports.Timing.of(list(range(1, 201))) == reports.Timing(100.5, 198, 200)


def test_samples() -> None:
    lines = [
        f"{side} {operation} 16 {ns}"
        for side in reports.SIDES
        for operation, ns in (("map", 3), ("unmap", 4))
    ]
    parsed = reports.parse_samples(reports.Place("none", 1, 16), [*lines, "broker map 16 5"])
    assert parsed.timings["broker"]["map"] == reports.Timing(4, 5, 2)
    assert parsed.timings["bare"]["unmap"] == reports.Timing(4, 4, 1)
    with pytest.raises(ValueError, match="asked for 1 pages, and got 16"):
        reports.parse_samples(reports.Place("none", 1, 1), lines)


@pytest.mark.parametrize(
    ("measured", "value", "at_most", "met"),
    [
        (case(1, broker=5500, driver=1000, bare=3000), 1.5, 1.5, True),
        (case(1, broker=5600, driver=1000, bare=3000), 4600 / 3000, 1.5, False),
        (case(64, broker=1200), 1.2, 1.2, True),
        (case(64, broker=1201), 1.201, 1.2, False),
        (case(64, "a100", broker=400), 0.4, 0.4, True),
        (case(64, "a100", broker=401), 0.401, 0.4, False),
    ],
)
def test_bounds(measured: reports.Case, value: float, at_most: float, met: bool) -> None:
    (bound,) = reports.bounds_of(measured)
    assert bound.value == pytest.approx(value)
    assert bound.at_most == at_most
    assert bound.met == met
    assert report(measured).failed() != met
    assert not report(measured, judged=False).failed()
    assert ("met" if met else "MISSED") in reports.text(report(measured))


def test_missed_bound_says_what_was_possible() -> None:
    one = case(1, broker=5600, driver=1000, bare=3000, least=4600)
    assert "and nothing else, is 1.2; the rest is the work of library and daemon" in reports.text(report(one))
    apart = case(1, cores=2, broker=5600, driver=1000, bare=3000, least=4600)
    assert "and nothing else, is 1.2\n" in reports.text(report(apart)) + "\n"
    many = case(64, broker=1500, in_process=1000, least=1350)
    assert "and nothing else, is 1.35\n" in reports.text(report(many)) + "\n"
    met = case(64, broker=1100, in_process=1000, least=1350)
    assert "nothing else" not in reports.text(report(met))


def test_unbounded_cases() -> None:
    for measured in (case(16), case(1, "a100"), case(200), case(64, "the GPU's")):
        assert not list(reports.bounds_of(measured))


def series_values(what: str, **p50: float) -> list[tuple[float, float, str]]:
    timings = {side.replace("_", "-"): reports.Timing(n, n, 10) for side, n in p50.items()}
    bounds = reports.series_bounds(reports.Series(what, "here", timings))
    return [(bound.value, bound.at_most, bound.unit) for bound in bounds]


def test_series_bounds() -> None:
    assert series_values("blocks", small=111, large=250, available=21, clock=5) == [
        (0.111, 0.25, "us"),
        (0.25, 0.25, "us"),
        (21, 20, "ns"),
    ]
    assert series_values("blocks", alloc_free=1200, available=90, loop=50, ints=300) == [
        (1.2, 1, "us"),
        (90, 100, "ns"),
    ]
    assert series_values("group", group=300, chain=200) == [(1.5, 2, "")]
    crowd = series_values(
        "crowd",
        few=100,
        many=130,
        list=5e6,
        metrics=6e6,
        state=7e6,
        kvtop=8e6,
        quiet=100,
        watched=110,
        elsewhere=200,
        storm=210,
    )
    assert crowd[:5] == [(1.3, 1.3, ""), (5, 10, "ms"), (6, 50, "ms"), (7, 50, "ms"), (8, 50, "ms")]
    assert crowd[5:] == [(1.1, 1.15, ""), (1.05, 1.15, "")]


def test_missed_nanoseconds_say_what_the_machine_needs() -> None:
    def text(**p50: float) -> str:
        timings = {side.replace("_", "-"): reports.Timing(n, n, 10) for side, n in p50.items()}
        return reports.text(replace(report(), series=[reports.Series("blocks", "here", timings)]))

    slow = text(small=111, large=111, available=21, clock=12)
    assert "a look at the coarse clock, which is a part of it, is 12 here" in slow
    assert "coarse clock" not in text(small=111, large=111, available=20, clock=12)
    busy = text(alloc_free=1001, available=101, loop=70, ints=403)
    assert "a call of int() in the same loop is 70 ns here" in busy
    assert "making and dropping of 16 numbers in a list alone is 0.403 us here" in busy
    assert "alone" not in text(alloc_free=900, available=101, loop=70, ints=403)
    assert "a call of int()" not in text(alloc_free=1001, available=9, loop=70, ints=403)


def test_block_calls() -> None:
    [alloc] = reports.block_calls_bounds("alloc", {"futex": 2, "sendmsg": 1})
    assert (alloc.value, alloc.at_most) == (3, 0)
    [remap] = reports.block_calls_bounds("remap", {"ioctl": 8, "sendmsg": 1, "read": 2})
    assert (remap.value, remap.at_most) == (3, 0)


@pytest.mark.parametrize(
    ("large", "value", "met"),
    [(1600, 1, True), (1200, 0.75, True), (1680, 1.05, True), (1680.1, 1680.1 / 1600, False)],
)
def test_instruction_bounds(large: float, value: float, met: bool) -> None:
    counts = {"small": 1600.0, "large": large, "available": 140.0}
    counted = replace(report(), instructions=counts)
    [bound] = counted.bounds()
    assert bound.value == pytest.approx(value)
    assert (bound.at_most, bound.met) == (1.05, met)
    assert counted.failed() != met
    assert counted.to_json()["instructions"] == counts


def test_instruction_bounds_need_both_sizes() -> None:
    assert not list(reports.instruction_bounds({"small": 1600}))
    assert not list(reports.instruction_bounds({}))


def test_instruction_lines() -> None:
    blocks = reports.Series(
        "blocks", "here", {s: reports.Timing(1, 1, 9) for s in ("alloc-free", "available", "loop", "ints")}
    )
    counted = replace(report(), series=[blocks], instructions={"small": 1564.25, "available": 140})
    lines = [line.split() for line in reports.text(counted).splitlines()]
    assert ["small", "1564.2"] in lines
    assert ["available", "140.0"] in lines
    uncounted = reports.text(replace(report(), series=[blocks]))
    assert "not counted: valgrind is missing" in uncounted
    assert "valgrind" not in reports.text(counted) + reports.text(report())


def test_instructions() -> None:
    profile = "events: Ir\nsummary: 41646658\n\nfn=(1) main\n16 40\n\ntotals: 41646658\n"
    assert parse_instructions(profile) == 41646658
    with pytest.raises(RuntimeError, match="no summary"):
        parse_instructions("events: Ir\n")


def test_table() -> None:
    lines = reports.text(report(case(1, broker=12345), case(64, "a100"))).splitlines()
    assert lines[0] == "GPU 0: Emulated, emulated: no number here is a GPU's"
    assert any(line.split() == ["1", "map", "12.3", "24.7", *["1.0", "2.0"] * 4, "12.35"] for line in lines)
    assert "System calls for mapping and unmapping once:" in lines


def test_live() -> None:
    ways = {"hold": {"p50": 0.1, "p99": 0.5}, "elastic": {"p50": 0.11, "p99": 0.6}}
    with_live = replace(report(case(1)), live=reports.Live("a100", 2, 60, ways))
    assert ["p50", "100.0", "110.0", "1.10"] in [
        line.split() for line in reports.text(with_live).splitlines()
    ]
    assert with_live.to_json()["live"]["ttft_s"] == ways


STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           3       200           sendmsg
 40.00    0.000400           2       180        20 recvmsg
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           2       380        20 total
"""


def test_system_calls() -> None:
    many = parse_summary(STRACE)
    assert many == {"sendmsg": 200, "recvmsg": 180}
    assert difference({"sendmsg": 20, "openat": 3}, many, 40) == {"sendmsg": 4.5, "recvmsg": 4.5}


def test_system_calls_without_those_around() -> None:
    seen = without_meeting({"read": 1, "write": 41, "mmap": 10})
    assert seen == {"read": 0, "write": 40, "mmap": 10}
    unseen = without_meeting({"write": 1})
    assert difference(without_meeting({"read": 1}), unseen, 40) == {}


def check_blocks(result: dict[str, Any]) -> None:
    """What was counted repeats, so it is judged even in a quick run."""
    if result["system_calls"]:  # else nothing may be traced here
        assert set(result["block_calls"]) == set(rows.SILENT_SIDES)
    for side, calls in result["block_calls"].items():
        for bound in reports.block_calls_bounds(side, calls):
            assert bound.value == 0, (side, calls)
    if result["instructions"]:  # else valgrind is missing, or the build is sanitized
        assert set(result["instructions"]) == set(rows.COUNTED_SIDES)
        [bound] = reports.instruction_bounds(result["instructions"])
        assert bound.met, result["instructions"]


def test_ways_to_an_engine() -> None:
    way = reports.Way.of(10, [0.001, 0.003], [100.0, 300.0], 0.5)
    assert way == reports.Way(reports.Timing(2e6, 3e6, 2), 200.0, 100.0, 40.0)
    assert reports.Way.of(0, [0.001, 0.003], [], 0.5) == reports.Way(way.first_byte, None, None, 4.0)
    many = reports.Way.of(1, [0.001], [float(n) for n in range(1, 201)], 1.0)
    assert (many.rate, many.slow_rate) == (100.5, 3)


def test_what_the_controller_adds() -> None:
    direct = reports.Way.of(10, [0.001, 0.003], [100.0, 300.0], 0.5)
    through = reports.Way.of(10, [0.002, 0.006], [50.0, 250.0], 1.0)
    one = reports.Proxied("paced", 64, 10, direct, through, 400_000)
    assert one.added() == (2e6, 3e6)
    text = reports.text(replace(report(), proxied=[one]))
    assert re.search(r"^ +64 +2.00 +3.00 +4.00 +6.00 +2.00 +3.00 +2$", text, re.M)
    assert re.search(r"^ +64 +40 +20 +0.50 +200.0 +100.0 +150.0 +50.0 +400 +40.0$", text, re.M)
    whole = replace(one, kind="whole", tokens=0, direct=reports.Way.of(0, [0.001], [], 0.5))
    text = reports.text(replace(report(), proxied=[whole]))
    assert re.search(r"^ +64 +2 +20 +10.00 +400$", text, re.M)


def check_controller(result: dict[str, Any], said: str) -> None:
    """Where its packages are."""
    if not proxy.can_measure():
        assert "not of the controller: .venv lacks its packages" in said
        return
    assert [(one["kind"], one["clients"]) for one in result["controller"]] == list(
        itertools.product(reports.KINDS, proxy.CLIENTS)
    )
    for one in result["controller"]:
        assert one["processor"] > 0
        for way in (one["direct"], one["controller"]):
            assert 0 < way["first_byte"]["p50"] <= way["first_byte"]["p99"]
            assert way["in_all"] > 0
            assert (way["rate"] is None) == (one["kind"] == "whole")


def test_quick_run(build_dir: Path, tmp_run: Path) -> None:
    output = tmp_run / "bench.json"
    done = subprocess.run(
        [ROOT / "tests/bench/bench", "--quick", "--json", output],
        env={
            "PATH": "/usr/bin:/bin",
            "KVCACHED_BUILD_DIR": str(build_dir),
            "KVCACHED_VLLM_PYTHON": str(tmp_run / "none"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["schema"] == reports.SCHEMA
    places = {(r["costs"], r["cores"], r["pages"]) for r in result["results"]}
    assert places == {("none", 1, 1), ("none", 1, 64), ("a100", 1, 1), ("a100", 1, 64)}
    for measured in result["results"]:
        assert set(measured["sides"]) == set(reports.SIDES)
        for side in measured["sides"].values():
            assert 0 < side["map_ns"]["p50"] <= side["map_ns"]["p99"]
            assert side["map_ns"]["rounds"] == 20
    assert set(result["live"]["ttft_s"]) == {"hold", "elastic"}
    check_blocks(result)
    check_controller(result, done.stderr)
    assert not result["judged"]
    assert f"GPU {result['gpu']['index']}: {result['gpu']['name']}" in done.stdout
    assert "64 pages" in done.stderr
    assert "not of vLLM: there is none" in done.stderr
