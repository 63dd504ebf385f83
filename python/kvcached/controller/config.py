# SPDX-License-Identifier: Apache-2.0
"""The controller's configuration: from YAML text to frozen dataclasses, or one sentence about what is wrong.

    kvcached:        {kvcached_log_level: INFO, ...}     environment of all engines, names in upper case
    router:          where the controller listens; see Router
    sleep_manager:   when models sleep and wake; see SleepManager
    launch_delay_seconds: 0
    instances:       [{name, model, engine, ...}, ...]   see Instance

Keys, and nesting, are those of the existing controller's file, which is read as it is; what is ours has
defaults. Instances with one served name are replicas of one model. An unknown key is an error, as is one that
is given twice. Nothing here looks outside: whether files exist, names resolve and engines answer is others'
business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from kvcached.controller import values
from kvcached.controller.document import ConfigError, Item, Reader, document
from kvcached.controller.places import HOST, is_host, place_of, shown_place

# Where an engine listens that is told nothing else.
ENGINE_PORTS = {"vllm": 8000, "sglang": 30000}
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
_IPC_NAME = "KVCACHED_IPC_NAME"


@dataclass(frozen=True)
class Router:
    enable_router: bool = True
    router_port: int = 8080
    router_host: str = "127.0.0.1"
    admin_port: int | None = None  # None: admin routes are on router_port
    admin_host: str = "127.0.0.1"
    api_keys_file: str | None = None
    admin_keys_file: str | None = None
    max_body_bytes: int = 32 << 20
    max_connections: int = 8192  # of clients, where descriptors suffice for as many
    head_timeout_seconds: float = 30  # for a request's head to arrive
    connect_timeout_seconds: float = 5
    idle_timeout_seconds: float = 600  # that an engine may be silent within an answer
    discovery_file: str | None = None
    metrics: bool = True


@dataclass(frozen=True)
class SleepManager:
    idle_threshold_seconds: float = 300
    check_interval_seconds: float = 60
    auto_sleep_enabled: bool = False
    wakeup_on_request: bool = True
    min_sleep_duration: float = 60  # seconds asleep before a request wakes; it waits meanwhile
    min_awake_seconds: float = 30  # before it sleeps again, unless an administrator says so
    turn_seconds: float = 30  # that a model with requests may keep others waiting for its memory
    queue_max: int = 1000  # requests that wait for one model
    queue_deadline_seconds: float = 120
    drain_timeout_seconds: float | None = None  # None: as long as it takes
    wake_timeout_seconds: float = 300
    sleep_level: int = 1


@dataclass(frozen=True)
class Instance:
    """One engine, or, with `dns`, as many as that name has addresses."""

    name: str
    model: str  # what the engine loads
    engine: str  # "vllm" or "sglang"
    url: str | None  # of the engine, without a slash at the end; None: see dns
    served_model_name: str  # what people ask for
    using_venv: bool = False
    venv_path: str | None = None
    kvcached_env: Mapping[str, str] = field(default_factory=dict)
    engine_env: Mapping[str, str] = field(default_factory=dict)
    engine_args: tuple[str, ...] = ()
    api_key_env: str | None = None  # the variable that has the engine's key
    ipc_name: str | None = None  # at its daemon; None: it has nothing to do with one
    gpu: tuple[int, ...] = (0,)
    weight_bytes: int | None = None
    min_kv_bytes: int | None = None
    dns: tuple[str, int] | None = None  # name and port


@dataclass(frozen=True)
class Config:
    instances: tuple[Instance, ...]
    kvcached: Mapping[str, str] = field(default_factory=dict)
    router: Router = field(default_factory=Router)
    sleep_manager: SleepManager = field(default_factory=SleepManager)
    launch_delay_seconds: float = 0

    def models(self) -> dict[str, tuple[Instance, ...]]:
        """By served name, in the file's order."""
        return by_model(self.instances)


def by_model(instances: tuple[Instance, ...]) -> dict[str, tuple[Instance, ...]]:
    found: dict[str, tuple[Instance, ...]] = {}
    for instance in instances:
        name = instance.served_model_name
        found[name] = (*found.get(name, ()), instance)
    return found


def parse(text: str, file: str) -> Config:
    """ConfigError: what is wrong first. `file` is only for its text."""
    readers: dict[str, Reader] = {
        "kvcached": values.kvcached,
        "router": lambda item: Router(**item.read(_ROUTER)),
        "sleep_manager": lambda item: SleepManager(**item.read(_SLEEP_MANAGER)),
        "launch_delay_seconds": values.seconds(),
        "instances": _instances,
    }
    config = Config(**{"instances": (), **_read(text, file, readers)})
    named = config.kvcached.get(_IPC_NAME)
    if named:
        instances = [replace(i, ipc_name=named) if i.ipc_name == i.name else i for i in config.instances]
        config = replace(config, instances=tuple(instances))
    if not config.instances and config.router.discovery_file is None:
        raise ConfigError(file, 1, "instances", "has no engine, and must be a list of them")
    return config


def parse_instances(text: str, file: str) -> tuple[Instance, ...]:
    """What a discovery file has: `instances` alone, which may be none."""
    found: tuple[Instance, ...] = _read(text, file, {"instances": _instances}).get("instances", ())
    return found


