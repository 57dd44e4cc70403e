"""The plan: what a row computes, keeps and drops, as frozen data. The engine, trainer, cost model and report read it.

Counts are per image and guidance branch (tokens) or per head (cache entries), so a plan holds for any batch and type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from varbench.base.hashing import json_digest
from varbench.plan.declared import Choosing, OwnStored, Transform
from varbench.plan.few_words import changed, ranges, spread
from varbench.policies import Part, PartChange
from varbench.spec import ModelSpec

MIXED = -1
"""Scale of a segment whose entries a policy picked from several scales."""

Accounting = Literal["lossless", "upstream"]


@dataclass(frozen=True)
class Segment:
    """Entries of one scale, side by side in a cache."""

    scale: int
    count: int


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """What one call does with the keys and values of one group of heads."""

    heads: tuple[int, ...]
    read: tuple[Segment, ...]
    """Entries of earlier steps that are attended to, beside the call's own."""
    own: int
    """Entries that the call computes and attends to."""
    kept: tuple[Segment, ...]
    """Entries that stay for later steps."""
    capacity: int
    """Entries the buffer has room for after the call; 0 when nothing is kept, and the buffer is freed."""
    picked: bool
    """Whether a policy chooses, by content, which entries stay."""
    observed: tuple[int, ...] = ()
    """Places of the call's queries whose attention is computed again, for choosing now or later."""
    accumulated: bool = False
    """Whether what was paid to each entry that stays is kept beside it."""
    merged: bool = False
    """Whether entries that go are averaged into those that stay."""

    @cached_property
    def attended(self) -> int:
        return total(self.read) + self.own


@dataclass(frozen=True, kw_only=True)
class Width:
    """A part of an FFN."""

    experts: int
    """Into how many of equal size the hidden units are split."""
    chosen: int
    """How many of them each token computes."""
    routed: bool
    """Whether a policy chooses, by content, which; else they are the first ones, or all."""
    varies: bool = False
    """Whether so many are the most, of which each token computes one or more by content."""
    tokens: int | None = None
    """Of the tokens that enter, how many compute their experts, by content; the others' output is estimated. None is all."""

    @property
    def chooses(self) -> bool:
        return self.routed or self.tokens is not None


@dataclass(frozen=True, kw_only=True)
class SubLayer:
    """Tokens that an attention or FFN computes."""

    tokens: int
    """0 where it is left out: the residual stream passes it by."""
    picked: bool = False
    """Whether a policy chooses, by content, which tokens; the others are filled in."""
    remembered: bool = False
    """Whether the output is kept as state for filling in later."""
    shared: bool = False
    """Whether an FFN's tokens are those that attention computed, which were picked for both."""
    picking: int = 0
    """FLOPs for each row of picking tokens, filling in the others and noting, as the plugin declares them."""
    noted: int = 0
    """Numbers for each row that the policy notes, once it has run: state."""
    width: Width | None = None
    """Of an FFN, the part of its hidden units that each token computes; None is all of them."""

    @property
    def varies(self) -> bool:
        return self.width is not None and self.width.varies


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    layer: int
    slot: int
    """0 for a layer's first call in a step, 1 for its second …: each slot has caches of its own."""
    attention: SubLayer
    ffn: SubLayer
    cache: tuple[CacheUse, ...]
    """One for each group of heads; none where attention is left out, and what the slot holds stays as it is."""

    @property
    def sub_layers(self) -> tuple[SubLayer, SubLayer]:
        return self.attention, self.ffn

    @property
    def picks(self) -> bool:
        """Whether anything is chosen by content."""
        return self.picks_between_tokens or (self.ffn.width is not None and self.ffn.width.chooses)

    @property
    def picks_between_tokens(self) -> bool:
        """Whether anything is chosen that only the cached generation can choose."""
        return self.attention.picked or self.ffn.picked or any(use.picked for use in self.cache)


@dataclass(frozen=True, kw_only=True)
class Step:
    scales: tuple[int, ...]
    """Scales that are encoded, in order."""
    samples: int
    """The scale whose tokens are drawn: the last that is encoded."""
    backbone: str
    branches: Literal[1, 2]
    """2 with the unlabelled branch of guidance, 1 without."""
    strength: float
    """Share of the run's guidance that logits are drawn with; 0 without the unlabelled branch."""
    mask: Literal["full", "block_causal"]
    calls: tuple[LayerCall, ...]
    drops_backbone: bool = False
    """Whether the backbone has ended, and all that it still holds is freed after the step."""
    shares: bool = False
    """Whether the labelled branch's attention is used for both."""

    @property
    def attending(self) -> int:
        """Branches whose attention is computed, and whose keys and values are kept."""
        return 1 if self.shares else self.branches


