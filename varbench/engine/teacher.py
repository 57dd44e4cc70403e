"""The teacher-forced pass: all scales at once, computing only what the plan computes.

A layer sees only the tokens of the scales that run it, with the plan's own account of who reads whom as its mask. So
the network that is trained, or scored, is the network that generates. Letters: B images, n tokens of some scales,
C width, D code_dim, V codes, H heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from varbench.engine.expert_ffn import Experts, NobodyWatches, part_of_ffn
from varbench.engine.trained_layer import Attend, fused_attention, trained_layer
from varbench.errors import PlanError
from varbench.experts import PlaceName, PlaceSeen, WidthPolicy
from varbench.model.fused import normed
from varbench.model.transformer import Layer, Transformer
from varbench.plan.owned import Owned
from varbench.plan.steps import LayerCall, Plan, SlotKey, Step, Width
from varbench.policies import SubLayerName

Ffn = Callable[[Tensor], Tensor]
"""What stands in an FFN's place: given what enters it, normed and modulated."""
Look = Callable[[SubLayerName, Tensor, Tensor], None]
"""Is shown what enters and leaves a sub-layer."""


@dataclass(frozen=True)
class _Visit:
    """One slot of a backbone, with the scales that run it. A scale that is encoded again comes again, under a number that is
    larger by the number of scales."""

    key: SlotKey
    scales: tuple[int, ...]
    sees: tuple[tuple[tuple[int, ...], ...], ...]
    """For each group of heads, for each of `scales`, the scales it attends to."""
    heads: tuple[tuple[int, ...], ...]

    @property
    def feeds(self) -> bool:
        """Whether the FFN runs; attention does where something is seen."""
        return True


@dataclass(frozen=True)
class _OneHalf(_Visit):
    """Of a layer whose attention and FFN do not run at the same scales."""

    half: SubLayerName

    @property
    def feeds(self) -> bool:
        return self.half == "ffn"


@dataclass(frozen=True)
class TeacherPlan:
    """What the teacher-forced pass of one backbone runs, derived from a plan once."""

    encoded: tuple[int, ...]
    sampled: tuple[int, ...]
    visits: tuple[_Visit, ...]


def teacher_plan(plan: Plan, backbone: str) -> TeacherPlan:
    """Derives the pass, or refuses by name what has no teacher-forced form.

    Of a plan with several ways it is the first, which leaves nothing out: any other computes a part of what it computes.
    """
    steps = list(numbered(plan, backbone))
    calls: dict[SlotKey, list[tuple[Step, LayerCall]]] = {}
    order: TopologicalSorter[SlotKey] = TopologicalSorter()
    for step in steps:
        before: SlotKey | None = None
        for call in step.calls:
            if call.picks_between_tokens:
                raise PlanError(
                    f"{plan.name}: layer {call.layer} at {plan.model.scale_name(step.samples)} chooses tokens or cache "
                    "entries by content, which has no teacher-forced form; train and score it without that policy"
                )
            key = SlotKey(backbone, call.layer, call.slot)
            calls.setdefault(key, []).append((step, call))
            order.add(key, *([before] if before else []))
            before = key
    try:
        keys = [key for key in order.static_order() if key in calls]
    except CycleError as error:
        raise PlanError(
            f"{plan.name}: scales run the same layers in different orders, which has no one pass"
        ) from error
    return TeacherPlan(
        encoded=tuple(scale for step in steps for scale in step.scales),
        sampled=tuple(step.samples for step in steps),
        visits=tuple(visit for key in keys for visit in _visits(key, calls[key], plan.model.scales)),
    )


def numbered(plan: Plan, backbone: str) -> Iterator[Step]:
    """Its steps, in which scales have the numbers that they have in visits."""
    turns: Counter[int] = Counter()
    for step in plan.steps:
        if step.backbone == backbone:
            yield replace(step, scales=tuple(scale + plan.model.scales * turns[scale] for scale in step.scales))
            turns.update(step.scales)


