# SPDX-License-Identifier: Apache-2.0
"""Metrics as Prometheus sees them, and what is written about them."""

from __future__ import annotations

import contextlib
import http
import json
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.broker import Daemon, Programs, eventually
from harness.control import open_control
from harness.raw import start_holder, start_raw
from harness.web import Web, start_web

ROOT = Path(__file__).parents[2]
RULES = ROOT / "packaging/prometheus/kvcached.rules.yaml"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's prometheus")


def check(*command: str, given: str | None = None) -> str:
    done = subprocess.run(["promtool", *command], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def busy(programs: Programs) -> Web:
    """With something to say: instances, refusals, a limit that is exceeded, somebody lost, a stranger."""
    daemon, web = start_web(programs, budget="256M")
    holder = start_holder(programs, daemon, "holder", 40)
    lost = start_holder(programs, daemon, "lost", 2)
    programs.kvctl("limit", "holder", "16M", daemon=daemon)
    holder.request("Take", region=1, pages=1).check_refused("ERROR_LIMIT")
    lost.kill()
    stranger = start_raw(programs, daemon, "stranger")
    stranger.connect()
    stranger.packet(b"nonsense")
    return web


# ---- Forms ----


@needs_promtool
def test_promtool_has_nothing_to_say(busy: Web) -> None:
    assert check("check", "metrics", given=busy.get("/metrics").text) == ""


def test_openmetrics_form(busy: Web) -> None:
    """Each family is declared once, before its samples, which are together and have suffixes of its type."""
    suffixes = {
        "gauge": {""},
        "counter": {"_total", "_created"},
        "histogram": {"_bucket", "_count", "_sum", "_created"},
        "info": {"_info"},
    }
    family, kind = "", ""
    seen: set[str] = set()
    lines = busy.get("/metrics", Accept=OPENMETRICS).text.splitlines()
    assert lines[-1] == "# EOF"
    for line in lines[:-1]:
        words = line.split(" ")
        if words[:2] == ["#", "HELP"]:
            assert words[2] not in seen, line
            family = words[2]
            seen.add(family)
        elif words[:2] == ["#", "TYPE"]:
            assert words[2] == family
            kind = words[3]
        elif words[:2] == ["#", "UNIT"]:
            assert words[2] == family
            assert family.endswith(f"_{words[3]}")
        else:
            name = re.match(r"[a-z0-9_]+", line)
            assert name, line
            assert name[0].startswith(family), line
            assert name[0].removeprefix(family) in suffixes[kind], line


# ---- What is written ----


def families(text: str) -> dict[str, str]:
    """Type by name, of the older format."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def test_every_metric_is_documented(busy: Web) -> None:
    """And everything that is documented exists, as that type."""
    manual = (ROOT / "docs/METRICS.md").read_text()
    documented = dict(re.findall(r"^\| `([a-z_]+)` \| (\w+) \|", manual, re.MULTILINE))
    assert families(busy.get("/metrics").text) == documented


def test_every_label_value_is_documented(busy: Web) -> None:
    manual = (ROOT / "docs/METRICS.md").read_text()
    lines = {line.split("`")[1]: line for line in manual.splitlines() if line.startswith("| `")}
    for name, labels in busy.get("/metrics").samples():
        family = re.sub(r"_(bucket|count|sum)$", "", name)
        for label, value in labels:
            if label in ("state", "reason", "call", "cause", "socket"):
                assert f"`{value}`" in lines[family], (name, label, value)


def keys_of(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def test_every_key_of_the_state_is_documented(busy: Web) -> None:
    manual = (ROOT / "docs/STATE-JSON.md").read_text()
    parts = re.split(r"^## ", manual, flags=re.MULTILINE)
    documented = [
        {
            key
            for cell in re.findall(r"^\| (`[^|]+) \|", part, re.MULTILINE)
            for key in re.findall(r"`(\w+)`", cell)
        }
        for part in parts
    ]
    state = busy.get("/api/v1/state").json()
    assert keys_of(state) == documented[0]
    assert keys_of(state["instances"][0]) == documented[1]
    assert keys_of(state["events"][0]) == documented[2]
    kinds = set(
        re.findall(r"`(\w+)`", next(line for line in manual.splitlines() if line.startswith("| `kind`")))
    )
    schema = (ROOT / "proto/kvcached.proto").read_text()
    known = {name.lower() for name in re.findall(r"^  EVENT_(\w+) = \d+;", schema, re.MULTILINE)}
    assert kinds - {"kind"} == known - {"unspecified"}


# ---- Rules and dashboard ----


@needs_promtool
def test_rules(tmp_path: Path) -> None:
    assert "SUCCESS: 36 rules found" in check("check", "rules", str(RULES))
    shutil.copy(RULES, tmp_path)
    shutil.copy(ROOT / "tests/prometheus/kvcached.rules.test.yaml", tmp_path)
    assert "SUCCESS" in check("test", "rules", str(tmp_path / "kvcached.rules.test.yaml"))


def alerts() -> dict[str, str]:
    """Alerts and the section of the manual that each names."""
    found = {}
    for part in RULES.read_text().split("- alert: ")[1:]:
        manual = re.search(r"manual: (\S+)", part)
        assert manual, part
        found[part.split("\n")[0]] = manual[1]
    return found


def test_every_alert_is_explained() -> None:
    """And tested both ways; every section is about an alert that there is."""
    operations = (ROOT / "docs/OPERATIONS.md").read_text()
    sections = re.split(r"^### ", operations.split("\n## Alerts\n")[1].split("\n## ")[0], flags=re.MULTILINE)[
        1:
    ]
    assert [section.split("\n")[0] for section in sections] == list(alerts())
    assert alerts() == {name: f"docs/OPERATIONS.md#{name.lower()}" for name in alerts()}
    for section in sections:
        assert "\n\nDo: " in section, section
    tests = (ROOT / "tests/prometheus/kvcached.rules.test.yaml").read_text()
    for name in alerts():
        assert f'alertname="{name}"' in tests, name


def known_series(web: Web) -> set[str]:
    recorded = set(re.findall(r"- record: (\S+)", RULES.read_text()))
    return {name for name, _ in web.get("/metrics").samples()} | controllers_series() | recorded | {"up"}


def controllers_series() -> set[str]:
    """As the controller's manual has them, which its own tests compare with what there is."""
    manual = (ROOT / "docs/CONTROLLER.md").read_text()
    found = set()
    for name, kind in re.findall(r"^\| `(kvcached_controller_[a-z_]+)` \| (\w+) \|", manual, re.MULTILINE):
        found |= {name + end for end in (("_bucket", "_count", "_sum") if kind == "histogram" else ("",))}
    assert len(found) > 20
    return found


def used_series(expression: str) -> set[str]:
    """Names of series in an expression: what isn't a label, a function, a keyword or a string."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expression)
    bare = re.sub(r"\{[^}]*\}", " ", re.sub(r"(by|without) \([^)]*\)", "", bare))
    return set(re.findall(r"\b(?:kvcached|process)[a-z0-9_:]*\b|\bup\b", bare))


def expressions() -> list[str]:
    dashboard = json.loads((ROOT / "packaging/grafana/kvcached.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_rules_and_dashboard_use_series_that_exist(busy: Web) -> None:
    known = known_series(busy)
    rules = re.findall(r"^ +expr: (.+)$", RULES.read_text(), re.MULTILINE)
    assert len(expressions()) >= 20
    for expression in expressions() + rules:
        used = used_series(expression)
        assert used, expression
        assert used <= known, (expression, used - known)


@needs_promtool
def test_dashboard_expressions_parse(tmp_path: Path) -> None:
    """promtool reads them as recording rules."""
    lines = ["groups:", "  - name: dashboard", "    rules:"]
    for number, expression in enumerate(expressions()):
        plain = expression.replace("$__rate_interval", "1m")
        for variable in ("$gpu", "$controller"):
            plain = plain.replace(variable, ".*")
        assert "$" not in plain
        lines += [f"      - record: panel:{number}", f"        expr: {json.dumps(plain)}"]
    path = tmp_path / "dashboard.yaml"
    path.write_text("\n".join(lines) + "\n")
    assert f"SUCCESS: {len(expressions())} rules found" in check("check", "rules", str(path))


def test_dashboard_panels_do_not_overlap() -> None:
    dashboard = json.loads((ROOT / "packaging/grafana/kvcached.json").read_text())
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


# ---- A real Prometheus ----


class Prometheus:
    """One that scrapes a daemon ten times a second, with the rules, in memory and on loopback."""

    def __init__(self, folder: Path, target: str) -> None:
        shutil.copy(RULES, folder)
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 100ms, evaluation_interval: 100ms}\n"
            f"rule_files: [{RULES.name}]\n"
            "scrape_configs:\n"
            f'  - {{job_name: kvcached, static_configs: [{{targets: ["{target}"]}}]}}\n'
        )
        command = ["prometheus", f"--config.file={folder}/prometheus.yml"]
        command += [f"--storage.tsdb.path={folder}/data", "--web.listen-address=127.0.0.1:0"]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self.port = eventually(self.listening_port)
        except AssertionError:
            self.process.kill()
            self.process.wait()
            raise AssertionError(self.log.read_text()) from None

    def listening_port(self) -> int | None:
        """The TCP port at which it listens, when it does."""
        sockets = set()
        for fd in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                sockets.add(str(fd.readlink()).removeprefix("socket:[").removesuffix("]"))
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:
                return int(words[1].split(":")[1], 16)
        return None

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        url = f"http://127.0.0.1:{self.port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                found = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:  # it is not ready yet
                return []
            raise
        return [(series["metric"], float(series["value"][1])) for series in found]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log.read_text()


@pytest.fixture
def prometheus(busy: Web) -> Iterator[Prometheus]:
    folder = Path(tempfile.mkdtemp(prefix="kvcached-prometheus-", dir="/dev/shm"))
    running = Prometheus(folder, busy.address)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Debian's prometheus")
def test_prometheus_scrapes_it(busy: Web, prometheus: Prometheus) -> None:
    """Everything arrives, under the names that it has, and the rules see it."""
    eventually(lambda: prometheus.query("up") and prometheus.query("up")[0][1] == 1)
    (holder,) = eventually(lambda: prometheus.query('kvcached_instance_used_bytes{ipc="holder"}'))
    assert holder[1] == 80 << 20
    assert holder[0]["instance"] == busy.address
    eventually(lambda: prometheus.query('ALERTS{alertname="KvcachedInstanceOverLimit"}'))
    scraped = {labels["__name__"] for labels, _ in prometheus.query('{job="kvcached"}')}
    expected = {name for name, _ in busy.get("/metrics").samples()}
    assert expected <= scraped
    assert prometheus.query("scrape_samples_scraped")[0][1] > len(expected)


# ---- Many ----


def test_a_thousand_instances(programs: Programs) -> None:
    """All are there; what they cost is for ./dev bench to say."""
    daemon, web = start_web(programs)
    control = open_control(programs, daemon)
    for number in range(1100):
        control.request("SetLimit", instance=f"i{number}", bytes=number << 20)
    eventually(lambda: web.get("/metrics").sample("kvcached_instances") == 1100)
    samples = web.get("/metrics").samples()
    limits = [labels for name, labels in samples if name == "kvcached_instance_limit_bytes"]
    assert len(limits) == 1024 + 1
    assert frozenset({("domain", ""), ("ipc", "_other")}) in limits
    assert len(web.get("/api/v1/state").json()["instances"]) == 1100
    assert_bounded(daemon, web)


def assert_bounded(daemon: Daemon, web: Web) -> None:
    """Asking often leaves nothing behind."""
    status = Path(f"/proc/{daemon.pid}/statm")

    def resident() -> int:
        for _ in range(20):
            assert web.get("/metrics").status == 200
        return int(status.read_text().split()[1])

    before = [resident() for _ in range(3)][-1]
    after = [resident() for _ in range(5)][-1]
    assert after < 2 * before
