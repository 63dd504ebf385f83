# SPDX-License-Identifier: Apache-2.0
"""The controller under a real systemd: started, reloaded, stopped, killed, and what it may do."""

from __future__ import annotations

import json
import re
from typing import Any

from vm.conftest import CONTROLLERS, HOLD
from vm.node import Node

UNIT = "kvcached-controller.service"
CONFIG = "/etc/kvcached/controller.yaml"
URL = "http://127.0.0.1:8080"
ENGINE = "http://127.0.0.1:8001"
ASK = json.dumps({"model": "llama", "prompt": "hello"})


def configure(node: Node, *models: str, router: dict[str, Any] | None = None, **instance: Any) -> None:
    """All of them at the one engine that there is, each by a name of its own."""
    hosts = ["127.0.0.1", "127.0.0.2"]
    instances = [
        {"name": model, "model": model, "engine": "vllm", "url": f"http://{host}:8001", **instance}
        for model, host in zip(models, hosts, strict=False)
    ]
    sleep = {"min_sleep_duration": 0, "min_awake_seconds": 0}
    text = {"router": router or {}, "sleep_manager": sleep, "instances": instances}
    node.write(CONFIG, json.dumps(text))


def pid(node: Node) -> int:
    return int(node.show(UNIT, "MainPID"))


def status(node: Node, path: str, *options: str) -> str:
    return node.run(f"curl -s -o /dev/null -w '%{{http_code}}' {' '.join(options)} {URL}{path}")


def models(node: Node) -> list[str]:
    return [card["id"] for card in node.ask(f"curl -s {URL}/v1/models").json()["data"]]


def begin(node: Node) -> None:
    """Until it knows how the engine is."""
    node.run(f"systemctl start {UNIT}")
    node.eventually(f"curl -s {URL}/health/llama | grep -q awake")


def ask(node: Node) -> str:
    return node.run(f"curl -s --fail-with-body -d '{ASK}' {URL}/v1/completions")


def warnings(node: Node) -> str:
    return node.run(
        f"journalctl --sync; journalctl --quiet --output=cat --priority=warning --unit={UNIT} "
        f"--after-cursor='{node.cursor}'"
    )


def test_what_the_manual_says(controlled: Node) -> None:
    """Its commands, in their order, once the package is installed. It serves when it has been started."""
    node = controlled
    for command in CONTROLLERS[3:]:
        said = node.run(f"cd /opt/kvcached-test && {command}")
        if "enable --now" in command:
            assert models(node) == ["llama", "qwen"]
    assert "Listening on http://127.0.0.1:8080 (user)" in said
    assert "The configuration was read" in node.log(UNIT)
    assert node.run(f"systemctl is-enabled {UNIT}") == "enabled"
    node.eventually(f"curl -s {URL}/health/llama | grep -q awake")
    answer = ask(node)
    assert "heard hello" in answer
    assert answer.endswith("[DONE]\n")
    done = node.ask(f"systemd-analyze verify --man=no {UNIT}")
    assert (done.rc, done.out, done.err) == (0, "", "")


