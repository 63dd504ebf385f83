# SPDX-License-Identifier: Apache-2.0
"""Engines' own servers, as kvcached-launch starts them, on the emulated GPU of a daemon; and a controller in
front of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from controller.launching import free_port, with_environment
from controller.live import eventually, post
from controller.process import Process, controller
from engines.conftest import SLOW_S, SharedSite
from harness.blocks import used_bytes
from harness.broker import Programs, Result, Site, run_program
from harness.broker import eventually as eventually_sync

TESTS = Path(__file__).resolve().parents[1]
MARK = "ENGINES_TEST_MARK"
BUDGET, PAGE = 96 << 20, 2 << 20
# A request of so many tokens is under way for much longer than a look at it takes.
MAX_TOKENS = 1900
VLLM_ARGUMENTS = (
    "--max-model-len 2048 --max-num-seqs 16 --enforce-eager --seed 0 --dtype float32 --block-size 32"
)


@dataclass
class Server:
    """An engine of a Fleet. key: that its /v1 asks for."""

    name: str
    model: Path
    port: int
    engine: str = "vllm"
    arguments: str = ""
    key: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def instance(self, venv: Path) -> dict[str, Any]:
        environment = [f"VLLM_API_KEY={self.key}"] if self.key else []
        return {
            "name": self.name,
            "model": str(self.model),
            "served_model_name": self.name,
            "engine": self.engine,
            "engine_args": f"--port {self.port} {self.arguments}",
            "engine_env": environment,
            "using_venv": True,
            "venv_path": str(venv),
            "ipc_name": self.name,
        }

    # ---- The server itself, without the controller ----

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body; 0: nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SLOW_S) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as reply:
            return reply.code, reply.read()
        except OSError:
            return 0, b""

    def is_healthy(self) -> bool:
        return self.ask("GET", "/health")[0] == 200

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        status, data = self.ask("GET", "/metrics")
        assert status == 200
        families = text_string_to_metric_families(data.decode())
        return [(s.name, s.labels, s.value) for family in families for s in family.samples]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of those that have these labels."""
        return sum(v for n, has, v in self.samples() if n == name and labels.items() <= has.items())

    def running(self) -> float:
        """Requests, as it counts them."""
        return self.metric(
            {"vllm": "vllm:num_requests_running", "sglang": "sglang:num_running_reqs"}[self.engine]
        )


@dataclass
class Fleet:
    """Engines of one configuration. package: a folder with kvcached, for PYTHONPATH."""

    site: Site
    programs: Programs
    folder: Path
    package: Path
    venv: Path
    servers: dict[str, Server] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.daemon = self.programs.daemon("256M", budget=str(BUDGET))
        self.config = self.folder / "engines.yaml"
        self.state = self.folder / "state"

    def add(self, name: str, model: Path, **options: Any) -> Server:
        self.servers[name] = Server(name, model, free_port(), **options)
        return self.servers[name]

    def configure(self, **sections: Any) -> None:
        instances = [server.instance(self.venv) for server in self.servers.values()]
        self.config.write_text(json.dumps({**sections, "instances": instances}))

    def variables(self) -> dict[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join([str(self.package), str(self.folder), str(TESTS)]),
            "KVCACHED_SOCKET": str(self.daemon.socket),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            MARK: str(self.folder),
            **self.environment,
        }

    def launch(self, *words: str) -> Result:
        command = [sys.executable, "-m", "kvcached.controller.launch.main", "--state-dir", str(self.state)]
        command += ["--config", str(self.config), *words]
        return run_program(command, self.site.environment(**self.variables()), SLOW_S)

    def status(self, name: str) -> dict[str, Any]:
        (found,) = self.launch("status", name, "--json").json()
        return dict(found)

    def record(self, name: str) -> dict[str, Any]:
        """As status has it, and sooner."""
        return dict(json.loads((self.state / name / "record.json").read_text()))

    def start(self) -> Result:
        """Returns when all answer."""
        done = self.launch("start")
        assert done.rc == 0, done.err
        self.serve(*self.servers)
        return done

    def serve(self, *names: str) -> None:
        """Waits until they answer."""

        def serves(name: str) -> bool:
            if self.servers[name].is_healthy():
                return True
            assert self.record(name)["state"] != "failed", self.log(name)
            return False

        for name in names:
            eventually_sync(lambda name=name: serves(name), SLOW_S)  # type: ignore[misc]

    def serve_again(self, name: str) -> None:
        """Waits for an engine that is being started again."""
        if not self.servers[name].ask("GET", "/v1/models")[0]:
            self.serve(name)

    def log(self, name: str) -> str:
        return self.launch("logs", name, "--lines", "60").out

    def used_bytes(self, name: str) -> int:
        """Of the daemon's memory."""
        return used_bytes(lambda *words: self.programs.kvctl(*words, daemon=self.daemon), name)

    def is_back(self, name: str) -> bool:
        """Whether the engine has no memory of the daemon's. What is only held ready for it is listed as used
        by it until somebody else wants it: so somebody does."""
        others = sum(self.used_bytes(other) for other in self.servers if other != name)
        pages = (BUDGET - others) // PAGE
        peer = self.programs.peer(self.daemon, "other")
        try:
            peer.do("open")
            peer.do(f"region kv page={PAGE} pages={pages}")
            return peer.ask(f"map kv 0-{pages - 1}").startswith("ok") and self.used_bytes(name) == 0
        finally:
            peer.close()

    def gives_back(self, name: str) -> None:
        """Its memory: at the latest when a busy machine has let all of its processes do so."""
        eventually_sync(lambda: self.is_back(name))

    def left(self) -> list[int]:
        """Processes that were begun by commands of this fleet, or by these."""
        return with_environment(f"{MARK}={self.folder}")

    def end(self) -> None:
        done = self.launch("--kill-all")
        assert done.rc == 0, done.err
        assert self.left() == []


