# SPDX-License-Identifier: Apache-2.0
"""The configuration: what is read, and what is said of what cannot be."""

from __future__ import annotations

import contextlib
import random
from dataclasses import MISSING, FrozenInstanceError, fields
from typing import Any

import pytest
import yaml

from kvcached.controller import config, document
from kvcached.controller.config import Instance, Router, SleepManager, parse, parse_instances
from kvcached.controller.document import ConfigError

# A file as the existing controller has them.
REFERENCE = """\
kvcached: # environment of all instances
  kvcached_gpu_utilization: 0.95
  kvcached_page_prealloc_enabled: true
  kvcached_min_reserved_pages: 5
  kvcached_log_level: INFO

router:
  enable_router: true
  router_port: 8080
  router_host: localhost

sleep_manager:
  idle_threshold_seconds: 300        # 5 minutes
  check_interval_seconds: 60
  auto_sleep_enabled: false
  wakeup_on_request: true
  min_sleep_duration: 80

launch_delay_seconds: 10

instances:
  - name: instance1
    model: meta-llama/Llama-3.2-1B
    engine: vllm
    using_venv: true
    venv_path:  ../vllm/.venv
    kvcached_env:
      - "ENABLE_KVCACHED=true"
      - "KVCACHED_IPC_NAME=VLLM"
    engine_env:
      - "VLLM_SERVER_DEV_MODE=1" # so that it can sleep
      - "EMPTY="
      - "PAIR=a=b"
    engine_args:
      - "--no-enable-prefix-caching"
      - "--host=localhost"
      - "--port=12346"
      - "--gpu-memory-utilization 0.5"
      - "--enable-sleep-mode"

  - name: instance2
    model: Qwen/Qwen3-0.6B
    engine: sgl
    using_venv: false
    args: "--host 0.0.0.0 --port 30000 --served-model-name 'qwen small'"
"""


# Parts that are too long or empty, numbers that only some resolvers know, and what is no name at all.
NO_HOSTS = [
    *(f"{'h' * 64}.svc", ".a", "a..", "127.1", "2130706433", "1.0x7f"),
    *(".".join(["h" * 63] * 4), "ä,b"),
]


