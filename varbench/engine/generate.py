"""The one generation loop. It executes a plan and returns what it drew, with a trace of what it did.

Letters: B images, R rows (labelled half first, then unlabelled), L tokens of a step, l tokens of a scale, C width,
D code_dim, V codes, H heads, c head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.engine.cache import State, StatePart
from varbench.engine.cache_entries import attention_paid, merged, stored_form
from varbench.engine.conditioning import Conditioning, condition, first_again
from varbench.engine.expert_ffn import Experts, part_of_ffn
from varbench.engine.going_on import Deciding
from varbench.engine.layer_run import HeadGroup, Residual, RunningLayer, Stream, coarser_or_own, numbers
from varbench.engine.loop import Choose, Loop, Observer, Sampling
from varbench.engine.sub_layers import SubLayers
from varbench.engine.watch import Watch
from varbench.model.attention import attention
from varbench.model.fused import heads_fit, kernels
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import FeedForward, Transformer, linear
from varbench.model.weighted import true_float32
from varbench.plan.owned import RowPolicies
from varbench.plan.state import branches_at_first, last_fills, paid_name, read_later
from varbench.plan.steps import CacheUse, Decision, Plan, Segment, Step
from varbench.plan.trace import Trace
from varbench.policies import CacheStrategy


@dataclass(frozen=True, kw_only=True)
class Generated:
    tokens_BL: Tensor
    """Codes of all scales; -1 where a scale was skipped."""
    f_hat_BDhw: Tensor
    logits_BLV: Tensor | None
    """After guidance, before filtering; NaN where a scale was skipped."""
    trace: Trace


@torch.inference_mode()
@true_float32()
def generate(
    plan: Plan,
    row: RowPolicies,
    *,
    backbones: Mapping[str, Transformer],
    tokenizer: Tokenizer,
    labels_B: Tensor,
    streams_B1: Tensor,
    sampling: Sampling,
    dtype: torch.dtype,
    forced_BL: Tensor | None = None,
    choose: Choose | None = None,
    return_logits: bool = False,
    observer: Observer | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Generated:
    """Draw codes for `labels_B`, from the images' own streams of noise; `forced_BL` fixes the codes, of all
    scales or of the first ones, as a plan whose first step encodes several needs them; `choose` draws the others; `decode` makes
    images of maps that something is decided by, in place of the tokenizer. Who uses what was drawn has it looked through first:
    `refuse_undrawn`."""
    run = _Run(plan, row, backbones=backbones, labels_B=labels_B, dtype=dtype)
    loop = Loop(
        plan.model,
        tokenizer.quantize,
        streams_B1=streams_B1,
        sampling=sampling,
        forced_BL=forced_BL,
        choose=choose,
        return_logits=return_logits,
        observer=observer,
    )
    given = loop.given(plan.steps[0].scales[:-1])
    if plan.decision is None or row.decision is None:
        loop.through(run, plan.steps, features=given)
    else:
        decide = Deciding(plan, row.decision.policy, decode=decode or tokenizer.decode_map, watch=run.watch)
        loop.through(run, plan.steps[: plan.decision.after + 1], features=given, deciding=decide)
        assert decide.ways_B is not None
        for part, steps, places in run.parts(plan.decision, decide.ways_B):
            loop.through(part, steps, places=places)
            part.end()
    return Generated(tokens_BL=loop.tokens, f_hat_BDhw=loop.f_hat, logits_BLV=loop.logits, trace=run.watch.trace())


class _Run:
    """One generation's moving parts: conditioning, state, and the trace that grows."""

    def __init__(
        self,
        plan: Plan,
        row: RowPolicies,
        *,
        backbones: Mapping[str, Transformer],
        labels_B: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.plan, self.backbones, self.labels_B, self.dtype = plan, backbones, labels_B, dtype
        self.batch = labels_B.shape[0]
        self.pickers = [owned.policy for owned in row.caches]
        self.width = row.width
        self.state = State(accounting=plan.accounting, form=stored_form(plan, row, dtype))
        self.watch = Watch(backbones, self.state)
        self.conditioning: dict[str, Conditioning] = {}
        self._sub_layers = SubLayers(
            plan=plan,
            policy=row.tokens.policy if row.tokens else None,
            state=self.state,
            watch=self.watch,
            dtype=dtype,
            last_fill=last_fills(plan.steps),
        )

    def parts(self, decision: Decision, ways_B: Tensor) -> Iterator[tuple[_Run, Sequence[Step], Tensor | None]]:
        """What goes on, way by way: each with its steps, and the places of its images; all images where none go apart."""
        taken = ways_B.unique().tolist()
        steps = [decision.ways[way].steps for way in taken]
        if len(taken) == 1:
            self.state.keep_read(read_later(steps[0]))
            for name in self.conditioning.keys() - branches_at_first(steps[0]).keys():
                del self.conditioning[name]
            self._sub_layers.last_fill = last_fills(steps[0])
            yield self, steps[0], None
            return
        places = [(ways_B == way).nonzero().flatten() for way in taken]
        runs = self._split(steps, places)
        for run, its_steps, its_places in zip(runs, steps, places, strict=True):
            self.watch.follow(run.state)
            yield run, its_steps, its_places

    def _split(self, steps: Sequence[Sequence[Step]], places: Sequence[Tensor]) -> list[_Run]:
        parts = [
            StatePart(read_later(its_steps), at, self.batch, branches_at_first(its_steps))
            for its_steps, at in zip(steps, places, strict=True)
        ]
        runs = []
        for part, state, its_steps in zip(parts, self.state.split(parts, self.watch.splits), steps, strict=True):
            run = copy(self)
            run.labels_B, run.batch, run.state = self.labels_B[part.images_n], len(part.images_n), state
            run.conditioning = {
                name: self.conditioning[name].of(partial(part.rows_of, backbone=name, attention=False))
                for name in part.branches
            }
            run._sub_layers = replace(self._sub_layers, state=state, last_fill=last_fills(its_steps))
            runs.append(run)
        self.conditioning.clear()
        return runs

    def end(self) -> None:
        """Nothing of it is read any more."""
        self.state.keep_read(read_later(()))
        self.conditioning.clear()

    def step(self, step: Step, features: Mapping[int, Tensor], cfg: float) -> Tensor:
        """Logits (B, l, V) of the sampled scale, after guidance."""
        backbone = self.backbones[step.backbone]
        conditioning = self._conditioning(step, backbone)
        self.watch.begin(self.labels_B)
        stream = Stream(self._embed(step, backbone, conditioning, features))
        mask = self._mask(step)
        for planned in step.calls:
            layer = planned.layer
            call = RunningLayer(
                step=step,
                planned=planned,
                block=backbone.block(layer),
                modulation=conditioning.blocks[layer],
                bias_3C=conditioning.biases[layer],
                mask=mask,
            )
            self._call(stream, call)
        logits = linear(
            stream.last(self.plan.model.tokens[step.samples], *conditioning.head, self.dtype), backbone.head, self.dtype
        ).float()
        if step.drops_backbone:
            self.state.drop_backbone(step.backbone)
            del self.conditioning[step.backbone]
        self.watch.end(stream.rows, logits)
        if step.branches == 1:
            return logits
        # (1 + t) x labelled - t x unlabelled.
        t = cfg * step.strength
        return logits[self.batch :].lerp(logits[: self.batch], 1 + t)

    def _conditioning(self, step: Step, backbone: Transformer) -> Conditioning:
        rows = self.batch * step.branches
        made = self.conditioning.get(step.backbone)
        if made is None:
            layers = {call.layer for s in self.plan.steps if s.backbone == step.backbone for call in s.calls}
            made = condition(
                backbone, self.labels_B, unlabelled=step.branches == 2, layers=sorted(layers), dtype=self.dtype
            )
        elif made.rows > rows:
            made = made.narrowed(rows)
            self.state.keep_rows(step.backbone, rows)
        if step.shares:
            self.state.keep_attending(step.backbone, self.batch)
        self.conditioning[step.backbone] = made
        return made

    def _embed(
        self, step: Step, backbone: Transformer, conditioning: Conditioning, features: Mapping[int, Tensor]
    ) -> Tensor:
        parts = []
        for scale in step.scales:
            if not scale:
                first = conditioning.take_first()
                parts.append(first_again(backbone, self.labels_B, rows=conditioning.rows) if first is None else first)
                continue
            self.watch.embedded(features[scale])
            tokens = backbone.later_tokens(features[scale], self.plan.model.starts[scale], self.dtype)
            parts.append(tokens.repeat(step.branches, 1, 1))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _mask(self, step: Step) -> Tensor | None:
        """(L, L): a token sees its own scale and the coarser ones. A step of one scale sees everything."""
        if len(step.scales) == 1:
            return None
        counts = tuple(self.plan.model.tokens[scale] for scale in step.scales)
        return coarser_or_own(counts, self.labels_B.device)

    def _call(self, stream: Stream, call: RunningLayer) -> None:
        """A layer."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = call.modulation
        block, planned = call.block, call.planned
        self.watch.layer(block)

        # Of all rows, or of the labelled ones for both.
        rows = self.batch * call.step.attending
        whole = planned.ffn.width is None

        def attention(hidden_RnC: Tensor) -> Tensor:
            given: Tensor = block.attn.out(self._attend(hidden_RnC, call), self.dtype)
            return torch.cat((given, given)) if call.step.shares else given

        def ffn(hidden_RnC: Tensor) -> Tensor:
            self.watch.ffn(hidden_RnC)
            if not whole:
                return self._part_of_ffn(hidden_RnC, call)
            if isinstance(block.ffn, FeedForward):
                computed: Tensor = block.ffn(hidden_RnC, self.dtype, seen=self.watch.part)
            else:
                self.watch.closed_ffn(hidden_RnC)
                computed = block.ffn(hidden_RnC, self.dtype)
            return computed

        places_Rn = self._sub_layers.run(
            stream,
            Residual(
                name="attention", planned=planned.attention, call=call, compute=attention, gamma_R1C=gamma1,
                scale_R1C=scale1[:rows], shift_R1C=shift1[:rows], dtype=self.dtype,
            ),
        )  # fmt: skip
        self._sub_layers.run(
            stream,
            Residual(
                name="ffn", planned=planned.ffn, call=call, compute=ffn, gamma_R1C=gamma2,
                scale_R1C=scale2, shift_R1C=shift2, places_Rn=places_Rn if planned.ffn.shared else None,
                dtype=self.dtype if whole else torch.float32,  # who chooses by it is shown it in full
            ),
        )  # fmt: skip
        self.watch.layer_ends()

    def _part_of_ffn(self, hidden_RnC: Tensor, call: RunningLayer) -> Tensor:
        """What the plan has of the FFN; its units lie expert by expert."""
        width, key = call.planned.ffn.width, call.key
        assert width is not None and self.width is not None
        experts = Experts(
            ffn=call.block.ffn,
            width=width,
            policy=self.width.policy,
            own=self.backbones[key.backbone].own.tensors(),
            layer=key.layer,
            scale=call.step.samples,
            split=None,
            dtype=self.dtype,
            seen=self.watch,
        )
        return part_of_ffn(hidden_RnC, experts)

    def _attend(self, hidden_RnC: Tensor, call: RunningLayer) -> Tensor:
        self.watch.attention(hidden_RnC)
        attn, uses = call.block.attn, call.planned.cache
        keys = self.dtype if self.plan.accounting == "lossless" else torch.float32
        space = None
        if len(uses) == 1 and attn.l2 and kernels(hidden_RnC, self.dtype) and heads_fit(attn.head_size):
            space = self.state.space((call.key, 0), uses[0], hidden_RnC.shape[:2], attn, self.dtype)
        into = None if space is None else space.own
        q, k, v = attn.qkv(hidden_RnC, self.dtype, keys=keys, bias=call.bias_3C, into=into)
        if len(uses) == 1:
            heads = HeadGroup(group=0, q_RHLc=q, k_RHLc=k, v_RHLc=v, space=space)
            return self._attend_by(heads, uses[0], call)
        mixed = []
        for group, use in enumerate(uses):
            own = numbers(use.heads, q.device)
            q_g, k_g, v_g = (tensor.index_select(1, own) for tensor in (q, k, v))
            mixed.append(self._attend_by(HeadGroup(group=group, q_RHLc=q_g, k_RHLc=k_g, v_RHLc=v_g), use, call))
        order = [head for use in uses for head in use.heads]
        back = numbers(tuple(sorted(range(len(order)), key=order.__getitem__)), q.device)
        return torch.cat(mixed, dim=1).index_select(1, back)

    def _attend_by(self, heads: HeadGroup, use: CacheUse, call: RunningLayer) -> Tensor:
        """One group of heads attends to what its cache holds and to the call's own, and its cache settles."""
        place = call.key, heads.group
        q, k = heads.q_RHLc, heads.k_RHLc
        if heads.space is None:
            keys, values = self.state.extend(place, use, k, heads.v_RHLc)
        else:
            keys, values = heads.space.all
        mask = call.mask
        seen = None if mask is None else F.pad(mask, (keys.shape[2] - mask.shape[1], 0), value=True)
        self.watch.attended(q, k, keys, seen)
        mixed = attention(q, keys.to(q.dtype), values.to(q.dtype), attn_mask=seen, scale=call.block.attn.softmax_scale)
        paid = self._paid(keys, seen, heads, use, call) if use.observed else None
        picked = self._pick(keys, paid, heads, use, call) if use.picked else None
        if picked is not None and use.merged:
            keys, values = merged(keys, values, picked, self._merging_weights(keys, paid, heads, call))
            self.watch.merged(keys)
        written = self.state.settle(place, use, self._own(k, call.step), (keys, values), picked)
        self.watch.settled(place, written)
        if paid is not None and use.accumulated:
            self.state.remember(call.key, paid_name(heads.group), paid if picked is None else paid.gather(2, picked))
        else:
            self.state.forget(call.key, paid_name(heads.group))
        return mixed

    def _paid(self, keys: Tensor, seen: Tensor | None, heads: HeadGroup, use: CacheUse, call: RunningLayer) -> Tensor:
        """What every entry was paid by the queries observed, now and where it adds up before."""
        places = list(use.observed)
        watching = numbers(tuple(places), heads.q_RHLc.device)
        queries = heads.q_RHLc if len(places) == use.own else heads.q_RHLc.index_select(2, watching)
        self.watch.observed(queries)
        paid = attention_paid(
            queries,
            keys,
            softmax_scale=call.block.attn.softmax_scale,
            seen_mn=None if seen is None else seen.index_select(0, watching),
        )
        before = self.state.recall(call.key, paid_name(heads.group))
        if before is not None:
            paid[:, :, : before.shape[2]] += before
        return paid

    def _own(self, k_RHLc: Tensor, step: Step) -> tuple[Segment, ...]:
        """The call's own entries by scale; picked tokens are of one scale."""
        if len(step.scales) == 1:
            return (Segment(step.samples, k_RHLc.shape[2]),)
        return tuple(Segment(scale, self.plan.model.tokens[scale]) for scale in step.scales)

    def _picker(self, heads: HeadGroup, call: RunningLayer) -> tuple[CacheStrategy, dict[str, int]]:
        """The strategy that gave a budget, and what it is told of where it is asked."""
        where = {"layer": call.planned.layer, "scale": call.step.samples, "group": heads.group}
        return next(policy for policy in self.pickers if policy.budget(**where) is not None), where

    def _merging_weights(
        self, keys: Tensor, paid: Tensor | None, heads: HeadGroup, call: RunningLayer
    ) -> Tensor | None:
        strategy, where = self._picker(heads, call)
        weights = strategy.merging_weights(paid, **where)
        if weights is not None and weights.shape != keys.shape[:3]:
            found, wanted = tuple(weights.shape), tuple(keys.shape[:3])
            raise ValueError(f"{type(strategy).__name__}.merging_weights gave numbers of shape {found}, not {wanted}")
        return weights

    def _pick(self, keys: Tensor, paid: Tensor | None, heads: HeadGroup, use: CacheUse, call: RunningLayer) -> Tensor:
        """Places of the entries that stay, from the one strategy that gave a budget."""
        strategy, where = self._picker(heads, call)
        count = use.kept[0].count
        places = strategy.pick(keys, heads.q_RHLc, count, attention_BHn=paid, **where)
        expected = (keys.shape[0], keys.shape[1], count)
        if tuple(places.shape) != expected:
            raise ValueError(
                f"{type(strategy).__name__}.pick gave places of shape {tuple(places.shape)}, not {expected}"
            )
        return places
