# SPDX-License-Identifier: Apache-2.0
"""Which of a model's replicas gets a request: of those that serve, the one with the fewest requests under
way, and among equals the one that was picked least recently.

A replica that fails several times in a row is ejected: it gets nothing until a probe, or a request, finds it
well. Only where all that serve are ejected one of them is tried all the same, since that one is likely dead
is no reason to answer nobody. A replica that sleeps gets nothing ever, and a new one nothing until it is
known to be awake.

A request may go to another replica only if the first has seen nothing of it: who has read half of it may be
at work. Replicas are named by whatever is hashable and the caller likes, an address for instance.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from enum import Enum


class Result(Enum):
    OK = "ok"  # it answered: also with an error, for it is alive
    NOT_SENT = "not sent"  # no connection: the replica has seen nothing
    BROKE = "broke"  # it went away, or fell silent, while it had the request
    CANCELLED = "cancelled"  # the client went away; says nothing of the replica


def may_retry(result: Result) -> bool:
    """Whether another replica may get the request: then pick() one, all that were tried excluded."""
    return result is Result.NOT_SENT


@dataclass
class Replica:
    name: Hashable
    picked: int  # number of the last pick; less is longer ago
    outstanding: int = 0
    failures: int = 0  # in a row
    ejected: bool = False
    serving: bool = False
    leaving: bool = False  # no longer configured, but with requests under way


class Balance:
    """The replicas of one model. failures_to_eject: in a row."""

    def __init__(self, names: Iterable[Hashable] = (), failures_to_eject: int = 3) -> None:
        if failures_to_eject < 1:
            raise ValueError(f"failures_to_eject is {failures_to_eject}, and must be positive")
        self._failures_to_eject = failures_to_eject
        self._replicas: dict[Hashable, Replica] = {}
        self._picks = 0
        self.set_replicas(names)

    @property
    def replicas(self) -> list[Replica]:
        """Those that are configured, in order."""
        return [replica for replica in self._replicas.values() if not replica.leaving]

    @property
    def serves(self) -> bool:
        """Whether one of them does."""
        return any(replica.serving for replica in self.replicas)

    @property
    def left(self) -> list[Hashable]:
        """Those that are no longer configured, and have requests under way."""
        return [replica.name for replica in self._replicas.values() if replica.leaving]

    def set_replicas(self, names: Iterable[Hashable]) -> None:
        """These, and no others, are picked from now on. What is known of those that stay is kept; one that
        goes is forgotten when its last request has ended, and is remembered if it comes back before."""
        old = self._replicas
        self._replicas = {}
        for name in names:
            replica = old.pop(name, None) or self._replicas.get(name) or Replica(name, 0)
            replica.leaving = False
            self._replicas[name] = replica
        for name, replica in old.items():
            if replica.outstanding:
                replica.leaving = True
                self._replicas[name] = replica

    def pick(self, tried: Collection[Hashable] = ()) -> Hashable | None:
        """The replica that gets the next request, which is under way there until ended(). None: none serves,
        or all that do were tried."""
        able = [r for r in self.replicas if r.serving and r.name not in tried]
        able = [r for r in able if not r.ejected] or able
        if not able:
            return None
        chosen = min(able, key=lambda r: (r.outstanding, r.picked))
        self._picks += 1
        chosen.picked = self._picks
        chosen.outstanding += 1
        return chosen.name

    def ended(self, name: Hashable, result: Result) -> bool:
        """A request that was picked for has ended. True: the replica has just been ejected for it."""
        replica = self._replicas.get(name)
        if replica is None or replica.outstanding < 1:
            raise ValueError(f"{name} has no request under way")
        replica.outstanding -= 1
        if replica.leaving and not replica.outstanding:
            del self._replicas[name]
        if result is Result.CANCELLED:
            return False
        return self._note(replica, result is Result.OK)

    def probed(self, name: Hashable, good: bool) -> bool:
        """As a request's end. True: the replica has just been ejected. One that is gone is of no interest."""
        replica = self._replicas.get(name)
        return replica is not None and self._note(replica, good)

    def set_serving(self, name: Hashable, serving: bool) -> None:
        """Whether it is awake."""
        if name in self._replicas:
            self._replicas[name].serving = serving

    def is_serving(self, name: Hashable) -> bool:
        return name in self._replicas and self._replicas[name].serving

    def _note(self, replica: Replica, good: bool) -> bool:
        if good:
            replica.failures, replica.ejected = 0, False
            return False
        replica.failures += 1
        if replica.ejected or replica.failures < self._failures_to_eject:
            return False
        replica.ejected = True
        return True