@pytest.fixture(params=["fast", "slow"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With libyaml and without it: what is read, and what is said, is the same."""
    if request.param == "slow":
        monkeypatch.setattr(document, "_FAST", None)
    else:
        assert document._FAST is not None


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.yaml")
    error = caught.value
    assert str(error).startswith(f"c.yaml:{error.line}: {error.key}")
    return str(error).removeprefix("c.yaml:")


def instance(lines: str) -> str:
    return f"instances:\n- {{model: m, engine: vllm, {lines}}}\n"


def one(lines: str) -> Instance:
    (found,) = parse(instance(lines), "c.yaml").instances
    return found


def test_reference() -> None:
    read = parse(REFERENCE, "c.yaml")
    assert read.kvcached == {
        "KVCACHED_GPU_UTILIZATION": "0.95",
        "KVCACHED_PAGE_PREALLOC_ENABLED": "true",
        "KVCACHED_MIN_RESERVED_PAGES": "5",
        "KVCACHED_LOG_LEVEL": "INFO",
    }
    assert read.router == Router(router_host="localhost")
    assert read.sleep_manager == SleepManager(min_sleep_duration=80)
    assert read.launch_delay_seconds == 10
    assert read.instances == (
        Instance(
            name="instance1",
            model="meta-llama/Llama-3.2-1B",
            engine="vllm",
            url="http://localhost:12346",
            served_model_name="meta-llama/Llama-3.2-1B",
            using_venv=True,
            venv_path="../vllm/.venv",
            kvcached_env={"ENABLE_KVCACHED": "true", "KVCACHED_IPC_NAME": "VLLM"},
            engine_env={"VLLM_SERVER_DEV_MODE": "1", "EMPTY": "", "PAIR": "a=b"},
            engine_args=(
                "--no-enable-prefix-caching",
                "--host=localhost",
                "--port=12346",
                "--gpu-memory-utilization",
                "0.5",
                "--enable-sleep-mode",
            ),
            ipc_name="VLLM",
        ),
        Instance(
            name="instance2",
            model="Qwen/Qwen3-0.6B",
            engine="sglang",
            url="http://127.0.0.1:30000",
            served_model_name="qwen small",
            engine_args=(
                "--host",
                "0.0.0.0",
                "--port",
                "30000",
                "--served-model-name",
                "qwen small",
            ),
            ipc_name="instance2",
        ),
    )


def test_ours() -> None:
    read = parse(
        """
router: {router_port: 0, admin_port: 8081, admin_host: "::1", api_keys_file: keys, max_body_bytes: 1M,
         connect_timeout_seconds: 2.5, discovery_file: more.yaml, metrics: off, admin_keys_file: null}
sleep_manager: {drain_timeout_seconds: 10, queue_max: 5, queue_deadline_seconds: 1.5, sleep_level: 2,
                auto_sleep_enabled: yes, turn_seconds: 0}
instances:
- {name: a, model: m, engine: SGLang, url: "https://h.example:8443/x/", served_model_name: s, api_key_env:
KEY,
   ipc_name: i, gpu: [1, 2], weight_bytes: 16G, min_kv_bytes: 1.5GB}
- {name: b, model: m, engine: vllm, dns: "engines.ns.svc:8000", gpu: 3}
""",
        "c.yaml",
    )
    assert read.router == Router(
        router_port=0,
        admin_port=8081,
        admin_host="::1",
        api_keys_file="keys",
        max_body_bytes=1 << 20,
        connect_timeout_seconds=2.5,
        discovery_file="more.yaml",
        metrics=False,
    )
    assert read.sleep_manager == SleepManager(
        drain_timeout_seconds=10,
        queue_max=5,
        queue_deadline_seconds=1.5,
        sleep_level=2,
        auto_sleep_enabled=True,
        turn_seconds=0,
    )
    first, second = read.instances
    assert (first.url, first.engine, first.served_model_name) == ("https://h.example:8443/x", "sglang", "s")
    assert (first.api_key_env, first.ipc_name, first.gpu) == ("KEY", "i", (1, 2))
    assert (first.weight_bytes, first.min_kv_bytes) == (16 << 30, 3 << 29)
    assert (second.url, second.dns, second.gpu) == (None, ("engines.ns.svc", 8000), (3,))


@pytest.mark.parametrize(
    ("lines", "more", "ipc_name"),
    [
        ("", "", "a"),
        ("ipc_name: i", "", "i"),
        ("ipc_name: null", "", None),
        ("kvcached_env: [KVCACHED_IPC_NAME=k]", "kvcached: {kvcached_ipc_name: all}", "k"),
        ("engine_env: [KVCACHED_IPC_NAME=e], kvcached_env: [KVCACHED_IPC_NAME=k]", "", "e"),
        ("", "kvcached: {kvcached_ipc_name: all}", "all"),
        ("ipc_name: i", "kvcached: {kvcached_ipc_name: all}", "i"),
    ],
)
def test_the_name_at_the_daemon(lines: str, more: str, ipc_name: str | None) -> None:
    """As kvcached-launch tells it to the engine."""
    text = f"{more}\ninstances: [{{name: a, model: m, engine: vllm, {lines}}}]"
    assert parse(text, "c.yaml").instances[0].ipc_name == ipc_name


def test_defaults() -> None:
    read = parse("instances: [{model: org/m, engine: vllm}]\nrouter:\nkvcached:\nsleep_manager: {}", "c.yaml")
    assert (read.router, read.sleep_manager) == (Router(), SleepManager())
    assert (read.kvcached, read.launch_delay_seconds) == ({}, 0)
    (only,) = read.instances
    assert (only.name, only.served_model_name, only.url) == ("m", "org/m", "http://127.0.0.1:8000")
    assert (only.gpu, only.weight_bytes, only.min_kv_bytes, only.venv_path) == ((0,), None, None, None)


def test_loopback_by_default() -> None:
    assert (Router().router_host, Router().admin_host) == ("127.0.0.1", "127.0.0.1")


def test_replicas() -> None:
    read = parse(
        """
instances:
- {name: a, model: m, engine: vllm, url: "http://h1:1"}
- {name: b, model: other, engine: vllm, url: "http://h2:1"}
- {name: c, model: /weights, engine: sgl, url: "http://h3:1", served_model_name: m}
""",
        "c.yaml",
    )
    models = read.models()
    assert {name: [i.name for i in replicas] for name, replicas in models.items()} == {
        "m": ["a", "c"],
        "other": ["b"],
    }


@pytest.mark.parametrize(
    ("args", "url"),
    [
        ("--port=1", "http://127.0.0.1:1"),
        ("--port 1 --port 2", "http://127.0.0.1:2"),
        ("--host ::1 --port 5", "http://[::1]:5"),
        ("--host '::'", "http://[::1]:8000"),
        ("--host=10.0.0.1", "http://10.0.0.1:8000"),
        ("--portable 9 --x--port=9", "http://127.0.0.1:8000"),
    ],
)
def test_where_an_engine_listens(args: str, url: str) -> None:
    assert one(f'engine_args: "{args}"').url == url


def test_url_counts_more_than_arguments() -> None:
    assert one('url: "http://other:9", engine_args: "--port 1"').url == "http://other:9"


def test_arguments() -> None:
    found = one("""engine_args: ["-a 'b c'", [--d, 1], "", e]""")
    assert found.engine_args == ("-a", "b c", "--d", "1", "e")
    assert one("engine_args: null").engine_args == ()


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("8G", 8 << 30), ("8gb", 8 << 30), ("512M", 512 << 20), ("0.5k", 512), ("1T", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert one(f"weight_bytes: {text}").weight_bytes == size


def test_text_is_as_it_is_written() -> None:
    """Whatever YAML would make of it."""
    found = one("name: 007, served_model_name: on, ipc_name: 1e3")
    assert (found.name, found.served_model_name, found.ipc_name) == ("007", "on", "1e3")
    assert parse("kvcached: {KVCACHED_X: Yes}\n" + instance("name: a"), "c").kvcached == {"KVCACHED_X": "Yes"}


@pytest.mark.parametrize(
    "host",
    [
        *(
            "h",
            "GPU-7",
            "a_b.svc.",
            f"{'h' * 63}.svc",
            ".".join(["h" * 63] * 3 + ["h" * 61]),
            "1.2.3.4",
            "7.gpu",
        ),
        *("bücher.example", "[::1]", "[fe80::1%eth0]"),
    ],
)
def test_hosts(host: str) -> None:
    assert one(f"url: 'http://{host}:1'").url == f"http://{host}:1"
    if host.isascii() and "[" not in host:
        assert one(f"dns: '{host}:1'").dns == (host, 1)


def test_merged_keys() -> None:
    read = parse(
        """
instances:
- &base {name: a, model: m, engine: vllm, url: "http://h:1", gpu: 1}
- {<<: *base, name: b, url: "http://h:2"}
""",
        "c.yaml",
    )
    assert [(i.name, i.url, i.gpu) for i in read.instances] == [
        ("a", "http://h:1", (1,)),
        ("b", "http://h:2", (1,)),
    ]


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        parse(REFERENCE, "c").router.router_port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # What isn't YAML, or isn't a configuration.
        ("a: [", "1: is not YAML: expected the node content, but found '<stream end>'"),
        ("a: 1\n b: 2", "2: is not YAML: mapping values are not allowed here"),
        ("a: *b", "1: is not YAML: found undefined alias 'b'"),
        ("--- a\n--- b", "2: is not YAML: but found another document"),
        ("x: \x01", "1: is not YAML: unacceptable character"),
        ("- a", "1: is a list, and must be a mapping of keys to values"),
        ("instances: &a [*a]", "1: instances[0] is a list, and must be a mapping of keys to values"),
        ("router: &a {<<: *a}", "1: is nested too deeply"),
        ("", "1: instances has no engine, and must be a list of them"),
        ("instances: []", "1: instances has no engine, and must be a list of them"),
        ("instances: {a: b}", "1: instances is a mapping, and must be a list of engines"),
        ("router: 5", '1: router is "5", and must be a mapping of keys to values'),
        # Keys.
        (
            "roter: {}",
            "1: roter is unknown (a mapping); keys are kvcached, router, sleep_manager, launch_delay",
        ),
        ("router:\n  port: 1", '2: router.port is unknown ("1"); keys are enable_router, router_port, '),
        ("router:\n  metrics: on\n  metrics: on", "3: router.metrics is given twice"),
        ("? [a]\n: b", '2: ? is unknown ("b")'),
        ("kvcached: {page_size: 2}", '1: kvcached.page_size is unknown ("2"); keys are kvcached_'),
        ("kvcached: {ENABLE_KVCACHED_X: 2}", '1: kvcached.ENABLE_KVCACHED_X is unknown ("2")'),
        ("kvcached: {kvcached_a: 2, KVCACHED_A: 3}", "1: kvcached.KVCACHED_A is given twice"),
        (
            "kvcached: {kvcached_a: [2]}",
            "1: kvcached.kvcached_a is a list, and must be text, a number, true or",
        ),
        # Numbers.
        (
            "router:\n\n  router_port: 65536",
            '3: router.router_port is "65536", and must be a whole number from 0',
        ),
        ("router: {router_port: -1}", '1: router.router_port is "-1", and must be a whole'),
        ("router: {router_port: 0x50}", '1: router.router_port is "0x50", and must be a whole'),
        ("router: {router_port: }", "1: router.router_port is empty, and must be a whole"),
        ("router: {metrics: 1}", '1: router.metrics is "1", and must be true or false'),
        ("router: {max_body_bytes: 12X}", '1: router.max_body_bytes is "12X", and must be a number of bytes'),
        (
            "router: {max_body_bytes: 1}",
            '1: router.max_body_bytes is "1", and must be a number of bytes, such',
        ),
        ("router: {max_body_bytes: 9999999999T}", '1: router.max_body_bytes is "9999999999T", and must be'),
        (
            "sleep_manager: {turn_seconds: .inf}",
            '1: sleep_manager.turn_seconds is ".inf", and must be a number',
        ),
        (
            "sleep_manager: {turn_seconds: -1}",
            '1: sleep_manager.turn_seconds is "-1", and must be a number of',
        ),
        (
            "sleep_manager: {wake_timeout_seconds: 0.0}",
            '1: sleep_manager.wake_timeout_seconds is "0.0", and must be a number of seconds above 0',
        ),
        (
            "sleep_manager: {sleep_level: 3}",
            '1: sleep_manager.sleep_level is "3", and must be a whole number',
        ),
        ("launch_delay_seconds: soon", '1: launch_delay_seconds is "soon", and must be a number of seconds'),
        # Instances.
        ("instances: [5]", '1: instances[0] is "5", and must be a mapping'),
        ("instances:\n- {engine: vllm}", "2: instances[0].model is missing, and must be text"),
        ("instances:\n- model: m", "2: instances[0].engine is missing, and must be vllm, sgl or sglang"),
        (
            "instances:\n- {model: m, engine: vllm}\n- model: m\n  engine: tgi",
            '4: instances[1].engine is "tgi", and must be vllm, sgl or sglang',
        ),
        (instance("model: ''"), "2: instances[0].model is given twice"),
        ("instances: [{model: '', engine: vllm}]", '1: instances[0].model is "", and must be text'),
        (
            'instances: [{model: "a\\nb", engine: vllm}]',
            '1: instances[0].model is "a\\nb", and must be text that',
        ),
        ("instances: [{model: 'a:b', engine: vllm}]", "1: instances[0].name is missing, and must be a name"),
        (instance("name: a/b"), '2: instances[0].name is "a/b", and must be a name of letters'),
        (instance("name: -a"), '2: instances[0].name is "-a", and must be a name of letters'),
        (instance("using_venv: true"), "2: instances[0].venv_path is missing, and must be a path"),
        (instance("kvcached_env: [A]"), '2: instances[0].kvcached_env[0] is "A", and must be NAME=VALUE'),
        (
            instance("engine_env: [A=1, 2=3]"),
            '2: instances[0].engine_env[1] is "2=3", and must be NAME=VALUE',
        ),
        (
            instance("engine_env: A=1"),
            '2: instances[0].engine_env is "A=1", and must be a list of NAME=VALUE',
        ),
        (instance("args: a, engine_args: b"), "2: instances[0].args is another word for engine_args"),
        (instance('''engine_args: "a 'b"'''), "No closing quotation"),
        (
            instance("engine_args: [[[a]]]"),
            "2: instances[0].engine_args[0][0] is a list, and must be a command",
        ),
        (instance("engine_args: {a: b}"), "2: instances[0].engine_args is a mapping, and must be a command"),
        (instance("engine_args: --port 0"), '2: instances[0].engine_args has --port "0", which must be'),
        (instance("engine_args: --port x"), '2: instances[0].engine_args has --port "x", which must be'),
        (instance("url: h:80"), '2: instances[0].url is "h:80", and must be the address of an engine'),
        (
            instance("url: 'http://h:99999'"),
            '2: instances[0].url is "http://h:99999", and must be the address',
        ),
        (instance("url: 'http://u:p@h:1'"), "2: instances[0].url is "),
        (instance("url: 'http://h:1/?a'"), "2: instances[0].url is "),
        (instance("url: 'ftp://h'"), "2: instances[0].url is "),
        (instance("url: 'http://[::1'"), "2: instances[0].url is "),
        (instance("url: 'http://h:0'"), '2: instances[0].url is "http://h:0", and must be the address'),
        (
            instance("url: 'http://a..b:1'"),
            '2: instances[0].url is "http://a..b:1", and must be the address of an engine, http://HOST:PORT, '
            "where HOST is an IP address, or a name of parts between dots, each of 1 to 63 letters",
        ),
        *((instance(f"url: 'http://{host}:1'"), "where HOST is an IP address") for host in NO_HOSTS),
        *((instance(f"dns: '{name}:1'"), "where NAME is an IP address") for name in NO_HOSTS[:-2]),
        (
            instance("engine_args: --host a..b"),
            '2: instances[0].engine_args has --host "a..b", which must be an IP address, or a name of parts',
        ),
        (
            instance("dns: name"),
            '2: instances[0].dns is "name", and must be a name that DNS knows, and a port',
        ),
        (instance("dns: 'n:0'"), '2: instances[0].dns is "n:0", and must be'),
        (instance("dns: 'n:1', url: 'http://h:1'"), "2: instances[0].dns is given, and url, too"),
        (
            instance("api_key_env: 'sk-1'"),
            '2: instances[0].api_key_env is "sk-1", and must be the name of an',
        ),
        (instance("gpu: [0, a]"), '2: instances[0].gpu[1] is "a", and must be a whole number from 0 to 1023'),
        (instance("gpu: []"), "2: instances[0].gpu is a list, and must be a whole number"),
        (instance("weight_bytes: 0"), '2: instances[0].weight_bytes is "0", and must be a number of bytes'),
        (
            "instances:\n- {name: a, model: m, engine: vllm}\n- {name: a, model: n, engine: sgl}",
            '3: instances[1].name is "a", as another instance\'s, and must be its own',
        ),
        (
            "instances:\n- {name: a, model: m, engine: vllm}\n- {name: b, model: n, engine: vllm}",
            "3: instances[1] is at http://127.0.0.1:8000, as a is, and must be elsewhere",
        ),
    ],
)
def test_problems(text: str, said: str) -> None:
    assert said in problem(text)


def test_discovery() -> None:
    assert parse("router: {discovery_file: d.yaml}", "c.yaml").instances == ()
    (found,) = parse_instances("instances: [{model: m, engine: vllm}]", "d.yaml")
    assert found == one("name: m")
    assert parse_instances("", "d.yaml") == parse_instances("instances:", "d.yaml") == ()
    with pytest.raises(ConfigError, match=r"d.yaml:1: router is unknown \(a mapping\); keys are instances"):
        parse_instances("router: {}", "d.yaml")


def test_documented() -> None:
    """Each field can be set, and each key is a field: what documented() lists is what there is."""
    listed = {(section, key): default for section, key, default in config.documented()}
    for section, made in (("router", Router), ("sleep_manager", SleepManager), ("instances", Instance)):
        named = {key for where, key in listed if where == section}
        assert named - {"args"} == {f.name for f in fields(made)}
    assert listed["router", "router_port"] == 8080
    assert listed["instances", "model"] is MISSING


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "[" * 101 + "]" * 101])
def test_depth(text: str) -> None:
    assert problem(text) == "1: is nested too deeply"


def test_the_slow_loader_is_for_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    events = yaml.parse

    def watched(text: str, **how: Any) -> Any:
        used.append(how["Loader"])
        return events(text, **how)

    monkeypatch.setattr(yaml, "parse", watched)
    parse(REFERENCE, "c.yaml")
    assert used == [document._FAST or yaml.SafeLoader]
    problem("a: b: c")
    assert used[-1] == yaml.SafeLoader


def test_any_damage_is_a_config_error(seed: int) -> None:
    rng, read = random.Random(seed), 0
    for _ in range(400):
        text = REFERENCE
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(text))
            new = rng.choice(
                ["", ":", "- ", "[", "{", "\n", "&a ", "*a", "'", "#", "\0", "<<", "null", "9" * 30]
            )
            text = text[:at] + new + text[at + rng.randrange(3) :]
        with contextlib.suppress(ConfigError):
            parse(text, "c.yaml")
            read += 1
    assert 0 < read < 400
