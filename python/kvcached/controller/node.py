# SPDX-License-Identifier: Apache-2.0
"""All models: what is configured and discovered becomes models, engines are probed, and where one finds no
room others give way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping

import aiohttp

from kvcached.controller import victims
from kvcached.controller.actions import Phase, State, Why
from kvcached.controller.config import Config, Instance, by_model
from kvcached.controller.engines import Drivers
from kvcached.controller.metrics import Metrics
from kvcached.controller.model import Model
from kvcached.controller.places import address_of
from kvcached.controller.reservation import Reserver

log = logging.getLogger("kvcached.controller")

PROBE_SECONDS = 5.0
STARTS_AT_ONCE = 4


class Node:
    """`apply()` what is configured, then `start()`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        reserver: Reserver,
        metrics: Metrics,
        version: str,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._drivers, self._reserver, self._environment = Drivers(session), reserver, environment
        self.metrics = metrics
        self.models: dict[str, Model] = {}
        self._leaving: set[Model] = set()
        self.version, self.began = version, int(time.time())
        self._started = False
        self._probing: asyncio.Task[None] | None = None
        self._probes: dict[asyncio.Task[None], Model] = {}
        self._look_again: asyncio.TimerHandle | None = None
        self._choosing = self._closed = False
        self._owners_before: set[Model] = set()
        self._sharing_soon = False
        self.stopping = False

    # ---- What is configured ----

    def apply(
        self,
        config: Config,
        instances: tuple[Instance, ...],
        addresses: Mapping[tuple[str, int], tuple[str, ...]],
    ) -> None:
        """`instances`: the file's, and those that were discovered; `addresses`: URLs by what `dns` names.
        Models that are not named any more finish what they have."""
        self.config = config
        named = by_model(instances)
        for name in [name for name in self.models if name not in named]:
            model = self.models.pop(name)
            self._leaving.add(model)
            model.stop(disowned=True)
            # Others' requests are no reason for it to stay.
            model.set_held(frozenset())
            log.info("Model %s is no longer configured", name)
        for name, of_model in named.items():
            found = self.models.get(name) or self._come_back(name)
            if found is None:
                found = Model(
                    name, config.sleep_manager, self._drivers, self._reserver, self, self._environment
                )
            self.models[name] = found
            found.set_settings(config.sleep_manager)
            found.set_replicas(
                (url, instance)
                for instance in of_model
                for url in ([instance.url] if instance.url else addresses.get(instance.dns or ("", 0), ()))
            )
        self._share()
        self.metrics.set_models(self.models)

    def _come_back(self, name: str) -> Model | None:
        """With what it has under way."""
        found = next((model for model in self._leaving if model.name == name), None)
        if found:
            self._leaving.discard(found)
            log.info("Model %s is configured again", name)
            if not self.stopping:
                found.go_on()
        return found

    def start(self) -> None:
        self._started = True
        self._share()
        self._probing = self._loop.create_task(self._probe_for_ever())

    # ---- Engines that were another model's ----

    def _share(self) -> None:
        """An engine doesn't sleep under requests of the model that it was of before, and nobody looks at it
        while that model wakes it or has it sleep."""
        self._sharing_soon = False
        if self._closed:
            return
        busy: set[str] = set()
        unsettled: set[str] = set()
        self._owners_before = {model for model in self.models.values() if model.balance.left}
        for model in self._owners_before:
            busy |= {address_of(str(url)) for url in model.balance.left}
        for model in self._leaving:
            if not model.quiet:
                self._owners_before.add(model)
                busy |= model.places if model.lifecycle.in_flight else set()
                unsettled |= set() if model.lifecycle.settled else model.places
        n_started = 0
        for model in self.models.values():
            model.set_held(model.places & busy)
            if self._started and not model.started and not unsettled & model.places:
                if n_started == STARTS_AT_ONCE:
                    self._share_soon()
                    continue
                self.metrics.begin(model.name)
                model.start()
                n_started += 1

    def _share_soon(self) -> None:
        if not self._sharing_soon:
            self._sharing_soon = True
            self._loop.call_soon(self._share)

    def happened(self, model: Model) -> None:
        if model in self._owners_before:
            self._share_soon()

    def stop(self) -> None:
        """From now on nobody is accepted. See `quiet`."""
        self.stopping = True
        for model in self.models.values():
            model.stop()

    @property
    def quiet(self) -> bool:
        return all(model.quiet for model in self._every())

    def _every(self) -> list[Model]:
        """Also those that only finish what they have: they wait for room, and have some."""
        return [*self.models.values(), *self._leaving]

    async def close(self) -> None:
        self._closed = True
        probes = [*self._probes, *([self._probing] if self._probing else [])]
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        if self._look_again:
            self._look_again.cancel()
        for model in self._every():
            await model.close()

    # ---- Probes ----

    async def _probe_for_ever(self) -> None:
        while True:
            await self._probe_all(min(PROBE_SECONDS, self.config.sleep_manager.check_interval_seconds or 1))
            try:
                await self._forget()
            except Exception:
                log.exception("A model that left could not be forgotten")

    async def _probe_all(self, seconds: float) -> None:
        """Each in its turn, for thousands at once keep requests waiting. Takes as long as that: nobody waits
        for those that are silent."""
        began, models = self._loop.time(), list(self.models.values())
        for i, model in enumerate(models, 1):
            await asyncio.sleep(began + seconds * i / len(models) - self._loop.time())
            if self.models.get(model.name) is model and model not in self._probes.values():
                self.probe_soon(model)
        if not models:
            await asyncio.sleep(seconds)

    def probe_soon(self, model: Model) -> None:
        """One of its engines has just failed, or it is its turn."""
        task = self._loop.create_task(model.probe())
        self._probes[task] = model
        task.add_done_callback(self._probes.pop)

    async def _forget(self) -> None:
        for model in list(self._leaving):
            # It may have come back meanwhile.
            if model in self._leaving and model.quiet:
                self._leaving.discard(model)
                await model.close()

    # ---- Room ----

    def state_changed(self, model: Model, before: State) -> None:
        state = model.lifecycle.state
        log.info(
            "Model %s is %s, and was %s%s",
            model.name,
            state.value,
            before.value,
            f": {model.lifecycle.failure}" if state is State.FAILED else "",
        )
        self.metrics.state_changed(model)
        if state is State.ASLEEP:
            self._tell_of_room(model)
        self._choose_soon()

    def _tell_of_room(self, model: Model) -> None:
        for other in self._every():
            if other is not model:
                other.room_changed()

    def may_reserve(self, model: Model) -> bool:
        """Room goes to who has waited longest, and not to who has just given way. Who has nothing to hope for
        keeps nobody waiting."""
        own = need_of(model)
        for other in self._every():
            reserving = other.lifecycle.phase is Phase.RESERVING
            if other is model or not (reserving or is_short(other)):
                continue
            need = need_of(other)
            if need.waiting_since >= own.waiting_since or not need.gpus & own.gpus:
                continue
            if reserving or self._has_hope(other):
                return False
        return True

    def _has_hope(self, model: Model) -> bool:
        """Of one that is short. Who only waits for its turn keeps its place."""
        return model.waits_its_turn or self._choice(need_of(model)).hope

    def _choice(self, need: victims.Need) -> victims.Choice:
        # Of those that leave none is asked: whether it sleeps is others' affair. But it may be just about to.
        asked = [m for m in self._every() if m not in self._leaving or m.lifecycle.state is State.DRAINING]
        candidates = [found for model in asked for found in [candidate_of(model)] if found]
        return victims.choose(need, candidates, self.config.sleep_manager, self._loop.time())

    def room_granted(self, model: Model) -> None:
        self._tell_whose_turn_comes()

    def room_refused(self, model: Model, sentence: str) -> None:
        log.info("Model %s finds no room: %s", model.name, sentence)
        if not self._has_hope(model):
            self._tell_whose_turn_comes()
        self._choose_soon()

    def _tell_whose_turn_comes(self) -> None:
        for model in self._every():
            if is_short(model) and model.waits_its_turn:
                model.room_changed()

    def woke(self, model: Model, seconds: float, fault: str) -> None:
        if fault:
            log.warning("Model %s could not be woken: %s", model.name, fault)
        self.metrics.woke(model, seconds, fault)

    def slept(self, model: Model, seconds: float, fault: str) -> None:
        if fault:
            log.warning("Model %s could not be put to sleep: %s", model.name, fault)
        else:
            self._tell_of_room(model)
        self.metrics.slept(model, seconds, fault)

    def _choose_soon(self) -> None:
        """After the event that led to it."""
        if not self._choosing:
            self._choosing = True
            self._loop.call_soon(self._choose)

    def _choose(self) -> None:
        self._choosing = False
        if self._look_again:
            self._look_again.cancel()
            self._look_again = None
        if self._closed:
            return
        again: list[float] = []
        short = [model for model in self._every() if is_short(model)]
        for need in victims.first(need_of(model) for model in short if self._has_hope(model)):
            choice = self._choice(need)
            for name in choice.sleep:
                self._give_way(str(name), Why.ROOM)
            for name in choice.turn:
                self._give_way(str(name), Why.TURN)
            again += [] if choice.look_again is None else [choice.look_again]
        if again:
            self._look_again = self._loop.call_at(min(again), self._choose)

    def _give_way(self, name: str, why: Why) -> None:
        log.info("Model %s gives way%s", name, ", for it has had its turn" if why is Why.TURN else "")
        self.metrics.gave_way(name, why)
        self.models[name].give_way(why)


def is_short(model: Model) -> bool:
    return model.lifecycle.phase is Phase.WANTING


def need_of(model: Model) -> victims.Need:
    since = model.lifecycle.waiting_since
    return victims.Need(model.name, model.gpus, model.missing_bytes, float("inf") if since is None else since)


def candidate_of(model: Model) -> victims.Candidate | None:
    """None: it has nothing to give here."""
    life = model.lifecycle
    n_bytes = model.bytes_by_gpu()
    if life.state not in (State.AWAKE, State.DRAINING) or not n_bytes:
        return None
    may_sleep_from = life.may_sleep_from()
    return victims.Candidate(
        model.name,
        n_bytes,
        life.awake_since or 0.0,
        may_sleep_from if may_sleep_from is not None else float("inf"),
        life.idle_since,
        len(life.in_flight),
        life.wake_seconds if life.wake_seconds is not None else 1.0,
        leaving=life.state is State.DRAINING,
    )
