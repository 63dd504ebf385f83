# SPDX-License-Identifier: Apache-2.0
"""What is measured beside single maps: blocks in C and from Python, a scheduler with its workers, a crowd,
what elasticity costs, and a real engine.

Each function starts what it needs, runs one program whose sides take turns, and returns what came out.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench import looks
from bench import report as reports
from bench.rig import Rig, pinned
from harness.broker import Daemon, Site, eventually, run_program
from harness.web import ANY_PORT

# Of bench-blocks: what must not make a system call, and what must not send anything.
SILENT_SIDES = ("small", "large", "available", "remap")
# And what never leaves the library, so that its instructions repeat; what it calls there, and how many
# operations are in a batch.
COUNTED_SIDES = ("small", "large", "available")
COUNTED_CALLS = ("kvc_blocks_alloc", "kvc_blocks_free", "kvc_blocks_available")
BATCH = 1000

RANKS = 4
CROWD_PEERS = 1000
CROWD_EXTENTS = 100_000

# Two engines in real time (the driver's costs don't scale), which never need more than the half each.
LIVE_DEVICE = "24G"
LIVE_BUDGET = "20G"
LIVE_TRACES = ("gen:code", "gen:chat")
LIVE_REQUESTS = 60
LIVE_REQUESTS_QUICK = 2
LIVE_ROUNDS = 2
LIVE_WAYS = {"hold": ["--static", "--hold"], "elastic": ["--elastic"]}

ENGINE_TURNS = 5
ROOT = Path(__file__).resolve().parents[2]

LIMIT_S = 300
ENGINE_LIMIT_S = 900


def parse_series(what: str, where: str, lines: Iterable[str]) -> reports.Series:
    """From lines of SIDE NANOSECONDS."""
    samples: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        side, nanoseconds = line.split()
        samples[side].append(float(nanoseconds))
    return reports.Series(what, where, {side: reports.Timing.of(s) for side, s in samples.items()})


def run(site: Site, command: list[str]) -> str:
    result = run_program(command, site.environment(), limit_s=LIMIT_S)
    if result.rc != 0:
        raise RuntimeError(result.err.strip() or f"{command[0]}: status {result.rc}")
    return result.out


# ---- Blocks ----


def blocks_command(rig: Rig, rounds: int) -> list[str]:
    words = [str(rig.site.program("tests/bench/bench-blocks")), "--socket", str(rig.daemon.socket)]
    words += ["--uuid", rig.info["gpu"]["uuid"], "--rounds", str(rounds)]
    return [*words, "--processor", str(rig.processor)]


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@contextmanager
def blocks_at_a_stop(
    rig: Rig, side: str, rounds: int, tool: Sequence[str] = ()
) -> Iterator[tuple[int, Callable[[], None]]]:
    """A program that is about to do the batches of a side, perhaps under a tool: its pid, and what has it do
    them. It sleeps until then, so that a tracer sees nothing of what it did before."""
    words = [*tool, *blocks_command(rig, rounds), "--count", side]
    variables = rig.site.environment(**rig.environment)
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=variables, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        stdin, stdout = program.stdin, program.stdout

        def expect(word: str) -> None:
            line = stdout.readline().rstrip()
            if line != word:
                raise RuntimeError(program.communicate()[1].strip() or f"{words[0]} said {line!r}")

        def go_on() -> None:
            stdin.write("\n")
            stdin.flush()
            expect("done")

        expect("ready")
        eventually(lambda: sleeps(program.pid))
        yield program.pid, go_on
        program.communicate("\n")


def blocks(rig: Rig, rounds: int) -> reports.Series:
    output = rig.run(blocks_command(rig, rounds))
    return parse_series("blocks", "from C", output.splitlines())


def blocks_from_python(rig: Rig, rounds: int) -> reports.Series | None:
    """None where the extension could not be built for want of Python's headers."""
    if not (rig.site.build / "python/_native.abi3.so").exists():
        return None
    script = Path(__file__).with_name("bench-python.py")
    words = [sys.executable, str(script), str(rig.site.build), str(rig.daemon.socket), str(rounds)]
    output = rig.run([*words, str(rig.processor)])
    return parse_series("blocks", "from Python", output.splitlines())


# ---- A scheduler and its workers ----


@contextmanager
def daemons(site: Site, sizes: str, processor: int) -> Iterator[list[Daemon]]:
    started: list[Daemon] = []
    try:
        for gpu in range(len(sizes.split(","))):
            with pinned(processor):
                started.append(Daemon(site, sizes, name=f"rank{gpu}", arguments=("--gpu", str(gpu))))
        yield started
    finally:
        for daemon in started:
            daemon.stop()


def group(site: Site, daemon_processor: int, processor: int, rounds: int) -> reports.Series:
    with daemons(site, ",".join(["8G"] * RANKS), daemon_processor) as started:
        words = [str(site.program("tests/bench/bench-group")), "--rounds", str(rounds)]
        words += ["--processor", str(processor), "--daemon-processor", str(daemon_processor)]
        for daemon in started:
            words += ["--socket", str(daemon.socket)]
        output = run(site, words)
    cores = "one core" if processor == daemon_processor else "two cores"
    return parse_series("group", cores, output.splitlines())