def _read(text: str, file: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    try:
        return document(text, file).read(readers)
    except RecursionError:
        raise ConfigError(file, 1, "", "is nested too deeply") from None


_ROUTER: dict[str, Reader] = {
    "enable_router": values.boolean,
    "router_port": values.whole(0, 65535),
    "router_host": values.text,
    "admin_port": values.or_null(values.whole(0, 65535)),
    "admin_host": values.text,
    "api_keys_file": values.or_null(values.text),
    "admin_keys_file": values.or_null(values.text),
    "max_body_bytes": values.size(1024),
    "max_connections": values.whole(1, 1000000),
    "head_timeout_seconds": values.seconds(positive=True),
    "connect_timeout_seconds": values.seconds(positive=True),
    "idle_timeout_seconds": values.seconds(positive=True),
    "discovery_file": values.or_null(values.text),
    "metrics": values.boolean,
}
_SLEEP_MANAGER: dict[str, Reader] = {
    "idle_threshold_seconds": values.seconds(),
    "check_interval_seconds": values.seconds(positive=True),
    "auto_sleep_enabled": values.boolean,
    "wakeup_on_request": values.boolean,
    "min_sleep_duration": values.seconds(),
    "min_awake_seconds": values.seconds(),
    "turn_seconds": values.seconds(),
    "queue_max": values.whole(1, 1000000),
    "queue_deadline_seconds": values.seconds(positive=True),
    "drain_timeout_seconds": values.or_null(values.seconds(positive=True)),
    "wake_timeout_seconds": values.seconds(positive=True),
    "sleep_level": values.whole(1, 2),
}
_INSTANCE: dict[str, Reader] = {
    "name": values.name,
    "model": values.text,
    "engine": values.engine,
    "using_venv": values.boolean,
    "venv_path": values.or_null(values.text),
    "kvcached_env": values.environment,
    "engine_env": values.environment,
    "engine_args": values.arguments,
    "args": values.arguments,
    "url": values.or_null(values.url),
    "served_model_name": values.or_null(values.text),
    "api_key_env": values.or_null(values.variable),
    "ipc_name": values.or_null(values.text),
    "gpu": values.gpu,
    "weight_bytes": values.or_null(values.size()),
    "min_kv_bytes": values.or_null(values.size()),
    "dns": values.or_null(values.dns),
}


def _instances(item: Item) -> tuple[Instance, ...]:
    names: set[str] = set()
    places: dict[str, str] = {}
    found = []
    for element in item.elements("a list of engines"):
        instance = _instance(element)
        if instance.name in names:
            element.child("name").fail(f'is "{instance.name}", as another instance\'s, and must be its own')
        names.add(instance.name)
        place = place_of(instance)
        if place in places:
            element.fail(f"is at {shown_place(instance)}, as {places[place]} is, and must be elsewhere")
        places[place] = instance.name
        found.append(instance)
    return tuple(found)


def _instance(item: Item) -> Instance:
    given = item.read(_INSTANCE)
    for key, accepted in (("model", "text"), ("engine", "vllm, sgl or sglang")):
        if key not in given:
            item.child(key).fail(f"is missing, and must be {accepted}")
    if "args" in given:
        if "engine_args" in given:
            item.child("args").fail("is another word for engine_args, which is given, too")
        given["engine_args"] = given.pop("args")
    if given.get("using_venv") and not given.get("venv_path"):
        item.child("venv_path").fail("is missing, and must be a path, since using_venv is true")
    if given.get("url") and given.get("dns"):
        item.child("dns").fail("is given, and url, too; one of them says where the engine is")
    if "name" not in given:
        given["name"] = given["model"].rstrip("/").rsplit("/", 1)[-1]
        if not values.NAME.fullmatch(given["name"]):
            item.child("name").fail("is missing, and must be a name, since the model's is none")
    arguments = given.get("engine_args", ())
    served = given.get("served_model_name") or _option(arguments, "--served-model-name") or given["model"]
    url = given.get("url")
    if url is None and given.get("dns") is None:
        url = _url_of_arguments(item, given["engine"], arguments)
    # kvcached-launch gives the engine this name, too.
    own = {**given.get("kvcached_env", {}), **given.get("engine_env", {})}
    ipc_name = given.get("ipc_name", own.get(_IPC_NAME) or given["name"])
    return Instance(**{**given, "url": url, "served_model_name": served, "ipc_name": ipc_name})


def _url_of_arguments(item: Item, engine: str, arguments: tuple[str, ...]) -> str:
    host = _option(arguments, "--host") or "127.0.0.1"
    host = _EVERY_ADDRESS.get(host, host)
    if not is_host(host):
        item.child("engine_args").fail(f"has --host {json.dumps(host[:60])}, which must be {HOST}")
    port = _option(arguments, "--port") or str(ENGINE_PORTS[engine])
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        item.child("engine_args").fail(f'has --port "{port}", which must be a whole number from 1 to 65535')
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _option(arguments: tuple[str, ...], name: str) -> str | None:
    """As the engine takes it: the last one counts."""
    found = None
    for word, following in zip(arguments, (*arguments[1:], None)):
        if word == name and following is not None:
            found = following
        elif word.startswith(f"{name}="):
            found = word[len(name) + 1 :]
    return found


def documented() -> Iterator[tuple[str, str, object]]:
    """(section, key, default) of every key but kvcached's, for whoever documents them. MISSING: it has
    none."""
    for section, readers, made in (
        ("router", _ROUTER, Router),
        ("sleep_manager", _SLEEP_MANAGER, SleepManager),
        ("instances", _INSTANCE, Instance),
    ):
        defaults = {f.name: f.default for f in fields(made)}
        for key in readers:
            yield section, key, defaults.get(key, MISSING)
