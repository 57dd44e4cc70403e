"""Policies of the generation loop: layers, scales, guidance, cache and tokens. Each has neutral defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


SubLayerName = Literal["attention", "ffn"]
MAIN = "main"
"""The model that every row has."""


class DepthPolicy(Protocol):
    """Which layers run at each scale."""

    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        """Layers for the step that samples this scale, in the order in which they run; a layer may come twice."""
        ...

    def retains(self, layer: int, scale: int) -> bool:
        """Whether what this layer stored at this scale is kept to the end although nothing reads it again."""
        return False


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """One pass of the generation loop: the scales it encodes, of which it samples the last."""

    scales: tuple[int, ...]
    """Ascending. Those before the last were sampled by earlier steps, on any backbone. One that this backbone has encoded before is
    encoded again, with all that it has encoded after it: layers that run take their new keys and values for the old ones."""
    backbone: str = MAIN


class StepPolicy(Protocol):
    """Which scales run, which are encoded together, on which backbone. A scale in no step is skipped."""

    @property
    def backbones(self) -> Mapping[str, ModelSpec]:
        """Every model beside `main` that the steps name. Weights are those of `--companion NAME=FILE`, else what the preset
        ships for a model of these sizes, and random where the main model's are."""
        return {}

    def steps(self) -> Sequence[StepSpec]: ...


class GuidancePolicy(Protocol):
    """Which guidance branches run, and how far labelled logits are drawn away from the unlabelled ones."""

    def branches(self, scale: int) -> Literal["both", "labelled"]:
        """From the scale on at which the labelled branch is alone, the other's work and cache are saved."""
        ...

    def strength(self, scale: int) -> float | None:
        """Share of the run's guidance (`--cfg`) at a scale with both branches. None is the official ramp: 0 at the first
        scale, 1 at the last, evenly between. Where it is 0 to the end, the unlabelled branch does not run."""
        return None

    def shares(self, scale: int) -> bool:
        """Whether the unlabelled branch takes what the labelled one's attention gives, before each gates it, in place of its
        own. From the first such scale on its keys and values are gone, and all later ones must be such."""
        return False


@dataclass(frozen=True, kw_only=True)
class StoredForm:
    """How keys and values lie in the cache where a type does not say it all, as eight bits with scales; what runs now is
    attended to as it is. `varbench check` holds the bytes that are declared against those that are stored."""

    encode: Callable[[Tensor], tuple[Tensor, ...]]
    """Takes keys, or values, (B, H, n, c); gives what is stored of them, each (B, H, n, ·)."""
    decode: Callable[[tuple[Tensor, ...]], Tensor]
    """Takes some entries of what `encode` gave; gives (B, H, n, c), in any type."""
    bits: int
    """Of each number."""
    extra_bytes: int = 0
    """Beside, for each token's key in each head, and as many for its value: scales."""


class CacheStrategy(Protocol):
    """What keys and values are kept. Several may join in a row: what all of them keep is kept."""

    @property
    def dtype(self) -> str | None:
        """Type that keys and values are stored in; None leaves the compute type. It or `form` has one owner in a row."""
        return None

    @property
    def form(self) -> StoredForm | None:
        """What they are stored as, in place of a type."""
        return None

    def head_groups(self, layer: int) -> Sequence[Sequence[int]] | None:
        """Heads that keep different entries, as a partition of all heads; None for one group. One owner in a row."""
        return None

    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        """Whether entries written at scale `written` are still there when scale `reader` runs. Once gone, gone."""
        return True

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        """Most entries a head holds after this scale, chosen by `pick`; None picks nothing. One owner in a row."""
        return None

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        """Places among the `count` queries of those whose attention `pick` is to be told; the engine computes it again."""
        return None

    def accumulates(self, layer: int, group: int) -> bool:
        """Whether attention is added up over scales, in a float32 that is kept beside each entry: state."""
        return False

    @property
    def capturable(self) -> bool:
        """Whether `pick`, `merging_weights` and `form` only compute, on the device, from the tensors that they are given: no number is
        looked at on the host, nothing comes from there, and nothing is kept between calls. On a GPU the row is then launched as CUDA
        graphs, as rows that run no code of theirs within the loop are; else operator by operator, which costs small batches most of
        their time."""
        return False

    def merges(self, layer: int, scale: int, group: int) -> bool:
        """Whether each entry that goes is averaged into the one with the nearest key, by cosine, of those that stay."""
        return False

    def merging_weights(self, attention_BHn: Tensor | None, *, layer: int, scale: int, group: int) -> Tensor | None:
        """How much each entry, one that stays too, counts in the average that it goes into, where `merges` says so: numbers (B, H, n)
        above 0, from the attention that `pick` was told; None counts all alike."""
        return None

    def pick(
        self,
        keys_BHnc: Tensor,
        queries_BHLc: Tensor,
        count: int,
        *,
        attention_BHn: Tensor | None,
        layer: int,
        scale: int,
        group: int,
    ) -> Tensor:
        """Places (B, H, count), ascending, of the entries to keep. Called after the attention of `scale`. `attention_BHn` is
        what each entry was paid by the queries that the strategy observes, all together."""
        needed = f"{type(self).__name__} gives a budget, so it must give pick() too"
        raise NotImplementedError(needed)


