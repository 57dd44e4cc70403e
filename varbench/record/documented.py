"""Fields that say what they hold, and why they may be null."""

from __future__ import annotations

import dataclasses
from typing import Any


def entry(doc: str, *, absent: str | None = None, default: Any = dataclasses.MISSING) -> Any:
    """A documented field. `absent` says why the key may be null, and makes null its default."""
    if absent is not None:
        default = None
    about = {"doc": doc, "absent": absent}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=about)
    return dataclasses.field(default=default, metadata=about)
