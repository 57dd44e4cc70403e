"""What the methods of this folder have in common: how many entries a point is, and how the best are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varbench.errors import UserError
from varbench.policies import CacheStrategy
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

POINTS = ("b75", "b50", "b25", "b10")
PATTERN = "[br][0-9]{1,3}"
NEUTRAL = ("@b100", "@r0")


def readable(model: ModelSpec) -> int:
    """Entries that the last step reads, beside its own."""
    return model.starts[-2]


def entries(point: str, model: ModelSpec) -> int:
    """How many entries a head holds at a point."""
    percent = int(point[1:])
    if percent > 100:
        raise UserError(f"{point} is out of range: give {point[0]}0 to {point[0]}100")
    of_all = model.length * (100 - percent) / 100
    wanted = readable(model) * percent / 100 if point[0] == "b" else of_all
    return min(readable(model), max(1, round(wanted)))


def too_few(model: ModelSpec, least: int, what: str) -> str:
    """Words for a note: points of a model that hold fewer entries than the rule takes for granted."""
    small = [f"{point} ({entries(point, model)})" for point in POINTS if entries(point, model) < least]
    if not small:
        return ""
    return f"; of {model.name}'s {readable(model)} readable entries {', '.join(small)} are fewer than {what}"


def best(scores_BHn: Tensor, count: int) -> Tensor:
    """Places (B, H, count), ascending, of the largest scores; of equal ones the earlier, on any device."""
    order = scores_BHn.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


class Evicting(CacheStrategy):
    """Holds so many entries after every scale, and all of them while there are no more."""

    capturable = True

    def __init__(self, model: ModelSpec, count: int) -> None:
        self.model, self.count = model, count

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        return self.count if self.model.starts[scale + 1] > self.count else None
