# SPDX-License-Identifier: Apache-2.0
"""./dev bench: what mapping and unmapping pages through the broker costs.

Five sides take turns in one process (bench-map), against a daemon of its own:

  broker      libkvclient and kvcachedd, with the library's caches off and the daemon's extents warm
  in-process  the driver's calls of a program that owns its memory: create, map, set access; unmap, release
  bare        a request over a socket and an answer that carries as many descriptors, from a uv_poll loop
  driver      the driver's calls that a borrower cannot do without: import, map, set access; unmap, release
  least       bare and driver in one

Each page is one extent of 2 MiB, and all pages are mapped, and unmapped, in one call. Both processes are
pinned: to the same core, and to a core each. Blocks, schedulers, crowds, live engines and, where
./dev engines has made its Python, vLLM's scheduler follow: rows.py; and what the controller adds: proxy.py.
Exit status: 0, 1 when a bound was missed or something failed, 2 usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench import proxy, rows
from bench import report as reports
from bench.rig import COSTS, Rig, new_site
from harness.broker import Site

PARTS = ("maps", "blocks", "group", "crowd", "live", "engine", "controller")
PAGES_MAX = 200
QUICK_ROUNDS = 20
ROW_ROUNDS = 200
COUNTED_PAGES = (1, 64)
COUNTED_ROUNDS = (5, 45)
PROXY_ROUNDS = 3
INSTRUCTION_ROUNDS = (5, 10)


def progress(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def rounds_for(pages: int) -> int:
    """Enough for a steady median; a round of many pages takes long, above all with costs."""
    return 500 if pages <= 16 else 150 if pages <= 64 else 60


def parse_numbers(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if any(n < 1 or n > PAGES_MAX for n in numbers):
        raise argparse.ArgumentTypeError(f"from 1 to {PAGES_MAX} pages")
    return numbers


def parse_costs(text: str) -> list[str]:
    costs = text.split(",")
    if any(name not in COSTS for name in costs):
        raise argparse.ArgumentTypeError(f"any of {', '.join(COSTS)}")
    return costs


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="see in seconds that it works; judges nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--pages", type=parse_numbers, help="default 1,16,64,200")
    parser.add_argument("--costs", type=parse_costs, help="of the emulated driver; default none,a100")
    parser.add_argument("--rounds", type=int, help="default by number of pages; at least 20")
    parser.add_argument("--only", choices=PARTS, help="only this part")
    parser.add_argument(
        "--gpu", action="store_true", help="measure on the machine's GPU, not an emulated one"
    )
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < QUICK_ROUNDS:
        parser.error(f"--rounds: at least {QUICK_ROUNDS}")
    arguments.pages = arguments.pages or ([1, 64] if arguments.quick else [1, 16, 64, 200])
    arguments.costs = arguments.costs or ["none", "a100"]
    arguments.row_rounds = QUICK_ROUNDS if arguments.quick else arguments.rounds or ROW_ROUNDS
    if arguments.gpu:
        os.environ["KVCACHED_TEST_DRIVER"] = "gpu"
        arguments.costs = ["the GPU's"]
    return arguments


# ---- System calls ----


def parse_summary(summary: str) -> dict[str, int]:
    """From strace -c: percent, seconds, microseconds a call, calls, perhaps errors, name."""
    counts = {}
    for line in summary.splitlines():
        words = line.split()
        if len(words) in (5, 6) and words[3].isdigit() and words[-1] != "total":
            counts[words[-1]] = int(words[3])
    return counts


@contextlib.contextmanager
def traced(pid: int, output: Path) -> Iterator[None]:
    """strace's summary of that process for as long as this lasts."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-c", "-o", str(output), "-p", str(pid)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    try:
        attached = tracer.stderr.readline()
        if "attached" not in attached:
            raise RuntimeError(f"strace: {attached.strip()}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()


def count_both(rig: Rig, pages: int, rounds: int) -> tuple[dict[str, int], dict[str, int]]:
    """System calls of a whole run, at the client and at the daemon."""
    client, daemon = rig.site.run / "client.calls", rig.site.run / "daemon.calls"
    command = [*rig.command(pages, rounds), "--count", "broker"]
    with traced(rig.daemon.pid, daemon):
        # The leak check of a sanitized build needs to trace, too, and only one can.
        rig.run(["strace", "-c", "-o", str(client), *command], ASAN_OPTIONS="detect_leaks=0")
    return parse_summary(client.read_text()), parse_summary(daemon.read_text())


def difference(few: dict[str, int], many: dict[str, int], operations: int) -> dict[str, float]:
    names = sorted(few.keys() | many.keys())
    calls = {name: (many.get(name, 0) - few.get(name, 0)) / operations for name in names}
    return {name: n for name, n in calls.items() if n > 0}


def count_system_calls(rig: Rig, pages: int) -> reports.SystemCalls:
    """By the difference of two runs, so that starting and ending don't count."""
    few, many = (count_both(rig, pages, rounds) for rounds in COUNTED_ROUNDS)
    operations = COUNTED_ROUNDS[1] - COUNTED_ROUNDS[0]
    return reports.SystemCalls(
        pages, difference(few[0], many[0], operations), difference(few[1], many[1], operations)
    )


def without_meeting(counts: dict[str, int]) -> dict[str, int]:
    """bench-blocks waits for a line before its batches and says a word after them: one call each, which the
    tracer sees or, depending on who is faster, does not."""
    return {name: n - 1 if name in ("read", "write") else n for name, n in counts.items()}


def count_system_calls_of(rig: Rig, side: str) -> dict[str, float]:
    """Of one batch of bench-blocks, likewise; what it does before and after is not even seen."""
    counts = []
    for rounds in COUNTED_ROUNDS:
        output = rig.site.run / "blocks.calls"
        with rows.blocks_at_a_stop(rig, side, rounds) as (pid, go_on), traced(pid, output):
            go_on()
        counts.append(without_meeting(parse_summary(output.read_text())))
    return difference(counts[0], counts[1], COUNTED_ROUNDS[1] - COUNTED_ROUNDS[0])


def can_trace() -> bool:
    if not shutil.which("strace"):
        return False
    return (
        subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode
        == 0
    )


# ---- Instructions ----


def callgrind(output: Path) -> list[str]:
    """Only inside of those calls: what goes on around them doesn't repeat as exactly."""
    words = ["valgrind", "-q", "--tool=callgrind", "--vgdb=no", f"--callgrind-out-file={output}"]
    return words + [f"--toggle-collect={name}" for name in rows.COUNTED_CALLS]


def parse_instructions(profile: str) -> int:
    """From what callgrind writes."""
    for line in profile.splitlines():
        if line.startswith("summary: "):
            return int(line.split()[1])
    raise RuntimeError("callgrind has left no summary")


def count_instructions_of(rig: Rig, side: str) -> float:
    """Of one operation of bench-blocks, by the difference of two runs, too: opening makes the same calls."""
    counts = []
    for rounds in INSTRUCTION_ROUNDS:
        output = rig.site.run / f"{side}-{rounds}.callgrind"
        with rows.blocks_at_a_stop(rig, side, rounds, callgrind(output)) as (_, go_on):
            go_on()
        counts.append(parse_instructions(output.read_text()))
    operations = (INSTRUCTION_ROUNDS[1] - INSTRUCTION_ROUNDS[0]) * rows.BATCH
    return round((counts[1] - counts[0]) / operations, 1)


def can_count_instructions(rig: Rig) -> bool:
    """valgrind runs neither sanitized programs nor a GPU's driver."""
    if not shutil.which("valgrind") or not rig.info["gpu"]["emulated"]:
        return False
    program = str(rig.site.program("tests/bench/bench-sizes"))
    command = [*callgrind(Path("/dev/null")), program]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# ---- The whole ----


def machine() -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
    }


