"""The one generation loop. It executes a plan and returns what it drew, with a trace of what it did.

Letters: B images, R rows (labelled half first, then unlabelled), L tokens of a step, l tokens of a scale, C width,
D code_dim, V codes, H heads, c head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.engine.cache import State
from varbench.engine.sampler import draw, filtered, uniforms
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Attention, Layer, Transformer, normed
from varbench.plan.owned import RowPolicies
from varbench.plan.steps import CacheUse, LayerCall, Plan, Segment, SlotKey, Step, SubLayer
from varbench.plan.trace import Trace
from varbench.policies import SubLayerName

Observer = Callable[[str, int], None]
"""Called with "start", "logits" (the network is done) or "end" and the step's number; it may look at clocks and memory, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    seed: int = 0
    cfg: float = 1.5
    top_k: int = 0
    top_p: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Generated:
    tokens_BL: Tensor
    """Codes of all scales; -1 where a scale was skipped."""
    f_hat_BDhw: Tensor
    logits_BLV: Tensor | None
    """After guidance, before filtering; NaN where a scale was skipped."""
    trace: Trace


@torch.inference_mode()
def generate(
    plan: Plan,
    row: RowPolicies,
    *,
    backbones: Mapping[str, Transformer],
    tokenizer: Tokenizer,
    labels_B: Tensor,
    images_B: Tensor,
    sampling: Sampling,
    dtype: torch.dtype,
    forced_BL: Tensor | None = None,
    return_logits: bool = False,
    observer: Observer | None = None,
) -> Generated:
    """Draw codes for `labels_B`. `images_B` are the images' numbers in the noise stream; `forced_BL` fixes the codes."""
    run = _Run(plan, row, backbones, labels_B, dtype)
    model, quantizer = plan.model, tokenizer.quantize
    batch, last = labels_B.shape[0], model.sides[-1]
    f_hat = torch.zeros(batch, model.tokenizer.code_dim, last, last, device=labels_B.device)
    tokens = torch.full((batch, model.length), -1, dtype=torch.long, device=labels_B.device)
    logits_all = None
    if return_logits:
        shape = (batch, model.length, model.tokenizer.vocabulary)
        logits_all = torch.full(shape, torch.nan, device=labels_B.device)
    features: dict[int, Tensor] = {}
    for index, step in enumerate(plan.steps):
        if observer:
            observer("start", index)
        scale = step.samples
        if scale:
            features[scale] = quantizer.features(f_hat, scale)
        logits_BlV = run.step(step, features, sampling.cfg)
        if observer:
            observer("logits", index)
        _forget_features(features, plan, index)
        span = slice(model.starts[scale], model.starts[scale + 1])
        if logits_all is not None:
            logits_all[:, span] = logits_BlV
        if forced_BL is None:
            noise = uniforms(images_B, seed=sampling.seed, scale=scale, count=model.tokens[scale])
            tokens[:, span] = draw(filtered(logits_BlV, top_k=sampling.top_k, top_p=sampling.top_p), noise)
        else:
            tokens[:, span] = forced_BL[:, span]
        # The largest tensor of a step must not lie there while the next one runs.
        del logits_BlV
        f_hat = f_hat + quantizer.contribution(tokens[:, span], scale)
        if observer:
            observer("end", index)
    return Generated(tokens_BL=tokens, f_hat_BDhw=f_hat, logits_BLV=logits_all, trace=run.trace())


def _forget_features(features: dict[int, Tensor], plan: Plan, index: int) -> None:
    """Only what a later step encodes again stays."""
    again = {scale for step in plan.steps[index + 1 :] for scale in step.scales}
    for scale in [scale for scale in features if scale not in again]:
        del features[scale]


@dataclass
class _Conditioning:
    """Everything that depends on the labels alone, computed once a generation; the unlabelled row once for the batch."""

    first_RLC: Tensor | None
    blocks: dict[int, tuple[Tensor, ...]]
    head: tuple[Tensor, Tensor]
    rows: int

    def narrowed(self, rows: int) -> _Conditioning:
        return _Conditioning(
            first_RLC=None,
            blocks={layer: tuple(t[:rows] for t in six) for layer, six in self.blocks.items()},
            head=(self.head[0][:rows], self.head[1][:rows]),
            rows=rows,
        )