class TokenPolicy(Protocol):
    """Which tokens a sub-layer computes, and how the others are filled in."""

    def tokens(self, layer: int, scale: int, sublayer: SubLayerName) -> int | None:
        """How many of the scale's tokens are computed; None computes all without asking `pick`. 0 leaves the sub-layer out: the
        residual stream passes it by, nobody is asked, and attention adds nothing to its cache."""
        return None

    def shares_places(self, layer: int, scale: int) -> bool:
        """Whether the FFN computes the tokens that attention computed, which must be as many: `pick` is asked for attention alone,
        and `fill` for both with the same places. Nothing where both compute all."""
        return False

    def remembers(self, layer: int, scale: int, sublayer: SubLayerName) -> bool:
        """Whether the sub-layer's output at this scale is kept, in the compute type, for `fill` at later ones: state."""
        return False

    @property
    def capturable(self) -> bool:
        """Whether `pick`, `fill` and `note` only compute, on the device, from the tensors that they are given: no number is looked at
        on the host, nothing comes from there, and nothing is kept between calls. On a GPU the row is then launched as CUDA graphs, as
        rows that run no code of theirs within the loop are; else operator by operator, which costs small batches most of their
        time."""
        return False

    def picking_flops(self, layer: int, scale: int, sublayer: SubLayerName) -> int:
        """FLOPs of `pick`, of the `fill` that follows it and of `note`, for each row that they are given (an image of a guidance
        branch): those of products, two a multiply-add. `varbench check` counts them."""
        return 0

    def notes(self, layer: int, scale: int, sublayer: SubLayerName) -> int:
        """How many numbers `note` gives for each row once the sub-layer has run at this scale: state, in the compute type, for the
        same sub-layer's `pick` and `fill` at later scales, which have it as `noted_Rn`: let them take that, None by default. 0
        leaves what was noted before as it is."""
        return 0

    def note(
        self,
        x_RLC: Tensor,
        output_RLC: Tensor,
        noted_Rn: Tensor | None,
        *,
        layer: int,
        scale: int,
        sublayer: SubLayerName,
    ) -> Tensor:
        """What takes the place of what was noted, (R, numbers): given the residual stream before the sub-layer, what the sub-layer
        adds to it, and what was noted before."""
        needed = f"{type(self).__name__} notes numbers, so it must give note() too"
        raise NotImplementedError(needed)

    def pick(self, x_BLC: Tensor, count: int, *, layer: int, scale: int, sublayer: SubLayerName) -> Tensor:
        """Places (B, count) of the tokens to compute, given the residual stream before the sub-layer's norm."""
        needed = f"{type(self).__name__} computes some of the tokens, so it must give pick() too"
        raise NotImplementedError(needed)

    def fill(
        self,
        computed_BnC: Tensor,
        places_Bn: Tensor,
        remembered_BlC: Tensor | None,
        *,
        length: int,
        layer: int,
        scale: int,
        sublayer: SubLayerName,
    ) -> Tensor:
        """The sub-layer's output for all `length` tokens, from the computed ones and the remembered map."""
        needed = f"{type(self).__name__} computes some of the tokens, so it must give fill() too"
        raise NotImplementedError(needed)


class FullDepth(DepthPolicy):
    """Every layer at every scale."""

    def __init__(self, model: ModelSpec, backbones: Mapping[str, ModelSpec] | None = None) -> None:
        self._depths = {MAIN: model.depth, **{name: spec.depth for name, spec in (backbones or {}).items()}}

    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        return range(self._depths[backbone])


class EveryScale(StepPolicy):
    """One step a scale, on the main model."""

    def __init__(self, model: ModelSpec) -> None:
        self._scales = model.scales

    def steps(self) -> Sequence[StepSpec]:
        return tuple(StepSpec(scales=(scale,)) for scale in range(self._scales))


class BothBranches(GuidancePolicy):
    """Labelled and unlabelled at every scale."""

    def branches(self, scale: int) -> Literal["both", "labelled"]:
        return "both"
