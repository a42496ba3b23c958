"""Names that load when they are first used, so that importing a room costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable


def lazily(module: str, homes: dict[str, str]) -> Callable[[str], object]:
    """The `__getattr__` (PEP 562) of a module whose names are defined elsewhere: `homes` has the full name of each
    name's module."""

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return load
