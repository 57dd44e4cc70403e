"""What was chosen, read again from the tensors: what stays in a cache is what is read later, and what a policy picks is
what is computed.

Neither the engine nor its trace is asked. Every attention and every norm is looked at on its way into torch, and what it
should be given follows from what went in before and from the places that the plugin picked.

Letters: R rows (images x branches), L l tokens, n count, H heads, C c widths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from varbench.check import stand_ins
from varbench.model.attention import attention
from varbench.model.fused import modulated
from varbench.plan.steps import CachePlace, CacheUse, LayerCall, Plan, Segment, SlotKey, Step, SubLayer
from varbench.policies import StoredForm, SubLayerName
from varbench.rows.grammar import Row

NEAR = 1e-3
"""A sub-layer's output that is had by subtraction may differ by this from the one that was added."""


class ReadAgain(TorchFunctionMode):
    """Reads again what one generation kept and picked: `with again: generate(again.row(row), observer=again.observe)`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.caches, self.tokens = _Caches(plan), _ResidualStream(plan)
        self.reading = False

    def row(self, row: Row) -> Row:
        self.caches.form = next((owned.policy.form for owned in row.policies.caches if owned.policy.form), None)
        return stand_ins.replaced(
            row,
            "read again",
            lambda own: _ToldTokens(own, self),
            lambda own: _ToldCache(own, self),
            lambda own: _Unseen(own, self),
        )

    def observe(self, moment: str, step: int) -> None:
        self.reading = moment == "start"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.reading and func is attention:
            self.caches.attend(*args[:3], **kwargs)
        elif self.reading and func is modulated:
            self.tokens.enter(args[0] if kwargs.get("added") is None else args[0] + torch.mul(*kwargs["added"]))
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
        self._stays: dict[CachePlace, tuple[Tensor, ...]] = {}
        self._paid: dict[CachePlace, Tensor] = {}
        """What each entry that stays was paid, where that is to add up."""
        self._merged_near: dict[CachePlace, float] = {}
        """How near averages that were added up in another order must be, where entries were merged."""
        self._unpicked: tuple[CachePlace, CacheUse, tuple[Tensor, Tensor], Tensor | None] | None = None
        self.form: StoredForm | None = None
        self.wrong: list[str] = []
        self.misled: list[str] = []
        """Where what a policy was told of attention is not so."""

    def attend(
        self, queries_RHLc: Tensor, keys_RHnc: Tensor, values_RHnc: Tensor, *, attn_mask: Tensor | None, scale: float
    ) -> None:
        planned = next(self._coming, None)
        if planned is None:
            self.wrong.append("more attentions ran than the plan has")
            return
        step, call, group, use = planned
        place = (SlotKey(step.backbone, call.layer, call.slot), group)
        labels = _labels(self._plan, step, use)
        self._where = f"layer {call.layer} at {self._plan.model.scale_name(step.samples)}"
        if keys_RHnc.shape[2] != len(labels):
            self.wrong.append(f"{self._where} attended to {keys_RHnc.shape[2]} entries, and the plan has {len(labels)}")
            return
        scales = torch.tensor(labels)
        seen = scales <= scales[-use.own :, None]
        if not torch.equal(seen if attn_mask is None else attn_mask, seen) or (attn_mask is None and not seen.all()):
            self.wrong.append(f"{self._where} attended to other scales than a token's own and coarser ones")
        stayed = self._stays.pop(place, None)
        for what, tensor, before in zip(("keys", "values"), (keys_RHnc, values_RHnc), stayed or (), strict=False):
            read = tensor[:, :, : before.shape[2]]
            if not torch.allclose(read, before[: len(tensor)], rtol=0, atol=self._merged_near.get(place, 0.0)):
                self.wrong.append(f"the {what} that {self._where} read are not those that were to stay before it")
        if use.read and stayed is None:
            self.wrong.append(f"{self._where} read entries of which none was picked")
        earlier, paid = self._paid.pop(place, None), None
        if use.observed:
            paid = _paid(queries_RHLc, keys_RHnc, attn_mask, scale, use.observed)
            if earlier is not None:
                paid[:, :, : earlier.shape[2]] += earlier[: len(paid)]
        if use.picked:
            self._unpicked = (place, use, (keys_RHnc, values_RHnc), paid)
        elif use.kept:
            kept = {segment.scale for segment in use.kept}
            at = [number for number, label in enumerate(labels) if label in kept]
            self._stays[place] = tuple(tensor[:, :, at] for tensor in self._stored(use, keys_RHnc, values_RHnc))
            if use.accumulated and paid is not None:
                self._paid[place] = paid

    def picked(self, places_RHn: Tensor, told_RHn: Tensor | None, weights: Callable[[], Tensor | None]) -> None:
        if self._unpicked is None:
            return
        place, use, attended, paid = self._unpicked
        if (paid is None) != (told_RHn is None) or (
            paid is not None
            and told_RHn is not None
            and not torch.allclose(told_RHn.double(), paid, rtol=NEAR, atol=NEAR)
        ):
            self.misled.append(f"{self._where}: attention as it was told is not what {len(use.observed)} queries paid")
        self._merged_near.pop(place, None)
        if use.merged:
            self._merged_near[place] = NEAR if self.form is None else 50 * NEAR
            self._stays[place] = tuple(map(self._kept, _merged(*attended, places_RHn, weights())))
        else:
            index = _index(places_RHn, attended[0])
            self._stays[place] = tuple(tensor.gather(2, index) for tensor in self._stored(use, *attended))
        if use.accumulated and paid is not None:
            self._paid[place] = paid.gather(2, places_RHn)
        self._unpicked = None

    def _stored(self, use: CacheUse, *attended: Tensor) -> Iterator[Tensor]:
        """All entries as they are read when they are read again: what is held was stored before."""
        for tensor in attended:
            held = tensor.shape[2] - use.own
            yield torch.cat((tensor[:, :, :held], self._kept(tensor[:, :, held:])), dim=2)

    def _kept(self, tensor: Tensor) -> Tensor:
        if self.form is not None:
            return self.form.decode(self.form.encode(tensor)).to(tensor.dtype)
        return tensor.to(getattr(torch, self._plan.cache_dtype or "float32")).to(tensor.dtype)


def _paid(
    queries_RHLc: Tensor, keys_RHnc: Tensor, mask: Tensor | None, scale: float, observed: tuple[int, ...]
) -> Tensor:
    """What each entry is paid, query by query, in double precision."""
    keys = keys_RHnc.double()
    paid_RHn = torch.zeros(keys.shape[:3], dtype=torch.float64)
    for place in observed:
        scores_RHn = (keys * queries_RHLc[:, :, place, None].double()).sum(dim=-1) * scale
        if mask is not None:
            scores_RHn[:, :, ~mask[place]] = -torch.inf
        shares_RHn = (scores_RHn - scores_RHn.amax(dim=-1, keepdim=True)).exp()
        paid_RHn += shares_RHn / shares_RHn.sum(dim=-1, keepdim=True)
    return paid_RHn


def _merged(
    keys_RHnc: Tensor, values_RHnc: Tensor, places_RHn: Tensor, weights_RHn: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Entries that stay, averaged with those that go, one after another."""
    keys, values = (tensor.gather(2, _index(places_RHn, tensor)) for tensor in (keys_RHnc, values_RHnc))
    for row, head in product(range(keys.shape[0]), range(keys.shape[1])):
        stay = places_RHn[row, head].tolist()
        groups = {place: [place] for place in stay}
        for gone in sorted({*range(keys_RHnc.shape[2])} - set(stay)):
            likeness = F.cosine_similarity(keys_RHnc[row, head, gone], keys_RHnc[row, head, stay], dim=-1)
            groups[stay[int(likeness.argmax())]].append(gone)
        for number, place in enumerate(stay):
            group = groups[place]
            counts = torch.ones(len(group)) if weights_RHn is None else weights_RHn[row, head, group].float()
            shares = (counts / counts.sum()).unsqueeze(-1)
            keys[row, head, number] = (shares * keys_RHnc[row, head, group]).sum(dim=0)
            values[row, head, number] = (shares * values_RHnc[row, head, group]).sum(dim=0)
    return keys, values