def test_what_it_may_do(controlled: Node) -> None:
    node = controlled
    configure(node, "llama")
    node.run(f"systemctl start {UNIT}")
    ask(node)
    process = pid(node)
    user, group, groups = node.run(f"ps -o user:32=,group:32=,supgrp:64= {process}").split()
    assert user == group == "kvcached-controller"
    assert set(groups.split(",")) == {"kvcached", "kvcached-controller"}
    about = dict(
        line.split(":\t", 1) for line in node.run(f"cat /proc/{process}/status").splitlines() if ":\t" in line
    )
    assert {about[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (about["NoNewPrivs"], about["Seccomp"]) == ("1", "2")
    for folder in (
        "/",
        "/etc/kvcached",
        "/usr/local/bin",
        "/opt/kvcached",
        "/var/lib",
        "/run/kvcached",
        "/run/lock",
    ):
        done = node.ask(f"nsenter --target {process} --mount touch {folder}/new")
        assert done.rc != 0, folder
        assert "Read-only file system" in done.err
    assert node.run(f"nsenter --target {process} --mount ls /home").split() == []
    # Most of /proc is hidden from it.
    (n_descriptors,) = re.findall(r"^process_max_fds (\S+)$", node.run(f"curl -s {URL}/metrics"), re.M)
    assert float(n_descriptors) == 524288
    exposed = node.ask(f"systemd-analyze security --no-pager --threshold=25 {UNIT}")
    assert exposed.rc == 0, exposed.out
    assert warnings(node) == ""


def test_reload(controlled: Node) -> None:
    """One that has an error in it fails, and says so; what was, stays."""
    node = controlled
    configure(node, "llama")
    node.run(f"systemctl start {UNIT}")
    process = pid(node)
    configure(node, "llama", "qwen")
    node.run(f"systemctl reload {UNIT}")
    node.eventually(f"curl -s {URL}/v1/models | grep -q qwen")
    node.write(CONFIG, "instances: 3")
    assert node.ask(f"systemctl reload {UNIT}").rc != 0
    assert f"{CONFIG}:1: instances is" in node.log(UNIT)
    assert node.is_active(UNIT)
    assert models(node) == ["llama", "qwen"]
    configure(node, "qwen")
    node.run(f"systemctl reload {UNIT}")
    node.eventually(f"! curl -s {URL}/v1/models | grep -q llama")
    assert (pid(node), node.show(UNIT, "NRestarts")) == (process, "0")


def test_a_stop_finishes_what_was_accepted(controlled: Node) -> None:
    node = controlled
    configure(node, "llama")
    node.run(f"systemctl start {UNIT}; touch {HOLD}")
    node.run(
        "rm -f /run/answer; "
        "systemd-run --quiet --unit=engine-client --property=StandardOutput=file:/run/answer "
        f"curl -sN --fail-with-body -d '{ASK}' {URL}/v1/completions"
    )
    node.eventually("grep -q begun /run/answer")
    node.run(f"systemctl stop --no-block {UNIT}")
    node.eventually(f"curl -s {URL}/health; test $? = 7")
    assert node.show(UNIT, "ActiveState") == "deactivating"
    assert "heard" not in node.run("cat /run/answer")
    node.run(f"rm {HOLD}")
    node.eventually(f"test $(systemctl show -P ActiveState {UNIT}) = inactive")
    assert node.run("cat /run/answer").endswith("[DONE]\n")
    assert (node.show(UNIT, "Result"), node.show(UNIT, "ExecMainStatus")) == ("success", "0")
    assert node.show("engine-client.service", "Result") == "success"


def test_sigkill(controlled: Node) -> None:
    """Another one comes, and finds out that the model sleeps."""
    node = controlled
    configure(node, "llama")
    begin(node)
    node.run(f"curl -s --fail-with-body -X POST {URL}/action/sleep/llama")
    killed = pid(node)
    node.run(f"kill -KILL {killed}")
    node.eventually(f"test $(systemctl show -P NRestarts {UNIT}) = 1 && systemctl is-active --quiet {UNIT}")
    assert pid(node) not in (0, killed)
    assert "heard hello" in ask(node)
    node.eventually(f"curl -s {ENGINE}/is_sleeping | grep -q false")


def test_keys(controlled: Node) -> None:
    """They are the controller's user's to read."""
    node = controlled
    keys = "/etc/kvcached/keys"
    configure(node, "llama", router={"api_keys_file": keys})
    node.write(keys, "secret")
    node.run(f"chmod 0600 {keys}")
    assert node.ask(f"systemctl start {UNIT}").rc != 0
    assert f"{keys} cannot be read: Permission denied" in node.log(UNIT)
    node.run(f"systemctl stop {UNIT}; install -m 0400 -o kvcached-controller {keys} {keys}.new")
    node.run(f"mv {keys}.new {keys}; systemctl start {UNIT}")
    assert status(node, "/v1/models") == "401"
    assert status(node, "/v1/models", "-H 'Authorization: Bearer secret'") == "200"


def test_room_is_reserved(controlled: Node) -> None:
    """With the daemon of the GPU, which lets the controller's user ask."""
    node = controlled
    configure(node, "llama", ipc_name="llama", weight_bytes="256M", min_kv_bytes="64M")
    node.run("systemctl start kvcachedd@0.service")
    begin(node)
    for action in ("sleep", "wakeup"):
        node.run(f"curl -s --fail-with-body -X POST {URL}/action/{action}/llama")
    made = node.run("curl -s http://127.0.0.1:9470/metrics | grep ^kvcached_reservations_total")
    assert made == "kvcached_reservations_total 1"
    assert "heard hello" in ask(node)
    assert warnings(node) == ""