def _visits(key: SlotKey, calls: list[tuple[Step, LayerCall]], count: int) -> Iterator[_Visit]:
    """One where attention and FFN run at the same scales, else one for each."""
    attend = [(step, call) for step, call in calls if call.attention.tokens]
    feed = [(step, call) for step, call in calls if call.ffn.tokens]
    if attend == feed:
        yield from [_visit(key, attend, count)] if attend else []
        return
    if attend:
        whole = _visit(key, attend, count)
        yield _OneHalf(key, whole.scales, whole.sees, whole.heads, "attention")
    if feed:
        yield _OneHalf(key, tuple(scale for step, _ in feed for scale in step.scales), (), (), "ffn")


def _visit(key: SlotKey, calls: list[tuple[Step, LayerCall]], count: int) -> _Visit:
    scales = tuple(scale for step, _ in calls for scale in step.scales)
    groups = []
    for group in range(len(calls[0][1].cache)):
        sees = []
        stored: dict[int, int] = {}
        for step, call in calls:
            read = tuple(stored[segment.scale] for segment in call.cache[group].read)
            sees += [(*read, *step.scales[:place]) for place in range(1, len(step.scales) + 1)]
            stored.update((scale % count, scale) for scale in step.scales)
        groups.append(tuple(sees))
    return _Visit(key, scales, tuple(groups), tuple(use.heads for use in calls[0][1].cache))


