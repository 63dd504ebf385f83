# SPDX-License-Identifier: Apache-2.0
"""The commands, as they are installed: also where what they stand on is not."""

from __future__ import annotations

import sys

_EXTRA = ("aiohttp", "multidict", "prometheus_client", "yaml", "yarl")


def _missing(fault: ModuleNotFoundError, program: str) -> int:
    if (fault.name or "").partition(".")[0] not in _EXTRA:
        raise fault
    print(
        f"{program}: The Python package {fault.name} is missing: pip install 'kvcached[controller]'",
        file=sys.stderr,
    )
    return 1


def controller() -> int:
    """kvcached-controller."""
    try:
        from kvcached.controller.main import main
    except ModuleNotFoundError as fault:
        return _missing(fault, "kvcached-controller")
    return main()


def launch() -> int:
    """kvcached-launch."""
    try:
        from kvcached.controller.launch.main import main
    except ModuleNotFoundError as fault:
        return _missing(fault, "kvcached-launch")
    return main()
