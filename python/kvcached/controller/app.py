# SPDX-License-Identifier: Apache-2.0
"""What is served: the users' routes, which go to engines, and those that tell and change what the controller
does. Each answer that is the controller's own is JSON; each that says no is an error as OpenAI's clients know
them (errors.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from kvcached.controller import errors, proxy
from kvcached.controller.access import Keys, request_id
from kvcached.controller.actions import State, Why
from kvcached.controller.balance import Result
from kvcached.controller.config import Router
from kvcached.controller.metrics import OTHER
from kvcached.controller.model import Model, Refused
from kvcached.controller.node import Node
from kvcached.controller.traffic import HISTORY_SECONDS, Outcome
from kvcached.controller.work import in_thread

log = logging.getLogger("kvcached.controller")
access_log = logging.getLogger("kvcached.controller.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

USER, ADMIN, OPEN = "user", "admin", "open"
_LARGE_BODY = 1 << 20  # whose JSON is read in another thread
_BUFFERED_BODIES = 64  # as many of the largest size are held at once, or as many more as are smaller


class Problem(Exception):
    """An answer that says no: errors.reply() of the code."""

    def __init__(self, code: str, retry_after: float | None = None, **words: object) -> None:
        super().__init__(code)
        self.code, self.retry_after, self.words = code, retry_after, words


class _LateBody(Exception):
    """It did not come in time."""


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
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._keys = 0
        self._buffered = 0
        self.n_handlers = 0

    # ---- Applications ----

    def user_routes(self) -> list[tuple[str, str, str, Handler]]:
        return [
            ("POST", "/v1/completions", USER, self.complete),
            ("POST", "/v1/chat/completions", USER, self.complete),
            ("POST", "/v1/embeddings", USER, self.complete),
            ("GET", "/v1/models", USER, self.list_as_openai),
            ("GET", "/models", USER, self.list_models),
            ("GET", "/health", OPEN, self.health),
        ]

    def admin_routes(self) -> list[tuple[str, str, str, Handler]]:
        return [
            ("GET", "/health/all", ADMIN, self.health_of_all),
            ("GET", "/health/{model:.+}", ADMIN, self.health_of_model),
            ("GET", "/get_server_info", ADMIN, self.server_info),
            ("GET", "/models/idle", ADMIN, self.list_idle),
            ("GET", "/models/active", ADMIN, self.list_active),
            ("GET", "/traffic/stats", ADMIN, self.traffic_of_all),
            ("GET", "/traffic/stats/{model:.+}", ADMIN, self.traffic_of_model),
            ("GET", "/sleep/status", ADMIN, self.sleep_status),
            ("GET", "/sleep/candidates", ADMIN, self.sleep_candidates),
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
            model = self._model(await self._model_name(body))
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
        try:
            await self._collect(request, body)
        except _LateBody:
            request.content.feed_eof()
            raise Problem("body_timeout") from None
        except (web.RequestPayloadError, PayloadEncodingError) as fault:
            request.content.feed_eof()
            raise Problem("invalid_http", detail=_payload_fault(fault)) from None
        finally:
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
            if len(body) > _LARGE_BODY:
                parsed = await in_thread(json.loads, body)
            else:
                parsed = json.loads(body)
        except (ValueError, RecursionError) as fault:
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

    def _model(self, name: str) -> Model:
        model = self.node.models.get(name)
        if model is None:
            raise Problem("model_not_found", model=name)
        return model

    def _named(self, request: web.Request) -> Model:
        """Of a path: with its slashes as they are, or encoded, once or twice."""
        name = request.match_info["model"]
        return self._model(name if name in self.node.models else unquote(name))

    # ---- What is told ----

    async def list_as_openai(self, request: web.Request) -> web.Response:
        cards = [
            {"id": name, "object": "model", "created": self.node.began, "owned_by": "kvcached"}
            for name in self.node.models
        ]
        return web.json_response({"object": "list", "data": cards})

    async def list_models(self, request: web.Request) -> web.Response:
        found = {}
        for name, model in self.node.models.items():
            urls = list(model.replicas)
            host, port = _host_and_port(urls[0]) if urls else (None, None)
            found[name] = {
                "endpoint": {"host": host, "port": port},
                "endpoints": urls,
                "state": model.lifecycle.state.value,
            }
        return web.json_response({"models": found})

    async def health(self, request: web.Request) -> web.Response:
        if self.node.stopping:
            return web.json_response({"status": "stopping"}, status=503)
        return web.json_response({"status": "healthy"})

    async def health_of_all(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"models": {name: health_of(model) for name, model in self.node.models.items()}}
        )

    async def health_of_model(self, request: web.Request) -> web.Response:
        model = self._named(request)
        found = health_of(model)
        status = 200 if found["status"] == "healthy" else 503
        return web.json_response({"model": model.name, "health": found}, status=status)

    async def server_info(self, request: web.Request) -> web.Response:
        states = {name: model.lifecycle.state.value for name, model in self.node.models.items()}
        return web.json_response(
            {
                "status": "stopping" if self.node.stopping else "healthy",
                "version": self.node.version,
                "started_time": self.node.began,
                "models": states,
            }
        )

    async def traffic_of_all(self, request: web.Request) -> web.Response:
        window = self._seconds(request, "window", 60, HISTORY_SECONDS)
        found = {name: self._traffic(model, window) for name, model in self.node.models.items()}
        return web.json_response({"traffic_stats": found, "window_seconds": window})

    async def traffic_of_model(self, request: web.Request) -> web.Response:
        window = self._seconds(request, "window", 60, HISTORY_SECONDS)
        model = self._named(request)
        stats = {"model_name": model.name, **self._traffic(model, window)}
        return web.json_response({"model_stats": stats, "window_seconds": window})

    async def list_idle(self, request: web.Request) -> web.Response:
        threshold = self._threshold(request)
        idle = self._by_idleness(threshold, 60, True)
        details = {
            name: _part(stats, "idle_time_seconds", "total_requests", "last_activity_time")
            for name, stats in idle.items()
        }
        return web.json_response(
            {
                "idle_models": list(idle),
                "idle_threshold_seconds": threshold,
                "idle_model_details": details,
                "idle_models_count": len(idle),
            }
        )

    async def list_active(self, request: web.Request) -> web.Response:
        threshold = self._threshold(request)
        window = self._seconds(request, "window", 60, HISTORY_SECONDS)
        active = self._by_idleness(threshold, window, False)
        details = {
            name: _part(stats, "request_rate", "total_requests", "avg_response_time", "last_activity_time")
            for name, stats in active.items()
        }
        return web.json_response(
            {
                "active_models": list(active),
                "idle_threshold_seconds": threshold,
                "window_seconds": window,
                "active_model_details": details,
                "active_models_count": len(active),
            }
        )

    def _by_idleness(self, threshold: float, window: float, idle: bool) -> dict[str, dict[str, Any]]:
        found = {}
        for name, model in self.node.models.items():
            stats = self._traffic(model, window, threshold)
            if stats["is_idle"] is idle:
                found[name] = stats
        return found

    def _traffic(self, model: Model, window: float, threshold: float | None = None) -> dict[str, Any]:
        if threshold is None:
            threshold = model.lifecycle.settings.idle_threshold_seconds
        stats = model.traffic.stats(self._loop.time(), window, threshold)
        return {
            "total_requests": stats.total_requests,
            "successful_requests": stats.successful_requests,
            "failed_requests": stats.failed_requests,
            "cancelled_requests": stats.cancelled_requests,
            "requests_in_flight": stats.requests_in_flight,
            "request_rate": stats.request_rate,
            "avg_response_time": stats.avg_response_time,
            "last_activity_time": self._time_of_day(stats.last_activity),
            "idle_time_seconds": stats.idle_time_seconds,
            "is_idle": stats.is_idle,
        }

    def _time_of_day(self, at: float | None) -> float | None:
        """Seconds since 1970, of a time of the loop's clock."""
        return None if at is None else time.time() - (self._loop.time() - at)

    async def sleep_status(self, request: web.Request) -> web.Response:
        settings = self.node.config.sleep_manager
        sleeping = {}
        for name, model in self.node.models.items():
            life = model.lifecycle
            if life.state is State.ASLEEP:
                since = life.asleep_since
                sleeping[name] = {
                    "sleep_start_time": self._time_of_day(since),
                    "sleep_duration": None if since is None else self._loop.time() - since,
                    "manual_sleep": life.slept_for is Why.ADMIN,
                    "reason": None if life.slept_for is None else life.slept_for.value,
                }
        return web.json_response(
            {
                "sleeping_models": sleeping,
                "sleep_candidates": self._candidates(),
                "states": {name: _state_of(model) for name, model in self.node.models.items()},
                "auto_sleep_enabled": settings.auto_sleep_enabled,
                "idle_threshold_seconds": settings.idle_threshold_seconds,
                "wakeup_on_request": settings.wakeup_on_request,
            }
        )

    def _candidates(self) -> list[str]:
        now = self._loop.time()
        return [name for name, model in self.node.models.items() if model.lifecycle.is_idle(now)]

    async def sleep_candidates(self, request: web.Request) -> web.Response:
        settings, names = self.node.config.sleep_manager, self._candidates()
        details = {}
        for name in names:
            stats = self._traffic(self.node.models[name], 60)
            details[name] = {
                **_part(stats, "idle_time_seconds", "total_requests", "last_activity_time"),
                "can_sleep": True,
            }
        return web.json_response(
            {
                "sleep_candidates": names,
                "candidate_details": details,
                "idle_threshold_seconds": settings.idle_threshold_seconds,
                "auto_sleep_enabled": settings.auto_sleep_enabled,
            }
        )

    async def metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self.node.metrics.text(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    # ---- What is done ----

    async def sleep(self, request: web.Request) -> web.Response:
        model = self._named(request)
        _note.get().model = model.name
        return _done(model, *await model.sleep(self._flag(request, "firm")))

    async def wake(self, request: web.Request) -> web.Response:
        model = self._named(request)
        _note.get().model = model.name
        return _done(model, *await model.wake())

    # ---- Parameters ----

    def _flag(self, request: web.Request, name: str) -> bool:
        text = request.query.get(name, "false").lower()
        if text not in ("true", "1", "false", "0"):
            raise Problem(
                "invalid_parameter", name=name, value=json.dumps(text[:60]), accepted="true or false"
            )
        return text in ("true", "1")

    def _threshold(self, request: web.Request) -> float:
        default = self.node.config.sleep_manager.idle_threshold_seconds
        return self._seconds(request, "threshold", default, 1e9, least=0)

    def _seconds(
        self, request: web.Request, name: str, default: float, most: float, least: float = 1e-3
    ) -> float:
        text = request.query.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            accepted = f"a number of seconds from {least:g} to {most:g}"
            raise Problem("invalid_parameter", name=name, value=json.dumps(text[:60]), accepted=accepted)
        return int(value) if value.is_integer() else value


def health_of(model: Model) -> dict[str, Any]:
    """A model that sleeps is well: it wakes when it is asked."""
    engines = {
        replica.url: {"alive": replica.alive, "reason": replica.reason or None}
        for replica in model.replicas.values()
    }
    dead = model.lifecycle.state is State.FAILED or not any(r.alive for r in model.replicas.values())
    return {
        "status": "unhealthy" if dead else "healthy",
        "state": model.lifecycle.state.value,
        "reason": model.lifecycle.failure or None if dead else None,
        "engines": engines,
    }


def _state_of(model: Model) -> dict[str, Any]:
    life = model.lifecycle
    return {
        "state": life.state.value,
        "requests_in_flight": len(life.in_flight),
        "queued_requests": life.queued,
        "reason": life.failure or None if life.state is State.FAILED else None,
    }


def _payload_fault(fault: BaseException) -> str:
    """aiohttp has the sentence in what the fault was made of."""
    text = str(getattr(fault.__cause__ or fault, "message", ""))
    return " ".join(text.split())[:200] or "its body cannot be read"


def _done(model: Model, ok: bool, message: str) -> web.Response:
    reply = {"model_name": model.name, "success": ok, "message": f"Model {model.name}: {message}"}
    return web.json_response(reply, status=200 if ok else 400)


def _part(stats: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: stats[name] for name in names}


def _host_and_port(url: str) -> tuple[str | None, int | None]:
    parts = urlsplit(url)
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