def _index(places_RHn: Tensor, of_RHnc: Tensor) -> Tensor:
    return places_RHn.unsqueeze(-1).expand(*places_RHn.shape, of_RHnc.shape[-1])


def _labels(plan: Plan, step: Step, use: CacheUse) -> list[int]:
    """The scale of every entry that a call attends to."""
    single = (Segment(step.samples, use.own),)
    own = single if len(step.scales) == 1 else tuple(Segment(scale, plan.model.tokens[scale]) for scale in step.scales)
    return [segment.scale for segment in (*use.read, *own) for _ in range(segment.count)]


class _ResidualStream:
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
        self._noted: dict[tuple[SlotKey, str], Tensor] = {}
        self._shares = False
        """Whether the FFN computes the tokens that attention did."""
        self.wrong: list[str] = []

    def picked(self, x_RLC: Tensor, places_Rn: Tensor, told: Mapping[str, Any]) -> None:
        self._arrive(x_RLC)
        self._look_at_told(told)
        self._take(x_RLC, places_Rn)

    def _take(self, x_RLC: Tensor, places_Rn: Tensor) -> None:
        self._places = places_Rn.clone()
        self._due = x_RLC.gather(1, places_Rn.unsqueeze(-1).expand(-1, -1, x_RLC.shape[-1]))

    def enter(self, x_RnC: Tensor) -> None:
        """What a norm is given: the stream, or the tokens that were picked of it."""
        if self._shares:  # nobody is asked again
            assert self._filled is not None and self._places is not None
            self._shares, after = False, self._filled
            self._arrive(after)
            self._take(after, self._places)
        if self._due is None:
            self._arrive(x_RnC)
            return
        if not torch.equal(x_RnC, self._due):
            self.wrong.append(f"{self._where()} computed other tokens than were picked")
        self._due = None

    def filled(
        self, places_Rn: Tensor, remembered_RlC: Tensor | None, output_RLC: Tensor, told: Mapping[str, Any]
    ) -> None:
        assert self._stream is not None
        self._look_at_told(told)
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
        assert self._at is not None
        _, call, name, _ = self._at
        self._shares = name == "attention" and call.ffn.shared

    def noted(
        self, x_RLC: Tensor, output_RLC: Tensor, before_Rn: Tensor | None, made_Rn: Tensor, told: Mapping[str, Any]
    ) -> None:
        """What a policy notes at a sub-layer that may pick nothing: the stream before it, and what the stream will be after it."""
        self._look_at_told({**told, "noted_Rn": before_Rn})
        if self._stream is None or not torch.equal(x_RLC, self._stream):
            self.wrong.append(f"{self._where()} was noted by another residual stream than it was given")
        self._filled = x_RLC + output_RLC
        self._noted[self._key()] = made_Rn.to(x_RLC.dtype, copy=True)

    def _look_at_told(self, told: Mapping[str, Any]) -> None:
        assert self._at is not None
        step, call, name, _ = self._at
        if (told["layer"], told["scale"], told["sublayer"]) != (call.layer, step.samples, name):
            self.wrong.append(f"{self._where()} was asked about as the {told['sublayer']} of layer {told['layer']}")
        before, given = self._noted.get(self._key()), told.get("noted_Rn")
        if (before is None) != (given is None) or (
            before is not None and given is not None and not torch.equal(given, before[: len(given)])
        ):
            self.wrong.append(f"{self._where()} was told of other numbers than were noted for it")

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
    """Everything that begins with a norm: what is left out has none. None for the head."""
    names: tuple[SubLayerName, SubLayerName] = ("attention", "ffn")
    for step in plan.steps:
        for call in step.calls:
            for name, sub in zip(names, (call.attention, call.ffn), strict=True):
                if sub.tokens:
                    yield step, call, name, sub
        yield None


