# SPDX-License-Identifier: Apache-2.0
"""The controller's metrics, as Prometheus sees them."""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from controller.live import Raw, eventually, run
from controller.standins.answers import completion
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Whole, running
from kvcached.controller.actions import State
from kvcached.controller.errors import KINDS
from kvcached.controller.metrics import Metrics

COMPLETIONS = "/v1/completions"
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's prometheus")


async def text_of(whole: Whole) -> str:
    return (await whole.ask("GET", "/metrics", at=whole.admin)).data.decode()


def check(text: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


async def live(whole: Whole, stand_in: VllmStandIn) -> None:
    """Of each kind of event one, as far as they make series of their own."""
    await whole.ask("POST", COMPLETIONS, completion("a", "x"))
    await whole.ask("POST", COMPLETIONS, {"model": 'quotes"\n and \\'})
    await whole.ask("POST", COMPLETIONS, data=b"{")
    raw = await Raw.open(whole.address)
    raw.writer.write(b"nonsense\r\n\r\n")
    assert (await raw.head())[0] == 400
    await raw.close()
    assert (await whole.act("sleep", "a")).status == 200
    stand_in.behaviour.wake_fails = True
    assert (await whole.ask("POST", COMPLETIONS, completion("a", "x"))).code == "wake_failed"
    stand_in.behaviour.wake_fails = False
    assert (await whole.act("wakeup", "a")).status == 200
    stand_in.behaviour.sleep_fails = True
    assert (await whole.act("sleep", "a")).status == 400
    stand_in.die()
    await eventually(lambda: whole.model("a").lifecycle.state is State.FAILED)


@needs_promtool
def test_promtool_has_nothing_to_say() -> None:
    """Neither before anything has happened nor after much has."""

    async def main() -> None:
        stand_in, odd = VllmStandIn(model="a"), 'odd "name" of\\a/model'
        async with running({"a": stand_in, odd: SglangStandIn(model=odd)}) as whole:
            check(await text_of(whole))
            await live(whole, stand_in)
            check(await text_of(whole))

    run(main())


def test_both_forms_are_what_they_say() -> None:
    """Of the same families, with nothing twice."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}, router={"admin_port": 0}) as whole:
            await live(whole, stand_in)
            text = await text_of(whole)
            old = [*text_string_to_metric_families(text)]
            answer = await whole.ask("GET", "/metrics", at=whole.admin, headers=OPENMETRICS)
            new = [*openmetrics.text_string_to_metric_families(answer.data.decode())]  # type: ignore[no-untyped-call]
            assert {f.name for f in old} == {f.name for f in new}
            for families in (old, new):
                samples = [(s.name, *sorted(s.labels.items())) for f in families for s in f.samples]
                assert len(samples) == len(set(samples))
            refused = {s.labels["code"] for f in new for s in f.samples if "_refusals" in s.name}
            assert {"invalid_http", "model_not_found", "invalid_json", "wake_failed"} <= refused <= set(KINDS)

    run(main())


def test_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of /proc is hidden, which is what the unit hides."""
    read_text = Path.read_text

    def read_own(path: Path) -> str:
        assert path.is_relative_to("/proc/self"), path
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", read_own)
    before = time.time()
    metrics = Metrics()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))

    def value(name: str) -> float:
        found = metrics.registry.get_sample_value(f"process_{name}")
        assert found is not None, name
        return found

    assert before <= value("start_time_seconds") <= time.time()
    assert 1 << 20 < value("resident_memory_bytes") < value("virtual_memory_bytes")
    assert value("cpu_seconds_total") > 0
    assert value("max_fds") == math.inf
    n_fds = value("open_fds")
    with Path(os.devnull).open():
        assert value("open_fds") == n_fds + 1


def test_what_alerts_look_at_begins_with_zero() -> None:
    """The first of a kind is an increase only then."""

    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            text = await text_of(whole)
            for series in (
                'wake_failures_total{model="a"}',
                'sleep_failures_total{model="a"}',
                'requests_total{model="a",outcome="failed"}',
                'reloads_total{result="failed"}',
                'refusals_total{code="internal_error",model=""}',
                'refusals_total{code="internal_error",model="a"}',
                'connections_ended_total{why="crowded"}',
            ):
                assert f"\nkvcached_controller_{series} 0.0\n" in text, series

    run(main())
