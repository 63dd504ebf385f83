# SPDX-License-Identifier: Apache-2.0
"""What SGLang's interpreter runs for test_sglang.py: checks of the integration, each in a process of its own.

    {"check": "pools.round_trip", "arguments": {...}, "environment": {...}, "output": "a file"}

comes as a line on standard input; round_trip() of sglang_checks_pools.py is run in a child, and the reply is
a line with its exit status, negative for a signal. SGLang takes long to import, and children of this process
have it already.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from types import SimpleNamespace
from typing import Any

from engines import (
    sglang_checks_allocators,
    sglang_checks_plugin,
    sglang_checks_pools,
    sglang_checks_reclaim,
    sglang_checks_trees,
)

# isort: split
import torch
from sglang.srt.runtime_context import get_parallel

from kvcached import runtime
from kvcached.integration.sglang import interfaces

SUBJECTS = {
    "allocators": sglang_checks_allocators,
    "plugin": sglang_checks_plugin,
    "pools": sglang_checks_pools,
    "reclaim": sglang_checks_reclaim,
    "trees": sglang_checks_trees,
}


def run_check(check: str, arguments: dict[str, Any], environment: dict[str, str], output: str) -> int:
    """Its exit status. In a child, since a check may end by a signal, and begins with nothing."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.environ.update(environment)
            subject, name = check.split(".")
            if subject != "plugin":
                interfaces.init_kvcached(device="cpu")
            alone = {"dcp_enabled": False, "attn_dcp_size": 1, "launch_world_size": 1}
            with get_parallel().override(**alone, world_group=SimpleNamespace(cpu_group=None)):
                getattr(SUBJECTS[subject], name)(**arguments)
            runtime.shutdown()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    import sglang.srt.managers.scheduler  # noqa: F401

    replies.write(json.dumps("ready") + "\n")
    for line in sys.stdin:
        replies.write(json.dumps({"status": run_check(**json.loads(line))}) + "\n")
    os._exit(0)  # quicker than taking SGLang apart


if __name__ == "__main__":
    main()