@dataclass(frozen=True, kw_only=True)
class PlannedWay:
    """One way in which a run may go on."""

    said: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Where a run may go on in several ways, of which one is chosen by content for each image."""

    after: int
    """Number of the step after which it is decided, from 0."""
    previews: tuple[tuple[int, int], ...]
    """Maps that are decoded to decide by: after which scale, and at which side."""
    together: bool
    """Whether all images of a batch go the same way."""
    ways: tuple[PlannedWay, ...]
    """The first goes on as the plan's own steps do; no other computes more."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    name: str
    model: ModelSpec
    backbones: tuple[tuple[str, ModelSpec], ...]
    """Every model that a step runs on, `main` first."""
    accounting: Accounting
    cache_dtype: str | None
    """Type of stored keys and values where a method sets it."""
    cache_form: tuple[int, int] | None
    """Where a method stores them in a form of its own: bits of a number, and bytes beside for each key and each value."""
    steps: tuple[Step, ...]
    transforms: tuple[Transform, ...] = ()
    """In the order in which they are applied."""
    choosing: Choosing | None = None
    """Where parts of FFNs are chosen by content."""
    own: OwnStored | None = None
    decision: Decision | None = None
    """Where work depends on content. `steps` are then the most that it can be."""

    def change(self, backbone: str, part: Part) -> PartChange:
        """All that the transforms make of a part together: shares multiply, bytes beside add up, the last type stands."""
        found = PartChange()
        for transform in self.transforms:
            later = dict(transform.changes).get(part) if transform.backbone == backbone else None
            if later is not None:
                found = PartChange(
                    flops=found.flops * later.flops,
                    weights=found.weights * later.weights,
                    weight_type=later.weight_type or found.weight_type,
                    bias_type=later.bias_type or found.bias_type,
                    extra_bytes=found.extra_bytes + later.extra_bytes,
                    compute_type=later.compute_type or found.compute_type,
                )
        return found

    def __repr__(self) -> str:
        calls = sum(len(step.calls) for step in self.steps)
        return (
            f"Plan({self.name} on {self.model.name}, {self.accounting}, {len(self.steps)} steps, {calls} layer calls)"
        )

    def backbone(self, name: str) -> ModelSpec:
        return dict(self.backbones)[name]

    @property
    def float32_keys(self) -> bool:
        """Whether keys are stored as the official normalisation leaves them, in float32 beside 16-bit values."""
        return self.accounting == "upstream" and self.model.l2_attention and not (self.cache_dtype or self.cache_form)

    @property
    def skipped(self) -> tuple[int, ...]:
        """Scales that no step samples or encodes."""
        encoded = {scale for step in self.steps for scale in step.scales}
        return tuple(scale for scale in range(self.model.scales) if scale not in encoded)

    @property
    def entries_read(self) -> tuple[float, int, int]:
        """Cache entries that a head reads in the last step, on average over all layers and heads; those that the full model
        reads then; and all tokens, which papers count that store the last scale too."""
        last, spec = self.steps[-1], self.backbone(self.steps[-1].backbone)
        read = sum(len(use.heads) * total(use.read) for call in last.calls for use in call.cache)
        return read / (spec.depth * spec.heads), self.model.starts[last.samples], self.model.length

    @cached_property
    def digest(self) -> str:
        """Hash of all that is run and kept; the name is not part of it, so equal plans have equal digests."""
        data = self.to_json()
        del data["name"]
        return json_digest(data)

    @property
    def varies(self) -> bool:
        """Whether the amount of work depends on content."""
        return self.decision is not None or any(call.ffn.varies for step in self.steps for call in step.calls)

    @property
    def picks(self) -> bool:
        """Whether anything is chosen by content."""
        return self.decision is not None or any(call.picks for step in self.steps for call in step.calls)

    @property
    def asks(self) -> bool:
        """Whether code of a policy's runs within the loop, where it chooses by content or stores what is cached in its own form."""
        return self.picks or self.cache_form is not None

    def to_json(self) -> dict[str, Any]:
        """Compact JSON: a call is a list of numbers, a cache use `[heads, read, own, kept, capacity, picked,
        observed, accumulated, merged]`."""
        return {
            "name": self.name,
            "model": self.model.to_json(),
            "backbones": [[name, spec.to_json()] for name, spec in self.backbones],
            "accounting": self.accounting,
            "cache_dtype": self.cache_dtype,
            "cache_form": self.cache_form,
            "transforms": [
                [one.part, one.backbone, {part: asdict(change) for part, change in one.changes}]
                for one in self.transforms
            ],
            "steps": [_step_json(step) for step in self.steps],
            **({"choosing": asdict(self.choosing)} if self.choosing else {}),
            **({"own": asdict(self.own)} if self.own else {}),
            **({"decision": _decision_json(self.decision)} if self.decision else {}),
        }

    def __str__(self) -> str:
        return "\n".join(describe(self))


class SlotKey(NamedTuple):
    """Caches belong to slots: a backbone's layer, and which of its calls in a step."""

    backbone: str
    layer: int
    slot: int


CachePlace = tuple[SlotKey, int]
"""A slot, and which group of its heads."""


