#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts what the stages of ./dev test did.

The reports are JUnit files, of pytest or of "meson test". Meson's leaves something out: a TAP program that
passed its tests and then crashed, ran out of time or printed no plan has only passed cases there; the verdict
on the program stands in testlog.json beside it. A stage that failed without a failed case (it did not build,
or the runner broke) counts as one failure, so that nothing can go wrong and still sum up to zero.

    summary.py stage STAGES NAME STATUS SECONDS LOG REPORT   note a stage, print its line; 1 if it failed
    summary.py close STAGES                                  print failures and the sum; 1 if there are any
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path

BAD_RESULTS = {"FAIL", "ERROR", "TIMEOUT", "INTERRUPT", "UNEXPECTEDPASS"}
TAIL_LINES = 40


@dataclass
class Counts:
    """Test cases of one report, or of several."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, name: str) -> None:
        self.failed += 1
        self.failures.append(name)

    def __str__(self) -> str:
        text = f"{self.passed} passed, {self.failed} failed"
        return f"{text}, {self.skipped} skipped" if self.skipped else text


def count_junit(report: Path) -> Counts:
    counts = Counts()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            counts.fail(f"{case.get('classname')}: {case.get('name')}")
        elif case.find("skipped") is not None:
            counts.skipped += 1
        else:
            counts.passed += 1
    return counts


def count_meson_verdicts(log: Path, counts: Counts) -> None:
    """Adds the programs that failed though each of their cases, as far as they got, passed."""
    for line in log.read_text(errors="replace").splitlines():
        test = json.loads(line)
        # The report has its cases as "project.NAME: case", or itself as "project: NAME".
        name = test["name"]
        known = any(f".{name}: " in failure or failure.endswith(f": {name}") for failure in counts.failures)
        if test["result"] in BAD_RESULTS and not known:
            counts.fail(f"{name}: the program itself ({test['result'].lower()})")


def count_stage(status: int, report: Path | None) -> Counts:
    """report is None for a stage that runs no test cases, such as a build."""
    counts = Counts()
    if report is not None and report.exists():
        try:
            counts = count_junit(report)
            verdicts = report.with_name(report.name.replace(".junit.xml", ".json"))
            if verdicts.exists():
                count_meson_verdicts(verdicts, counts)
        except (ElementTree.ParseError, json.JSONDecodeError) as error:
            counts.fail(f"{report} cannot be read: {error}")
    if status != 0 and not counts.failed:
        counts.fail(f"exit status {status}")
    return counts


def note_stage(stages: Path, name: str, status: int, seconds: int, log: Path, report: Path | None) -> bool:
    counts = count_stage(status, report)
    counts.failures = [f"{name}: {failure}" for failure in counts.failures]
    verdict = str(counts) if report is not None else "FAILED" if counts.failed else "ok"
    print(f"{verdict} ({seconds // 60}:{seconds % 60:02})", flush=True)
    if counts.failed:
        tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        print("\n".join([f"--- the end of {log}:", *tail, "---"]), flush=True)
    with stages.open("a") as file:
        file.write(json.dumps(asdict(counts)) + "\n")
    return not counts.failed


def close(stages: Path) -> bool:
    total = Counts()
    for line in stages.read_text().splitlines():
        part = Counts(**json.loads(line))
        total.passed += part.passed
        total.skipped += part.skipped
        total.failed += part.failed
        total.failures += part.failures
    if total.failures:
        print("Failed:")
    for failure in total.failures:
        print(f"    {failure}")
    print(total, flush=True)
    return not total.failed


def main(arguments: list[str]) -> int:
    match arguments:
        case ["stage", stages, name, status, seconds, log, report]:
            path = None if report == "-" else Path(report)
            return 0 if note_stage(Path(stages), name, int(status), int(seconds), Path(log), path) else 1
        case ["close", stages]:
            return 0 if close(Path(stages)) else 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
