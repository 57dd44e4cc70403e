"""Decisions by content: in which ways generation may go on, and what one is chosen by. All that may happen is declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way in which generation may go on: what it leaves out of what the row's other policies ask for."""

    ends: int | None = None
    """The first scale that does not run any more; None runs to the last."""
    labelled: int | None = None
    """The scale from which on the labelled branch is alone; None leaves guidance as it is."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The map so far, shrunk and decoded."""

    scale: int
    """After which scale it is decoded."""
    side: int
    """Places along each side of the shrunk map, at most those of the last scale: what decoding costs goes by them."""


@dataclass(frozen=True, kw_only=True)
class SoFar:
    """What a decision may be made by. It is looked at, and not changed."""

    map_BDhw: Tensor
    """The sum of all scales so far, at the last scale's side."""
    logits_BlV: Tensor
    """Those that the latest scale was drawn from, after guidance."""
    previews: tuple[Tensor, ...]
    """An image (B, 3, s, s) in [0, 1] for each preview that was asked for."""


class DecisionPolicy(Protocol):
    """Once in a generation, how it goes on is chosen by content among ways that are declared beforehand. Each of them is
    compiled, so that for each is known what is computed and kept; a batch whose images go different ways is split."""

    previews: Sequence[Preview] = ()
    """Decoded for the decision, in the order of scales; their FLOPs count."""
    together: bool = False
    """Whether all images of a batch must go the same way, so that none is split."""

    def after(self) -> int:
        """The scale after which it is decided."""
        ...

    def ways(self) -> Sequence[Way]:
        """The first is `Way()`: to go on as the row does without a decision."""
        ...

    def decide(self, seen: SoFar) -> Sequence[int] | Tensor:
        """For each image (B) the place of its way among `ways`."""
        ...
