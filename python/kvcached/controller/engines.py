# SPDX-License-Identifier: Apache-2.0
"""What is asked of an engine beside requests: whether it lives, what it serves, whether it sleeps; to sleep,
and to wake. The engine holds the state, and others may change it: nothing here is remembered that an engine
can be asked.

vLLM (VLLM_SERVER_DEV_MODE=1, --enable-sleep-mode) answers /is_sleeping, takes requests while it sleeps and
begins with them when it wakes. It is asked to sleep with mode=wait, which lets those that run end; releases
that don't know the mode need a drained engine, as SGLang does. While they run, /is_sleeping is true already,
and an engine that is told to wake then takes up work again, releases its memory all the same as soon as it
rests, and fails with the next request. Its metrics say awake until the memory is released, so such an engine
is none that sleeps; without them (--disable-log-stats) nobody can tell.

SGLang has no such question, and its scheduler dies when memory is released under a request, released twice,
or resumed while it is there. So an engine is paused before its memory is released: requests wait from then
on, and /ready says 503. That also says so of a server that starts or has failed a health check; /health tells
these apart, since it answers at once or within a second or two, and of a paused one not at all. Older
releases (0.5.19) have no /ready: of these only what was done here is known.
"""

from __future__ import annotations

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

import aiohttp

from kvcached.controller.json_text import parse
from kvcached.controller.places import address_of

PROBE_S = 5.0
PAUSED_AFTER_S = 2.5
"""SGLang's /health looks once a second whether there was an answer."""
SETTLE_S = 600.0
"""A wake that took too long may go on for so much longer: an engine that is left half-way holds memory."""
UNDO_S = 60.0
_REPLY_BYTES = 1 << 22  # of which JSON may have fewer
_JSON_BYTES = 1 << 20
_LABELS_BYTES = 500  # of a metric, on either side of one that is looked for
_SAID_CHARS = 300

UNREACHABLE = "unreachable"
TIMEOUT = "timeout"
UNSUPPORTED = "unsupported"
REFUSED = "refused"
NOT_READY = "not_ready"

_NO_SLEEP = {
    "vllm": "start vLLM with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode",
    "sglang": "this SGLang cannot release its memory",
}


