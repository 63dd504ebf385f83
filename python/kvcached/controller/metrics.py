# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told. Labels are models, which are configured, and words of our own: so there are as
many series as the configuration makes.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from kvcached.controller.actions import State, Why
from kvcached.controller.work import in_thread

if TYPE_CHECKING:
    from kvcached.controller.model import Model

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OTHER = ""  # the label of what no model is named for, or one that isn't there


class Metrics:
    """A registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # series that nobody asked for, as many again
        self.registry = CollectorRegistry()
        self._models: Mapping[str, Model] = {}
        self.requests = self._counter(
            "requests",
            "Requests for models that have ended, by how: ok, failed, cancelled, refused.",
            "model",
            "outcome",
        )
        self.refusals = self._counter(
            "refusals", "Answers that are the controller's own, by the code in their body.", "model", "code"
        )
        self.retries = self._counter(
            "retries",
            "Times that a request went to another replica, for the first one had seen nothing of it.",
            "model",
        )
        self.first_byte = self._histogram(
            "first_byte_seconds", "From a request's arrival to the first byte of its answer.", "model"
        )
        self.duration = self._histogram(
            "request_seconds", "From a request's arrival to the last byte of its answer.", "model"
        )
        self.queue_wait = self._histogram(
            "queue_wait_seconds", "How long requests waited until they were forwarded.", "model"
        )
        self.wakes = self._histogram("wake_seconds", "How long it took until an engine had woken.", "model")
        self.wake_failures = self._counter("wake_failures", "Times that a model could not be woken.", "model")
        self.sleeps = self._counter(
            "sleeps", "Times that a model was put to sleep, by why: idle, admin, room, turn.", "model", "why"
        )
        self.sleep_failures = self._counter(
            "sleep_failures", "Times that a model could not be put to sleep.", "model"
        )
        self.evictions = self._counter(
            "evictions",
            "Times that a model was asked to give way for another one, by why: room, turn.",
            "model",
            "why",
        )
        self.reloads = self._counter(
            "reloads", "Times that the configuration was read, by result: ok, failed.", "result"
        )
        self.discovery_failures = self._counter(
            "discovery_failures", "Looks for engines that failed, by where: file, dns.", "source"
        )
        for source in ("file", "dns"):
            self.discovery_failures.labels(source)
        self.connections = Gauge(
            "kvcached_controller_connections",
            "Connections of clients, by port: user, admin.",
            ["port"],
            registry=self.registry,
        )
        self.connections_ended = self._counter(
            "connections_ended",
            "Connections of clients that were ended, by why: silent, crowded, stalled.",
            "why",
        )
        # Series begin with zero, so that the first of each kind is seen as an increase.
        for why in ("silent", "crowded", "stalled"):
            self.connections_ended.labels(why)
        for result in ("ok", "failed"):
            self.reloads.labels(result)
        self.refusals.labels(OTHER, "internal_error")
        self.registry.register(_Process())

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kvcached_controller_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(
            f"kvcached_controller_{name}", text, labels, buckets=_SECONDS, registry=self.registry
        )

    def set_models(self, models: Mapping[str, Model]) -> None:
        self._models = models

    def begin(self, name: str) -> None:
        """Series of a model begin with zero, so that the first of each kind is seen as an increase."""
        for outcome in ("ok", "failed", "cancelled", "refused"):
            self.requests.labels(name, outcome)
        self.refusals.labels(name, "internal_error")
        for metric in (self.retries, self.wake_failures, self.sleep_failures):
            metric.labels(name)
        for histogram in (self.first_byte, self.duration, self.queue_wait, self.wakes):
            histogram.labels(name)

    @property
    def models(self) -> Mapping[str, Model]:
        return self._models

    def state_changed(self, model: Model) -> None:
        why = model.lifecycle.slept_for
        if model.lifecycle.state is State.ASLEEP and why is not None and why is not Why.ELSEWHERE:
            self.sleeps.labels(model.name, why.value).inc()

    def woke(self, model: Model, seconds: float, fault: str) -> None:
        if fault:
            self.wake_failures.labels(model.name).inc()
        else:
            self.wakes.labels(model.name).observe(seconds)

    def slept(self, model: Model, seconds: float, fault: str) -> None:
        if fault:
            self.sleep_failures.labels(model.name).inc()

    def gave_way(self, name: str, why: Why) -> None:
        self.evictions.labels(name, why.value).inc()

    def discovery_failed(self, source: str) -> None:
        self.discovery_failures.labels(source).inc()

    def told(self) -> _Told:
        """Models are read at once, for they are the event loop's; counters, which have locks, when they are
        collected."""
        return _Told(self.registry, _now(self._models))

    async def text(self, accept: str) -> tuple[bytes, str]:
        """Body and content type, in the format that the client asks for."""
        encode, content_type = choose_encoder(accept)
        # For thousands of models this takes seconds.
        return await in_thread(encode, self.told()), content_type


class _Process(Collector):
    """As Prometheus's libraries have it, and out of /proc/self alone: where the rest of that is hidden,
    as the unit has it, prometheus_client says nothing."""

    def __init__(self) -> None:
        self._began = time.time()

    def collect(self) -> Iterable[Metric]:
        times = os.times()
        n_virtual, n_resident = (int(word) for word in Path("/proc/self/statm").read_text().split()[:2])
        most, page = resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getpagesize()
        yield CounterMetricFamily(
            "process_cpu_seconds", "Processor time that it has used.", times.user + times.system
        )
        for name, text, value in (
            ("start_time_seconds", "When it started, since 1970.", self._began),
            ("resident_memory_bytes", "Its memory in RAM.", n_resident * page),
            ("virtual_memory_bytes", "Its address space.", n_virtual * page),
            ("open_fds", "Its open file descriptors.", len([*Path("/proc/self/fd").iterdir()])),
            ("max_fds", "How many of those there may be.", most),
        ):
            infinite = value == resource.RLIM_INFINITY
            yield GaugeMetricFamily(f"process_{name}", text, float("inf") if infinite else value)


@dataclass(frozen=True)
class _Told(Collector):
    registry: CollectorRegistry
    now: list[GaugeMetricFamily]

    def collect(self) -> Iterable[Metric]:
        yield from self.registry.collect()
        yield from self.now


def _now(models: Mapping[str, Model]) -> list[GaugeMetricFamily]:
    """What is so at this moment."""
    prefix = "kvcached_controller"
    state = GaugeMetricFamily(
        f"{prefix}_model_state", "1 for the state that a model is in.", labels=["model", "state"]
    )
    in_flight = GaugeMetricFamily(
        f"{prefix}_in_flight_requests", "Requests that engines have.", labels=["model"]
    )
    queued = GaugeMetricFamily(
        f"{prefix}_queued_requests", "Requests that wait for a model to wake.", labels=["model"]
    )
    replicas = GaugeMetricFamily(
        f"{prefix}_replicas",
        "Engines of a model, by what they are: serving, asleep, ejected, gone.",
        labels=["model", "kind"],
    )
    for name, model in models.items():
        for one in State:
            state.add_metric([name, one.value], float(model.lifecycle.state is one))
        in_flight.add_metric([name], len(model.lifecycle.in_flight))
        queued.add_metric([name], model.lifecycle.queued)
        counts = dict.fromkeys(("serving", "asleep", "ejected", "gone"), 0)
        for replica in model.balance.replicas:
            alive = model.replicas[str(replica.name)].alive
            kind = "gone" if alive is False else "ejected" if replica.ejected else ""
            counts[kind or ("serving" if replica.serving else "asleep")] += 1
        for kind, count in counts.items():
            replicas.add_metric([name, kind], count)
    return [state, in_flight, queued, replicas]
