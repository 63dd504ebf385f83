# SPDX-License-Identifier: Apache-2.0
"""The sum at the end of ./dev test must not hide anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import summary

PASSED = '<testcase classname="kvcached.kvcached:unit / pool" name="a"/>'
FAILED = '<testcase classname="kvcached.kvcached:unit / pool" name="b"><failure/></testcase>'
ERRED = '<testcase classname="kvcached.kvcached:unit / pool" name="c"><error/></testcase>'
SKIPPED = '<testcase classname="kvcached.kvcached:unit / pool" name="d"><skipped/></testcase>'


def write_report(folder: Path, *cases: str) -> Path:
    report = folder / "testlog.junit.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return report


def write_verdict(folder: Path, name: str, result: str) -> None:
    (folder / "testlog.json").write_text(json.dumps({"name": name, "result": result}) + "\n")


def test_every_case_counts(tmp_path: Path) -> None:
    report = write_report(tmp_path, PASSED, PASSED, FAILED, ERRED, SKIPPED)
    counts = summary.count_stage(1, report)
    assert str(counts) == "2 passed, 2 failed, 1 skipped"
    assert counts.failures == ["kvcached.kvcached:unit / pool: b", "kvcached.kvcached:unit / pool: c"]


def test_a_stage_that_breaks_is_one_failure(tmp_path: Path) -> None:
    assert summary.count_stage(2, tmp_path / "absent.xml").failed == 1
    assert summary.count_stage(1, None).failed == 1
    assert summary.count_stage(1, write_report(tmp_path, PASSED)).failed == 1
    assert summary.count_stage(0, None).failed == 0


def test_a_report_cut_short_is_a_failure(tmp_path: Path) -> None:
    report = tmp_path / "testlog.junit.xml"
    report.write_text("<testsuites><testsuite>")
    assert summary.count_stage(0, report).failed == 1


@pytest.mark.parametrize("result", ["ERROR", "TIMEOUT", "FAIL"])
def test_a_program_that_dies_after_its_tests_passed_counts(tmp_path: Path, result: str) -> None:
    report = write_report(tmp_path, PASSED)
    write_verdict(tmp_path, "kvcached:unit / pool", result)
    assert summary.count_stage(1, report).failures == [
        f"kvcached:unit / pool: the program itself ({result.lower()})"
    ]


def test_a_failed_case_is_not_counted_again_for_its_program(tmp_path: Path) -> None:
    report = write_report(tmp_path, PASSED, FAILED)
    write_verdict(tmp_path, "kvcached:unit / pool", "FAIL")
    assert str(summary.count_stage(1, report)) == "1 passed, 1 failed"


def test_close_sums_the_stages_and_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, log = tmp_path / "stages", tmp_path / "log"
    log.write_text("what went wrong\n")
    assert summary.note_stage(stages, "unit", 0, 61, log, write_report(tmp_path, PASSED, SKIPPED))
    assert not summary.note_stage(stages, "build", 1, 2, log, None)
    shown = capsys.readouterr().out
    assert "1 passed, 0 failed, 1 skipped (1:01)" in shown
    assert "what went wrong" in shown
    assert not summary.close(stages)
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed, 1 skipped"
