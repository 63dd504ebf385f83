# SPDX-License-Identifier: Apache-2.0
"""What the measurements say: medians, ratios, bounds, and the table for people.

Nothing here runs a program, so that the arithmetic is tested with exact numbers.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SIDES = ("broker", "in-process", "bare", "driver", "least")
SCHEMA = "kvcached.bench.v1"


@dataclass(frozen=True)
class Timing:
    """Of one operation, in nanoseconds."""

    p50: float
    p99: float
    rounds: int

    @staticmethod
    def of(samples: Sequence[float]) -> Timing:
        ranked = sorted(samples)
        p99 = ranked[math.ceil(0.99 * len(ranked)) - 1]
        return Timing(round(statistics.median(ranked), 2), p99, len(ranked))


@dataclass(frozen=True)
class Place:
    """Under which circumstances something was measured."""

    costs: str
    cores: int
    pages: int


@dataclass
class Case:
    """All sides at one place; timings[side][operation], where the operation is "map" or "unmap"."""

    place: Place
    timings: dict[str, dict[str, Timing]]

    def p50(self, side: str, operation: str) -> float:
        return self.timings[side][operation].p50

    def ratio(self, operation: str) -> float:
        """Broker to in-process."""
        return self.p50("broker", operation) / self.p50("in-process", operation)

    def round_trips(self, side: str = "broker") -> float:
        """What a map takes beyond the driver's calls, in bare round trips. Of the least side: what no broker
        can be below here."""
        beyond = self.p50(side, "map") - self.p50("driver", "map")
        return beyond / self.p50("bare", "map")

    def floor(self) -> float:
        """What no broker can be below here, as a part of in-process."""
        return self.p50("least", "map") / self.p50("in-process", "map")


def parse_samples(place: Place, lines: Iterable[str]) -> Case:
    """From what bench-map prints: SIDE map|unmap PAGES NANOSECONDS."""
    samples: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        side, operation, pages, nanoseconds = line.split()
        if int(pages) != place.pages:
            raise ValueError(f"asked for {place.pages} pages, and got {pages}")
        samples[side][operation].append(int(nanoseconds))
    return Case(place, {s: {o: Timing.of(t) for o, t in by.items()} for s, by in samples.items()})


@dataclass(frozen=True)
class Bound:
    """A promise of the design, and whether it was kept here."""

    what: str
    costs: str
    cores: int
    value: float
    at_most: float
    unit: str = ""
    where: str = ""  # beside costs and cores
    why: str = ""  # it may be out of reach

    @property
    def met(self) -> bool:
        return self.value <= self.at_most


NOTHING_ELSE = "a round trip with the driver's calls in it, and nothing else, is"
TAKING_TURNS = "; the rest is the work of library and daemon, which take turns on that core"


def bounds_of(case: Case) -> Iterator[Bound]:
    place = case.place
    if place.pages == 1 and place.costs == "none":
        what = "one page: beyond the driver's calls, in bare round trips"
        why = f"{NOTHING_ELSE} {case.round_trips('least'):.3g}" + (TAKING_TURNS if place.cores == 1 else "")
        yield Bound(what, place.costs, place.cores, case.round_trips(), 1.5, why=why)
    if place.pages == 64 and place.costs in ("none", "a100"):
        what = "64 pages in one call, as a part of in-process"
        at_most = 1.2 if place.costs == "none" else 0.4
        why = f"{NOTHING_ELSE} {case.floor():.3g}"
        yield Bound(what, place.costs, place.cores, case.ratio("map"), at_most, why=why)


@dataclass(frozen=True)
class Series:
    """Sides that took turns in one program, which did something else than map pages."""

    what: str
    where: str
    timings: dict[str, Timing]


def series_bounds(series: Series) -> Iterator[Bound]:
    def bound(what: str, value: float, at_most: float, unit: str = "", why: str = "") -> Bound:
        return Bound(what, "none", 1, value, at_most, unit, series.where, why)

    p50 = {side: timing.p50 for side, timing in series.timings.items()}
    if series.what == "blocks" and "small" in p50:
        for side, pages in (("small", 16), ("large", 4096)):
            what = f"16 blocks allocated and freed, {pages} pages mapped"
            yield bound(what, p50[side] / 1000, 0.25, "us")
        why = f"a look at the coarse clock, which is a part of it, is {p50['clock']:.3g} here"
        yield bound("available blocks", p50["available"], 20, "ns", why)
    elif series.what == "blocks":
        why = (
            f"CPython's making and dropping of 16 numbers in a list alone is {p50['ints'] / 1000:.3g} us here"
        )
        yield bound("16 blocks allocated and freed", p50["alloc-free"] / 1000, 1, "us", why)
        why = f"a call of int() in the same loop is {p50['loop']:.3g} ns here"
        yield bound("available blocks", p50["available"], 100, "ns", why)
    elif series.what == "group":
        yield bound("a page in every worker, in bare chains", p50["group"] / p50["chain"], 2)
    elif series.what == "crowd":
        yield bound("one page, as a part of that without a crowd", p50["many"] / p50["few"], 1.3)
        yield bound("kvctl list", p50["list"] / 1e6, 10, "ms")
        yield bound("GET /metrics", p50["metrics"] / 1e6, 50, "ms")
        yield bound("GET /api/v1/state", p50["state"] / 1e6, 50, "ms")
        yield bound("a look of kvtop", p50["kvtop"] / 1e6, 50, "ms")
        what = "one page while kvtop and a status page look, as a part of that while nobody does"
        yield bound(what, p50["watched"] / p50["quiet"], 1.15)
        what = "one page in a storm of scrapes, as a part of that in a storm elsewhere"
        yield bound(what, p50["storm"] / p50["elsewhere"], 1.15)


# What must not speak to anybody, or not even to the kernel.
MESSAGE_CALLS = ("sendmsg", "recvmsg", "sendto", "recvfrom", "write", "read")


def block_calls_bounds(side: str, calls: dict[str, float]) -> Iterator[Bound]:
    if side == "remap":
        messages = sum(calls.get(name, 0) for name in MESSAGE_CALLS)
        yield Bound("messages for 1000 pages from the cache", "none", 1, messages, 0)
    else:
        yield Bound(f"system calls of 1000 calls, {side}", "none", 1, sum(calls.values()), 0)


def instruction_bounds(instructions: dict[str, float]) -> Iterator[Bound]:
    """Of one operation by side; these repeat, whatever else the machine does."""
    if "small" in instructions and "large" in instructions:
        what = "instructions for 16 blocks, 4096 pages mapped, as a part of those with 16"
        ratio = instructions["large"] / instructions["small"]
        yield Bound(what, "none", 1, ratio, 1.05, where="from C")


@dataclass(frozen=True)
class Live:
    """Times to first token of engines in real time, with memory enough for all: by way and percentile, in
    seconds; the median of the rounds."""

    costs: str
    rounds: int
    requests: int  # of each engine
    ttft_s: dict[str, dict[str, float]]

    def ratio(self, percentile: str) -> float:
        return self.ttft_s["elastic"][percentile] / self.ttft_s["hold"][percentile]


KINDS = {
    "whole": "answers in one piece",
    "paced": "streams at an engine's pace",
    "full": "streams as fast as they are taken",
}


@dataclass(frozen=True)
class Way:
    """To an engine: what clients saw of it. `first_byte`: of their requests. `rates`: of streams, tokens per
    second; `slow_rate` is that of the one which 99 of 100 were faster than. `in_all`: answers per second, or
    tokens, if they were streams."""

    first_byte: Timing
    rate: float | None
    slow_rate: float | None
    in_all: float

    @staticmethod
    def of(tokens: int, first_byte_s: Sequence[float], rates: Sequence[float], seconds: float) -> Way:
        slow = -Timing.of([-rate for rate in rates]).p99 if rates else None
        n = len(first_byte_s) * (tokens or 1)
        return Way(
            Timing.of([round(s * 1e9) for s in first_byte_s]),
            statistics.median(rates) if rates else None,
            slow,
            n / seconds,
        )


@dataclass(frozen=True)
class Proxied:
    """Both ways to an engine, with so many clients at once. `processor`: nanoseconds that the controller ran
    for an answer."""

    kind: str
    clients: int
    tokens: int  # of each answer; 0: in one piece
    direct: Way
    controller: Way
    processor: float

    def added(self) -> tuple[float, float]:
        """To the first byte: median and p99, nanoseconds."""
        there, here = self.direct.first_byte, self.controller.first_byte
        return here.p50 - there.p50, here.p99 - there.p99


@dataclass(frozen=True)
class SystemCalls:
    """For one page or more, mapped and unmapped once: by name, on either end."""

    pages: int
    client: dict[str, float]
    daemon: dict[str, float]


@dataclass
class Report:
    """Everything that one run found out."""

    version: str
    gpu: dict[str, Any]
    machine: dict[str, Any]
    judged: bool
    cases: list[Case] = field(default_factory=list)
    system_calls: list[SystemCalls] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    block_calls: dict[str, dict[str, float]] = field(default_factory=dict)
    instructions: dict[str, float] = field(default_factory=dict)
    extent_bytes: int | None = None
    live: Live | None = None
    proxied: list[Proxied] = field(default_factory=list)

    def bounds(self) -> list[Bound]:
        bounds = [bound for case in self.cases for bound in bounds_of(case)]
        bounds += [bound for series in self.series for bound in series_bounds(series)]
        for side, calls in self.block_calls.items():
            bounds += block_calls_bounds(side, calls)
        bounds += instruction_bounds(self.instructions)
        if self.extent_bytes is not None:
            what = "the daemon's memory for an extent"
            bounds.append(Bound(what, "none", 1, self.extent_bytes, 128, "bytes"))
        return bounds

    def failed(self) -> bool:
        return self.judged and any(not bound.met for bound in self.bounds())

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "version": self.version,
            "gpu": self.gpu,
            "machine": self.machine,
            "judged": self.judged,
            "results": [self._case_json(case) for case in self.cases],
            "system_calls": [asdict(calls) for calls in self.system_calls],
            "series": [asdict(series) for series in self.series],
            "block_calls": self.block_calls,
            "instructions": self.instructions,
            "live": asdict(self.live) if self.live else None,
            "controller": [asdict(one) for one in self.proxied],
            "bounds": [asdict(bound) | {"met": bound.met} for bound in self.bounds()],
        }

    @staticmethod
    def _case_json(case: Case) -> dict[str, Any]:
        sides = {
            side: {f"{operation}_ns": asdict(timing) for operation, timing in by.items()}
            for side, by in case.timings.items()
        }
        ratios = {
            "broker_to_in_process_map": case.ratio("map"),
            "broker_to_in_process_unmap": case.ratio("unmap"),
            "beyond_driver_in_bare_round_trips": case.round_trips(),
        }
        return asdict(case.place) | {"sides": sides, "ratios": ratios}


def microseconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1000:.1f}"


def device_line(gpu: dict[str, Any]) -> str:
    name = f"GPU {gpu['index']}: {gpu['name']}"
    return name + (", emulated: no number here is a GPU's" if gpu["emulated"] else "")


def case_rows(case: Case) -> Iterator[str]:
    for operation in ("map", "unmap"):
        cells = [f"{case.place.pages:>5} {operation:<5}"]
        for side in SIDES:
            timing = case.timings[side][operation]
            cells.append(f"{microseconds(timing.p50):>9} {microseconds(timing.p99):>9}")
        yield "  ".join(cells) + f"  {case.ratio(operation):8.2f}"


def place_lines(cases: list[Case]) -> Iterator[str]:
    costs, cores = cases[0].place.costs, cases[0].place.cores
    rounds = ", ".join(f"{c.timings['broker']['map'].rounds} of {c.place.pages}" for c in cases)
    yield f"driver's costs: {costs}; both ends on {'one core' if cores == 1 else 'a core each'}"
    yield f"  (microseconds, median and p99; rounds: {rounds} pages)"
    yield "            " + "  ".join(f"{side:>19}" for side in SIDES) + "  broker ÷"
    yield "pages       " + "  ".join(f"{'p50':>9} {'p99':>9}" for _ in SIDES) + "  in-proc."
    for case in cases:
        yield from case_rows(case)


def calls_lines(calls: SystemCalls) -> Iterator[str]:
    for end, counts in (("client", calls.client), ("daemon", calls.daemon)):
        names = ", ".join(
            f"{name} {n:.1f}" for name, n in sorted(counts.items(), key=lambda item: -item[1]) if n >= 0.05
        )
        yield f"  {calls.pages:>3} pages, {end}: {sum(counts.values()):.1f} ({names})"


def bound_line(bound: Bound, judged: bool) -> str:
    verdict = ("met" if bound.met else "MISSED") if judged else "not judged"
    where = bound.where or f"costs {bound.costs}, {'one core' if bound.cores == 1 else 'two cores'}"
    value = f"{bound.value:.3g} of {bound.at_most:g}{f' {bound.unit}' if bound.unit else ''}"
    line = f"  {verdict:<10} {value:>16}  {bound.what} ({where})"
    return f"{line}; {bound.why}" if judged and bound.why and not bound.met else line


def series_lines(series: Series) -> Iterator[str]:
    yield f"{series.what}, {series.where} (nanoseconds, median and p99)"
    for side, timing in series.timings.items():
        yield f"  {side:<12} {timing.p50:>12.1f} {timing.p99:>12.1f}   {timing.rounds} rounds"


def instruction_lines(instructions: dict[str, float]) -> Iterator[str]:
    yield "Instructions of one operation on blocks, from C:"
    if not instructions:
        yield "  not counted: valgrind is missing, or cannot run this here"
    for side, count in instructions.items():
        yield f"  {side:<12} {count:>12.1f}"


def live_lines(live: Live) -> Iterator[str]:
    yield f"time to first token with memory enough for all, costs {live.costs} (milliseconds;"
    yield f"  {live.requests} requests an engine, median of {live.rounds} rounds)"
    yield f"  {'':<5} {'all held':>10} {'elastic':>10}   elastic ÷ held"
    for percentile in live.ttft_s["hold"]:
        held, elastic = (live.ttft_s[way][percentile] * 1000 for way in ("hold", "elastic"))
        yield f"  {percentile:<5} {held:>10.1f} {elastic:>10.1f} {live.ratio(percentile):>8.2f}"


def milliseconds(timing: Timing) -> str:
    return f"{timing.p50 / 1e6:>8.2f} {timing.p99 / 1e6:>8.2f}"


def rate_lines(one: Proxied) -> Iterator[str]:
    there, here = one.direct, one.controller
    cells = [
        f"{one.clients:>9} ",
        f"{there.in_all:>9.0f} {here.in_all:>10.0f} {here.in_all / there.in_all:>6.2f}",
    ]
    if there.rate and here.rate:
        cells += [f"{way.rate:>9.1f} {way.slow_rate:>9.1f}" for way in (there, here)]
        cells += [f"{one.processor / 1000:>9.0f} {one.processor / 1000 / one.tokens:>8.1f}"]
    else:
        cells += [f"{one.processor / 1000:>9.0f}"]
    yield "  ".join(cells)


def proxied_lines(found: Sequence[Proxied]) -> Iterator[str]:
    yield "an engine asked through kvcached-controller and directly; it costs nothing itself, and is on one"
    yield "processor with the clients, the controller on another one"
    for kind, name in KINDS.items():
        of_kind = [one for one in found if one.kind == kind]
        if not of_kind:
            continue
        tokens = of_kind[0].tokens
        yield ""
        yield f"{name}{f', {tokens} tokens each' if tokens else ''}"
        yield "  first byte (milliseconds, median and p99)"
        yield f"  {'clients':>9}  {'direct':>17}  {'controller':>17}  {'added':>17}  requests"
        for one in of_kind:
            ways = f"{milliseconds(one.direct.first_byte)}  {milliseconds(one.controller.first_byte)}"
            added = " ".join(f"{ns / 1e6:>8.2f}" for ns in one.added())
            yield f"  {one.clients:>9}  {ways}  {added}  {one.controller.first_byte.rounds:>8}"
        yield from throughput_lines(of_kind)


def throughput_lines(of_kind: Sequence[Proxied]) -> Iterator[str]:
    streams = of_kind[0].tokens > 0
    what = "tokens" if streams else "answers"
    of_each = "; of a stream: median, and what 99 of 100 exceed, direct, controller" if streams else ""
    yield f"  {what} per second: direct, controller, ratio{of_each};"
    yield f"  microseconds of the controller's processor for an answer{', for a token' if streams else ''}"
    for one in of_kind:
        yield from rate_lines(one)


def text(report: Report) -> str:
    lines = [device_line(report.gpu), ""]
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in report.cases:
        groups.setdefault((case.place.costs, case.place.cores), []).append(case)
    for cases in groups.values():
        lines += [*place_lines(cases), ""]
    for series in report.series:
        lines += [*series_lines(series), ""]
    if report.live:
        lines += [*live_lines(report.live), ""]
    if report.proxied:
        lines += [*proxied_lines(report.proxied), ""]
    if report.cases:
        lines.append("System calls for mapping and unmapping once:")
        if not report.system_calls:
            lines.append("  not counted: strace is missing, or may not trace here")
        for calls in report.system_calls:
            lines += calls_lines(calls)
        lines.append("")
    if any(series.what == "blocks" for series in report.series):
        lines += [*instruction_lines(report.instructions), ""]
    lines.append("Bounds:")
    lines += [bound_line(bound, report.judged) for bound in report.bounds()]
    return "\n".join(lines)
