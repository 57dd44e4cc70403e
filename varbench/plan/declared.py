"""What a plan has from plugins' own word: replaced modules, FLOPs of choosing, and numbers beside the model's."""

from __future__ import annotations

from dataclasses import dataclass

from varbench.policies import Part, PartChange


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A replacement of modules of one backbone, once its weights are loaded."""

    part: str
    """The plugin as the row writes it, as in `int8@g64`."""
    backbone: str
    changes: tuple[tuple[Part, PartChange], ...]


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """FLOPs for each token, as a plugin declares them."""

    routing: int
    """Whose experts are chosen."""
    gating: int
    """Among those from which some are left out."""
    estimating: int
    """Which is left out."""


@dataclass(frozen=True, kw_only=True)
class OwnStored:
    """Numbers that a plugin keeps beside the main model's."""

    plugin: str
    trained: int
    """Of the compute type."""
    whole: int
    """Whole numbers of eight bytes."""
