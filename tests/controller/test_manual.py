# SPDX-License-Identifier: Apache-2.0
"""The controller's manual lists what there is, all of it and nothing else."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase

from kvcached.controller import app, config, connections, discovery, document, errors, lifecycle, main, node
from kvcached.controller.actions import State
from kvcached.controller.balance import Balance
from kvcached.controller.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
MAN = (ROOT / "docs/man/kvcached-controller.1.scd").read_text()
# Sizes are said in units.
_SIZES = {32 << 20: "32M"}


def section(name: str) -> str:
    found = re.search(rf"^# {name}\n(.*?)(?=^# |\Z)", MAN, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


def entries(name: str) -> dict[str, str]:
    """What a section's terms say, by word; those that share a term say the same."""
    found = {}
    for term, text in re.findall(r"^(\*.*)\n((?:\t.*\n)+)", section(name), re.MULTILINE):
        for word in re.findall(r"\*([\w-]+)\*", term.split(": ")[0]):
            assert word not in found, word
            found[word] = " ".join(text.split())
    return found


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.parse_arguments(["--help"])
    assert ended.value.code == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
    listed = set(re.findall(r"\*(--?[a-z][\w-]*)\*", section("OPTIONS")))
    assert listed == known
    assert set(re.findall(r"\*(--[a-z][\w-]*)\*", section("SYNOPSIS"))) <= known


@pytest.mark.parametrize("where", ["router", "sleep_manager", "instances"])
def test_keys(where: str) -> None:
    """Each has its place, and says what holds without it."""
    defaults = {key: default for part, key, default in config.documented() if part == where}
    listed = entries(where)
    assert set(listed) == set(defaults)
    for key, default in defaults.items():
        says = said_default(listed[key])
        if where == "instances":
            assert (says is None) == (key in ("model", "engine")), key
            continue
        assert says is not None, key
        if isinstance(default, bool):
            assert says == str(default).lower(), key
        elif default is None:
            assert says.startswith("none"), key
        else:
            assert default is not MISSING
            assert says == _SIZES.get(default, str(default)), key  # type: ignore[call-overload]


def said_default(text: str) -> str | None:
    found = re.search(r"Default: (.*)\.$", text)
    assert found or text.endswith("No default."), text
    return found[1] if found else None


def test_sections() -> None:
    """Keys of the whole file are what it is read for."""
    with pytest.raises(document.ConfigError) as fault:
        config.parse("nonsense: 1", "c.yaml")
    known = str(fault.value).split("keys are ")[1].split(", ")
    assert set(entries("CONFIGURATION")) == set(known)


def test_signals_and_restarts() -> None:
    """What a reload cannot change is listed."""
    listed = set(re.findall(r"\*([a-z_]+)\*", section("SIGNALS")))
    assert listed == set(main.where(config.Router()))


def test_the_command_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the package, as it is installed."""
    project = (ROOT / "pyproject.toml").read_text()
    script = re.search(r'^kvcached-controller = "([\w.]+):(\w+)"$', project, re.MULTILINE)
    assert script
    module: Any = importlib.import_module(script[1])
    monkeypatch.setattr(main, "main", lambda: 42)
    assert getattr(module, script[2])() == 42


# ---- docs/CONTROLLER.md, and the examples ----

PAGE = (ROOT / "docs/CONTROLLER.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Cells of a section's table, its head left out."""
    part = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert part, heading
    rows = [line.strip("|").split("|") for line in part[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_metrics() -> None:
    """Each is in the table, with its type and its labels."""
    metrics = Metrics()
    known = {}
    for collector in vars(metrics).values():
        if isinstance(collector, MetricWrapperBase):
            (family,) = collector.describe()
            known[family.name] = (family.type, list(collector._labelnames))
    for family in metrics.told().collect():
        if isinstance(family, GaugeMetricFamily) and not family.name.startswith("process_"):
            known[family.name] = (family.type, list(family._labelnames))
    own = {f.name: f.type for f in metrics.told().collect() if f.name.startswith("process_")}
    assert {family.name for family in metrics.told().collect()} == {*known, *own}
    of_processes = (ROOT / "docs/METRICS.md").read_text()
    for name, kind in own.items():
        full = name + ("_total" if kind == "counter" else "")
        assert re.search(rf"^\| `{full}` \| {kind} \|", of_processes, re.MULTILINE), full
    listed = {}
    for name, kind, labels, meaning in table("Metrics"):
        assert meaning
        listed[name.strip("`")] = (kind, re.findall(r"`(\w+)`", labels))
    assert listed == {
        name + ("_total" if kind == "counter" else ""): (kind, labels)
        for name, (kind, labels) in known.items()
    }


def test_errors() -> None:
    listed = {code.strip("`"): (int(status), retry == "yes") for code, status, retry, _ in table("Errors")}
    assert listed == {code: (kind.status, kind.retry) for code, kind in errors.KINDS.items()}


def test_states() -> None:
    rows = table("States, and when a model changes them")
    assert [row[0].strip("`") for row in rows] == [state.value for state in State]


def test_fields_of_the_log() -> None:
    """What the access log may have, of a request."""
    source = inspect.getsource(app.Service._log)
    known = re.findall(r'^ +"(\w+)": [^{]', source, re.MULTILINE)
    assert known[0] == "request_id"
    assert [name for row in table("Logs") for name in re.findall(r"`(\w+)`", row[0])] == known


def test_numbers_that_the_page_names() -> None:
    for sentence in (
        f"After {lifecycle.BACKOFF_SECONDS:.0f} seconds, then 10, 20 and so on up to "
        f"{lifecycle.BACKOFF_MAX_SECONDS:.0f},",
        f"Engines are asked all {node.PROBE_SECONDS:.0f} seconds",
        f"looked up every {discovery.DNS_SECONDS:.0f} seconds",
        f"at most {connections.HEAD_BYTES >> 10} KiB in all, {connections.FIELD_BYTES >> 10} KiB a line",
        f"as many as {config.Router().max_connections} connections",
        f"{connections.needed(config.Router().max_connections)} descriptors",
    ):
        assert sentence in " ".join(PAGE.split())
    assert discovery.FILE_SECONDS == 1
    assert inspect.signature(Balance).parameters["failures_to_eject"].default == 3


def test_keys_that_the_page_names() -> None:
    """In a sentence: there are such."""
    known = {word for section, key, _ in config.documented() for word in (section, key)}
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE))
    rows = table("Logs") + table("Errors") + table("Metrics")
    others = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert named & known
    assert named - known <= others