class _Run:
    """One generation's moving parts: conditioning, state, and the trace that grows."""

    def __init__(
        self,
        plan: Plan,
        row: RowPolicies,
        backbones: Mapping[str, Transformer],
        labels_B: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.plan, self.backbones, self.labels_B, self.dtype = plan, backbones, labels_B, dtype
        self.batch = labels_B.shape[0]
        self.tokens_policy = row.tokens.policy if row.tokens else None
        self.pickers = [owned.policy for owned in row.caches]
        store = getattr(torch, plan.cache_dtype) if plan.cache_dtype else dtype
        self.state = State(
            accounting=plan.accounting,
            key_dtype=torch.float32 if plan.float32_keys else store,
            value_dtype=store,
        )
        self.conditioning: dict[str, _Conditioning] = {}
        self._steps: list[Step] = []
        self._after: list[int] = []
        self._peaks: list[int] = []
        self._last_fill = _last_fills(plan)

    def trace(self) -> Trace:
        return Trace(
            steps=tuple(self._steps),
            state_after=tuple(self._after),
            state_peak=tuple(self._peaks),
            kernel="scaled_dot_product_attention",
        )

    def step(self, step: Step, features: Mapping[int, Tensor], cfg: float) -> Tensor:
        """Logits (B, l, V) of the sampled scale, after guidance."""
        backbone = self.backbones[step.backbone]
        rows = self.batch * step.branches
        conditioning = self._conditioning(step, backbone, rows)
        self.state.peak = self.state.nbytes
        x_RLC = self._embed(step, backbone, conditioning, features)
        mask = self._mask(step)
        calls = []
        for call in step.calls:
            key = SlotKey(step.backbone, call.layer, call.slot)
            x_RLC, done = self._call(x_RLC, step, call, key, backbone, conditioning.blocks[call.layer], mask)
            calls.append(done)
        count = self.plan.model.tokens[step.samples]
        logits = backbone.logits(x_RLC[:, -count:], conditioning.head, self.dtype)
        if step.branches == 2:
            t = cfg * step.samples / (self.plan.model.scales - 1)
            logits = (1 + t) * logits[: self.batch] - t * logits[self.batch :]
        if step.drops_backbone:
            self.state.drop_backbone(step.backbone)
            del self.conditioning[step.backbone]
        self._steps.append(
            Step(
                scales=step.scales,
                samples=step.samples,
                backbone=step.backbone,
                branches=2 if x_RLC.shape[0] == 2 * self.batch else 1,
                mask="full" if mask is None else "block_causal",
                calls=tuple(calls),
                drops_backbone=step.drops_backbone,
            )
        )
        self._after.append(self.state.nbytes)
        self._peaks.append(self.state.peak)
        return logits

    def _conditioning(self, step: Step, backbone: Transformer, rows: int) -> _Conditioning:
        made = self.conditioning.get(step.backbone)
        if made is None:
            made = self._condition(step, backbone)
        elif made.rows > rows:
            made = made.narrowed(rows)
            self.state.keep_rows(step.backbone, rows)
        self.conditioning[step.backbone] = made
        return made

    def _condition(self, step: Step, backbone: Transformer) -> _Conditioning:
        labels = self.labels_B
        if step.branches == 2:
            labels = torch.cat((labels, labels.new_tensor([backbone.spec.classes])))

        def spread(tensor: Tensor) -> Tensor:
            if step.branches == 1:
                return tensor
            return torch.cat((tensor[: self.batch], tensor[self.batch :].expand(self.batch, *tensor.shape[1:])))

        cond = backbone.condition(labels)
        shared = backbone.shared_modulation(cond, self.dtype)
        layers = {c.layer for s in self.plan.steps if s.backbone == step.backbone for c in s.calls}
        head_scale, head_shift = backbone.head_nm.modulation(cond, self.dtype)
        return _Conditioning(
            first_RLC=spread(backbone.first_tokens(cond)),
            blocks={
                layer: tuple(spread(t) for t in backbone.block(layer).modulation(cond, shared, self.dtype))
                for layer in sorted(layers)
            },
            head=(spread(head_scale), spread(head_shift)),
            rows=self.batch * step.branches,
        )

    def _embed(
        self, step: Step, backbone: Transformer, conditioning: _Conditioning, features: Mapping[int, Tensor]
    ) -> Tensor:
        later = [scale for scale in step.scales if scale]
        parts = []
        if len(later) < len(step.scales):
            assert conditioning.first_RLC is not None
            parts.append(conditioning.first_RLC)
            conditioning.first_RLC = None
        for scale in later:
            tokens = backbone.later_tokens(features[scale], self.plan.model.starts[scale], self.dtype)
            parts.append(tokens.repeat(step.branches, 1, 1))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _mask(self, step: Step) -> Tensor | None:
        """(L, L): a token sees its own scale and the coarser ones. A step of one scale sees everything."""
        if len(step.scales) == 1:
            return None
        counts = torch.tensor([self.plan.model.tokens[scale] for scale in step.scales])
        scale_of = torch.repeat_interleave(torch.arange(len(step.scales)), counts).to(self.labels_B.device)
        return scale_of[:, None] >= scale_of[None, :]

    def _call(
        self,
        x_RLC: Tensor,
        step: Step,
        call: LayerCall,
        key: SlotKey,
        backbone: Transformer,
        modulation: tuple[Tensor, ...],
        mask: Tensor | None,
    ) -> tuple[Tensor, LayerCall]:
        block: Layer = backbone.block(call.layer)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
        uses: list[CacheUse] = []

        def attention(chosen_RnC: Tensor) -> Tensor:
            hidden = normed(chosen_RnC) * scale1 + shift1
            mixed = self._attend(block.attn, hidden, step, call, key, mask, uses)
            return block.attn.out(mixed, self.dtype) * gamma1

        def ffn(chosen_RnC: Tensor) -> Tensor:
            return block.ffn(normed(chosen_RnC) * scale2 + shift2, self.dtype) * gamma2

        x_RLC, first = self._sub_layer(x_RLC, attention, call.attention, "attention", step, key)
        x_RLC, second = self._sub_layer(x_RLC, ffn, call.ffn, "ffn", step, key)
        return x_RLC, LayerCall(layer=call.layer, slot=call.slot, attention=first, ffn=second, cache=tuple(uses))

    def _sub_layer(
        self,
        x_RLC: Tensor,
        compute: Callable[[Tensor], Tensor],
        planned: SubLayer,
        name: SubLayerName,
        step: Step,
        key: SlotKey,
    ) -> tuple[Tensor, SubLayer]:
        """One residual branch on all tokens, or on those a policy picks with the others filled in."""
        scale = step.samples
        if not planned.picked:
            output = compute(x_RLC)
            computed = output.shape[1]
        else:
            policy = self.tokens_policy
            assert policy is not None
            places_Rn = policy.pick(x_RLC, planned.tokens, layer=key.layer, scale=scale, sublayer=name)
            chosen = x_RLC.gather(1, places_Rn.unsqueeze(-1).expand(-1, -1, x_RLC.shape[-1]))
            part = compute(chosen)
            computed = part.shape[1]
            remembered = self.state.recall(key, name)
            output = policy.fill(part, places_Rn, remembered, length=x_RLC.shape[1], scale=scale)
        if planned.remembered:
            sampled = output[:, -self.plan.model.tokens[scale] :].to(self.dtype)
            self.state.remember(key, name, sampled)
        elif self._last_fill.get((key, name)) == scale:
            self.state.forget(key, name)
        return x_RLC + output, SubLayer(tokens=computed, picked=planned.picked, remembered=planned.remembered)

    def _attend(
        self,
        attn: Attention,
        hidden_RnC: Tensor,
        step: Step,
        call: LayerCall,
        key: SlotKey,
        mask: Tensor | None,
        uses: list[CacheUse],
    ) -> Tensor:
        q, k, v = attn.qkv(hidden_RnC, self.dtype)
        if self.plan.accounting == "lossless":
            k = k.to(self.dtype)
        if len(step.scales) == 1:
            own: tuple[Segment, ...] = (Segment(step.samples, k.shape[2]),)
        else:
            own = tuple(Segment(scale, self.plan.model.tokens[scale]) for scale in step.scales)
        mixed = []
        for group, use in enumerate(call.cache):
            q_g, k_g, v_g = (q, k, v) if len(call.cache) == 1 else (t[:, list(use.heads)] for t in (q, k, v))
            held = self.state.held(key, group)
            keys, values = self.state.extend(key, group, use, k_g, v_g)
            seen = None if mask is None else F.pad(mask, (keys.shape[2] - mask.shape[1], 0), value=True)
            mixed.append(
                F.scaled_dot_product_attention(
                    q_g, keys.to(q.dtype), values.to(q.dtype), attn_mask=seen, scale=attn.softmax_scale
                )
            )
            picked = self._pick(keys, q_g, use, key, step, group) if use.picked else None
            self.state.settle(key, group, use, own, (keys, values), picked)
            uses.append(
                CacheUse(
                    heads=use.heads,
                    read=held,
                    own=k_g.shape[2],
                    kept=self.state.held(key, group),
                    capacity=self.state.capacity(key, group),
                    picked=picked is not None,
                )
            )
        if len(mixed) == 1:
            return mixed[0]
        order = torch.tensor([head for use in call.cache for head in use.heads]).argsort()
        return torch.cat(mixed, dim=1)[:, order.to(q.device)]

    def _pick(self, keys: Tensor, queries: Tensor, use: CacheUse, key: SlotKey, step: Step, group: int) -> Tensor:
        """Places of the entries that stay, from the one strategy that gave a budget."""
        (strategy,) = self.pickers
        count = use.kept[0].count
        places = strategy.pick(keys, queries, count, layer=key.layer, scale=step.samples, group=group)
        expected = (keys.shape[0], keys.shape[1], count)
        if tuple(places.shape) != expected:
            raise ValueError(
                f"{type(strategy).__name__}.pick gave places of shape {tuple(places.shape)}, not {expected}"
            )
        return places


def _last_fills(plan: Plan) -> dict[tuple[SlotKey, str], int]:
    """The last scale at which each slot's sub-layer fills in from what it remembers."""
    last: dict[tuple[SlotKey, str], int] = {}
    for step in plan.steps:
        for call in step.calls:
            key = SlotKey(step.backbone, call.layer, call.slot)
            for name, sub in (("attention", call.attention), ("ffn", call.ffn)):
                if sub.picked:
                    last[key, name] = step.samples
    return last