# ---- A crowd ----


def converse(site: Site, few: Daemon, many: Daemon, processor: int, rounds: int) -> reports.Series:
    words = [str(site.program("tests/bench/bench-crowd")), "--few", str(few.socket)]
    words += ["--many", str(many.socket), "--peers", str(CROWD_PEERS), "--extents", str(CROWD_EXTENTS)]
    words += ["--rounds", str(rounds), "--processor", str(processor)]
    lines: list[str] = []
    found: dict[str, list[float]] = {}
    with subprocess.Popen(
        words, env=site.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as crowd:

        def listen() -> None:
            """To the lines before the next "ready"."""
            assert crowd.stdout
            lines.extend(iter(crowd.stdout.readline, "ready\n"))

        def measure(name: str) -> None:
            assert crowd.stdin
            print(name, file=crowd.stdin, flush=True)
            listen()

        listen()
        if crowd.poll() is None:
            found = looks.take(site, few, many, measure)
        crowd.communicate()
    if crowd.returncode != 0:
        raise RuntimeError(f"{words[0]}: status {crowd.returncode}")
    series = parse_series("crowd", f"{CROWD_PEERS} peers, {CROWD_EXTENTS} extents", lines)
    for name, elapsed in found.items():
        series.timings[name] = reports.Timing.of(elapsed)
    return series


def crowd(site: Site, processor: int, rounds: int) -> tuple[reports.Series, int]:
    """And how many bytes the daemon keeps for each extent."""
    started: list[Daemon] = []
    try:
        started.append(Daemon(site, "256G", name="few", metrics=ANY_PORT))
        others = replace(site, emulate_dir=site.emulate_dir.with_name("crowd"))
        started.append(Daemon(others, "256G", name="many", metrics=ANY_PORT))
        series = converse(site, started[0], started[1], processor, rounds)
    finally:
        for daemon in started:
            daemon.stop()
    return series, int(run(site, [str(site.program("tests/bench/bench-sizes"))]))


# ---- What elasticity itself costs ----


def replay_live(site: Site, words: list[str], costs: str, requests: int) -> dict[str, float]:
    """Times to first token, in seconds."""
    daemon = Daemon(site, LIVE_DEVICE, budget=LIVE_BUDGET, environment={"KVCACHED_EMULATE_COSTS": costs})
    try:
        command = [str(site.program("tests/replay/kvreplay")), "--socket", str(daemon.socket), "--live"]
        command += ["--json", "--weights", "256M", "--requests", str(requests), *words]
        variables = site.environment(KVCACHED_EMULATE_COSTS=costs)
        result = run_program([*command, *LIVE_TRACES], variables, limit_s=LIMIT_S)
        if result.rc != 0:
            raise RuntimeError(result.err.strip() or f"kvreplay: status {result.rc}")
        ttft: dict[str, float] = result.json()["all"]["ttft_s"]
        return ttft
    finally:
        daemon.stop()


def live(site: Site, rounds: int, requests: int) -> reports.Live:
    """Engines that hold all their memory from the start against engines that borrow what they need.

    There is enough for all, so what differs is the broker's. They take turns; a run is one sample of each
    percentile."""
    samples: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in LIVE_WAYS}
    for _ in range(rounds):
        for way, words in LIVE_WAYS.items():
            for percentile, seconds in replay_live(site, words, "a100", requests).items():
                samples[way][percentile].append(seconds)
    medians = {way: {p: statistics.median(s) for p, s in by.items()} for way, by in samples.items()}
    return reports.Live("a100", rounds, requests, medians)


# ---- A real engine ----


def engine(site: Site, turns: int) -> reports.Series | None:
    """A step of vLLM's scheduler, alone and with kvcached. None where there is no vLLM, or no pytest."""
    output = site.run / "engine.samples"
    python = ROOT / ".venv/bin/python"
    if not python.exists():
        return None
    words = [str(python), "-m", "pytest", "-q", str(ROOT / "tests/engines/measure_vllm.py")]
    variables = site.environment(
        KVCACHED_BUILD_DIR=str(site.build),
        KVCACHED_BENCH_OUTPUT=str(output),
        KVCACHED_BENCH_TURNS=str(turns),
    )
    named = os.environ.get("KVCACHED_VLLM_PYTHON")
    variables |= {"KVCACHED_VLLM_PYTHON": named} if named else {}
    result = run_program(words, variables, limit_s=ENGINE_LIMIT_S)
    if result.rc != 0:
        raise RuntimeError(f"vLLM's scheduler could not be measured:\n{result.out[-4000:]}")
    if not output.exists():
        return None
    return parse_series("a step of vLLM's scheduler", "CPU build", output.read_text().splitlines())