@pytest.mark.parametrize("name", ["two-models", "serverless"])
def test_examples(name: str) -> None:
    path = ROOT / f"docs/examples/controller/{name}.yaml"
    found = config.parse(path.read_text(), path.name)
    assert len(found.models()) == len(found.instances) > 1
    assert found.sleep_manager.auto_sleep_enabled
    for instance in found.instances:
        assert instance.weight_bytes
        assert instance.min_kv_bytes
        # What each engine can't be put to sleep without; see engines.py.
        if instance.engine == "vllm":
            assert "--enable-sleep-mode" in instance.engine_args
            assert instance.engine_env == {"VLLM_SERVER_DEV_MODE": "1"}
        else:
            assert "--enable-memory-saver" in instance.engine_args
    open_to_all = found.router.router_host != "127.0.0.1"
    assert not open_to_all or (found.router.api_keys_file and found.router.admin_host == "127.0.0.1")


def test_all_examples_are_looked_at() -> None:
    names = sorted(path.name for path in (ROOT / "docs/examples/controller").iterdir())
    assert names == ["serverless.yaml", "two-models.yaml"]


def test_manifests_for_kubernetes() -> None:
    """What is configured there is in order, and where the manifest has it."""
    found = [*yaml.safe_load_all((ROOT / "packaging/kubernetes/controller.yaml").read_text())]
    by_kind = {item["kind"]: item for item in found if item["kind"] != "Service"}
    services = {item["metadata"]["name"]: item for item in found if item["kind"] == "Service"}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    arguments = main.parse_arguments(container["args"])
    ((name, text),) = by_kind["ConfigMap"]["data"].items()
    assert arguments.config == f"{folders['config']}/{name}"
    read = config.parse(text, name)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": read.router.router_port, "admin": read.router.admin_port}
    for file in (read.router.api_keys_file, read.router.admin_keys_file):
        assert file
        assert file.startswith(folders["keys"] + "/")
    for instance in read.instances:
        assert instance.dns
        service, namespace, _ = instance.dns[0].split(".")
        spec = services[service]
        assert (namespace, spec["spec"]["clusterIP"]) == (spec["metadata"]["namespace"], "None")
        assert [port["port"] for port in spec["spec"]["ports"]] == [instance.dns[1]]
    (change,) = yaml.safe_load_all((ROOT / "packaging/kubernetes/engine-sleep.yaml").read_text())
    (engine,) = change["spec"]["template"]["spec"]["containers"]
    words = engine["args"]
    assert words[words.index("--served-model-name") + 1] == read.instances[0].served_model_name
    assert words[words.index("--model") + 1] == read.instances[0].model
    assert "--enable-sleep-mode" in words
    assert {"name": "VLLM_SERVER_DEV_MODE", "value": "1"} in engine["env"]
    assert pod["terminationGracePeriodSeconds"] >= read.sleep_manager.queue_deadline_seconds
