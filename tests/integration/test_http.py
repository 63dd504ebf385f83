# SPDX-License-Identifier: Apache-2.0
"""Metrics and status page over HTTP: what is answered to whom."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from harness.broker import Daemon, Programs, Site, eventually, run_program
from harness.control import info, open_control
from harness.raw import start_holder, start_raw
from harness.web import ANY_PORT, Web, ask, start_web

MIB = 1 << 20
PATHS = ("/", "/metrics", "/api/v1/state", "/healthz", "/readyz", "/page.css", "/page.js", "/icon.svg")
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.fixture
def web(programs: Programs) -> Web:
    return start_web(programs)[1]


# ---- Paths and methods ----


@pytest.mark.parametrize("path", PATHS)
def test_every_path(web: Web, path: str) -> None:
    answer = web.get(path)
    assert answer.status == 200
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.body
    head = web.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == answer.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_types(web: Web) -> None:
    types = {path: web.get(path).headers["content-type"] for path in PATHS}
    assert types == {
        "/": "text/html; charset=utf-8",
        "/metrics": "text/plain; version=0.0.4; charset=utf-8",
        "/api/v1/state": "application/json",
        "/healthz": "text/plain; charset=utf-8",
        "/readyz": "text/plain; charset=utf-8",
        "/page.css": "text/css; charset=utf-8",
        "/page.js": "text/javascript; charset=utf-8",
        "/icon.svg": "image/svg+xml",
    }


@pytest.mark.parametrize(
    "path", ["/metrics/", "//", "/nothing", "/../etc/passwd", "/page.js/x", "/%00", "/%6detrics", "*"]
)
def test_unknown_paths(web: Web, path: str) -> None:
    answer = web.get(path)
    assert answer.status == 404
    assert answer.text == "There are /, /metrics, /api/v1/state, /healthz and /readyz.\n"
    assert web.get("/healthz").status == 200


def test_a_query_changes_nothing(web: Web) -> None:
    assert web.get("/healthz?x=1&y").text == "ok\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/nothing"])
def test_other_methods(web: Web, method: str, path: str) -> None:
    answer = web.request(method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "GET and HEAD" in answer.text


@pytest.mark.parametrize("headers", [{"Content_Length": "5"}, {"Transfer_Encoding": "chunked"}])
def test_bodies_are_refused(web: Web, headers: dict[str, str]) -> None:
    """Without being read: the answer comes before the body, and then the connection ends."""
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    said = web.say(f"GET /metrics HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode())
    assert said.startswith(b"HTTP/1.1 413 ")
    assert said.endswith(b"A request has no body here.\n")


def test_a_body_that_waits_for_leave(web: Web) -> None:
    head = b"POST /metrics HTTP/1.1\r\nHost: localhost\r\n"
    said = web.say(head + b"Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 405 ")


def test_an_empty_body_is_none(web: Web) -> None:
    assert web.request("GET", "/healthz", b"", Content_Length="0").status == 200


def test_browsers_are_told_what_not_to_do(web: Web) -> None:
    for path in (*PATHS, "/nothing"):
        headers = web.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy


# ---- HTTP ----


def test_one_connection_for_many_requests(web: Web) -> None:
    client = web.client()
    ports = set()
    for path in ("/metrics", "/healthz", "/api/v1/state", "/page.css") * 5:
        assert ask(client, "GET", path).status == 200
        assert client.sock
        ports.add(client.sock.getsockname()[1])
    client.close()
    assert len(ports) == 1


def test_requests_in_one_packet(web: Web) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    said = web.say((one + b"\r\n") * 3 + one + b"Connection: close\r\n\r\n")
    assert said.count(b"HTTP/1.1 200 OK") == 4
    assert said.count(b"\r\n\r\nok\n") == 4


def test_http_1_0(web: Web) -> None:
    said = web.say(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert said.split(b"\r\n")[0] in (b"HTTP/1.0 200 OK", b"HTTP/1.1 200 OK")
    assert said.endswith(b"\r\n\r\nok\n")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\nnonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",  # without a host
        b"GET /metrics HTTP/1.1\r\nHost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 200 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: " + b"b" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
    ids=["nonsense", "short", "no-host", "no-colon", "tls", "version", "path", "header", "headers"],
)
def test_bad_requests(web: Web, data: bytes) -> None:
    """An error or the end of the connection; nobody else notices."""
    with web.connect() as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError, OSError):
            pass
        connection.settimeout(30)
        try:
            said = connection.recv(64)
        except ConnectionResetError:
            said = b""
    assert said == b"" or said[9:10] in (b"4", b"5"), said
    assert web.get("/healthz").status == 200


# ---- Who may ask ----


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "127.0.0.1:9470", "[::1]:9470"])
def test_hosts_that_mean_this_machine(web: Web, host: str) -> None:
    assert web.get("/metrics", Host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9470", "localhost.evil.example", "10.0.0.1"])
def test_a_foreign_name_for_this_machine(web: Web, host: str) -> None:
    """As the page of a site has it whose name somebody makes to mean 127.0.0.1."""
    for path in PATHS:
        answer = web.get(path, Host=host)
        assert answer.status == 403
        assert "localhost" in answer.text


# ---- Where it is ----


def test_off(programs: Programs, daemon: Daemon) -> None:
    assert info(open_control(programs, daemon))["metrics_address"] == ""
    assert not list_listening(daemon)


def list_listening(daemon: Daemon) -> list[str]:
    """Addresses at which the daemon listens for TCP, as the kernel writes them."""
    inodes = set()
    for fd in Path(f"/proc/{daemon.pid}/fd").iterdir():
        target = str(fd.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{daemon.pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.append(words[1])
    return found


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on the loopback interface")
def test_ipv6(programs: Programs) -> None:
    daemon, web = start_web(programs, metrics="[::1]:0")
    assert web.address.startswith("[::1]:")
    assert web.get("/healthz").text == "ok\n"
    assert "Whoever can reach" not in daemon.log()


def test_configuration(programs: Programs) -> None:
    daemon = programs.daemon(metrics=None, config=f"[daemon]\nmetrics-listen={ANY_PORT}\n")
    web = Web(programs, daemon)
    assert web.get("/readyz").text == "ready\n"
    assert programs.kvctl("info", "--json", daemon=daemon).json()["metrics_address"] == web.address


def test_the_command_line_wins(programs: Programs) -> None:
    daemon = programs.daemon(metrics="off", config=f"[daemon]\nmetrics-listen={ANY_PORT}\n")
    assert not list_listening(daemon)


def test_for_all_the_world(programs: Programs) -> None:
    """With a warning, and under any name."""
    daemon, web = start_web(programs, metrics="0.0.0.0:0")
    assert f"Whoever can reach {web.address} sees who uses this GPU" in daemon.log()
    assert web.get("/healthz", Host="gpu-node.example").status == 200


def test_an_address_in_use(site: Site) -> None:
    """Who asks for it gets an error, in one sentence."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        command = [str(site.program("daemon/kvcachedd")), "--emulate", "1G", "--metrics-listen", address]
        command += ["--socket", str(site.run / "x.sock"), "--state-dir", str(site.run)]
        result = run_program(command, site.environment())
    assert result.rc == 1
    assert result.err == f"kvcachedd: error: Cannot serve metrics at {address}: Address already in use\n", (
        result.err
    )
    assert not (site.run / "x.sock").exists()


