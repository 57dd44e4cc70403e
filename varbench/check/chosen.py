"""What was chosen, read again from the tensors: what stays in a cache is what is read later, and what a policy picks is
what is computed.

Neither the engine nor its trace is asked. Every attention and every norm is looked at on its way into torch, and what it
should be given follows from what went in before and from the places that the plugin picked.

Letters: R rows (images x branches), L l tokens, n count, H heads, C c widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from varbench.check import stand_ins
from varbench.experts import Own, WidthPolicy
from varbench.plan.steps import CacheUse, LayerCall, Plan, Segment, SlotKey, Step, SubLayer
from varbench.policies import CacheStrategy, SubLayerName, TokenPolicy
from varbench.rows.grammar import Row

_ATTENTION, _NORM = F.scaled_dot_product_attention, F.layer_norm
NEAR = 1e-3
"""A sub-layer's output that is had by subtraction may differ by this from the one that was added."""


class Look(TorchFunctionMode):
    """Looks into one generation: `with look: generate(look.row(row), observer=look.observe)`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.caches, self.tokens = _Caches(plan), _Tokens(plan)
        self._looks = False

    def row(self, row: Row) -> Row:
        return stand_ins.replaced(
            row,
            "read again",
            lambda own: _ToldTokens(own, self),
            lambda own: _ToldCache(own, self),
            lambda own: _UnseenWidth(own, self),
        )

    def observe(self, moment: str, step: int) -> None:
        self._looks = moment == "start"

    def asks(self, asking: bool) -> None:
        """While a plugin is asked, what it computes is its own."""
        self._looks = not asking

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._looks and func is _ATTENTION:
            self.caches.attend(args[1], args[2])
        elif self._looks and func is _NORM:
            self.tokens.enter(args[0])
        return func(*args, **(kwargs or {}))


class _Caches:
    """Follows the keys and values of every cache from one attention to the next."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._coming = (
            (step, call, group, use)
            for step in plan.steps
            for call in step.calls
            for group, use in enumerate(call.cache)
        )
        self._stays: dict[tuple[SlotKey, int], tuple[Tensor, ...]] = {}
        self._unpicked: tuple[tuple[SlotKey, int], Tensor, Tensor] | None = None
        self.wrong: list[str] = []

    def attend(self, keys_RHnc: Tensor, values_RHnc: Tensor) -> None:
        planned = next(self._coming, None)
        if planned is None:
            self.wrong.append("more attentions ran than the plan has")
            return
        step, call, group, use = planned
        place = (SlotKey(step.backbone, call.layer, call.slot), group)
        labels = _labels(self._plan, step, use)
        where = f"layer {call.layer} at {self._plan.model.scale_name(step.samples)}"
        if keys_RHnc.shape[2] != len(labels):
            self.wrong.append(f"{where} attended to {keys_RHnc.shape[2]} entries, and the plan has {len(labels)}")
            return
        stayed = self._stays.pop(place, None)
        for what, tensor, before in zip(("keys", "values"), (keys_RHnc, values_RHnc), stayed or (), strict=False):
            read = tensor[:, :, : before.shape[2]]
            if not torch.equal(read, before[: len(tensor)]):
                self.wrong.append(f"the {what} that {where} read are not those that were to stay before it")
        if use.read and stayed is None:
            self.wrong.append(f"{where} read entries of which none was picked")
        if use.picked:
            self._unpicked = (place, keys_RHnc, values_RHnc)
        elif use.kept:
            kept = {segment.scale for segment in use.kept}
            at = [number for number, scale in enumerate(labels) if scale in kept]
            self._stay(place, keys_RHnc[:, :, at], values_RHnc[:, :, at])

    def picked(self, places_RHn: Tensor) -> None:
        if self._unpicked is None:
            return
        place, keys, values = self._unpicked
        index = places_RHn.unsqueeze(-1).expand(*places_RHn.shape, keys.shape[-1])
        self._stay(place, keys.gather(2, index), values.gather(2, index))
        self._unpicked = None

    def _stay(self, place: tuple[SlotKey, int], *tensors: Tensor) -> None:
        kind = getattr(torch, self._plan.cache_dtype or "float32")
        self._stays[place] = tuple(tensor.to(kind).to(tensor.dtype) for tensor in tensors)


def _labels(plan: Plan, step: Step, use: CacheUse) -> list[int]:
    """The scale of every entry that a call attends to."""
    single = (Segment(step.samples, use.own),)
    own = single if len(step.scales) == 1 else tuple(Segment(scale, plan.model.tokens[scale]) for scale in step.scales)
    return [segment.scale for segment in (*use.read, *own) for _ in range(segment.count)]


