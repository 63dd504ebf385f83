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

import ipaddress
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import yaml

ENGINES = {"vllm": "vllm", "sgl": "sglang", "sglang": "sglang"}
# Where an engine listens that is told nothing else.
ENGINE_PORTS = {"vllm": 8000, "sglang": 30000}
# Parts of a name in DNS, and what some resolvers take for a number: 127.1, 0x7f000001.
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_HOST_CHARS = 253
_HOST = (
    "an IP address, or a name of parts between dots, each of 1 to 63 letters, digits, dashes and underscores"
)
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
_UNITS = {"": 0, "b": 0, "k": 10, "kb": 10, "m": 20, "mb": 20, "g": 30, "gb": 30, "t": 40, "tb": 40}
_FAST = getattr(yaml, "CSafeLoader", None)
_DEPTH = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_IPC_NAME = "KVCACHED_IPC_NAME"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# URLs of what `dns` names.
Addresses = Mapping[tuple[str, int], tuple[str, ...]]


class ConfigError(ValueError):
    """What is wrong. `key` is a path, as in instances[1].engine; empty: the whole file."""

    def __init__(self, file: str, line: int, key: str, problem: str) -> None:
        super().__init__(f"{file}:{line}: {key}{' ' if key else ''}{problem}")
        self.file, self.line, self.key, self.problem = file, line, key, problem


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