def default_ports_are_ours() -> bool:
    """Whether this test can have the default address for itself: another one's daemon may use it."""
    try:
        for port in (9470, 9471):
            socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_the_default_address(programs: Programs) -> None:
    """A port for each GPU. Where it is taken, that is a warning, and memory is lent all the same."""
    if not default_ports_are_ours():
        pytest.skip("needs the ports 9470 and 9471")
    second = programs.daemon("1G,1G", metrics=None, name="second", arguments=("--gpu", "1"))
    assert Web(programs, second).address == "127.0.0.1:9471"
    with socket.create_server(("127.0.0.1", 9470)):
        first = programs.daemon("1G,1G", metrics=None, name="first")
        log = first.log()
        sentence = (
            "There are no metrics and no status page, since 127.0.0.1:9470 cannot be had: Address already"
        )
        assert log.count("\n") == 1, log
        assert sentence in log
        assert start_raw(programs, first).open().name == "Welcome"
        assert info(open_control(programs, first))["metrics_address"] == ""
    first.stop()
    again = programs.daemon("1G,1G", metrics=None, name="again")
    assert Web(programs, again).address == "127.0.0.1:9470"


def test_another_address_needs_a_restart(programs: Programs) -> None:
    daemon = programs.daemon(metrics=None, config=f"[daemon]\nmetrics-listen={ANY_PORT}\n")
    web = Web(programs, daemon)
    (daemon.site.run / "gpu0.conf").write_text("[daemon]\nmetrics-listen=off\n")
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: "Other sockets and addresses, folders and warm= need a restart" in daemon.log())
    assert web.get("/healthz").status == 200


# ---- What is said ----