class EngineError(Exception):
    """An engine that didn't do what it was asked; its text is one sentence. `kind`: UNREACHABLE (also: broke
    off), TIMEOUT (it may still do it), UNSUPPORTED, REFUSED (`status` is what it answered), or NOT_READY."""

    def __init__(self, kind: str, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.kind, self.status = kind, status


class Engine(ABC):
    """`url`: http://host:port, without a path. `level`: how vLLM sleeps, 1 (weights in host memory) or 2
    (weights are loaded again). They and `api_key` may change. Time limits are in seconds; None:
    none. All methods raise EngineError."""

    name = ""
    _slept = False
    """Put to sleep by this object, and not seen awake since. Only looked at where the engine cannot be
    asked."""
    _change: asyncio.Task[None] | None = None
    """A wake or sleep that is under way, or the last one."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, api_key: str | None = None, level: int = 1
    ) -> None:
        self._session = session
        self.url = url.rstrip("/")
        self.level = level
        self.api_key = api_key

    @abstractmethod
    async def health(self, limit: float | None = PROBE_S) -> None:
        """Returns if the engine can work, asleep or awake. It may be asked at any time."""

    @abstractmethod
    async def is_sleeping(self, limit: float | None = PROBE_S) -> bool:
        """Also true of one that has woken in part; false of one whose requests are still to end first."""

    async def sleep(self, limit: float | None) -> None:
        """Of one that is drained. One that sleeps goes on sleeping."""
        left = _Left(limit)
        await self.settled(left())
        change = self._change = _begin(self._sleep(left))
        await asyncio.shield(change)

    @abstractmethod
    async def _sleep(self, left: _Left) -> None: ...

    async def wake(self, limit: float | None) -> None:
        """Returns when it can take requests. One that is awake stays so, and one that fails is put to sleep
        again, as far as it can be. After a TIMEOUT, or when this is cancelled, it goes on: see settled()."""
        left = _Left(limit)
        await self.settled(left())
        longest = _Left(None if limit is None else limit + SETTLE_S)
        change = self._change = _begin(self._wake(longest))
        await asyncio.wait([change], timeout=left())
        if not change.done():
            raise EngineError(TIMEOUT, f"{self.url} did not wake within {limit or 0:.3g} s")
        change.result()

    @abstractmethod
    async def _wake(self, left: _Left) -> None: ...

    async def settled(self, limit: float | None) -> None:
        """Returns when no wake or sleep of ours is under way; until then what the engine says of itself may
        change."""
        left = _Left(limit)
        while (change := self._change) is not None and not change.done():
            await asyncio.wait([change], timeout=left())
            if not change.done():
                raise EngineError(TIMEOUT, f"{self.url} still wakes, or falls asleep")

    async def models(self, limit: float | None = PROBE_S) -> list[str]:
        """Names that it serves."""
        reply = await self._call("GET", "/v1/models", limit)
        try:
            return [str(card["id"]) for card in reply["data"]]
        except (KeyError, TypeError):
            raise self._unintelligible("/v1/models", reply) from None

    # Calls.

    async def _ask(
        self,
        method: str,
        path: str,
        limit: float | None,
        params: list[tuple[str, str]] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body."""
        headers, data = self._authorization(), None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        try:
            async with self._session.request(
                method,
                self.url + path,
                params=params,
                data=data,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=limit),
            ) as response:
                return response.status, await _read(response)
        except asyncio.TimeoutError:
            raise EngineError(TIMEOUT, f"{self.url}{path} did not answer within {limit or 0:.3g} s") from None
        except (aiohttp.ClientError, OSError) as fault:
            self._slept = False  # it may be another process that is found next
            raise self._unreachable(path, fault) from fault
        except Exception as fault:  # of what is asked, for instance a host that cannot have that name
            raise self._unreachable(path, fault) from fault

    def _authorization(self) -> dict[str, str]:
        if self.api_key is None:
            return {}
        if not self.api_key.isprintable():
            raise EngineError(UNREACHABLE, f"{self.url} cannot be asked: its API key has control characters")
        return {"Authorization": f"Bearer {self.api_key}"}

    def _unreachable(self, path: str, fault: Exception) -> EngineError:
        return EngineError(
            UNREACHABLE, f"{self.url}{path} cannot be asked: {str(fault) or type(fault).__name__}"
        )

    async def _call(
        self,
        method: str,
        path: str,
        limit: float | None,
        params: list[tuple[str, str]] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """The reply's JSON; None where there is none. Another status than 200 is an error."""
        status, said = await self._ask(method, path, limit, params, body)
        if status in (404, 405):
            raise EngineError(UNSUPPORTED, f"{self.url} has no {method} {path}", status)
        if status != 200:
            raise EngineError(REFUSED, f"{self.url}{path} answered {status}: {_message(said)}", status)
        if not said:
            return None
        try:
            return _parse(said)
        except ValueError:
            raise self._unintelligible(path, said) from None

    def _unintelligible(self, path: str, reply: Any) -> EngineError:
        try:
            text = str(reply)[:_SAID_CHARS]
        except RecursionError:
            text = type(reply).__name__
        return EngineError(REFUSED, f"{self.url}{path} answered something else: {text}", 200)

    def _cannot_sleep(self, fault: EngineError) -> EngineError:
        return EngineError(fault.kind, f"{fault}: {_NO_SLEEP[self.name]}", fault.status)


class VllmEngine(Engine):
    name = "vllm"

    async def health(self, limit: float | None = PROBE_S) -> None:
        status, _ = await self._ask("GET", "/health", limit)
        if status != 200:
            raise EngineError(NOT_READY, f"{self.url}/health answered {status}", status)

    async def is_sleeping(self, limit: float | None = PROBE_S) -> bool:
        left = _Left(limit)
        return await self._is_paused(left()) and not await self._says(_AWAKE, left())

    async def _is_paused(self, limit: float | None) -> bool:
        """It sleeps, or is about to."""
        try:
            reply = await self._call("GET", "/is_sleeping", limit)
        except EngineError as fault:
            if fault.kind == UNSUPPORTED:
                return False
            raise
        if not isinstance(reply, dict) or not isinstance(reply.get("is_sleeping"), bool):
            raise self._unintelligible("/is_sleeping", reply)
        return bool(reply["is_sleeping"])

    async def _sleep(self, left: _Left) -> None:
        """Its metrics say the level that was asked for last, also where it slept already: weights that
        somebody has discarded stay discarded."""
        level = self.level
        if await self.is_sleeping(left()) and await self._says(_DISCARDED, left()):
            level = 2
        try:
            await self._call("POST", "/sleep", left(), [("level", str(level)), ("mode", "wait")])
        except EngineError as fault:
            if fault.kind == UNSUPPORTED:
                raise self._cannot_sleep(fault) from None
            raise
        if not await self._is_paused(left()):
            raise EngineError(REFUSED, f"{self.url} has answered /sleep, and says that it is awake")

    async def _wake(self, left: _Left) -> None:
        """By tags: each is looked at by itself, so that an engine that has woken in part is woken in full."""
        if not await self.is_sleeping(left()):
            return
        reload = self.level == 2 or await self._says(_DISCARDED, left())
        try:
            await self._wake_in_parts(left, reload)
        except EngineError:
            with suppress(EngineError):
                # Weights that may not be the model's are not to be kept.
                level = "2" if reload else str(self.level)
                await self._call("POST", "/sleep", UNDO_S, [("level", level), ("mode", "wait")])
            raise

    async def _wake_in_parts(self, left: _Left, reload: bool) -> None:
        await self._call("POST", "/wake_up", left(), [("tags", "weights")])
        if reload:
            await self._call("POST", "/collective_rpc", left(), body={"method": "reload_weights"})
        await self._call("POST", "/wake_up", left(), [("tags", "kv_cache")])
        if await self.is_sleeping(left()):
            raise EngineError(REFUSED, f"{self.url} has answered /wake_up, and says that it sleeps")
        await self.health(left())

    async def _says(self, metric: re.Pattern[bytes], limit: float | None) -> bool:
        status, said = await self._ask("GET", "/metrics", limit)
        return status == 200 and metric.search(said) is not None


class SglangEngine(Engine):
    name = "sglang"

    async def health(self, limit: float | None = PROBE_S) -> None:
        """By a question that the scheduler answers; /health would make it generate, which it can't asleep."""
        await self._server_info(limit)

    async def is_sleeping(self, limit: float | None = PROBE_S) -> bool:
        left = _Left(limit)
        status, said = await self._ask("GET", "/ready", left())
        if status == 200:
            self._slept = False
        elif status == 503:
            self._slept = self._slept or await self._is_paused(left())
        elif status != 404:
            raise EngineError(REFUSED, f"{self.url}/ready answered {status}: {_message(said)}", status)
        return self._slept

    async def _is_paused(self, limit: float | None) -> bool:
        within = PAUSED_AFTER_S if limit is None else min(PAUSED_AFTER_S, limit)
        try:
            status, _ = await self._ask("GET", "/health", within)
        except EngineError as fault:
            if fault.kind == TIMEOUT and within == PAUSED_AFTER_S:
                return True
            raise
        if status != 200:
            raise EngineError(NOT_READY, f"{self.url}/health answered {status}: it starts, or fails", status)
        return False

    async def _sleep(self, left: _Left) -> None:
        if await self.is_sleeping(left()):
            return
        try:
            await self._call("POST", "/pause_generation", left(), body={"mode": "retract"})
        except EngineError as fault:
            if fault.kind != UNSUPPORTED:
                raise
        try:
            await self._call("POST", "/release_memory_occupation", left(), body={})
        except EngineError as fault:
            if fault.kind in (REFUSED, UNSUPPORTED):
                await self._continue(left())
            if fault.kind == UNSUPPORTED:
                raise self._cannot_sleep(fault) from None
            raise
        self._slept = True

    async def _wake(self, left: _Left) -> None:
        if not await self.is_sleeping(left()):
            return
        info = await self._server_info(left())
        await self._call("POST", "/resume_memory_occupation", left(), body={})
        if info.get("enable_memory_saver") and not info.get("enable_weights_cpu_backup"):
            await self._load_weights(left)
        try:
            await self._continue(left())
        except EngineError as fault:
            if fault.kind == REFUSED:
                await self._release_again()
            raise
        self._slept = False
        # Ready again also for itself: a health check that came while it slept has failed.
        status, _ = await self._ask("GET", "/health_generate", left())
        if status != 200:
            raise EngineError(NOT_READY, f"{self.url}/health_generate answered {status}", status)

    async def _load_weights(self, left: _Left) -> None:
        """Memory that was released without a backup comes back without its contents."""
        try:
            model = await self._first("/model_info", "/get_model_info", left())
            if not isinstance(model, dict) or "model_path" not in model:
                raise self._unintelligible("/model_info", model)
            where = {"model_path": model["model_path"]}
            await self._call("POST", "/update_weights_from_disk", left(), body=where)
        except EngineError as fault:
            if fault.kind != UNREACHABLE:
                await self._release_again()
            raise

    async def _release_again(self) -> None:
        """Else the engine looks like one that sleeps, and dies of being woken."""
        with suppress(EngineError):
            await self._call("POST", "/release_memory_occupation", UNDO_S, body={})

    async def _continue(self, limit: float | None) -> None:
        try:
            await self._call("POST", "/continue_generation", limit, body={})
        except EngineError as fault:
            if fault.kind != UNSUPPORTED:
                raise

    async def _server_info(self, limit: float | None) -> dict[str, Any]:
        reply = await self._first("/server_info", "/get_server_info", limit)
        if not isinstance(reply, dict):
            raise self._unintelligible("/server_info", reply)
        return reply

    async def _first(self, path: str, older: str, limit: float | None) -> Any:
        left = _Left(limit)
        try:
            return await self._call("GET", path, left())
        except EngineError as fault:
            if fault.kind != UNSUPPORTED:
                raise
            return await self._call("GET", older, left())


KINDS: dict[str, type[Engine]] = {"vllm": VllmEngine, "sgl": SglangEngine, "sglang": SglangEngine}


class Drivers:
    """One for each engine, whatever models it is of at once or in turn: so none is asked to wake, or looked
    at, while another one's wake or sleep is under way. It is forgotten when nobody has it any more."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._known: WeakValueDictionary[tuple[str, str], Engine] = WeakValueDictionary()

    def of(self, kind: str, url: str) -> Engine:
        place = (kind, address_of(url))
        engine = self._known.get(place)
        if engine is None:
            engine = self._known[place] = KINDS[kind](self._session, url)
        engine.url = url.rstrip("/")
        return engine


def _state_metric(state: bytes) -> re.Pattern[bytes]:
    """Bounded, lest a line that is long enough be looked at for hours."""
    others = rb"[^}\n]{0,%d}" % _LABELS_BYTES
    return re.compile(
        rb'^vllm:engine_sleep_state\{%bsleep_state="%b"%b\} 1(\.0)?$' % (others, state, others), re.M
    )


_AWAKE, _DISCARDED = _state_metric(b"awake"), _state_metric(b"discard_all")


_unfinished: set[asyncio.Task[None]] = set()


def _begin(steps: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """To be done to their end, also if the caller is cancelled: of an SGLang engine that is left between two
    steps nobody could tell whether it sleeps, and one of vLLM's would keep memory that nobody uses."""
    task = asyncio.ensure_future(steps)
    _unfinished.add(task)
    task.add_done_callback(_finish)
    return task


def _finish(task: asyncio.Task[None]) -> None:
    _unfinished.discard(task)
    if not task.cancelled():
        task.exception()  # nobody may be left to be told


class _Left:
    """What is left of a limit over several calls; a moment, once it has passed."""

    def __init__(self, limit: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = None if limit is None else self._loop.time() + limit

    def __call__(self) -> float | None:
        return None if self._end is None else max(self._end - self._loop.time(), 0.001)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """At most so much; what is said beyond that is not looked at."""
    said = bytearray()
    while len(said) < _REPLY_BYTES:
        chunk = await response.content.readany()
        if not chunk:
            break
        said += chunk
    return bytes(said)


def _parse(said: bytes) -> Any:
    if len(said) > _JSON_BYTES:
        raise ValueError("it is larger than a reply can be")
    return parse(said)


def _message(said: bytes) -> str:
    """Of an error, in either engine's form, or of whatever stands there."""
    text = said.decode(errors="replace")
    try:
        reply = _parse(said)
    except ValueError:
        reply = None
    if isinstance(reply, dict):
        error = reply.get("error")
        inner = error.get("message") if isinstance(error, dict) else error
        texts = [inner, reply.get("message"), reply.get("detail")]
        text = next((found for found in texts if isinstance(found, str)), text)
    return " ".join(text.split())[:_SAID_CHARS] or "nothing"