def layouts(quick: bool) -> list[tuple[int, int]]:
    """(daemon's processor, client's): the same one, and where there are two, one each."""
    processors = sorted(os.sched_getaffinity(0))
    same = (processors[0], processors[0])
    return [same] if quick or len(processors) < 2 else [same, (processors[0], processors[1])]


def measure_place(rig: Rig, arguments: argparse.Namespace, costs: str, cores: int) -> Iterator[reports.Case]:
    for pages in arguments.pages:
        progress(f"costs {costs}, {cores} core{'s' * (cores - 1)}, {pages} pages")
        rounds = QUICK_ROUNDS if arguments.quick else arguments.rounds or rounds_for(pages)
        output = rig.run(rig.command(pages, rounds))
        yield reports.parse_samples(reports.Place(costs, cores, pages), output.splitlines())


def measure_maps(site: Site, arguments: argparse.Namespace, report: reports.Report) -> None:
    for costs in arguments.costs:
        for daemon_processor, processor in layouts(arguments.quick):
            rig = Rig(site, costs, daemon_processor, processor)
            cores = 1 if daemon_processor == processor else 2
            try:
                if not report.system_calls and can_trace():
                    for pages in COUNTED_PAGES:
                        progress(f"counting system calls, {pages} pages")
                        report.system_calls.append(count_system_calls(rig, pages))
                report.cases += measure_place(rig, arguments, costs, cores)
            finally:
                rig.daemon.stop()


