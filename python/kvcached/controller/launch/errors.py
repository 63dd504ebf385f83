# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, in one sentence."""

from __future__ import annotations


class LaunchError(Exception):
    """A sentence, for whoever gave the command. `status` is the command's exit status."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


def of(error: OSError, doing: str) -> LaunchError:
    """doing: what failed, as in "cannot write FILE"."""
    return LaunchError(f"{doing}: {error.strerror or error}")