class _Unseen(stand_ins.StandIn):
    """What the plugin computes when it is asked is its own, and not looked at."""

    def __init__(self, asked: object, again: ReadAgain) -> None:
        super().__init__(asked)
        self.again = again

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return functools.partial(self._unseen, found) if callable(found) else found

    def _unseen(self, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        reading, self.again.reading = self.again.reading, False
        answer = method(*given, **named)
        self.again.reading = reading
        return answer


class _ToldTokens(_Unseen):
    def pick(self, x_BLC: Tensor, count: int, **where: Any) -> Tensor:
        places: Tensor = self._unseen(self.asked.pick, x_BLC, count, **where)
        self.again.tokens.picked(x_BLC, places, where)
        return places

    def fill(self, computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, **where: Any) -> Tensor:
        filled: Tensor = self._unseen(self.asked.fill, computed_BnC, places_Bn, remembered_BlC, **where)
        self.again.tokens.filled(places_Bn, remembered_BlC, filled, where)
        return filled

    def note(self, x_RLC: Tensor, output_RLC: Tensor, noted_Rn: Tensor | None, **where: Any) -> Tensor:
        made: Tensor = self._unseen(self.asked.note, x_RLC, output_RLC, noted_Rn, **where)
        self.again.tokens.noted(x_RLC, output_RLC, noted_Rn, made, where)
        return made


class _ToldCache(_Unseen):
    def pick(self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, **where: Any) -> Tensor:
        places: Tensor = self._unseen(self.asked.pick, keys_BHnc, queries_BHLc, count, **where)
        paid = where.pop("attention_BHn")
        self.again.caches.picked(places, paid, lambda: self._unseen(self.asked.merging_weights, paid, **where))
        return places
