# SPDX-License-Identifier: Apache-2.0
"""A stand-in for vLLM's server.

As vLLM's scheduler does, it takes requests while it sleeps and begins with them once it is awake. If it is
woken while it waits for others to end, it begins with them at once, releases its memory all the same when it
rests, and dies of the next one. Level 2 loses the weights, which /collective_rpc reload_weights brings back
between the two wakes: else its text is garbled. As its metrics do, they say the level that was asked for
last, though it slept already.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, get_args

from aiohttp import web

from controller.standins.engine import Behaviour, Generation, RefusedError, StandIn, behaviour_of, parser
from controller.standins.routes import VLLM
from controller.standins.server import Handler, serve

Mode = Literal["abort", "wait", "keep"]
TAGS = frozenset({"weights", "kv_cache"})


class VllmStandIn(StandIn):
    engine = "vllm"
    routes = VLLM

    def __init__(
        self,
        model: str = "m",
        behaviour: Behaviour | None = None,
        *,
        api_key: str | None = None,
        dev_mode: bool = True,
        old_replies: bool = False,
    ) -> None:
        """dev_mode: VLLM_SERVER_DEV_MODE. old_replies: as before 0.2x, /sleep and /wake_up answer nothing but
        their status."""
        super().__init__(model, behaviour, api_key=api_key)
        self.routes = tuple(route for route in VLLM if dev_mode or not route.dev_mode)
        self.old_replies = old_replies
        self.begin_anew()

    def begin_anew(self) -> None:
        self.noted: int | None = None  # the last sleep's level, which metrics go by, until it has woken
        self.paused = False
        self.frozen = False
        self.sleeping_tags: set[str] = set()
        self.weights_lost = False

    def handlers(self) -> dict[str, Handler]:
        return super().handlers() | {
            "/health": self.health,
            "/version": self.version,
            "/sleep": self.sleep,
            "/wake_up": self.wake_up,
            "/is_sleeping": self.is_sleeping,
            "/collective_rpc": self.collective_rpc,
        }

    def error(
        self, status: int, message: str, kind: str | None = None, param: str | None = None
    ) -> web.Response:
        error = {"message": message, "type": kind or "BadRequestError", "param": param, "code": status}
        return web.json_response({"error": error}, status=status)

    def guards(self, path: str) -> bool:
        return path.startswith("/v1")

    def check_model(self, body: dict[str, Any]) -> None:
        if body.get("model") not in (None, "", self.model):
            message = f"The model `{body['model']}` does not exist. Valid aliases: {self.model}."
            raise RefusedError(404, message, "NotFoundError", "model")

    def missing(self, field: str) -> RefusedError:
        if field != "prompt":
            return super().missing(field)
        message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        return RefusedError(400, message, "BadRequestError", "prompt")

    def model_card(self) -> dict[str, Any]:
        permission = {
            "id": "modelperm-0",
            "object": "model_permission",
            "created": 0,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": self.model,
            "object": "model",
            "created": 0,
            "owned_by": "vllm",
            "root": f"/models/{self.model}",
            "parent": None,
            "max_model_len": 4096,
            "permission": [permission],
        }

    def embedding_answer(
        self, generation: Generation, vectors: list[dict[str, Any]], usage: dict[str, int]
    ) -> dict[str, Any]:
        return {
            "id": f"embd-{generation.request_id}",
            "object": "list",
            "created": 0,
            "model": self.model,
            "data": vectors,
            "usage": usage,
        }

    def finish(self) -> dict[str, Any]:
        return {"finish_reason": None, "stop_reason": None}

    def held_bytes(self) -> int:
        sizes = {"weights": self.behaviour.weight_bytes, "kv_cache": self.behaviour.kv_bytes}
        return 0 if self.dead else sum(size for tag, size in sizes.items() if tag not in self.sleeping_tags)

    def is_asleep(self) -> bool:
        return self.paused or bool(self.sleeping_tags)

    def garbled(self) -> bool:
        return self.weights_lost

    async def admit(self, generation: Generation) -> None:
        await self.until(lambda: not self.paused)
        if self.sleeping_tags:
            self.die()
            raise ConnectionResetError
        generation.begun = True

    def has_work(self) -> bool:
        return any(generation.begun or not self.paused for generation in self._generations)

    async def step(self, generation: Generation) -> None:
        await self.until(lambda: generation.abort.is_set() or not (self.frozen or self.sleeping_tags))

    async def health(self, request: web.Request) -> web.StreamResponse:
        del request
        if self.behaviour.silent:
            self.behaviour.silent -= 1
            await asyncio.Event().wait()
        return web.Response(status=503 if self.behaviour.health_fails else 200)

    async def version(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response({"version": "0.32.0"})

    async def sleep(self, request: web.Request) -> web.StreamResponse:
        level, mode = request.query.get("level", "1"), request.query.get("mode", "abort")
        if level not in ("0", "1", "2"):
            raise RefusedError(400, "1 validation error: query.level", "Bad Request", "query.level")
        if mode not in get_args(Mode):
            raise RefusedError(400, "1 validation error: query.mode", "Bad Request", "query.mode")
        await self.operate(self._sleep(int(level), mode))
        if self.old_replies:
            return web.Response()
        return web.json_response({"status": "sleeping", "level": int(level)})

    async def _sleep(self, level: int, mode: str) -> None:
        if self.behaviour.sleep_fails:
            raise RefusedError(500, "CUDA error: told to fail", "InternalServerError")
        self.paused = True
        if mode == "abort":
            for generation in self._generations:
                if generation.begun:
                    generation.abort.set()
        self.frozen = self.frozen or mode == "keep"
        await self.changed()
        if mode != "keep":
            # Those that wait for a wake are not in the way.
            await self.until(lambda: not self.has_work())
        if level and self.behaviour.sleep_s:
            await asyncio.sleep(self.behaviour.sleep_s)
        self.noted = level
        if level and "weights" not in self.sleeping_tags:
            self.weights_lost = self.weights_lost or level == 2
            self.sleeping_tags = set(TAGS)
            self.counters.sleeps += 1
        await self.changed()

    async def wake_up(self, request: web.Request) -> web.StreamResponse:
        tags = request.query.getall("tags", [])
        awake = await self.operate(self._wake(tags))
        if self.old_replies:
            return web.Response()
        return web.json_response({"status": "awake" if awake else "sleeping", "tags": tags or None})

    async def _wake(self, tags: list[str]) -> bool:
        if self.behaviour.wake_fails:
            raise RefusedError(500, "CUDA out of memory: told to fail", "InternalServerError")
        asked = set(tags) - {"scheduling"} if tags else set(TAGS)
        if self.sleeping_tags and asked and asked <= self.sleeping_tags:
            if self.behaviour.wake_s:
                await asyncio.sleep(self.behaviour.wake_s)
            self.sleeping_tags -= asked
            self.counters.wakes += not self.sleeping_tags
        if not self.sleeping_tags:
            self.paused = self.frozen = False
            self.noted = None
        await self.changed()
        return not self.sleeping_tags

    async def is_sleeping(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response({"is_sleeping": self.is_asleep()})

    async def collective_rpc(self, request: web.Request) -> web.StreamResponse:
        body = await self.read_json(request)
        if "method" not in body:
            raise RefusedError(400, "Missing 'method' in request body", "Bad Request")
        if body["method"] != "reload_weights":
            raise RefusedError(500, f"no method {body['method']}", "InternalServerError")
        if "weights" in self.sleeping_tags:
            raise RefusedError(500, "CUDA error: weights have no memory", "InternalServerError")
        self.weights_lost = False
        return web.json_response({"results": [None]})

    def metrics_text(self) -> str:
        labels = f'engine="0",model_name="{self.model}"'
        states = {
            "awake": self.noted is None,
            "weights_offloaded": self.noted == 1,
            "discard_all": self.noted == 2,
        }
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{labels}}} {self.counters.in_flight:.1f}",
            "# TYPE vllm:engine_sleep_state gauge",
        ]
        for state, true in states.items():
            lines.append(f'vllm:engine_sleep_state{{{labels},sleep_state="{state}"}} {float(true)}')
        return "\n".join(lines) + "\n"


def main() -> None:
    options = parser("vllm")
    options.add_argument("--no-dev-mode", action="store_true")
    arguments = options.parse_args()

    def make() -> StandIn:
        return VllmStandIn(
            arguments.served_model_name,
            behaviour_of(arguments),
            api_key=arguments.api_key,
            dev_mode=not arguments.no_dev_mode,
        )

    serve(make, arguments.port)


if __name__ == "__main__":
    main()
