# SPDX-License-Identifier: Apache-2.0
"""What is served: the users' routes, which go to engines, and those that change what the controller does, or
tell of it (status.py). Each answer that is the controller's own is JSON; each that says no is an error as
OpenAI's clients know them (errors.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from kvcached.controller import errors, proxy
from kvcached.controller.access import Keys, request_id
from kvcached.controller.balance import Result
from kvcached.controller.config import Router
from kvcached.controller.json_text import MOST_PARTS, TooManyParts, parse
from kvcached.controller.metrics import OTHER
from kvcached.controller.model import Model, Refused
from kvcached.controller.node import Node
from kvcached.controller.parameters import Problem, flag, model_called, model_in_path
from kvcached.controller.status import Status
from kvcached.controller.traffic import Outcome
from kvcached.controller.work import in_thread

log = logging.getLogger("kvcached.controller")
access_log = logging.getLogger("kvcached.controller.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

USER, ADMIN, OPEN = "user", "admin", "open"
_LARGE_BODY = 1 << 20  # whose JSON is read in another thread
_BUFFERED_BODIES = 64  # as many of the largest size are held at once, or as many more as are smaller


class _LateBody(Exception):
    """It did not come in time."""


class _NoMore(Exception):
    """Of a body is waited for, for no request is accepted any more."""


@dataclass
class Note:
    """What the log says of a request when it is over."""

    id: str
    began: float
    model: str | None = None
    replica: str | None = None
    status: int | None = None  # None: the client has gone
    first_byte: float | None = None
    code: str | None = None
    broken: str | None = None


_note: ContextVar[Note] = ContextVar("note")


@dataclass(frozen=True)
class Locks:
    """Keys for the users' routes and for those of administrators; empty: nobody is asked for any."""

    user: Keys
    admin: Keys

    def open_to(self, kind: str, authorization: str | None) -> bool:
        """Where administrators have no keys of their own, users' are asked for, lest all be open."""
        if kind == OPEN:
            return True
        if kind == ADMIN:
            return (self.admin or self.user).fit(authorization) if (self.admin or self.user) else True
        return not self.user or self.user.fit(authorization) or self.admin.fit(authorization)