def address_of(url: str) -> str:
    """What all spellings of an engine's URL have in common. A name and its addresses have different ones; all
    that mean this machine have one."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return _address(parts.hostname or "", port) + unquote(parts.path).rstrip("/")


def _address(host: str, port: int) -> str:
    ip = _ip_address(host)
    if ip is None:
        host = host.removesuffix(".").encode("idna").decode().lower()
    else:
        ip = getattr(ip, "ipv4_mapped", None) or ip
        host = "localhost" if ip.is_unspecified or str(ip) in ("127.0.0.1", "::1") else str(ip)
    return f"[{host}]:{port}"


def _place(instance: Instance) -> str:
    return address_of(instance.url) if instance.url else _address(*instance.dns or ("", 0))


def _shown_place(instance: Instance) -> str:
    return instance.url or "{}:{}".format(*instance.dns or ())


def once_each(
    instances: tuple[Instance, ...], addresses: Addresses
) -> tuple[tuple[Instance, ...], Addresses, tuple[str, ...]]:
    """Who is at no engine of another's, and a sentence about each that is left out: two models that have one
    engine would put it to sleep under each other's requests. Who is named first has it, but what DNS answers
    counts only after all that is named."""
    owners: dict[str, Instance] = {}
    ignored = []

    def takes(instance: Instance, place: str, shown: str) -> bool:
        owner = owners.setdefault(place, instance)
        if owner is not instance:
            ignored.append(f"Instance {instance.name} is ignored at {shown}, for {owner.name} is there")
        return owner is instance

    kept = tuple(one for one in instances if takes(one, _place(one), _shown_place(one)))
    left: dict[tuple[str, int], tuple[str, ...]] = {}
    for instance in kept:
        if instance.dns:
            urls = {address_of(url): url for url in reversed(addresses.get(instance.dns, ()))}
            left[instance.dns] = tuple(
                url for place, url in reversed(urls.items()) if takes(instance, place, url)
            )
    return kept, left, tuple(ignored)


def parse(text: str, file: str) -> Config:
    """ConfigError: what is wrong first. `file` is only for its text."""
    readers: dict[str, _Reader] = {
        "kvcached": _kvcached,
        "router": lambda item: Router(**item.read(_ROUTER)),
        "sleep_manager": lambda item: SleepManager(**item.read(_SLEEP_MANAGER)),
        "launch_delay_seconds": _seconds(),
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


def _read(text: str, file: str, readers: Mapping[str, _Reader]) -> dict[str, Any]:
    try:
        return _document(text, file).read(readers)
    except RecursionError:
        raise ConfigError(file, 1, "", "is nested too deeply") from None


@dataclass(frozen=True)
class _Item:
    """A node of the file, and where it is."""

    file: str
    key: str
    node: yaml.Node | None  # None: of something that isn't there
    line: int

    def fail(self, problem: str) -> NoReturn:
        raise ConfigError(self.file, self.line, self.key, problem)

    def refuse(self, accepted: str) -> NoReturn:
        """The value isn't what is accepted."""
        self.fail(f"is {self.shown()}, and must be {accepted}")

    def shown(self) -> str:
        if isinstance(self.node, yaml.ScalarNode):
            return "empty" if self.is_null() else json.dumps(self.node.value[:60], ensure_ascii=False)
        return "a list" if isinstance(self.node, yaml.SequenceNode) else "a mapping"

    def is_null(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == "tag:yaml.org,2002:null"

    def child(self, key: str, node: yaml.Node | None = None) -> _Item:
        path = f"{self.key}{'.' if self.key and not key.startswith('[') else ''}{key}"
        return _Item(self.file, path, node, self.line if node is None else node.start_mark.line + 1)

    def scalar(self, accepted: str) -> str:
        """As it is written, whatever YAML takes it for: 007 is "007", and on is "on"."""
        if not isinstance(self.node, yaml.ScalarNode) or self.is_null():
            self.refuse(accepted)
        value: str = self.node.value
        return value

    def members(self) -> dict[str, _Item]:
        """Of a mapping, which may be empty."""
        if self.is_null():
            return {}
        if not isinstance(self.node, yaml.MappingNode):
            self.refuse("a mapping of keys to values")
        found: dict[str, _Item] = {}
        merged: dict[str, _Item] = {}
        for key_node, value_node in self.node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            item = self.child(key, value_node)
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged.update(_Item(self.file, self.key, value_node, item.line).members())
                continue
            if key in found:
                _Item(self.file, item.key, None, key_node.start_mark.line + 1).fail("is given twice")
            found[key] = item
        return {**merged, **found}

    def elements(self, accepted: str) -> list[_Item]:
        if self.is_null():
            return []
        if not isinstance(self.node, yaml.SequenceNode):
            self.refuse(accepted)
        return [self.child(f"[{i}]", node) for i, node in enumerate(self.node.value)]

    def read(self, readers: Mapping[str, _Reader]) -> dict[str, Any]:
        """The values of the keys that are given."""
        values = {}
        for key, item in self.members().items():
            if key not in readers:
                item.fail(f"is unknown ({item.shown()}); keys are {', '.join(readers)}")
            values[key] = readers[key](item)
        return values


_Reader = Callable[[_Item], Any]


def _document(text: str, file: str) -> _Item:
    try:
        node = _compose(text, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(file, line, "", f"is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(file, 1, "", f"is not YAML: {' '.join(str(error).split())}") from None
    return _Item(file, "", node or yaml.ScalarNode("tag:yaml.org,2002:null", ""), 1)


def _compose(text: str, file: str) -> yaml.Node | None:
    """libyaml is ten times as fast, where it is there; the other one says more clearly what is wrong, and the
    same everywhere."""
    if _FAST is not None:
        try:
            return _compose_with(_FAST, text, file)
        except yaml.YAMLError:
            pass
    return _compose_with(yaml.SafeLoader, text, file)


def _compose_with(loader: Any, text: str, file: str) -> yaml.Node | None:
    """Nodes are made by functions that call themselves, some of them in C: so depth is looked at before."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise ConfigError(file, event.start_mark.line + 1, "", "is nested too deeply")
    node: yaml.Node | None = yaml.compose(text, Loader=loader)
    return node


def _text(item: _Item) -> str:
    value = item.scalar("text")
    if not value.strip() or not value.isprintable():
        item.refuse("text that can be printed, and not empty")
    return value


def _boolean(item: _Item) -> bool:
    value = item.scalar("true or false").lower()
    if value not in ("true", "yes", "on", "false", "no", "off"):
        item.refuse("true or false")
    return value in ("true", "yes", "on")


def _whole(least: int, most: int) -> _Reader:
    accepted = f"a whole number from {least} to {most}"

    def read(item: _Item) -> int:
        value = item.scalar(accepted)
        if not re.fullmatch(r"[0-9]{1,18}", value) or not least <= int(value) <= most:
            item.refuse(accepted)
        return int(value)

    return read


def _seconds(positive: bool = False) -> _Reader:
    accepted = f"a number of seconds{' above 0' if positive else ', 0 or more'}"

    def read(item: _Item) -> float:
        value = item.scalar(accepted)
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or (positive and float(value) == 0):
            item.refuse(accepted)
        return float(value)

    return read


def _size(least: int = 1) -> _Reader:
    """As kvctl has it."""
    accepted = "a number of bytes, such as 8G, 512M or 1.5GB"

    def read(item: _Item) -> int:
        match = re.fullmatch(r"([0-9]{1,18})(\.[0-9]{1,18})?([a-zA-Z]*)", item.scalar(accepted))
        if not match or match[3].lower() not in _UNITS:
            item.refuse(accepted)
        unit = 1 << _UNITS[match[3].lower()]
        value = int(match[1]) * unit + math.floor(float(match[2] or 0) * unit)
        if not least <= value < 1 << 63:
            item.refuse(f"{accepted}, from {least}")
        return value

    return read


def _or_null(reader: _Reader) -> _Reader:
    return lambda item: None if item.is_null() else reader(item)


def _engine(item: _Item) -> str:
    value = item.scalar("vllm, sgl or sglang").lower()
    if value not in ENGINES:
        item.refuse("vllm, sgl or sglang")
    return ENGINES[value]


def _name(item: _Item) -> str:
    accepted = "a name of letters, digits, dots, dashes and underscores, 64 at most"
    value = item.scalar(accepted)
    if not _NAME.fullmatch(value):
        item.refuse(accepted)
    return value


def _variable(item: _Item) -> str:
    value = item.scalar("the name of an environment variable")
    if not _VARIABLE.fullmatch(value):
        item.refuse("the name of an environment variable")
    return value


def _kvcached(item: _Item) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in item.members().items():
        name = key.upper()
        if not _VARIABLE.fullmatch(name) or not re.match(r"KVCACHED_|ENABLE_KVCACHED$", name):
            value.fail(
                f"is unknown ({value.shown()}); keys are kvcached_..., environment variables of kvcached"
            )
        if name in found:
            value.fail("is given twice")
        found[name] = value.scalar("text, a number, true or false")
    return found


def _environment(item: _Item) -> dict[str, str]:
    found = {}
    for element in item.elements("a list of NAME=VALUE"):
        name, equals, value = element.scalar("NAME=VALUE").partition("=")
        if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
            element.refuse("NAME=VALUE")
        found[name] = value
    return found


def _arguments(item: _Item) -> tuple[str, ...]:
    """One text, or a list of them, each of words as a shell splits them."""
    accepted = "a command line's arguments, as text or a list of texts"
    if isinstance(item.node, yaml.SequenceNode):
        found = []
        for element in item.elements(accepted):
            inner = isinstance(element.node, yaml.SequenceNode)
            for part in element.elements(accepted) if inner else [element]:
                found += _words(part, accepted)
        return tuple(found)
    return () if item.is_null() else tuple(_words(item, accepted))


def _words(item: _Item, accepted: str) -> list[str]:
    try:
        return shlex.split(item.scalar(accepted))
    except ValueError as error:
        item.refuse(f"{accepted} ({error})")


def _url(item: _Item) -> str:
    accepted = "the address of an engine, http://HOST:PORT"
    value = item.scalar(accepted).rstrip("/")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        item.refuse(accepted)
    odd = parts.query or parts.fragment or "@" in parts.netloc or not value.isprintable() or " " in value
    odd = odd or not {".", ".."}.isdisjoint(unquote(parts.path).split("/"))
    if parts.scheme not in ("http", "https") or not host or port == 0 or odd:
        item.refuse(accepted)
    if not _is_host(host):
        item.refuse(f"{accepted}, where HOST is {_HOST}")
    return value


def _dns(item: _Item) -> tuple[str, int]:
    accepted = "a name that DNS knows, and a port: NAME:PORT"
    match = re.fullmatch(r"([A-Za-z0-9._-]{1,253}):([0-9]{1,5})", item.scalar(accepted))
    if not match or not 1 <= int(match[2]) <= 65535:
        item.refuse(accepted)
    if not _is_host(match[1]):
        item.refuse(f"{accepted}, where NAME is {_HOST}")
    return match[1], int(match[2])


def _is_host(text: str) -> bool:
    """Whether it can be looked up, and has one meaning only."""
    if _ip_address(text):
        return True
    if len(text) > _HOST_CHARS:
        return False
    try:
        name = text.removesuffix(".").encode("idna").decode()
    except UnicodeError:
        return False
    labels = name.split(".")
    fits = len(name) <= _HOST_CHARS and all(_LABEL.fullmatch(label) for label in labels)
    return fits and not _NUMBER.fullmatch(labels[-1])


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _gpu(item: _Item) -> tuple[int, ...]:
    one = _whole(0, 1023)
    if isinstance(item.node, yaml.SequenceNode) and item.node.value:
        return tuple(one(element) for element in item.elements("a list of GPUs"))
    return (one(item),)


_ROUTER: dict[str, _Reader] = {
    "enable_router": _boolean,
    "router_port": _whole(0, 65535),
    "router_host": _text,
    "admin_port": _or_null(_whole(0, 65535)),
    "admin_host": _text,
    "api_keys_file": _or_null(_text),
    "admin_keys_file": _or_null(_text),
    "max_body_bytes": _size(1024),
    "max_connections": _whole(1, 1000000),
    "head_timeout_seconds": _seconds(positive=True),
    "connect_timeout_seconds": _seconds(positive=True),
    "idle_timeout_seconds": _seconds(positive=True),
    "discovery_file": _or_null(_text),
    "metrics": _boolean,
}
_SLEEP_MANAGER: dict[str, _Reader] = {
    "idle_threshold_seconds": _seconds(),
    "check_interval_seconds": _seconds(positive=True),
    "auto_sleep_enabled": _boolean,
    "wakeup_on_request": _boolean,
    "min_sleep_duration": _seconds(),
    "min_awake_seconds": _seconds(),
    "turn_seconds": _seconds(),
    "queue_max": _whole(1, 1000000),
    "queue_deadline_seconds": _seconds(positive=True),
    "drain_timeout_seconds": _or_null(_seconds(positive=True)),
    "wake_timeout_seconds": _seconds(positive=True),
    "sleep_level": _whole(1, 2),
}
_INSTANCE: dict[str, _Reader] = {
    "name": _name,
    "model": _text,
    "engine": _engine,
    "using_venv": _boolean,
    "venv_path": _or_null(_text),
    "kvcached_env": _environment,
    "engine_env": _environment,
    "engine_args": _arguments,
    "args": _arguments,
    "url": _or_null(_url),
    "served_model_name": _or_null(_text),
    "api_key_env": _or_null(_variable),
    "ipc_name": _or_null(_text),
    "gpu": _gpu,
    "weight_bytes": _or_null(_size()),
    "min_kv_bytes": _or_null(_size()),
    "dns": _or_null(_dns),
}


def _instances(item: _Item) -> tuple[Instance, ...]:
    names: set[str] = set()
    places: dict[str, str] = {}
    found = []
    for element in item.elements("a list of engines"):
        instance = _instance(element)
        if instance.name in names:
            element.child("name").fail(f'is "{instance.name}", as another instance\'s, and must be its own')
        names.add(instance.name)
        place = _place(instance)
        if place in places:
            element.fail(f"is at {_shown_place(instance)}, as {places[place]} is, and must be elsewhere")
        places[place] = instance.name
        found.append(instance)
    return tuple(found)


def _instance(item: _Item) -> Instance:
    values = item.read(_INSTANCE)
    for key, accepted in (("model", "text"), ("engine", "vllm, sgl or sglang")):
        if key not in values:
            item.child(key).fail(f"is missing, and must be {accepted}")
    if "args" in values:
        if "engine_args" in values:
            item.child("args").fail("is another word for engine_args, which is given, too")
        values["engine_args"] = values.pop("args")
    if values.get("using_venv") and not values.get("venv_path"):
        item.child("venv_path").fail("is missing, and must be a path, since using_venv is true")
    if values.get("url") and values.get("dns"):
        item.child("dns").fail("is given, and url, too; one of them says where the engine is")
    if "name" not in values:
        values["name"] = values["model"].rstrip("/").rsplit("/", 1)[-1]
        if not _NAME.fullmatch(values["name"]):
            item.child("name").fail("is missing, and must be a name, since the model's is none")
    arguments = values.get("engine_args", ())
    served = values.get("served_model_name") or _option(arguments, "--served-model-name") or values["model"]
    url = values.get("url")
    if url is None and values.get("dns") is None:
        url = _url_of_arguments(item, values["engine"], arguments)
    # kvcached-launch gives the engine this name, too.
    own = {**values.get("kvcached_env", {}), **values.get("engine_env", {})}
    ipc_name = values.get("ipc_name", own.get(_IPC_NAME) or values["name"])
    return Instance(**{**values, "url": url, "served_model_name": served, "ipc_name": ipc_name})


def _url_of_arguments(item: _Item, engine: str, arguments: tuple[str, ...]) -> str:
    host = _option(arguments, "--host") or "127.0.0.1"
    host = _EVERY_ADDRESS.get(host, host)
    if not _is_host(host):
        item.child("engine_args").fail(f"has --host {json.dumps(host[:60])}, which must be {_HOST}")
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
