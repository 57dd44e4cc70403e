"""What methods share that compute a part of the FFN: experts, numbers of their own beside the model's, and what a loss of their
own looks at.

An FFN's hidden units are split into experts of equal size. Each expert is its units' rows of the first matrix and columns of
the second; all experts together, and the second bias, are the FFN. How many experts a token computes is fixed beforehand
and stands in the plan; which, a policy may choose by content.

Letters: R rows (images x guidance branches), L tokens, C width, E experts, U hidden units of an expert, m experts chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Own = Mapping[str, "Tensor"]
"""A method's own numbers, by name."""
PlaceName = Literal["attention", "ffn", "head"]
"""Where a loss may look: a sub-layer of each layer, or the head after the last."""


@dataclass(frozen=True, kw_only=True)
class OwnParameters:
    """Numbers of a method's own, kept beside the main model's: what it learns, and what it takes from the weights once.

    A recipe's weight file holds them. Where a file has none, they are as `initial` makes them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    """By name, without dots."""
    initial: Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]
    """Takes the model's weights by their official names, and a seed; gives each tensor before any training. It depends on
    these and on the shapes alone."""
    whole: tuple[str, ...] = field(default=())
    """Names of those that are whole numbers (int64), such as places; they are not trained."""


@dataclass(frozen=True, kw_only=True)
class FfnSeen:
    """An FFN at work in a training step."""

    layer: int
    hidden_RLC: Tensor
    """What enters it, normed and modulated: the tokens of all scales, as `route` is given those of one."""
    output_RLC: Tensor
    """What leaves it, before it is gated."""
    weights: Mapping[str, Tensor]
    """`fc1.weight`, `fc1.bias`, `fc2.weight` and `fc2.bias`, with nothing to differentiate in them."""


@dataclass(frozen=True, kw_only=True)
class PlaceSeen(FfnSeen):
    """Any place at work in a training step, as an FFN is. What enters and leaves the attention of a layer is the like; the head's
    `hidden_RLC` are the features that the last layer leaves, its `output_RLC` logits, and its layer is the one after the last."""

    place: PlaceName
    scales: tuple[int, ...]
    """Those whose tokens run here, one after another."""
    codes_RL: Tensor
    """What these tokens are."""
    taught: PlaceSeen | None = None
    """The same of the stage's teacher, with nothing to differentiate in it; None without one, and where it has no such place."""


class WidthPolicy(Protocol):
    """How much of an FFN is computed, of the main model's layers: how many experts each token computes, and how many tokens
    compute any. It holds no tensors: its own numbers come with each question."""

    experts: int = 1
    """Into how many experts of equal size the hidden units are split, in every layer."""
    routed: bool = True
    """Whether `route` chooses the experts of each token by content; else they are the first ones, for all tokens."""
    varies: bool = False
    """Whether `route` may leave some of a token's experts out by content, each marked by a place of -1: `count` is then the most
    that a token computes, and one the least. Work hangs on content, and is counted as it ran."""
    routing_flops: int = 0
    """FLOPs for each token of a `route`, two a multiply-add; `varbench check` counts them."""
    gating_flops: int = 0
    """The same for each token that a `gate` chooses from."""
    estimating_flops: int = 0
    """The same for each token of an `estimate`."""
    own: OwnParameters | None = None
    """Numbers that it keeps beside the weights."""

    def count(self, layer: int, scale: int) -> int | None:
        """How many experts each token computes; None, or all of them where they do not vary, computes the FFN as it is, without
        asking `route`."""
        return None

    def split(self, layer: int, *, own: Own) -> Tensor | None:
        """Hidden units (E, U) of each expert, every unit once; None takes them in their order."""
        return None

    def route(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        """Experts (R, L, count) of each token, each once in any order, given what enters the FFN: normed and modulated."""
        needed = f"{type(self).__name__} chooses experts by content, so it must give route() too"
        raise NotImplementedError(needed)

    def tokens(self, layer: int, scale: int) -> int | None:
        """How many of a scale's tokens compute their experts; None, or all of them, asks neither `gate` nor `estimate`."""
        return None

    def gate(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        """Places (R, count) of the tokens that compute, each once in any order."""
        needed = f"{type(self).__name__} leaves tokens out, so it must give gate() too"
        raise NotImplementedError(needed)

    def estimate(self, hidden_RLC: Tensor, *, layer: int, scale: int, own: Own) -> Tensor:
        """The FFN's output (R, L, C) of the tokens that are left out, from what would enter it."""
        needed = f"{type(self).__name__} leaves tokens out, so it must give estimate() too"
        raise NotImplementedError(needed)