def test_metrics_are_the_daemons_numbers(programs: Programs) -> None:
    daemon, web = start_web(programs, budget="512M", config="[instance holder]\nlimit=200M\n")
    start_holder(programs, daemon, "holder", 50)
    control = open_control(programs, daemon)
    eventually(lambda: info(control).number("creating_bytes") == 0)
    told = info(control)
    metrics = web.get("/metrics")
    domain = next(dict(labels)["domain"] for name, labels in metrics.samples() if "instance_used" in name)
    of = {"domain": domain, "ipc": "holder"}
    assert metrics.sample("kvcached_budget_bytes") == 512 * MIB
    assert metrics.sample("kvcached_gpu_memory_size_bytes") == told.number("total_bytes")
    assert metrics.sample("kvcached_memory_bytes", state="granted") == 100 * MIB
    assert metrics.sample("kvcached_instance_used_bytes", **of) == 100 * MIB
    assert metrics.sample("kvcached_instance_limit_bytes", **of) == 200 * MIB
    assert metrics.sample("kvcached_instance_lent_bytes_total", **of) == 100 * MIB
    assert metrics.sample("kvcached_granted_bytes_total") == 100 * MIB
    assert metrics.sample("kvcached_grants_total") == 1
    assert metrics.sample("kvcached_grant_wait_seconds_count") == 1
    assert metrics.sample("kvcached_processes_joined_total") == 1
    assert metrics.sample("kvcached_connections_total", socket="engine") == 1
    assert metrics.sample("kvcached_driver_call_seconds_count", call="create") > 0
    assert metrics.sample("process_open_fds") > 10
    held = {
        name: told.number(f"{name}_bytes") for name in ("pool", "leased", "granted", "limbo", "destroying")
    }
    assert metrics.sample("kvcached_held_bytes") == sum(held.values())


def test_openmetrics_for_who_asks(web: Web) -> None:
    answer = web.get("/metrics", Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert answer.headers["content-type"] == OPENMETRICS
    assert answer.text.endswith("\n# EOF\n")
    assert "# EOF" not in web.get("/metrics").text
    assert "# EOF" not in web.get("/metrics", Accept="text/plain").text


def test_state_is_what_kvctl_says(programs: Programs) -> None:
    daemon, web = start_web(programs, budget="512M")
    start_holder(programs, daemon, "holder", 10)
    listed = programs.kvctl("list", "--json", daemon=daemon).json()
    state = web.get("/api/v1/state").json()
    (instance,) = state["instances"]
    common = [key for key in listed[0] if key in instance]
    assert len(common) >= 11
    assert {key: instance[key] for key in common} == {key: listed[0][key] for key in common}
    assert instance["used_bytes"] == state["granted_bytes"] == 20 * MIB
    assert instance["processes"] == 1
    assert [event["kind"] for event in state["events"]] == ["started", "joined"]
    assert state["last_event"] == 2
    assert state["history"][-1][1] == 20 * MIB


@pytest.mark.emulator
def test_not_ready_while_it_drains(programs: Programs, site: Site) -> None:
    """A daemon that is stopping is alive and not ready. Here its driver takes long to release memory."""
    costs = site.run / "costs"
    costs.write_text("cuMemRelease call:300000\n")
    daemon, web = start_web(programs, environment={"KVCACHED_EMULATE_COSTS": str(costs)})
    holder = start_holder(programs, daemon, pages=4)
    assert (web.get("/healthz").text, web.get("/readyz").text) == ("ok\n", "ready\n")
    daemon.process.terminate()
    daemon.wait_for("STOPPING=1")
    answer = eventually(lambda: not_ready(web))
    assert answer == "The daemon is stopping.\n"
    assert web.get("/healthz").status == 200
    holder.kill()
    assert daemon.wait() == 0


def not_ready(web: Web) -> str | None:
    answer = web.get("/readyz")
    return answer.text if answer.status == 503 else None


@pytest.mark.emulator
def test_not_ready_while_the_driver_is_silent(programs: Programs) -> None:
    faults = {"KVCACHED_EMULATE_FAULTS": "nvmlDeviceGetMemoryInfo:2+=999"}
    daemon, web = start_web(programs, config="[daemon]\nidle=60\n", environment=faults)
    engine = start_raw(programs, daemon)
    engine.open()
    engine.give_back(*engine.take(engine.open_region()))
    assert eventually(lambda: not_ready(web)) == "The driver doesn't say how much memory is free.\n"
    metrics = web.get("/metrics")
    assert metrics.sample("kvcached_driver_silent") == 1
    assert metrics.sample("kvcached_driver_failures_total", call="look") >= 1
    assert web.get("/healthz").status == 200
