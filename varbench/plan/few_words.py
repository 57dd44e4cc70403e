"""Many numbers in few words."""

from __future__ import annotations

from dataclasses import asdict

from varbench.policies import PartChange


def spread(counts: list[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low}..{high}"


def ranges(layers: list[int]) -> str:
    """`0 1 2 3 8` as `0-3 8`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return " ".join(f"{p[0]}-{p[-1]}" if len(p) > 2 else " ".join(map(str, p)) for p in parts)


def changed(change: PartChange) -> str:
    """What is not as it was, as `weight_type int8, extra_bytes 640`."""
    default = asdict(PartChange())
    return ", ".join(f"{key} {value}" for key, value in asdict(change).items() if value != default[key])
