# SPDX-License-Identifier: Apache-2.0
"""What is told of models: each handler answers a GET, of what is known already, and changes nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from kvcached.controller.actions import State, Why
from kvcached.controller.model import Model
from kvcached.controller.node import Node
from kvcached.controller.parameters import model_in_path, seconds
from kvcached.controller.traffic import HISTORY_SECONDS


class Status:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()

    async def list_as_openai(self, request: web.Request) -> web.Response:
        cards = [
            {"id": name, "object": "model", "created": self._node.began, "owned_by": "kvcached"}
            for name in self._node.models
        ]
        return web.json_response({"object": "list", "data": cards})

    async def list_models(self, request: web.Request) -> web.Response:
        found = {}
        for name, model in self._node.models.items():
            urls = list(model.replicas)
            host, port = _host_and_port(urls[0]) if urls else (None, None)
            found[name] = {
                "endpoint": {"host": host, "port": port},
                "endpoints": urls,
                "state": model.lifecycle.state.value,
            }
        return web.json_response({"models": found})

    async def health(self, request: web.Request) -> web.Response:
        if self._node.stopping:
            return web.json_response({"status": "stopping"}, status=503)
        return web.json_response({"status": "healthy"})

    async def health_of_all(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"models": {name: health_of(model) for name, model in self._node.models.items()}}
        )

    async def health_of_model(self, request: web.Request) -> web.Response:
        model = model_in_path(self._node, request)
        found = health_of(model)
        status = 200 if found["status"] == "healthy" else 503
        return web.json_response({"model": model.name, "health": found}, status=status)

    async def server_info(self, request: web.Request) -> web.Response:
        states = {name: model.lifecycle.state.value for name, model in self._node.models.items()}
        return web.json_response(
            {
                "status": "stopping" if self._node.stopping else "healthy",
                "version": self._node.version,
                "started_time": self._node.began,
                "models": states,
            }
        )

    async def traffic_of_all(self, request: web.Request) -> web.Response:
        window = seconds(request, "window", 60, HISTORY_SECONDS)
        found = {name: self._traffic(model, window) for name, model in self._node.models.items()}
        return web.json_response({"traffic_stats": found, "window_seconds": window})

    async def traffic_of_model(self, request: web.Request) -> web.Response:
        window = seconds(request, "window", 60, HISTORY_SECONDS)
        model = model_in_path(self._node, request)
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
        window = seconds(request, "window", 60, HISTORY_SECONDS)
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
        for name, model in self._node.models.items():
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
        settings = self._node.config.sleep_manager
        sleeping = {}
        for name, model in self._node.models.items():
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
                "states": {name: _state_of(model) for name, model in self._node.models.items()},
                "auto_sleep_enabled": settings.auto_sleep_enabled,
                "idle_threshold_seconds": settings.idle_threshold_seconds,
                "wakeup_on_request": settings.wakeup_on_request,
            }
        )

    def _candidates(self) -> list[str]:
        now = self._loop.time()
        return [name for name, model in self._node.models.items() if model.lifecycle.is_idle(now)]

    async def sleep_candidates(self, request: web.Request) -> web.Response:
        settings, names = self._node.config.sleep_manager, self._candidates()
        details = {}
        for name in names:
            stats = self._traffic(self._node.models[name], 60)
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

    def _threshold(self, request: web.Request) -> float:
        default = self._node.config.sleep_manager.idle_threshold_seconds
        return seconds(request, "threshold", default, 1e9, least=0)


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


def _part(stats: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: stats[name] for name in names}


def _host_and_port(url: str) -> tuple[str | None, int | None]:
    parts = urlsplit(url)
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
