"""What `varbench env --calibrate` found of this machine's devices, in the cache. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from varbench.base.places import cache_folder
from varbench.base.whole_files import write_whole
from varbench.measure.environment import cores, cpu_name
from varbench.plan.hardware import Hardware, as_toml, from_file


def name_of(device: str, count: int) -> str:
    """What a device is called: a GPU as its maker does, the processor with the cores that are used."""
    return f"{cpu_name()}, {count} cores" if device == "cpu" else device


def keep_rates(found: Hardware) -> Path:
    path = _path(found.name)
    write_whole(path, as_toml(found).encode())
    return path


def kept_rates(device: str, count: int | None = None) -> Hardware | None:
    """What was measured of a GPU of this name, or of the processor; None if nothing was."""
    path = _path(name_of(device, count or cores()))
    return from_file(path) if path.is_file() else None


def all_kept() -> list[Hardware]:
    return [from_file(path) for path in sorted(cache_folder("hardware").glob("*.toml"))]


def _path(name: str) -> Path:
    return cache_folder("hardware") / (re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() + ".toml")