@contextmanager
def fleets(build: Path, package: Path) -> Iterator[Callable[[str, Path, str], Fleet]]:
    """make(python, venv, entry points): each with a GPU, a daemon and a folder of its own."""
    made: list[Fleet] = []

    def make(python: str, venv: Path, lines: str) -> Fleet:
        folder = Path(tempfile.mkdtemp(prefix="kvc-", dir="/tmp"))
        memory = Path(tempfile.mkdtemp(prefix="kvcached-test-", dir="/dev/shm"))
        site = SharedSite(build=build, run=folder, emulate_dir=memory / "devices")
        entry_points(folder, python, lines)
        made.append(Fleet(site, Programs(site), folder, package, venv))
        return made[-1]

    yield make
    for fleet in made:
        fleet.end()
        fleet.programs.end()
        shutil.rmtree(fleet.folder)
        shutil.rmtree(fleet.site.emulate_dir.parent)


def entry_points(folder: Path, python: str, lines: str) -> None:
    """What is installed beside an engine, as far as it must be: vLLM's package for CPUs has another name, by
    which its own command doesn't find it."""
    about = folder / "kvcached_tests-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kvcached-tests\nVersion: 0\n")
    (about / "entry_points.txt").write_text(lines)
    code = "from importlib import metadata; print(metadata.version('vllm-cpu'))"
    version = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    if version:
        about = folder / f"vllm-{version}+cpu.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


# ---- A controller in front ----


def completion(model: str, prompt: Sequence[int], tokens: int = 40, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }


def answers_of(data: bytes) -> list[Any]:
    """What a complete answer says, as a whole or as a stream."""
    if not data.startswith(b"data: "):
        return [json.loads(data)]
    *chunks, end, nothing = data.split(b"\n\n")
    assert (end, nothing) == (b"data: [DONE]", b""), data[-300:]
    return [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]


def tokens_of(data: bytes) -> list[int]:
    """Of a complete answer of vLLM's."""
    return [
        token for answer in answers_of(data) for choice in answer["choices"] for token in choice["token_ids"]
    ]


def text_of(data: bytes) -> str:
    """Of a complete answer to completion()."""
    return "".join(str(choice["text"]) for answer in answers_of(data) for choice in answer["choices"])