def measure_blocks(site: Site, arguments: argparse.Namespace, report: reports.Report) -> None:
    """On one core: nothing here speaks to the daemon."""
    daemon_processor, processor = layouts(quick=True)[0]
    rig = Rig(site, arguments.costs[0], daemon_processor, processor)
    try:
        progress("blocks")
        report.series.append(rows.blocks(rig, arguments.row_rounds))
        from_python = rows.blocks_from_python(rig, arguments.row_rounds)
        if from_python:
            report.series.append(from_python)
        else:
            progress("not from Python: its headers were missing when this was built")
        if can_trace():
            for side in rows.SILENT_SIDES:
                calls = count_system_calls_of(rig, side)
                report.block_calls[side] = calls
        if can_count_instructions(rig):
            for side in rows.COUNTED_SIDES:
                report.instructions[side] = count_instructions_of(rig, side)
    finally:
        rig.daemon.stop()


def measure_group(site: Site, arguments: argparse.Namespace, report: reports.Report) -> None:
    for daemon_processor, processor in layouts(arguments.quick):
        progress(f"a scheduler with {rows.RANKS} workers")
        report.series.append(rows.group(site, daemon_processor, processor, arguments.row_rounds))


def measure_crowd(site: Site, arguments: argparse.Namespace, report: reports.Report) -> None:
    progress("a crowd")
    series, extent_bytes = rows.crowd(site, layouts(quick=True)[0][1], arguments.row_rounds)
    report.series.append(series)
    report.extent_bytes = extent_bytes


def measure_live(site: Site, arguments: argparse.Namespace, report: reports.Report) -> None:
    progress("live engines, with all memory from the start and with what they need")
    rounds, requests = (
        (1, rows.LIVE_REQUESTS_QUICK) if arguments.quick else (rows.LIVE_ROUNDS, rows.LIVE_REQUESTS)
    )
    report.live = rows.live(site, rounds, requests)


def measure_engine(site: Site, arguments: argparse.Namespace, report: reports.Report) -> None:
    progress("vLLM, alone and with kvcached")
    series = rows.engine(site, 1 if arguments.quick else rows.ENGINE_TURNS)
    if series:
        report.series.append(series)
    else:
        progress("not of vLLM: there is none (./dev engines)")


def measure_controller(site: Site, arguments: argparse.Namespace, report: reports.Report) -> None:
    if not proxy.can_measure():
        progress("not of the controller: .venv lacks its packages (./dev setup)")
        return
    own, other = layouts(quick=False)[-1]
    rounds = 1 if arguments.quick else PROXY_ROUNDS
    report.proxied += proxy.measure(site.run, (own, other), rounds, arguments.quick, progress)


def describe_machine(site: Site, arguments: argparse.Namespace) -> reports.Report:
    rig = Rig(site, arguments.costs[0], *layouts(quick=True)[0])
    try:
        gpu = rig.info["gpu"]
        return reports.Report(rig.info["daemon_version"], gpu, machine(), judged=not arguments.quick)
    finally:
        rig.daemon.stop()


def measure_all(site: Site, arguments: argparse.Namespace) -> reports.Report:
    """Schedulers and crowds need several GPUs, or extents without end, and vLLM's CPU build touches a GPU's
    memory: emulated ones."""
    parts = {"maps": measure_maps, "blocks": measure_blocks}
    if not arguments.gpu:
        parts |= {"group": measure_group, "crowd": measure_crowd, "live": measure_live}
        parts |= {"engine": measure_engine, "controller": measure_controller}
    report = describe_machine(site, arguments)
    for name, measure in parts.items():
        if arguments.only in (None, name):
            measure(site, arguments, report)
    return report


def on_terminate(number: int, _: FrameType | None) -> NoReturn:
    """Ends as an exception does, through whatever has to be cleaned up."""
    sys.exit(128 + number)


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, on_terminate)
    root = Path(__file__).resolve().parents[2]
    build = Path(os.environ.get("KVCACHED_BUILD_DIR", root / "build")).resolve()
    started = time.monotonic()
    try:
        with new_site(build) as site:
            report = measure_all(site, arguments)
    except (AssertionError, OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    progress(f"done in {time.monotonic() - started:.0f} s")
    print(reports.text(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    return 1 if report.failed() else 0