class TeacherPass:
    """A compiled pass of one backbone; masks are made once for each device."""

    def __init__(
        self,
        plan: Plan,
        backbone: str,
        width: Owned[WidthPolicy] | None = None,
        *,
        side_by_side: bool = False,
        recompute: bool = False,
    ) -> None:
        """`width` is asked where the plan computes a part of an FFN; `side_by_side` says that the transformer's hidden units
        lie expert by expert. To `recompute` keeps no activations within layers, and computes them again for gradients."""
        self.plan = teacher_plan(plan, backbone)
        self.model = plan.model
        self._width, self._side_by_side, self._recompute = width, side_by_side, recompute
        self._parts: dict[SlotKey, dict[int, Width | None]] = {}
        for step in numbered(plan, backbone):
            for call in step.calls:
                key = SlotKey(backbone, call.layer, call.slot)
                self._parts.setdefault(key, {}).update(dict.fromkeys(step.scales, call.ffn.width))
        if width is None and any(part for parts in self._parts.values() for part in parts.values()):
            raise PlanError(f"{plan.name}: parts of FFNs are computed, and the policy that chooses them was not given")
        self._masks: dict[tuple[tuple[int, ...], object, torch.device], Tensor] = {}

    def logits(
        self,
        transformer: Transformer,
        features_BLD: Tensor,
        labels_B: Tensor,
        *,
        dtype: torch.dtype,
        attend: Attend = fused_attention,
        sampled: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Logits (B, n, V) of the scales this backbone samples (or those asked for), one after another."""
        cond = transformer.condition(labels_B)
        shared = transformer.shared_modulation(cond, dtype)
        x = self._embed(transformer, cond, features_BLD, dtype)
        for visit in self.plan.visits:
            self._layer(x, visit, transformer, cond, shared, dtype, attend)
        features_BnC = self._joined(x, self.plan.sampled if sampled is None else sampled)
        return transformer.logits(features_BnC, transformer.head_nm.modulation(cond, dtype), dtype)

    def show(
        self,
        transformer: Transformer,
        features_BLD: Tensor,
        tokens_BL: Tensor,
        labels_B: Tensor,
        *,
        dtype: torch.dtype,
        attend: Attend,
        places: Collection[PlaceName],
        look: Callable[[PlaceSeen], None],
        taught: Mapping[tuple[PlaceName, int], PlaceSeen],
    ) -> None:
        """Runs the pass, and shows it at work at some places, each with what it is taught there."""

        def shown(place: PlaceName, layer: int, scales: tuple[int, ...], module: nn.Module, *at: Tensor) -> None:
            hidden, output = at
            scales = tuple(number % self.model.scales for number in scales)
            teacher = taught.get((place, layer))
            look(
                PlaceSeen(
                    place=place, layer=layer, scales=scales, hidden_RLC=hidden, output_RLC=output,
                    weights={name: weight.detach() for name, weight in module.named_parameters()},
                    codes_RL=self._joined({tuple(range(self.model.scales)): tokens_BL}, scales),
                    taught=None if teacher is None else self._narrowed(teacher, scales),
                )
            )  # fmt: skip

        cond = transformer.condition(labels_B)
        shared = transformer.shared_modulation(cond, dtype)
        x = self._embed(transformer, cond, features_BLD, dtype)
        for visit in self.plan.visits:

            def at_work(name: SubLayerName, hidden: Tensor, output: Tensor, visit: _Visit = visit) -> None:
                if name in places:
                    block = transformer.block(visit.key.layer)
                    module = block.attn if name == "attention" else block.ffn
                    shown(name, visit.key.layer, visit.scales, module, hidden, output)

            self._layer(x, visit, transformer, cond, shared, dtype, attend, at_work)
        if "head" in places:
            features = self._joined(x, self.plan.sampled)
            logits = transformer.logits(features, transformer.head_nm.modulation(cond, dtype), dtype)
            shown("head", transformer.spec.depth, self.plan.sampled, transformer.head, features, logits)

    def _narrowed(self, seen: PlaceSeen, scales: tuple[int, ...]) -> PlaceSeen | None:
        """At the tokens of some of its scales; None where it has not all of them."""
        if not {*scales} <= {*seen.scales}:
            return None
        hidden, output, codes = (
            self._joined({seen.scales: tensor}, scales) for tensor in (seen.hidden_RLC, seen.output_RLC, seen.codes_RL)
        )
        return replace(seen, scales=scales, hidden_RLC=hidden, output_RLC=output, codes_RL=codes)

    def _tokens(self, number: int) -> int:
        return self.model.tokens[number % self.model.scales]

    def _pieces(self, runs: Mapping[tuple[int, ...], Tensor]) -> dict[int, Tensor]:
        """Tokens by scale, of tensors that hold those of runs of scales."""
        pieces: dict[int, Tensor] = {}
        for run, tensor in runs.items():
            pieces.update(zip(run, tensor.split([self._tokens(scale) for scale in run], dim=1), strict=True))
        return pieces

    def _joined(self, runs: Mapping[tuple[int, ...], Tensor], scales: tuple[int, ...]) -> Tensor:
        """The tokens of these scales, in order."""
        if scales in runs:
            return runs[scales]
        pieces = self._pieces(runs)
        return torch.cat([pieces[scale] for scale in scales], dim=1)

    def _embed(
        self, transformer: Transformer, cond: Tensor, features_BLD: Tensor, dtype: torch.dtype
    ) -> dict[tuple[int, ...], Tensor]:
        """The residual stream, as tensors of runs of scales. It starts as one tensor of all that is encoded."""
        starts, encoded = self.model.starts, self.plan.encoded
        spans: list[list[int]] = []
        for scale in (number % self.model.scales for number in encoded):
            if scale > 1 and spans and spans[-1][-1] == scale - 1:
                spans[-1].append(scale)
            else:
                spans.append([scale])
        parts = []
        for span in spans:
            start, end = starts[span[0]], starts[span[-1] + 1]
            later = features_BLD[:, start - 1 : end - 1]
            parts.append(transformer.later_tokens(later, start, dtype) if start else transformer.first_tokens(cond))
        return {encoded: torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]}

    def _layer(
        self,
        x: dict[tuple[int, ...], Tensor],
        visit: _Visit,
        transformer: Transformer,
        cond: Tensor,
        shared: Tensor | None,
        dtype: torch.dtype,
        attend: Attend,
        look: Look | None = None,
    ) -> None:
        if visit.scales not in x:
            self._regroup(x, visit.scales)
        block = transformer.block(visit.key.layer)
        modulation = block.modulation(cond, shared, dtype)
        x_BnC = x[visit.scales]
        given = (x_BnC, block, modulation, self._mask(visit, x_BnC.device), dtype, attend)
        ffn = self._ffn(visit, transformer, dtype)
        if look is not None:
            x[visit.scales] = _layer_of_modules(*given, ffn, visit.feeds, look)
            return
        run = trained_layer if torch.is_grad_enabled() else _layer_of_modules
        if self._recompute and torch.is_grad_enabled():
            x[visit.scales] = checkpoint(run, *given, ffn, visit.feeds, use_reentrant=False, preserve_rng_state=False)
        else:
            x[visit.scales] = run(*given, ffn, visit.feeds)

    def _ffn(self, visit: _Visit, transformer: Transformer, dtype: torch.dtype) -> Ffn | None:
        """The FFN of a layer that computes a part of it at some of its scales; None where it is whole."""
        parts = [self._parts[visit.key][scale] for scale in visit.scales]
        if self._width is None or not any(parts):
            return None
        policy, own, layer = self._width.policy, transformer.own.tensors(), visit.key.layer
        ffn = transformer.block(layer).ffn
        split = None if self._side_by_side else policy.split(layer, own=own)
        counts = [self._tokens(scale) for scale in visit.scales]

        def by_scale(hidden_BnC: Tensor) -> Tensor:
            made = []
            for scale, width, hidden in zip(visit.scales, parts, hidden_BnC.split(counts, dim=1), strict=True):
                made.append(
                    ffn(hidden, dtype)
                    if width is None
                    else part_of_ffn(
                        hidden,
                        Experts(
                            ffn=ffn, width=width, policy=policy, own=own, layer=layer, scale=scale % self.model.scales,
                            split=split, dtype=dtype, seen=NobodyWatches(),
                        ),
                    )
                )  # fmt: skip
            return torch.cat(made, dim=1)

        return by_scale

    def _regroup(self, x: dict[tuple[int, ...], Tensor], scales: tuple[int, ...]) -> None:
        """Splits and joins the stream so that the scales of the next layer lie in one tensor, the rest in another."""
        pieces = self._pieces(x)
        x.clear()
        rest = tuple(scale for scale in self.plan.encoded if scale not in scales)
        for run in (scales, rest):
            if run:
                x[run] = torch.cat([pieces[scale] for scale in run], dim=1)

    def _mask(self, visit: _Visit, device: torch.device) -> Tensor | None:
        """(n, n), or (H, n, n) where groups of heads see different scales; None where nothing attends."""
        if not visit.sees:
            return None
        place = (visit.scales, visit.sees, device)
        if place not in self._masks:
            counts = torch.tensor([self._tokens(scale) for scale in visit.scales])
            of = torch.repeat_interleave(torch.arange(len(counts)), counts)
            groups = []
            for sees in visit.sees:
                small = torch.tensor([[key in seen for key in visit.scales] for seen in sees])
                groups.append(small[of][:, of])
            mask = groups[0]
            if any(not torch.equal(mask, other) for other in groups[1:]):
                mask = torch.empty(sum(map(len, visit.heads)), *mask.shape, dtype=torch.bool)
                for heads, group in zip(visit.heads, groups, strict=True):
                    mask[list(heads)] = group
            self._masks[place] = mask.to(device)
        return self._masks[place]


def _layer_of_modules(
    x_BnC: Tensor,
    block: Layer,
    modulation: tuple[Tensor, ...],
    mask: Tensor | None,
    dtype: torch.dtype,
    attend: Attend,
    ffn: Ffn | None,
    feeds: bool = True,
    look: Look | None = None,
) -> Tensor:
    """As generation runs it, whatever a transform has put in a module's place."""
    gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
    if mask is not None:
        hidden = normed(x_BnC) * scale1 + shift1
        q, k, v = block.attn.qkv(hidden, dtype)
        output = block.attn.out(attend(q, k, v, mask, block.attn.softmax_scale), dtype)
        if look is not None:
            look("attention", hidden, output)
        x_BnC = x_BnC + output * gamma1
    if not feeds:
        return x_BnC
    hidden = normed(x_BnC) * scale2 + shift2
    output = block.ffn(hidden, dtype) if ffn is None else ffn(hidden)
    if look is not None:
        look("ffn", hidden, output)
    return x_BnC + output * gamma2
