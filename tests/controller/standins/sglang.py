# SPDX-License-Identifier: Apache-2.0
"""A stand-in for SGLang's server.

It dies of what SGLang's scheduler dies of: memory that is released while there are requests, or twice, or
resumed while it is there, and work (a health check that generates is work) on memory that is released. While
it is paused requests wait before they reach the scheduler, and a health check waits with them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from controller.standins.engine import Behaviour, Generation, RefusedError, StandIn, behaviour_of, parser
from controller.standins.routes import SGLANG
from controller.standins.server import Handler, serve

TAGS = frozenset({"kv_cache", "weights", "cuda_graph"})
LATER = frozenset({"/ready"})  # not in 0.5.19, where a release doesn't look away from those that wait, either


class SglangStandIn(StandIn):
    engine = "sglang"
    routes = SGLANG

    def __init__(
        self,
        model: str = "m",
        behaviour: Behaviour | None = None,
        *,
        api_key: str | None = None,
        old: bool = False,
        memory_saver: bool = True,
        cpu_backup: bool = True,
        health_timeout_s: float = 20.0,
    ) -> None:
        """old: as 0.5.19 is. memory_saver: --enable-memory-saver; cpu_backup: --enable-weights-cpu-backup,
        without which released weights are lost."""
        super().__init__(model, behaviour, api_key=api_key)
        self.old = old
        self.routes = tuple(route for route in SGLANG if not (old and route.path in LATER))
        self.memory_saver, self.cpu_backup = memory_saver, cpu_backup
        self.health_timeout_s = health_timeout_s
        self.starting = False
        self.fails_to_load = False
        self.begin_anew()

    def begin_anew(self) -> None:
        self.paused = False
        self.released: set[str] = set()
        self.weights_lost = False
        self.unhealthy = False

    def handlers(self) -> dict[str, Handler]:
        return super().handlers() | {
            "/health": self.health,
            "/health_generate": self.health,
            "/ready": self.ready,
            "/model_info": self.model_info,
            "/get_model_info": self.model_info,
            "/server_info": self.server_info,
            "/get_server_info": self.server_info,
            "/release_memory_occupation": self.release_memory,
            "/resume_memory_occupation": self.resume_memory,
            "/pause_generation": self.pause_generation,
            "/continue_generation": self.continue_generation,
            "/update_weights_from_disk": self.update_weights,
        }

    def error(
        self, status: int, message: str, kind: str | None = None, param: str | None = None
    ) -> web.Response:
        error = {
            "object": "error",
            "message": message,
            "type": kind or "BadRequestError",
            "param": param,
            "code": status,
        }
        return web.json_response(error, status=status)

    def guards(self, path: str) -> bool:
        return not path.startswith(("/health", "/ready", "/metrics"))

    def model_card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": 0,
            "owned_by": "sglang",
            "root": self.model,
            "parent": None,
            "max_model_len": 4096,
        }

    def embedding_answer(
        self, generation: Generation, vectors: list[dict[str, Any]], usage: dict[str, int]
    ) -> dict[str, Any]:
        del generation
        return {"data": vectors, "model": self.model, "object": "list", "usage": usage}

    def finish(self) -> dict[str, Any]:
        return {"finish_reason": None, "matched_stop": None}

    def held_bytes(self) -> int:
        sizes = {"weights": self.behaviour.weight_bytes, "kv_cache": self.behaviour.kv_bytes}
        return 0 if self.dead else sum(size for tag, size in sizes.items() if tag not in self.released)

    def is_asleep(self) -> bool:
        return self.paused or bool(self.released)

    def garbled(self) -> bool:
        return self.weights_lost

    async def admit(self, generation: Generation) -> None:
        await self.until(lambda: not self.paused)
        self._work(generation)

    async def step(self, generation: Generation) -> None:
        await self.until(lambda: generation.abort.is_set() or not self.paused)
        self._work(generation)

    def _work(self, generation: Generation | None = None) -> None:
        if self.released:
            if generation is not None:
                generation.died = True
            self.die()
            raise ConnectionResetError

    async def health(self, request: web.Request) -> web.StreamResponse:
        if self.starting or self.behaviour.health_fails:
            return web.Response(status=503)
        resumed = asyncio.ensure_future(self.until(lambda: not self.paused))
        try:
            done, _ = await asyncio.wait([resumed], timeout=self.health_timeout_s)
        finally:
            resumed.cancel()
        if not done:
            self.unhealthy = True
            return web.Response(status=503)
        if self.released:
            self.die()
            self._kill(request)
        self.unhealthy = False
        return web.Response()

    async def ready(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.Response(status=503 if self.paused or self.starting or self.unhealthy else 200)

    async def model_info(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response(
            {"model_path": f"/models/{self.model}", "served_model_name": self.model, "is_generation": True}
        )

    async def server_info(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response(
            {
                "enable_memory_saver": self.memory_saver,
                "enable_weights_cpu_backup": self.cpu_backup,
                "internal_states": [{"memory_usage": {}}],
                "version": "0.5.19" if self.old else "0.5.23",
            }
        )

    async def _tags(self, request: web.Request) -> set[str]:
        body = await self.read_json(request)
        return set(body.get("tags") or TAGS)

    async def release_memory(self, request: web.Request) -> web.StreamResponse:
        await self.operate(self._release(await self._tags(request), request))
        return web.json_response(None)

    async def _release(self, tags: set[str], request: web.Request) -> None:
        if self.behaviour.sleep_fails:
            raise RefusedError(400, "told to fail", "BadRequestError")
        at_work = bool(self._generations) and (self.old or not self.paused)
        if at_work or tags & self.released:
            self.die()
            self._kill(request)
        if self.behaviour.sleep_s:
            await asyncio.sleep(self.behaviour.sleep_s)
        self.released |= tags
        self.weights_lost = self.weights_lost or (
            "weights" in tags and self.memory_saver and not self.cpu_backup
        )
        self.counters.sleeps += 1

    async def resume_memory(self, request: web.Request) -> web.StreamResponse:
        await self.operate(self._resume(await self._tags(request), request))
        return web.json_response(None)

    async def _resume(self, tags: set[str], request: web.Request) -> None:
        if self.behaviour.wake_fails:
            raise RefusedError(400, "told to fail", "BadRequestError")
        if not tags <= self.released:
            self.die()
            self._kill(request)
        if self.behaviour.wake_s:
            await asyncio.sleep(self.behaviour.wake_s)
        self.released -= tags
        self.counters.wakes += 1

    async def pause_generation(self, request: web.Request) -> web.StreamResponse:
        mode = (await self.read_json(request)).get("mode", "abort")
        if mode not in ("abort", "retract", "in_place"):
            raise RefusedError(400, "Invalid value: mode", "Bad Request", "body.mode")
        if mode == "abort":
            for generation in self._generations:
                generation.abort.set()
        self.paused = True
        await self.changed()
        return web.json_response({"message": "Generation paused successfully.", "status": "ok"})

    async def continue_generation(self, request: web.Request) -> web.StreamResponse:
        await self.read_json(request)
        self.paused = False
        await self.changed()
        return web.json_response({"message": "Generation continued successfully.", "status": "ok"})

    async def update_weights(self, request: web.Request) -> web.StreamResponse:
        body = await self.read_json(request)
        if "model_path" not in body:
            raise RefusedError(400, "Field required: model_path", "Bad Request", "body.model_path")
        found = body["model_path"] == f"/models/{self.model}" and not self.fails_to_load
        ok = found and "weights" not in self.released
        self.weights_lost = self.weights_lost and not ok
        message = "Succeeded to update model weights." if ok else "Failed to get weights iterator"
        return web.json_response(
            {"success": ok, "message": message, "num_paused_requests": 0}, status=200 if ok else 400
        )

    def metrics_text(self) -> str:
        labels = f'model_name="{self.model}"'
        return (
            "# TYPE sglang:num_running_reqs gauge\n"
            f"sglang:num_running_reqs{{{labels}}} {self.counters.in_flight:.1f}\n"
        )


def main() -> None:
    options = parser("sglang")
    options.add_argument("--old", action="store_true")
    arguments = options.parse_args()

    def make() -> StandIn:
        return SglangStandIn(
            arguments.served_model_name,
            behaviour_of(arguments),
            api_key=arguments.api_key,
            old=arguments.old,
        )

    serve(make, arguments.port)


if __name__ == "__main__":
    main()