def total(segments: tuple[Segment, ...]) -> int:
    return sum([segment.count for segment in segments])  # a list, for it is asked hundreds of thousands of times


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "scales": list(step.scales),
        "samples": step.samples,
        "backbone": step.backbone,
        "branches": step.branches,
        "strength": step.strength,
        "mask": step.mask,
        "drops_backbone": step.drops_backbone,
        **({"shares": True} if step.shares else {}),
        "calls": [
            {
                "layer": call.layer,
                "slot": call.slot,
                "attention": [call.attention.tokens, int(call.attention.picked), int(call.attention.remembered)],
                "ffn": [call.ffn.tokens, int(call.ffn.picked), int(call.ffn.remembered), *_width_json(call.ffn.width)],
                **_picking_json(call),
                "cache": [
                    [
                        list(use.heads),
                        [[s.scale, s.count] for s in use.read],
                        use.own,
                        [[s.scale, s.count] for s in use.kept],
                        use.capacity,
                        int(use.picked),
                        list(use.observed),
                        int(use.accumulated),
                        int(use.merged),
                    ]
                    for use in call.cache
                ],
            }
            for call in step.calls
        ],
    }


def _decision_json(decision: Decision) -> dict[str, Any]:
    ways = [[_step_json(step) for step in way.steps] for way in decision.ways]
    return {"after": decision.after, "previews": decision.previews, "together": decision.together, "ways": ways}


def _picking_json(call: LayerCall) -> dict[str, Any]:
    flops, noted = [sub.picking for sub in call.sub_layers], [sub.noted for sub in call.sub_layers]
    found = {"picking": flops if any(flops) else None, "noted": noted if any(noted) else None}
    return {**{key: value for key, value in found.items() if value}, **({"shared": True} if call.ffn.shared else {})}


def _width_json(width: Width | None) -> list[int]:
    if width is None:
        return []
    return [width.experts, width.chosen, width.routed + width.varies, *([] if width.tokens is None else [width.tokens])]


def describe(plan: Plan) -> Iterator[str]:
    """The plan in a few readable lines: one a step, like layers folded together."""
    spec = plan.model
    yield f"plan {plan.name} on {spec.name} ({plan.accounting}), digest {plan.digest[:12]}"
    for step in plan.steps:
        encoded = "+".join(f"{spec.sides[s]}x{spec.sides[s]}" for s in step.scales)
        layers = [call.layer for call in step.calls]
        tokens = sum(spec.tokens[s] for s in step.scales)
        yield (
            f"  {encoded:>9} -> scale {step.samples + 1:<2} {step.backbone}, {step.branches} branch"
            f"{f'es at {step.strength:.2g}' if step.branches == 2 else ''}{' with one attention' * step.shares}"
            f", {len(layers)} layers ({ranges(layers)}), {tokens} tokens{_partial(step, tokens)}"
            f", reads {spread([total(u.read) for c in step.calls for u in c.cache])}"
            f", keeps {spread([total(u.kept) for c in step.calls for u in c.cache])}{_looks(step)}"
        )
    for scale in plan.skipped:
        yield f"  {spec.scale_name(scale)}: skipped"
    if plan.decision is not None:
        after, who = plan.steps[plan.decision.after].samples, "batch" if plan.decision.together else "image"
        yield f"  after scale {after + 1} each {who} goes, by content: {'; '.join(w.said for w in plan.decision.ways)}"
    read, readable, everything = plan.entries_read
    if read < readable:
        yield f"  at last a head reads {read:.0f} of {readable} entries, {read / readable:.0%}; of all tokens {read / everything:.0%}"
    for transform in plan.transforms:
        changes = "; ".join(f"{part} {changed(change)}" for part, change in transform.changes)
        yield f"  {transform.part} replaces modules of {transform.backbone}: {changes or 'nothing that costs'}"


def _looks(step: Step) -> str:
    """How many queries are observed, and whether what goes is merged."""
    uses = [use for call in step.calls for use in call.cache]
    observed = f", observes {spread([len(use.observed) for use in uses])}" if any(u.observed for u in uses) else ""
    noted = [sub.noted for call in step.calls for sub in call.sub_layers if sub.noted]
    return observed + ", merges" * any(u.merged for u in uses) + (f", notes {spread(noted)} numbers" if noted else "")


def _partial(step: Step, tokens: int) -> str:
    attention, ffn = [call.attention.tokens for call in step.calls], [call.ffn.tokens for call in step.calls]
    counts = f"attention on {spread(attention)}, FFN on {spread(ffn)}" if min(attention + ffn) < tokens else ""
    widths = [call.ffn.width for call in step.calls if call.ffn.width is not None]
    if widths:
        chosen = [count for width in widths for count in ((1, width.chosen) if width.varies else (width.chosen,))]
        counts += f"{', ' if counts else ''}{spread(chosen)} of {widths[0].experts} experts in {len(widths)} layers"
        kept = [width.tokens for width in widths if width.tokens is not None]
        counts += f" on {spread(kept)} tokens" if kept else ""
    return f" ({counts})" if counts else ""
