# SPDX-License-Identifier: Apache-2.0
"""A torchvision with nothing in it, where there is none: two configurations of image models import it when
SGLang is imported, and need nothing of it here. Import this before SGLang."""

from __future__ import annotations

import enum
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any


def install() -> None:
    if importlib.util.find_spec("torchvision") is not None:
        return
    import transformers.utils.import_utils as transformers_imports

    # Asked first, transformers remembers the honest answer.
    transformers_imports.is_torchvision_available()
    transformers_imports.is_torchvision_v2_available()

    def module(name: str, **attributes: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        made.__path__ = []
        vars(made).update(attributes)
        sys.modules[name] = made
        return made

    modes = enum.Enum("modes", ["NEAREST", "BILINEAR", "BICUBIC", "LANCZOS"])
    functional = module("torchvision.transforms.functional", InterpolationMode=modes)
    transforms = module("torchvision.transforms", InterpolationMode=modes, functional=functional)
    module("torchvision", __version__="0.0.0", transforms=transforms)


install()
