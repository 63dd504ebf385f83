# SPDX-License-Identifier: Apache-2.0
"""When an engine that failed is started again, and when no more. Time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

STEADY_SECONDS = 60.0  # an engine that ran so long has not failed in a row
LONGEST_SECONDS = 60.0


@dataclass
class Restarts:
    limit: int  # failures in a row that are answered by a start
    first_seconds: float  # to wait after the first; twice as long after each further one
    in_a_row: int = 0
    total: int = 0

    def after(self, ran_seconds: float) -> float | None:
        """Seconds to wait for the next start, now that the engine has failed; None: there is none."""
        if ran_seconds >= STEADY_SECONDS:
            self.in_a_row = 0
        if self.in_a_row >= self.limit:
            return None
        # More doublings are of no use, and floats have an end.
        delay = min(self.first_seconds * 2.0 ** min(self.in_a_row, 64), LONGEST_SECONDS)
        self.in_a_row += 1
        self.total += 1
        return delay
