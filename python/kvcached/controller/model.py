# SPDX-License-Identifier: Apache-2.0
"""One model at work: its lifecycle's actions are carried out here, on its engines, and what comes of them is
told to it. All of it in one event loop.

A model may have several engines, its replicas. It is awake when one of them is, wakes and sleeps with all of
them, and is dead when all are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Any, Protocol

from kvcached.controller import engines, lifecycle
from kvcached.controller.actions import (
    Action,
    Adopt,
    Answer,
    Forward,
    Found,
    Look,
    Refuse,
    Release,
    Reserve,
    Sleep,
    State,
    Wake,
    Why,
)
from kvcached.controller.balance import Balance
from kvcached.controller.config import Instance, SleepManager
from kvcached.controller.places import address_of
from kvcached.controller.replica import Replica
from kvcached.controller.reservation import Held, NoRoom, Reserver, Room, each_of, is_local
from kvcached.controller.traffic import Traffic

log = logging.getLogger("kvcached.controller")

ALONE_ROOM_S = 1.0
"""What a daemon may take to say whether there is room for one of several engines."""


class Refused(Exception):
    """A request that the model does not serve now. `code` is a key of errors.KINDS."""

    def __init__(self, code: str, retry_after: float, detail: str) -> None:
        super().__init__(detail or code)
        self.code, self.retry_after, self.detail = code, retry_after, detail


_Failed = Callable[[float, int, str], list[Action]]


class Watcher(Protocol):
    """Who is told what happens, at once and in the event loop; must not block."""

    def state_changed(self, model: Model, before: State) -> None: ...

    def happened(self, model: Model) -> None:
        """Something, after each event."""
        ...

    def may_reserve(self, model: Model) -> bool:
        """Whether it is its turn to look for room."""
        ...

    def room_granted(self, model: Model) -> None: ...

    def room_refused(self, model: Model, sentence: str) -> None: ...

    def woke(self, model: Model, seconds: float, fault: str) -> None: ...

    def slept(self, model: Model, seconds: float, fault: str) -> None: ...


class Model:
    """`start()` first. Attributes are for reading. `environment` has the engines' keys."""

    def __init__(
        self,
        name: str,
        settings: SleepManager,
        drivers: engines.Drivers,
        reserver: Reserver,
        watcher: Watcher,
        environment: Mapping[str, str],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.name = name
        self.lifecycle = lifecycle.Lifecycle(settings, self._loop.time())
        self.balance = Balance()
        self.traffic = Traffic(self._loop.time())
        self.replicas: dict[str, Replica] = {}
        self.places: frozenset[str] = frozenset()  # of its engines, however their URLs are spelled
        # When room was refused last: what NoRoom says, and whether only because others have waited longer.
        self.missing_bytes: dict[int, int | None] = {}
        self.waits_its_turn = False
        self._n_room_changes = 0
        self.started = False
        self._state = self.lifecycle.state
        self._drivers, self._reserver, self._watcher = drivers, reserver, watcher
        self._environment = environment
        self._admissions: dict[Hashable, asyncio.Future[None]] = {}
        self._asks: dict[Hashable, asyncio.Future[tuple[bool, str]]] = {}
        self._n_asks = 0
        self._held: frozenset[Hashable] = frozenset()
        self._rooms: dict[int, Room] = {}
        self._given_up: set[Room] = set()  # and not released so far
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._probed_at = self._loop.time()

    # ---- What it is made of ----

    def set_replicas(self, found: Iterable[tuple[str, Instance]]) -> None:
        """Engines by address. Those that stay keep what is known of them; others serve once they have been
        looked at, which is at once."""
        old = self.replicas
        self.replicas = {}
        for url, instance in found:
            replica = old.get(url)
            if replica is None or replica.instance.engine != instance.engine:
                replica = Replica(url, instance, self._engine(url, instance))
            else:
                # The driver stays: of an SGLang without /ready only it knows whether it sleeps.
                replica.instance = instance
                replica.engine.api_key = self.key_of(instance)
            self.replicas[url] = replica
        self.places = frozenset(address_of(url) for url in self.replicas)
        self.balance.set_replicas(self.replicas)
        new = [replica for replica in self.replicas.values() if old.get(replica.url) is not replica]
        for replica in new:
            self.balance.set_serving(replica.url, False)
        if self.started:
            self._check_served()
            if new:
                self._begin(self.probe())

    def _check_served(self) -> None:
        """A model that is awake by engines that it has no more is not."""
        if not self.balance.serves:
            self._event(self.lifecycle.unserved(self._loop.time()))

    def _set_serving(self, replica: Replica, serving: bool) -> None:
        """It was woken, or put to sleep: what was found of it before is old."""
        replica.changed_at = self._loop.time()
        self.balance.set_serving(replica.url, serving)

    def _has(self, replica: Replica) -> bool:
        return self.replicas.get(replica.url) is replica

    def set_settings(self, settings: SleepManager) -> None:
        self.lifecycle.settings = settings
        for replica in self.replicas.values():
            replica.engine.level = settings.sleep_level
        self._arm()

    def _engine(self, url: str, instance: Instance) -> engines.Engine:
        engine = self._drivers.of(instance.engine, url)
        engine.level, engine.api_key = self.lifecycle.settings.sleep_level, self.key_of(instance)
        return engine

    def key_of(self, instance: Instance) -> str | None:
        """The engine's API key. What was read from a file often ends with a new line."""
        key = None if instance.api_key_env is None else self._environment.get(instance.api_key_env)
        return None if key is None else key.strip()

    @property
    def gpus(self) -> frozenset[int]:
        """Of this machine: those of others are nobody's here."""
        return frozenset(gpu for instance in self._local(self.replicas) for gpu in instance.gpu)

    def bytes_by_gpu(self) -> dict[int, int]:
        """That come free on this machine when it sleeps, at the least."""
        serving = [str(replica.name) for replica in self.balance.replicas if replica.serving]
        found: dict[int, int] = {}
        for instance in self._local(url for url in serving if self.replicas[url].alive is not False):
            n_bytes = max(1, (instance.weight_bytes or 0) + (instance.min_kv_bytes or 0))
            for gpu in instance.gpu:
                found[gpu] = found.get(gpu, 0) + n_bytes
        return found

    def _local(self, urls: Iterable[str]) -> list[Instance]:
        return [instance for instance in (self.replicas[url].instance for url in urls) if is_local(instance)]

    # ---- Requests ----

    async def admit(self, key: Hashable) -> None:
        """Returns when the request may be forwarded. Refused: it may not. The caller calls ended() when it is
        over, whatever becomes of it, also if this is cancelled."""
        await self._admit_once(key)
        if not self.balance.serves:  # any more: what came between was told first
            self.ended(key)
            self._check_served()
            await self._admit_once(key)

    async def _admit_once(self, key: Hashable) -> None:
        admission = self._loop.create_future()
        self._admissions[key] = admission
        try:
            self._event(self.lifecycle.came(self._loop.time(), key))
            await admission
        finally:
            del self._admissions[key]

    def ended(self, key: Hashable) -> None:
        self._event(self.lifecycle.ended(self._loop.time(), key))

    # ---- What administrators, others' needs and probes ask for ----

    async def sleep(self, firm: bool) -> tuple[bool, str]:
        """Whether it sleeps now, and a sentence. firm: requests that come meanwhile wait; else the first one
        keeps it awake."""
        return await self._ask(
            lambda ask: self.lifecycle.sleep_asked(self._loop.time(), Why.ADMIN, ask, firm=firm)
        )

    async def wake(self) -> tuple[bool, str]:
        return await self._ask(lambda ask: self.lifecycle.wake_asked(self._loop.time(), ask))

    async def _ask(self, event: Callable[[Hashable], list[Action]]) -> tuple[bool, str]:
        self._n_asks += 1
        ask, answer = self._n_asks, self._loop.create_future()
        self._asks[ask] = answer
        try:
            self._event(event(ask))
            ok, message = await answer
            return ok, message
        finally:
            del self._asks[ask]

    def give_way(self, why: Why) -> None:
        self._event(self.lifecycle.sleep_asked(self._loop.time(), why))

    def room_changed(self) -> None:
        self._n_room_changes += 1
        self._event(self.lifecycle.room_changed(self._loop.time()))

    def start(self) -> None:
        self.started = True
        self._event(self.lifecycle.start(self._loop.time()))

    def stop(self, disowned: bool = False) -> None:
        """No new request is accepted. `quiet`, once what was accepted has ended. disowned: it gives way for
        no other any more, either, for its engines may be somebody else's."""
        self._event(self.lifecycle.stop(self._loop.time(), disowned))

    def go_on(self) -> None:
        """After stop(), for it is configured again."""
        self._event(self.lifecycle.go_on(self._loop.time()))

    def set_held(self, held: frozenset[Hashable]) -> None:
        """Engines of it, as their addresses, that have requests of other models: it does not sleep."""
        before, self._held = self._held, held
        for name in held - before:
            self._event(self.lifecycle.held(self._loop.time(), name))
        for name in before - held:
            self._event(self.lifecycle.ended(self._loop.time(), name))

    def _not_held(self) -> list[Replica]:
        return [one for one in self.replicas.values() if address_of(one.url) not in self._held]

    @property
    def quiet(self) -> bool:
        return self.lifecycle.quiet and not self._given_up

    async def probe(self) -> None:
        """Asks each engine how it is. Whatever goes wrong is this model's trouble alone."""
        began = self._loop.time()
        try:
            found, detail = await self._find()
            if found is not None:
                self._event(self.lifecycle.probed(self._loop.time(), began, found, detail))
            self._check_served()
            self._wake_the_rest(self._probed_at)
            self._probed_at = began
        except Exception:
            log.exception("Model %s could not be probed", self.name)

    async def close(self) -> None:
        """Ends what is under way, and what it holds. No method may be called any more."""
        if self._timer:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for room in [*self._rooms.values(), *self._given_up]:
            await room.release()

    # ---- Events and actions ----

    def _event(self, actions: list[Action]) -> None:
        before = self._state
        for action in actions:
            self._do(action)
        self._arm()
        if self.lifecycle.state is not before:
            self._state = self.lifecycle.state
            self._watcher.state_changed(self, before)
        self._watcher.happened(self)

    def _arm(self) -> None:
        if self._timer:
            self._timer.cancel()
        due = self.lifecycle.due()
        self._timer = None if due is None else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        # A timer may be early by the clock's granularity.
        self._event(self.lifecycle.tick(self._loop.time()))

    def _do(self, action: Action) -> None:
        if isinstance(action, Forward):
            self._admit(action.request, None)
        elif isinstance(action, Refuse):
            self._admit(action.request, Refused(action.code, action.retry_after, action.detail))
        elif isinstance(action, Answer):
            answer = self._asks.get(action.ask)
            if answer and not answer.done():
                answer.set_result((action.ok, action.message))
        elif isinstance(action, Look):
            self._begin(self._reported(self._look(action.call), self._look_failed, action.call))
        elif isinstance(action, Reserve):
            room = self._rooms[action.call] = Room()
            work = self._reserve(action.call, room, action.deadline)
            room.task = self._begin(self._reported(work, self._reserve_failed, action.call))
        elif isinstance(action, Release):
            room_or_none = self._rooms.pop(action.call, None)
            if room_or_none:
                self._given_up.add(room_or_none)
                self._begin(self._give_up(room_or_none))
        elif isinstance(action, Wake):
            work = self._wake(action.call)
            self._begin(self._reported(work, self.lifecycle.wake_failed, action.call))
        elif isinstance(action, Sleep):
            work = self._sleep(action.call)
            self._begin(self._reported(work, self.lifecycle.sleep_failed, action.call))
        else:
            assert isinstance(action, Adopt)

    def _admit(self, key: Hashable, refused: Refused | None) -> None:
        """Whoever has been cancelled meanwhile calls ended()."""
        admission = self._admissions.get(key)
        if admission is None or admission.done():
            return
        if refused:
            admission.set_exception(refused)
        else:
            admission.set_result(None)

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- Calls ----

    async def _reported(self, work: Awaitable[None], failed: _Failed, call: int) -> None:
        """Whatever goes wrong is an outcome: a call that never ends would hold the model for ever."""
        try:
            await work
        except Exception as fault:
            log.exception("Model %s: a fault of the controller's", self.name)
            self._event(failed(self._loop.time(), call, f"{fault or type(fault).__name__}"))

    def _look_failed(self, now: float, call: int, detail: str) -> list[Action]:
        return self.lifecycle.looked(now, call, Found.DEAD, detail)

    def _reserve_failed(self, now: float, call: int, detail: str) -> list[Action]:
        room = self._rooms.pop(call, None)
        if room:
            self._begin(room.release_held())
        self.missing_bytes, self.waits_its_turn = {}, False
        return self.lifecycle.room_refused(now, call)

    async def _look(self, call: int) -> None:
        found, detail = await self._find()
        while found is None:
            found, detail = await self._find()
        self._event(self.lifecycle.looked(self._loop.time(), call, found, detail))

    async def _find(self) -> tuple[Found | None, str]:
        """None: those that may be alive are silent, or are others now."""
        replicas, began = list(self.replicas.values()), self._loop.time()
        found = await asyncio.gather(*(self._find_one(replica) for replica in replicas))
        # All at once, and together with what the caller makes of it.
        for replica, one_found in zip(replicas, found):
            told = one_found in (Found.AWAKE, Found.ASLEEP) and began >= replica.changed_at
            if self._has(replica) and told:
                self.balance.set_serving(replica.url, one_found is Found.AWAKE)
        if replicas != list(self.replicas.values()):
            return None, ""
        for one in (Found.AWAKE, Found.ASLEEP):
            if one in found:
                return one, ""
        if None in found:
            return None, ""
        return Found.DEAD, next((r.reason for r in replicas if r.reason), "no engine of it is known")

    async def _find_one(self, replica: Replica) -> Found | None:
        found = await replica.find()
        self.balance.probed(replica.url, found in (Found.AWAKE, Found.ASLEEP))
        return found

    async def _reserve(self, call: int, room: Room, deadline: float) -> None:
        """All that the replicas need, or nothing."""

        async def reserve(replica: Replica) -> Held:
            return await self._reserver.reserve(replica.instance, max(0.0, deadline - self._loop.time()))

        n_room_changes = self._n_room_changes
        waits_its_turn = not self._watcher.may_reserve(self)
        try:
            if waits_its_turn:
                raise NoRoom("another model has waited longer")
            await each_of(self.replicas.values(), reserve, room.held)
        except NoRoom as fault:
            self._rooms.pop(call, None)
            await room.release_held()
            self.missing_bytes, self.waits_its_turn = fault.missing_bytes, waits_its_turn
            self._event(self.lifecycle.room_refused(self._loop.time(), call))
            if n_room_changes == self._n_room_changes:
                self._watcher.room_refused(self, str(fault))
            else:
                # What was said may be what was true before: nobody is to give way for that.
                self.room_changed()
            return
        self._event(self.lifecycle.room_granted(self._loop.time(), call))
        self._watcher.room_granted(self)

    async def _give_up(self, room: Room) -> None:
        """Not while an engine goes on to wake in it, though it has taken too long."""
        await asyncio.gather(*(one.settled(None) for one in room.engines))
        await room.release()
        self._given_up.discard(room)

    async def _on_all(
        self, replicas: list[Replica], act: Callable[[Replica], Awaitable[None]]
    ) -> list[engines.EngineError | None]:
        """What each says; None where all went well."""

        async def one(replica: Replica) -> engines.EngineError | None:
            try:
                await act(replica)
            except engines.EngineError as fault:
                return fault
            return None

        return list(await asyncio.gather(*(one(replica) for replica in replicas)))

    async def _wake(self, call: int) -> None:
        """One that wakes is enough."""
        limit = self.lifecycle.settings.wake_timeout_seconds
        replicas, began = list(self.replicas.values()), self._loop.time()
        for room in self._rooms.values():
            room.engines = [replica.engine for replica in replicas]
        said = await self._on_all(replicas, lambda replica: replica.wake(limit))
        stay = [(replica, fault) for replica, fault in zip(replicas, said) if self._has(replica)]
        for replica, fault in stay:
            self._set_serving(replica, not fault)
            self.balance.probed(replica.url, not fault)
        now = self._loop.time()
        if any(not fault for _, fault in stay):
            self._watcher.woke(self, now - began, "")
            self._event(self.lifecycle.woken(now, call))
        elif len(stay) < len(self.replicas):
            self._event(self.lifecycle.wake_overtaken(now, call))
        else:
            sentence = str(stay[0][1]) if stay else "no engine of it is known"
            self._watcher.woke(self, now - began, sentence)
            self._event(self.lifecycle.wake_failed(now, call, sentence))

    def _wake_the_rest(self, since: float) -> None:
        """Engines that sleep while others of the model are awake: they could not be woken with these, or
        somebody else has put them to sleep."""
        now = self._loop.time()
        for replica in self.replicas.values() if self.lifecycle.wants_all(since) else ():
            asleep = replica.alive and not replica.n_silent and not self.balance.is_serving(replica.url)
            if asleep and not replica.is_woken and now >= replica.retry_at:
                self._begin(self._wake_alone(replica))

    async def _wake_alone(self, replica: Replica) -> None:
        """Nobody gives way for that. A sleep that begins meanwhile waits until it has woken."""
        replica.is_woken = True
        room = Room(engines=[replica.engine])
        self._given_up.add(room)
        try:
            if await self._room_for(replica, room) and self.lifecycle.state is State.AWAKE:
                log.info("Engine %s of model %s is woken, for others are awake", replica.url, self.name)
                await replica.wake(self.lifecycle.settings.wake_timeout_seconds)
                replica.n_failed = 0
                if self._has(replica):
                    self._set_serving(replica, True)
        except Exception as fault:
            replica.n_failed += 1
            log.warning("Engine %s of model %s could not be woken: %s", replica.url, self.name, fault)
        replica.retry_at = self._loop.time() + (
            lifecycle.backoff(replica.n_failed) if replica.n_failed else 0
        )
        replica.is_woken = False
        await self._give_up(room)

    async def _room_for(self, replica: Replica, room: Room) -> bool:
        if not self._watcher.may_reserve(self):
            return False
        try:
            room.held.append(await self._reserver.reserve(replica.instance, ALONE_ROOM_S))
        except NoRoom:
            return False
        return True

    async def _sleep(self, call: int) -> None:
        """Those that are gone have nothing to give back, if there are others."""
        limit = self.lifecycle.settings.wake_timeout_seconds
        began = self._loop.time()
        asked: list[Replica] = []
        said: list[engines.EngineError | None] = []
        dead = [replica for replica in self.replicas.values() if replica.alive is False]
        # With those that have come meanwhile, but for those that have another model's requests.
        while replicas := [one for one in self._not_held() if one not in asked]:
            asked += replicas
            said += await self._on_all(replicas, lambda replica: replica.sleep(limit))
        stay = [(replica, fault) for replica, fault in zip(asked, said) if self._has(replica)]
        for replica, fault in stay:
            if not fault:
                self._set_serving(replica, False)
        now = self._loop.time()
        faults = [(replica, fault) for replica, fault in stay if fault]
        if len(faults) < len(stay):
            gone = engines.UNREACHABLE
            faults = [(replica, it) for replica, it in faults if it.kind != gone and replica not in dead]
        sentence = str(faults[0][1]) if faults else "" if asked else "its engines have others' requests"
        if sentence:
            self._event(self.lifecycle.sleep_failed(now, call, sentence))
        else:
            self._event(self.lifecycle.slept(now, call))
        # It may want to wake again at once: whoever has waited longer is told before it can ask for room.
        self._watcher.slept(self, now - began, sentence)