class Service:
    """The handlers. `locks` and `router` may be replaced at any time."""

    def __init__(self, node: Node, session: aiohttp.ClientSession, router: Router, locks: Locks) -> None:
        self.node, self.router, self.locks = node, router, locks
        self.status = Status(node)
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._keys = 0
        self._buffered = 0
        self._reading: set[aiohttp.StreamReader] = set()
        self.n_handlers = 0

    def stop(self) -> None:
        """Whose request is not complete has not been accepted."""
        for body in self._reading:
            body.set_exception(_NoMore())

    # ---- Applications ----

    def user_routes(self) -> list[tuple[str, str, str, Handler]]:
        return [
            ("POST", "/v1/completions", USER, self.complete),
            ("POST", "/v1/chat/completions", USER, self.complete),
            ("POST", "/v1/embeddings", USER, self.complete),
            ("GET", "/v1/models", USER, self.status.list_as_openai),
            ("GET", "/models", USER, self.status.list_models),
            ("GET", "/health", OPEN, self.status.health),
        ]

    def admin_routes(self) -> list[tuple[str, str, str, Handler]]:
        return [
            ("GET", "/health/all", ADMIN, self.status.health_of_all),
            ("GET", "/health/{model:.+}", ADMIN, self.status.health_of_model),
            ("GET", "/get_server_info", ADMIN, self.status.server_info),
            ("GET", "/models/idle", ADMIN, self.status.list_idle),
            ("GET", "/models/active", ADMIN, self.status.list_active),
            ("GET", "/traffic/stats", ADMIN, self.status.traffic_of_all),
            ("GET", "/traffic/stats/{model:.+}", ADMIN, self.status.traffic_of_model),
            ("GET", "/sleep/status", ADMIN, self.status.sleep_status),
            ("GET", "/sleep/candidates", ADMIN, self.status.sleep_candidates),
            ("POST", "/action/sleep/{model:.+}", ADMIN, self.sleep),
            ("POST", "/action/wakeup/{model:.+}", ADMIN, self.wake),
            *([("GET", "/metrics", ADMIN, self.metrics)] if self.router.metrics else []),
        ]

    def application(self, routes: list[tuple[str, str, str, Handler]]) -> web.Application:
        app = web.Application(client_max_size=self.router.max_body_bytes, middlewares=[self._explain])
        for method, path, kind, handler in routes:
            app.router.add_route(method, path, self._locked(kind, handler))
        return app

    def _locked(self, kind: str, handler: Handler) -> Handler:
        async def locked(request: web.Request) -> web.StreamResponse:
            if not self.locks.open_to(kind, request.headers.get("Authorization")):
                raise Problem("invalid_api_key")
            return await handler(request)

        return locked

    # ---- Around every request ----

    @web.middleware
    async def _explain(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Gives each request its name and its line in the log, and each refusal its body."""
        note = Note(request_id(request.headers.get(proxy.REQUEST_ID)), self._loop.time())
        _note.set(note)
        self.n_handlers += 1
        try:
            return await self._answer(request, handler, note)
        finally:
            self.n_handlers -= 1
            self._log(f"{request.method} {request.path}", request.remote, note)

    async def _answer(self, request: web.Request, handler: Handler, note: Note) -> web.StreamResponse:
        try:
            response = await handler(request)
        except Problem as problem:
            response = self._refuse(note, problem.code, problem.retry_after, **problem.words)
        except Refused as fault:
            response = self._refuse(note, fault.code, fault.retry_after, detail=fault.detail)
        except proxy.ProxyError as fault:
            response = self._refuse(note, fault.code, None, **fault.words)
        except web.HTTPRequestEntityTooLarge:
            response = self._refuse(note, "body_too_large", None, limit=self.router.max_body_bytes)
        except web.HTTPMethodNotAllowed as fault:
            allow = ", ".join(sorted(fault.allowed_methods))
            response = self._refuse(
                note, "method_not_allowed", None, path=request.path, method=request.method, allow=allow
            )
        except web.HTTPNotFound:
            response = self._refuse(note, "unknown_url", None, method=request.method, path=request.path)
        except ConnectionError:
            # The client has gone, of which aiohttp would make an error in the log.
            raise asyncio.CancelledError from None
        except Exception:
            log.exception("A request failed", extra={"fields": {"request_id": note.id}})
            response = self._refuse(note, "internal_error", None)
        note.status = response.status
        if not response.prepared:
            response.headers[proxy.REQUEST_ID] = note.id
        return response

    def _refuse(self, note: Note, code: str, retry_after: float | None, **words: object) -> web.Response:
        reply = errors.reply(code, retry_after, **words)
        note.code = code
        self.node.metrics.refusals.labels(note.model or OTHER, code).inc()
        response = web.json_response(reply.body, status=reply.status, headers=reply.headers)
        if code in ("shutting_down", "body_too_large", "body_timeout", "invalid_http"):
            response.force_close()
        return response

    def refuse_unread(self, code: str, remote: str | None, **words: object) -> web.Response:
        """For what did not become a request; the connection ends with it."""
        note = Note(request_id(None), self._loop.time())
        response = self._refuse(note, code, None, **words)
        response.headers[proxy.REQUEST_ID] = note.id
        response.force_close()
        note.status = response.status
        self._log("No request", remote, note)
        return response

    def _log(self, what: str, remote: str | None, note: Note) -> None:
        seconds = self._loop.time() - note.began
        access_log.info(
            "%s",
            what,
            extra={
                "fields": {
                    "request_id": note.id,
                    "remote": remote,
                    "status": note.status or "gone",
                    "model": note.model,
                    "engine": note.replica,
                    "code": note.code,
                    "broken": note.broken,
                    "first_byte_s": None if note.first_byte is None else round(note.first_byte, 4),
                    "seconds": round(seconds, 4),
                }
            },
        )

    # ---- What goes to engines ----

    async def complete(self, request: web.Request) -> web.StreamResponse:
        note = _note.get()
        if self.node.stopping:
            raise Problem("shutting_down", 1)
        body = bytearray()
        try:
            await self._read(request, body)
            model = model_called(self.node, await self._model_name(body))
            note.model = model.name
            return await self._serve(request, body, model, note)
        finally:
            self._buffered -= len(body)

    async def _read(self, request: web.Request, body: bytearray) -> None:
        """What is in `body`, however it ends, counts as buffered until the caller says otherwise. Without
        asyncio.wait_for(), which before Python 3.12 forgets that it was cancelled if at that moment it is
        done: a client that goes as soon as it has asked."""
        late = self._loop.call_later(
            self.router.idle_timeout_seconds, request.content.set_exception, _LateBody()
        )
        self._reading.add(request.content)
        try:
            await self._collect(request, body)
        except _LateBody:
            request.content.feed_eof()
            raise Problem("body_timeout") from None
        except _NoMore:
            request.content.feed_eof()
            raise Problem("shutting_down", 1) from None
        except (web.RequestPayloadError, PayloadEncodingError) as fault:
            request.content.feed_eof()
            raise Problem("invalid_http", detail=_payload_fault(fault)) from None
        finally:
            self._reading.discard(request.content)
            late.cancel()

    async def _collect(self, request: web.Request, body: bytearray) -> None:
        most = self.router.max_body_bytes
        async for chunk in request.content.iter_any():
            body += chunk
            self._buffered += len(chunk)
            if len(body) > most:
                raise web.HTTPRequestEntityTooLarge(most, len(body))
            if self._buffered > _BUFFERED_BODIES * most:
                raise Problem("queue_full", 1)

    async def _model_name(self, body: bytearray) -> str:
        try:
            parsed = await in_thread(parse, body) if len(body) > _LARGE_BODY else parse(body)
        except TooManyParts:
            raise Problem("body_too_complex", limit=MOST_PARTS) from None
        except ValueError as fault:
            raise Problem("invalid_json", detail=str(fault) or type(fault).__name__) from None
        if not isinstance(parsed, dict):
            raise Problem("invalid_body")
        if "model" not in parsed:
            raise Problem("missing_model")
        if not isinstance(parsed["model"], str):
            raise Problem("invalid_model")
        return parsed["model"]

    async def _serve(
        self, request: web.Request, body: bytearray, model: Model, note: Note
    ) -> web.StreamResponse:
        self._keys += 1
        key, outcome = self._keys, Outcome.CANCELLED
        metrics, refused = self.node.metrics, False
        model.traffic.came(note.began)
        try:
            await model.admit(key)
            metrics.queue_wait.labels(model.name).observe(self._loop.time() - note.began)
            done = await self._forward(request, body, model, note)
            note.first_byte, note.broken = done.first_byte - note.began, done.broken or None
            metrics.first_byte.labels(model.name).observe(note.first_byte)
            if not done.gone:
                outcome = Outcome.OK if done.complete and done.status < 500 else Outcome.FAILED
            return done.response
        except (Refused, proxy.ProxyError) as fault:
            refused, outcome = isinstance(fault, Refused), Outcome.FAILED
            raise
        finally:
            model.ended(key)
            now = self._loop.time()
            model.traffic.ended(now, outcome, now - note.began)
            metrics.requests.labels(model.name, "refused" if refused else outcome.value).inc()
            if outcome is not Outcome.CANCELLED and not refused:
                metrics.duration.labels(model.name).observe(now - note.began)

    async def _forward(
        self, request: web.Request, body: bytearray, model: Model, note: Note
    ) -> proxy.Forwarded:
        """Another replica gets it only where the first has seen nothing of it."""
        limits = proxy.Limits(self.router.connect_timeout_seconds, self.router.idle_timeout_seconds)
        tried: list[Any] = []
        fault: proxy.NotSent | None = None
        while (url := model.balance.pick(tried)) is not None:
            if tried:
                self.node.metrics.retries.labels(model.name).inc()
            tried.append(url)
            note.replica = str(url)
            result = Result.CANCELLED
            try:
                done = await proxy.forward(
                    self._session,
                    request,
                    body,
                    f"{url}{request.rel_url.raw_path_qs}",
                    limits,
                    request_id=note.id,
                    headers=self._authorization(model, str(url)),
                )
                result = Result.CANCELLED if done.gone else Result.OK if done.complete else Result.BROKE
                return done
            except proxy.NotSent as not_sent:
                result, fault = Result.NOT_SENT, not_sent
            except proxy.Failed:
                result = Result.BROKE
                raise
            finally:
                if model.balance.ended(url, result):
                    log.warning("Engine %s of model %s is left alone until it is well", url, model.name)
                    self.node.probe_soon(model)
        if fault:
            raise fault
        raise Refused("engine_dead", 1, "none of its engines serves")

    def _authorization(self, model: Model, url: str) -> dict[str, str | None]:
        """A key of ours is no engine's business."""
        replica = model.replicas.get(url)
        key = model.key_of(replica.instance) if replica else None
        if key is not None:
            return {"Authorization": f"Bearer {key}"}
        return {"Authorization": None} if self.locks.user or self.locks.admin else {}

    async def metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self.node.metrics.text(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    # ---- What is done ----

    async def sleep(self, request: web.Request) -> web.Response:
        model = model_in_path(self.node, request)
        _note.get().model = model.name
        return _done(model, *await model.sleep(flag(request, "firm")))

    async def wake(self, request: web.Request) -> web.Response:
        model = model_in_path(self.node, request)
        _note.get().model = model.name
        return _done(model, *await model.wake())


def _payload_fault(fault: BaseException) -> str:
    """aiohttp has the sentence in what the fault was made of."""
    text = str(getattr(fault.__cause__ or fault, "message", ""))
    return " ".join(text.split())[:200] or "its body cannot be read"


def _done(model: Model, ok: bool, message: str) -> web.Response:
    reply = {"model_name": model.name, "success": ok, "message": f"Model {model.name}: {message}"}
    return web.json_response(reply, status=200 if ok else 400)