class _Tokens:
    """Follows the residual stream from one sub-layer to the next."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._coming = plan, _sub_layers(plan)
        self._at: tuple[Step, LayerCall, SubLayerName, SubLayer] | None = None
        self._stream: Tensor | None = None
        self._places: Tensor | None = None
        self._due: Tensor | None = None
        """What the next norm must be given."""
        self._filled: Tensor | None = None
        """What the stream must be next."""
        self._outputs: dict[tuple[SlotKey, str], Tensor] = {}
        self.wrong: list[str] = []

    def picked(self, x_RLC: Tensor, places_Rn: Tensor) -> None:
        self._arrive(x_RLC)
        self._places = places_Rn.clone()
        self._due = x_RLC.gather(1, places_Rn.unsqueeze(-1).expand(-1, -1, x_RLC.shape[-1]))

    def enter(self, x_RnC: Tensor) -> None:
        """What a norm is given: the stream, or the tokens that were picked of it."""
        if self._due is None:
            self._arrive(x_RnC)
            return
        if not torch.equal(x_RnC, self._due):
            self.wrong.append(f"{self._where()} computed other tokens than were picked")
        self._due = None

    def filled(self, places_Rn: Tensor, remembered_RlC: Tensor | None, output_RLC: Tensor) -> None:
        assert self._stream is not None
        if self._places is None or not torch.equal(places_Rn, self._places):
            self.wrong.append(f"{self._where()} filled in at other places than were picked")
        before = self._outputs.get(self._key())
        if before is None or remembered_RlC is None:
            if before is not remembered_RlC:
                had = "nothing" if before is None else "something"
                self.wrong.append(f"{self._where()} had {had} to remember, and was given the other")
        elif remembered_RlC.shape != before[: len(remembered_RlC)].shape or not torch.allclose(
            remembered_RlC, before[: len(remembered_RlC)], rtol=NEAR, atol=NEAR
        ):
            self.wrong.append(f"{self._where()} filled in from an output that is not the one to be remembered")
        self._filled = self._stream + output_RLC

    def _arrive(self, x_RLC: Tensor) -> None:
        """The stream as the last sub-layer left it; the head sees the end of it alone."""
        count = x_RLC.shape[1]
        if self._filled is not None and not torch.equal(x_RLC, self._filled[:, -count:]):
            self.wrong.append(f"what {self._where()} filled in is not what went on")
        if self._at is not None and self._stream is not None and self._at[3].remembered:
            sampled = self._plan.model.tokens[self._at[0].samples]
            self._outputs[self._key()] = (x_RLC - self._stream[:, -count:])[:, -sampled:]
        self._at = next(self._coming, None)
        self._stream, self._filled = x_RLC.clone(), None

    def _key(self) -> tuple[SlotKey, str]:
        assert self._at is not None
        step, call, name, _ = self._at
        return SlotKey(step.backbone, call.layer, call.slot), name

    def _where(self) -> str:
        assert self._at is not None
        step, call, name, _ = self._at
        return f"the {name} of layer {call.layer} at {self._plan.model.scale_name(step.samples)}"


def _sub_layers(plan: Plan) -> Iterator[tuple[Step, LayerCall, SubLayerName, SubLayer] | None]:
    """Everything that begins with a norm; None for the head."""
    for step in plan.steps:
        for call in step.calls:
            yield step, call, "attention", call.attention
            yield step, call, "ffn", call.ffn
        yield None


class _UnseenWidth(stand_ins.AskedWidth):
    def __init__(self, own: WidthPolicy, look: Look) -> None:
        super().__init__(own)
        self._look = look

    def route(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        self._look.asks(True)
        chosen = super().route(hidden_RLC, count, layer=layer, scale=scale, own=own)
        self._look.asks(False)
        return chosen

    def gate(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        self._look.asks(True)
        places = super().gate(hidden_RLC, count, layer=layer, scale=scale, own=own)
        self._look.asks(False)
        return places

    def estimate(self, hidden_RLC: Tensor, *, layer: int, scale: int, own: Own) -> Tensor:
        self._look.asks(True)
        output = super().estimate(hidden_RLC, layer=layer, scale=scale, own=own)
        self._look.asks(False)
        return output


class _ToldTokens(stand_ins.AskedTokens):
    def __init__(self, own: TokenPolicy, look: Look) -> None:
        super().__init__(own)
        self._look = look

    def pick(self, x_BLC: Tensor, count: int, *, layer: int, scale: int, sublayer: SubLayerName) -> Tensor:
        self._look.asks(True)
        places = super().pick(x_BLC, count, layer=layer, scale=scale, sublayer=sublayer)
        self._look.tokens.picked(x_BLC, places)
        self._look.asks(False)
        return places

    def fill(
        self, computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, *, length: int, scale: int
    ) -> Tensor:
        self._look.asks(True)
        filled = super().fill(computed_BnC, places_Bn, remembered_BlC, length=length, scale=scale)
        self._look.tokens.filled(places_Bn, remembered_BlC, filled)
        self._look.asks(False)
        return filled


class _ToldCache(stand_ins.AskedCache):
    def __init__(self, own: CacheStrategy, look: Look) -> None:
        super().__init__(own)
        self._look = look

    def pick(
        self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, *, layer: int, scale: int, group: int
    ) -> Tensor:
        self._look.asks(True)
        places = super().pick(keys_BHnc, queries_BHLc, count, layer=layer, scale=scale, group=group)
        self._look.caches.picked(places)
        self._look.asks(False)
        return places
