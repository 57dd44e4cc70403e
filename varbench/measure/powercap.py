"""What the processors have consumed, as Linux shows it under /sys/class/powercap. No torch."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/class/powercap")


class PowercapError(Exception):
    """Why there is no figure; its text goes into the record."""


def packages(root: Path = ROOT) -> list[Path]:
    """The counters of whole packages: zones beside them, such as `core`, lie within, and `psys` counts others too."""
    found = [
        zone for zone in sorted(root.glob("*:*")) if zone.name.count(":") == 1 and _name(zone).startswith("package")
    ]
    if not found:
        raise PowercapError(f"the system shows no energy counter of its processors: {root} has no package")
    return found


def read(zones: list[Path]) -> list[int]:
    """Microjoules of each counter, which starts anew where it ends."""
    try:
        return [int((zone / "energy_uj").read_text()) for zone in zones]
    except PermissionError as error:
        raise PowercapError(f"{error.filename} may be read by root only: sudo chmod a+r {error.filename}") from error
    except (OSError, ValueError) as error:
        raise PowercapError(f"the energy counter cannot be read: {error}") from error


def joules(zones: list[Path], before: list[int], after: list[int]) -> float:
    """Between two readings, over one end of the counters at most."""
    spent = 0
    for zone, first, last in zip(zones, before, after, strict=True):
        spent += last - first if last >= first else last - first + int((zone / "max_energy_range_uj").read_text())
    return spent / 1e6


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""
