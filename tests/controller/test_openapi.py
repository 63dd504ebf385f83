# SPDX-License-Identifier: Apache-2.0
"""docs/openapi/controller.yaml is what it says it is, has every route, error and field that there is and no
other, and is what people get from a controller that runs."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest
import yaml
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from controller.live import Raw, eventually, run
from controller.standins.answers import chat, completion
from controller.standins.engine import Behaviour, StandIn
from controller.standins.sglang import SglangStandIn
from controller.standins.vllm import VllmStandIn
from controller.whole import Answer, Whole, running
from kvcached.controller import config, errors
from kvcached.controller.access import Keys
from kvcached.controller.actions import State, Why
from kvcached.controller.app import ADMIN, OPEN, USER, Locks, Service
from kvcached.controller.traffic import HISTORY_SECONDS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "docs/openapi/controller.yaml").read_text())
COMPONENTS: dict[str, Any] = DOCUMENT["components"]
OF_ENGINES = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
# Answers to what no path has, and to what is no request.
ELSEWHERE = {
    "400": "NoHttp",
    "404": "NoRoute",
    "405": "WrongMethod",
    "408": "HeadTimeout",
    "431": "HeadTooLarge",
}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path, operation."""
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def resolve(thing: dict[str, Any]) -> dict[str, Any]:
    """Of a reference, what it refers to."""
    if "$ref" not in thing:
        return thing
    found: Any = DOCUMENT
    for part in thing["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def closed(schema: Any) -> Any:
    """With objects that have what is listed and nothing else, where something is."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in found and "required" in found:
        found.setdefault("additionalProperties", False)
    return found


CLOSED = closed({"schemas": COMPONENTS["schemas"]})


def check(schema: dict[str, Any], value: Any) -> None:
    whole = {**closed(schema), "components": CLOSED}
    jsonschema.Draft202012Validator(whole).validate(value)


def response_of(method: str, path: str, status: int) -> dict[str, Any]:
    operation = DOCUMENT["paths"].get(path, {}).get(method.lower())
    if operation is None:
        return dict(COMPONENTS["responses"][ELSEWHERE[str(status)]])
    return resolve(operation["responses"][str(status)])


def fits(answer: Answer, method: str, path: str) -> Any:
    """What the answer says, which is as the document has it for that route and status."""
    response = response_of(method, path, answer.status)
    for name, header in response["headers"].items():
        text = answer.headers.get(name.lower())
        assert text is not None, name
        schema = resolve(header)["schema"]
        check(schema, int(text) if schema.get("type") == "integer" else text)
    kind = answer.headers["content-type"].split(";")[0]
    assert kind in response["content"], kind
    said = answer.json() if kind == "application/json" else answer.data.decode()
    check(response["content"][kind]["schema"], said)
    return said


# ---- The document ----


def test_it_is_valid() -> None:
    openapi_spec_validator.validate(DOCUMENT, cls=openapi_spec_validator.OpenAPIV31SpecValidator)


@pytest.mark.parametrize("path", ["/traffic/stats/{model}", "/nothing/{here}"])
def test_what_is_not_valid_is_noticed(path: str) -> None:
    wrong = copy.deepcopy(DOCUMENT)
    wrong["paths"][path] = {"get": {"parameters": [], "responses": {"200": {}}}}
    with pytest.raises(OpenAPIValidationError):
        openapi_spec_validator.validate(wrong, cls=openapi_spec_validator.OpenAPIV31SpecValidator)


def test_version() -> None:
    version = re.search(r"^  version: '([\d.]+)'", (ROOT / "meson.build").read_text(), re.MULTILINE)
    assert version
    assert DOCUMENT["info"]["version"] == version[1]


def test_routes() -> None:
    """Each is there, says on which port, and who is let in."""

    async def main() -> None:
        service = Service(SimpleNamespace(), SimpleNamespace(), config.Router(), Locks(Keys(), Keys()))  # type: ignore[arg-type]
        routes = {}
        for tag, of_port in (("users", service.user_routes()), ("administrators", service.admin_routes())):
            for method, path, kind, _ in of_port:
                routes[method, re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)] = (tag, kind)
        described = {
            (method, path): (operation["tags"], operation["security"])
            for method, path, operation in operations()
        }
        keys: dict[str, list[dict[str, list[str]]]] = {
            USER: [{"userKey": []}, {"adminKey": []}, {}],
            ADMIN: [{"adminKey": []}, {}],
            OPEN: [],
        }
        assert described == {where: ([tag], keys[kind]) for where, (tag, kind) in routes.items()}

    run(main())


def test_names_of_operations_are_their_own() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)


def codes(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(codes, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = set(schema["code"].get("enum", [])) if isinstance(schema.get("code"), dict) else set()
    return own.union(*map(codes, schema.values()))


def test_errors() -> None:
    """Each kind is there, with its status, and with Retry-After where it has that."""
    found = {}
    responses = [
        (status, response)
        for _, _, operation in operations()
        for status, response in operation["responses"].items()
    ]
    responses += [(status, {"$ref": f"#/components/responses/{name}"}) for status, name in ELSEWHERE.items()]
    for status, reference in responses:
        response = resolve(reference)
        for code in codes(response):
            found[code] = (int(status), "Retry-After" in response["headers"])
    assert found == {code: (kind.status, kind.retry) for code, kind in errors.KINDS.items()}


def test_words_and_numbers() -> None:
    assert COMPONENTS["schemas"]["State"]["enum"] == [state.value for state in State]
    status = DOCUMENT["paths"]["/sleep/status"]["get"]["responses"]["200"]["content"]["application/json"]
    sleeping = status["schema"]["properties"]["sleeping_models"]["additionalProperties"]["properties"]
    assert sleeping["reason"]["enum"] == [*(why.value for why in Why), None]
    assert COMPONENTS["parameters"]["window"]["schema"]["maximum"] == HISTORY_SECONDS


# ---- Replies ----


def two() -> dict[str, StandIn | list[StandIn]]:
    return {"a": VllmStandIn(model="a"), "org/b": SglangStandIn(model="org/b")}


def expand(path: str, model: str = "org/b") -> str:
    return path.replace("{model}", model)


GETS = [path for method, path, _ in operations() if method == "GET"]


@pytest.mark.parametrize("path", GETS)
def test_what_is_told(path: str) -> None:
    """Of a model that is awake and has been asked, and of one that sleeps."""

    async def main() -> None:
        async with running(two()) as whole:
            await whole.ask("POST", OF_ENGINES[0], completion("org/b", "x"))
            await whole.act("sleep", "a")
            for model in ("a", "org/b"):
                answer = await whole.ask("GET", expand(path, model))
                assert answer.status == 200
                assert fits(answer, "GET", path)

    run(main())


def test_lists_have_something_in_them() -> None:
    """What the schemas say of members is no empty word."""

    async def main() -> None:
        async with running(two(), {"idle_threshold_seconds": 0}) as whole:
            await whole.ask("POST", OF_ENGINES[0], completion("a", "x"))
            idle = fits(await whole.ask("GET", "/models/idle"), "GET", "/models/idle")
            assert set(idle["idle_model_details"]) == {"a", "org/b"}
            asked = await whole.ask("GET", "/models/active?threshold=1000&window=30")
            active = fits(asked, "GET", "/models/active")
            assert set(active["active_model_details"]) == {"a", "org/b"}
            might = fits(await whole.ask("GET", "/sleep/candidates"), "GET", "/sleep/candidates")
            assert set(might["candidate_details"]) == {"a", "org/b"}
            await whole.act("sleep", "a")
            status = fits(await whole.ask("GET", "/sleep/status"), "GET", "/sleep/status")
            assert set(status["sleeping_models"]) == {"a"}

    run(main())


def test_a_field_that_is_not_described_is_noticed() -> None:
    told: dict[str, Any] = {"status": "healthy", "state": "awake", "reason": None, "engines": {}}
    schema = {"$ref": "#/components/schemas/Health"}
    check(schema, told)
    for wrong in ({**told, "more": 1}, {**told, "state": "dozing"}, {"status": "healthy"}):
        with pytest.raises(jsonschema.ValidationError):
            check(schema, wrong)


def test_answers_of_engines() -> None:
    async def main() -> None:
        async with running(two()) as whole:
            for path, body in (
                (OF_ENGINES[0], completion("a", "x")),
                (OF_ENGINES[0], completion("org/b", "x", stream=False)),
                (OF_ENGINES[1], chat("a", "x")),
                (OF_ENGINES[2], {"model": "a", "input": "x"}),
            ):
                answer = await whole.ask("POST", path, body)
                assert answer.status == 200
                fits(answer, "POST", path)

    run(main())


def test_actions() -> None:
    async def main() -> None:
        stand_ins = two()
        async with running(stand_ins) as whole:
            for what in ("sleep", "wakeup"):
                answer = await whole.act(what, "a")
                assert answer.status == 200
                fits(answer, "POST", f"/action/{what}/{{model}}")
            await whole.act("sleep", "a")
            of_a = stand_ins["a"]
            assert isinstance(of_a, StandIn)
            of_a.behaviour.wake_fails = True
            answer = await whole.act("wakeup", "a")
            assert answer.status == 400
            fits(answer, "POST", "/action/wakeup/{model}")
            of_b = stand_ins["org/b"]
            assert isinstance(of_b, StandIn)
            of_b.behaviour.sleep_fails = True
            answer = await whole.act("sleep", "org/b")
            assert (answer.status, answer.json()["success"]) == (400, False)
            fits(answer, "POST", "/action/sleep/{model}")

    run(main())


def test_a_body_that_cannot_be_decoded() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}) as whole:
            headers = {"Content-Encoding": "gzip"}
            answer = await whole.ask("POST", OF_ENGINES[0], data=b"no gzip", headers=headers)
            assert fits(answer, "POST", OF_ENGINES[0])["error"]["code"] == "invalid_http"

    run(main())


@pytest.mark.parametrize(
    ("method", "path", "asked", "data", "code"),
    [
        ("POST", OF_ENGINES[0], "", b"{", "invalid_json"),
        ("POST", OF_ENGINES[1], "", b"[]", "invalid_body"),
        ("POST", OF_ENGINES[2], "", b"{}", "missing_model"),
        ("POST", OF_ENGINES[0], "", b'{"model": 3}', "invalid_model"),
        ("POST", OF_ENGINES[0], "", b'{"model": "nobody"}', "model_not_found"),
        ("POST", OF_ENGINES[0], "", b'"' + b"x" * 5000 + b'"', "body_too_large"),
        ("GET", "/health/{model}", "/health/nobody", None, "model_not_found"),
        ("GET", "/traffic/stats/{model}", "/traffic/stats/nobody", None, "model_not_found"),
        ("GET", "/traffic/stats/{model}", "/traffic/stats/a?window=0", None, "invalid_parameter"),
        ("GET", "/traffic/stats", "/traffic/stats?window=3601", None, "invalid_parameter"),
        ("GET", "/models/idle", "/models/idle?threshold=-1", None, "invalid_parameter"),
        ("GET", "/models/active", "/models/active?window=x", None, "invalid_parameter"),
        ("POST", "/action/sleep/{model}", "/action/sleep/nobody", None, "model_not_found"),
        ("POST", "/action/sleep/{model}", "/action/sleep/a?firm=2", None, "invalid_parameter"),
        ("POST", "/action/wakeup/{model}", "/action/wakeup/nobody", None, "model_not_found"),
        ("GET", "/v1/nothing", "", None, "unknown_url"),
        ("DELETE", "/health", "", None, "method_not_allowed"),
    ],
)
def test_refusals(method: str, path: str, asked: str, data: bytes | None, code: str) -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"max_body_bytes": 4096}) as whole:
            headers = {"Content-Type": "application/json"}
            answer = await whole.ask(method, asked or path, data=data, headers=headers)
            assert fits(answer, method, path)["error"]["code"] == code

    run(main())


def test_refusals_for_want_of_a_key() -> None:
    async def main() -> None:
        async with running(two(), locks=Locks(Keys(["user"]), Keys(["admin"]))) as whole:
            for method, path, operation in operations():
                answer = await whole.ask(method, expand(path), headers={})
                assert (answer.status == 401) == bool(operation["security"]), path
                fits(answer, method, path)

    run(main())


async def refused(whole: Whole, code: str, body: Any) -> None:
    answer = await whole.ask("POST", OF_ENGINES[0], body)
    assert fits(answer, "POST", OF_ENGINES[0])["error"]["code"] == code


def test_refusals_of_models() -> None:
    """That sleep, don't wake, are gone, break off, fall silent; and of a controller that ends."""

    async def main() -> None:
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}, {"wakeup_on_request": False}) as whole:
            await whole.act("sleep", "a")
            await refused(whole, "model_asleep", completion("a", "x"))
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(wake_s=1))
        async with running({"a": stand_in}, {"queue_max": 1}) as whole:
            await whole.act("sleep", "a")
            first = asyncio.create_task(whole.ask("POST", OF_ENGINES[0], completion("a", "1")))
            await eventually(lambda: whole.model("a").lifecycle.queued == 1)
            await refused(whole, "queue_full", completion("a", "2"))
            assert (await first).status == 200
        async with running({"a": stand_in}, {"queue_deadline_seconds": 0.1}) as whole:
            await whole.act("sleep", "a")
            await refused(whole, "queue_timeout", completion("a", "x"))
            await eventually(lambda: whole.model("a").lifecycle.state is State.AWAKE)
        stand_in = VllmStandIn(model="a")
        async with running({"a": stand_in}) as whole:
            await whole.act("sleep", "a")
            stand_in.behaviour.wake_fails = True
            await refused(whole, "wake_failed", completion("a", "x"))
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(die_at=-1))
        async with running({"a": stand_in}) as whole:
            await refused(whole, "engine_broke_off", completion("a", "x"))
            stand_in.die()
            await refused(whole, "engine_unreachable", completion("a", "x"))
            await eventually(lambda: whole.model("a").lifecycle.state is State.FAILED)
            await refused(whole, "engine_dead", completion("a", "x"))
            answer = await whole.ask("GET", "/health/a")
            assert (answer.status, fits(answer, "GET", "/health/{model}")["health"]["state"]) == (
                503,
                "failed",
            )
        stand_in = VllmStandIn(model="a", behaviour=Behaviour(hold_at=0))
        async with running({"a": stand_in}, router={"idle_timeout_seconds": 0.5}) as whole:
            await refused(whole, "engine_timeout", completion("a", "x"))
            stand_in.behaviour.hold_at = None
            whole.controller.node.stop()
            await refused(whole, "shutting_down", completion("a", "x"))
            answer = await whole.ask("GET", "/health")
            assert (answer.status, fits(answer, "GET", "/health")) == (503, {"status": "stopping"})

    run(main())


def test_a_body_that_does_not_come() -> None:
    async def main() -> None:
        async with running({"a": VllmStandIn(model="a")}, router={"idle_timeout_seconds": 0.2}) as whole:
            raw = await Raw.open(whole.address)
            raw.writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            status, headers = await raw.head()
            answer = Answer(status, headers, await raw.rest())
            assert fits(answer, "POST", OF_ENGINES[0])["error"]["code"] == "body_timeout"
            await raw.close()

    run(main())