@dataclass
class Front:
    """A controller, and a client of it."""

    process: Process
    session: aiohttp.ClientSession
    address: str

    async def answer(self, model: str, prompt: Sequence[int], tokens: int = 40, **more: Any) -> bytes:
        """Of a completion, which must come."""
        body = completion(model, prompt, tokens, **more)
        status, data = await post(self.session, f"{self.address}/v1/completions", body)
        assert status == 200, data
        return data

    async def complete(self, model: str, prompt: Sequence[int], tokens: int = 40, **more: Any) -> list[int]:
        """Tokens of vLLM's answer."""
        return tokens_of(await self.answer(model, prompt, tokens, **more))

    async def act(self, what: str, model: str) -> tuple[int, Any]:
        status, data = await post(self.session, f"{self.address}/action/{what}/{model}", None)
        return status, json.loads(data)

    async def sleep(self, model: str) -> None:
        status, said = await self.act("sleep", model)
        assert status == 200, said

    async def state(self, model: str) -> str:
        async with self.session.get(f"{self.address}/sleep/status") as reply:
            return str((await reply.json())["states"][model]["state"])

    async def is_so(self, model: str, state: str, within: float = 60) -> None:
        async def so() -> bool:
            return await self.state(model) == state

        await eventually(so, within, f"{model} is {state}")

    async def metric(self, name: str, **labels: str) -> float:
        async with self.session.get(f"{self.address}/metrics") as reply:
            families = text_string_to_metric_families(await reply.text())
        samples = [s for family in families for s in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@asynccontextmanager
async def front(
    fleet: Fleet,
    names: Sequence[str],
    sleep_manager: Mapping[str, Any] | None = None,
    **instance: Any,
) -> AsyncIterator[Front]:
    """A controller that knows of these engines, and how they are. instance: more keys of each."""
    instances = []
    for server in (fleet.servers[name] for name in names):
        about = {"name": server.name, "model": server.name, "engine": server.engine, "url": server.url}
        key = {"api_key_env": f"KEY_OF_{server.name.upper()}"} if server.key else {}
        instances.append({**about, **key, **instance, "ipc_name": server.name})
    settings = {"min_awake_seconds": 0, "min_sleep_duration": 0, **(sleep_manager or {})}
    text = {"router": {"router_port": 0}, "sleep_manager": settings, "instances": instances}
    config = fleet.folder / f"controller-{os.urandom(4).hex()}.yaml"
    config.write_text(json.dumps(text))
    keys = {f"KEY_OF_{server.name.upper()}": server.key for server in fleet.servers.values()}
    async with front_of(fleet, config, names, **keys) as made:
        yield made


@asynccontextmanager
async def front_of(
    fleet: Fleet, config: Path, names: Sequence[str], **variables: str
) -> AsyncIterator[Front]:
    """As front(), with a file that there is."""
    variables = fleet.site.settings() | fleet.variables() | variables
    async with controller(config, begin=None, **variables) as process, aiohttp.ClientSession() as session:
        made = Front(process, session, process.address())
        try:
            for name in names:
                await eventually(lambda name=name: _is_known(made, name), 60)  # type: ignore[misc]
            yield made
        finally:
            print(process.log)


async def _is_known(made: Front, name: str) -> bool:
    return await made.state(name) != "waking"


# ---- A stand-in beside it ----

JSON = "application/json"
STATE = "metrics"  # a path: of the metrics what is said of sleep


async def compare(
    stand_in: str, real: str, steps: Sequence[tuple[str, str, Any]], in_part: Sequence[str]
) -> None:
    """Both, at these addresses, are asked the same, step by step: a method, a path, and a body, which is text
    if it is no JSON. The stand-in's replies have the real ones' status, and nothing that these don't have.
    in_part: parts of paths; replies to others are the same as a whole."""
    # An engine ends a connection on which something went wrong in it.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        for method, path, body in steps:
            asked = (method, path, body)
            status, kind, expected = await reply_to(session, real, *asked)
            answered, its_kind, said = await reply_to(session, stand_in, *asked)
            assert (answered, its_kind) == (status, kind), (asked, said, expected)
            check_is_part(said, expected, asked)
            if status == 200 and not any(part in path for part in in_part):
                assert said == expected, asked


async def reply_to(
    session: aiohttp.ClientSession, url: str, method: str, path: str, body: Any
) -> tuple[int, str, Any]:
    """Status, kind, and what it says: of a stream the last chunk, of metrics the state of sleep."""
    data = body if isinstance(body, str) or body is None else json.dumps(body)
    headers = {"Content-Type": JSON} if data else {}
    where = f"{url}/metrics" if path == STATE else url + path
    async with session.request(method, where, data=data, headers=headers) as reply:
        said = await reply.read()
        if path == STATE:
            lines = [
                line for line in said.decode().splitlines() if line.startswith("vllm:engine_sleep_state")
            ]
            return reply.status, "", sorted(lines)
        if reply.content_type == "text/event-stream":
            last = said.split(b"\n\n")[-3]
            return reply.status, reply.content_type, json.loads(last.removeprefix(b"data: "))
        if reply.content_type == JSON and said:
            return reply.status, JSON, json.loads(said)
        return reply.status, "", said


def check_is_part(part: Any, whole: Any, what: Any) -> None:
    """Each key is one of the real reply's, with a value of the same kind; a type of error is the same."""
    if isinstance(part, dict):
        assert isinstance(whole, dict), what
        for key, value in part.items():
            assert key in whole, (key, what, whole)
            if key == "type" and isinstance(value, str):
                assert value == whole[key], (what, part, whole)
            check_is_part(value, whole[key], what)
    elif isinstance(part, list):
        assert isinstance(whole, list), what
        for one, other in zip(part, whole, strict=False):
            check_is_part(one, other, what)
    elif part is not None and whole is not None and not isinstance(whole, dict):
        assert type(part) is type(whole), (what, part, whole)
