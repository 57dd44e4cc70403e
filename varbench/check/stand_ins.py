"""Policies that stand in for a plugin's own, and ask it all but what they replace.

    Watched   calls the plugin, and notes answers that break their promise
    Forced    calls the plugin with everything to be kept: its own path, at the neutral end
    Plain     picks the first places instead of asking: the same plan, executed with no thought

Letters: R rows (images x branches), L l tokens, n count, H heads, C c widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from varbench.experts import Own, WidthPolicy
from varbench.plan.owned import Owned, RowPolicies
from varbench.policies import BothBranches, CacheStrategy, GuidancePolicy, StoredForm, SubLayerName, TokenPolicy
from varbench.rows.grammar import Row
from varbench.spec import ModelSpec


@dataclass
class Notes:
    """What `Watched` policies saw go wrong."""

    places: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)


def watched(row: Row, notes: Notes) -> Row:
    return replaced(
        row,
        "watched",
        lambda tokens: WatchedTokens(tokens, notes, row.model),
        lambda cache: WatchedCache(cache, notes, row.model),
        lambda width: WatchedWidth(width, notes, row.model),
    )


def plain(row: Row) -> Row:
    return replaced(row, "plain", PlainTokens, PlainCache, PlainWidth)


def forced(row: Row) -> Row:
    """The row with its own `pick` and `fill` at every place where it picks, made to take everything there is."""
    return replaced(
        row, "forced", lambda tokens: ForcedTokens(tokens, row.model), lambda cache: ForcedCache(cache, row.model)
    )


def without_content(row: Row) -> Row:
    """The row's layers, steps and guidance alone."""
    return renamed(row, "all tokens and entries", replace(row.policies, tokens=None, caches=(), decision=None))


def fully_guided(row: Row) -> Row:
    """The row with both branches, and all of the run's guidance, at every scale."""
    own = row.policies.guidance.policy if row.policies.guidance else BothBranches()
    guidance: Owned[GuidancePolicy] = Owned(plugin="the kit", policy=_FullGuidance(own))
    return renamed(row, "fully guided", replace(row.policies, guidance=guidance))


def full_model(row: Row) -> Row:
    return replace(renamed(row, "full model", RowPolicies(name="full model")), accounting="lossless")


def asked_while_it_runs(row: Row) -> bool:
    """Whether the row has a policy that the engine asks while it runs."""
    return picks(row) or row.policies.width is not None


def picks(row: Row) -> bool:
    """Whether such a policy picks tokens or cache entries."""
    policies = row.policies
    return policies.tokens is not None or any(_has_budget(owned.policy, row.model) for owned in policies.caches)


def replaced(
    row: Row,
    what: str,
    tokens: Callable[[TokenPolicy], Any],
    cache: Callable[[CacheStrategy], Any],
    width: Callable[[WidthPolicy], Any] = lambda own: own,
) -> Row:
    own = row.policies
    policies = replace(
        own,
        tokens=Owned(plugin=own.tokens.plugin, policy=tokens(own.tokens.policy)) if own.tokens else None,
        caches=tuple(Owned(plugin=owned.plugin, policy=cache(owned.policy)) for owned in own.caches),
        width=Owned(plugin=own.width.plugin, policy=width(own.width.policy)) if own.width else None,
    )
    return renamed(row, what, policies)


def renamed(row: Row, what: str, policies: RowPolicies) -> Row:
    name = f"{row.name} ({what})"
    return replace(row, name=name, policies=replace(policies, name=name))


def _has_budget(cache: CacheStrategy, model: ModelSpec) -> bool:
    return any(
        cache.budget(layer, scale, group) is not None
        for layer in range(model.depth)
        for scale in range(model.scales)
        for group in range(len(cache.head_groups(layer) or ((),)))
    )


class _FullGuidance(BothBranches):
    def __init__(self, own: GuidancePolicy) -> None:
        self._own = own

    def shares(self, scale: int) -> bool:
        return self._own.shares(scale)

    def strength(self, scale: int) -> float | None:
        return 1.0


class StandIn:
    """Asks the plugin's policy everything that a subclass does not answer itself."""

    def __init__(self, asked: Any) -> None:
        self.asked = asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self.asked, name)


class PlainWidth(StandIn):
    def route(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        return torch.arange(count, device=hidden_RLC.device).expand(*hidden_RLC.shape[:2], -1)

    def gate(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        return torch.arange(count, device=hidden_RLC.device).expand(len(hidden_RLC), -1)


class PlainTokens(StandIn):
    def pick(self, x_BLC: Tensor, count: int, **where: Any) -> Tensor:
        return torch.arange(count, device=x_BLC.device).expand(x_BLC.shape[0], -1)

    def note(self, x_RLC: Tensor, output_RLC: Tensor, noted_Rn: Tensor | None, **where: Any) -> Tensor:
        return x_RLC.new_zeros(len(x_RLC), self.asked.notes(**where))

    def fill(
        self, computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, *, length: int, **where: Any
    ) -> Tensor:
        filled = computed_BnC.new_zeros(computed_BnC.shape[0], length, computed_BnC.shape[-1])
        return filled.scatter(1, places_Bn.unsqueeze(-1).expand_as(computed_BnC), computed_BnC)


class PlainCache(StandIn):
    def pick(self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, **where: Any) -> Tensor:
        return torch.arange(count, device=keys_BHnc.device).expand(*keys_BHnc.shape[:2], -1)


class ForcedTokens(StandIn):
    def __init__(self, asked: TokenPolicy, model: ModelSpec) -> None:
        super().__init__(asked)
        self._all = model.tokens

    def tokens(self, layer: int, scale: int, sublayer: SubLayerName) -> int | None:
        # What is left out is not picked either, so it is run as in the full model.
        return self._all[scale] if self.asked.tokens(layer, scale, sublayer) else None


class ForcedCache(StandIn):
    def __init__(self, asked: CacheStrategy, model: ModelSpec) -> None:
        super().__init__(asked)
        self._all = model.length

    @property
    def dtype(self) -> str | None:
        return None

    @property
    def form(self) -> StoredForm | None:
        return None

    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        return True

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        return None if self.asked.budget(layer, scale, group) is None else self._all


class WatchedTokens(StandIn):
    def __init__(self, asked: TokenPolicy, notes: Notes, model: ModelSpec) -> None:
        super().__init__(asked)
        self._notes, self._model = notes, model

    def pick(self, x_BLC: Tensor, count: int, **told: Any) -> Tensor:
        with self._looking_only("pick", told, x_BLC, told.get("noted_Rn")) as where:
            places: Tensor = self.asked.pick(x_BLC, count, **told)
        self._notes.places += _wrong_places(where, places, (x_BLC.shape[0], count), x_BLC.shape[1], ascending=False)
        return places

    def note(self, x_RLC: Tensor, output_RLC: Tensor, noted_Rn: Tensor | None, **told: Any) -> Tensor:
        with self._looking_only("note", told, x_RLC, output_RLC, noted_Rn) as where:
            noted: Tensor = self.asked.note(x_RLC, output_RLC, noted_Rn, **told)
        self._notes.places += _not_plain(where, noted)
        return noted

    @contextmanager
    def _looking_only(self, what: str, told: dict[str, Any], *tensors: Tensor | None) -> Iterator[str]:
        where = f"{what} for the {told['sublayer']} of layer {told['layer']} at {self._model.scale_name(told['scale'])}"
        given = [tensor for tensor in tensors if tensor is not None]
        before = [tensor.clone() for tensor in given]
        yield where
        if not all(map(torch.equal, before, given)):
            self._notes.inputs.append(f"{where} changed what it was shown")

    def fill(
        self, computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, *, length: int, **told: Any
    ) -> Tensor:
        shown = (computed_BnC, places_Bn, remembered_BlC, told.get("noted_Rn"))
        with self._looking_only("fill", told, *shown) as where:
            filled: Tensor = self.asked.fill(computed_BnC, places_Bn, remembered_BlC, length=length, **told)
        expected = (computed_BnC.shape[0], length, computed_BnC.shape[-1])
        self._notes.places += _not_plain(where, filled)
        if tuple(filled.shape) != expected or filled.dtype != computed_BnC.dtype:
            self._notes.places.append(
                f"{where} gave {tuple(filled.shape)} of {filled.dtype}, not {expected} of {computed_BnC.dtype}"
            )
        return filled


class WatchedCache(StandIn):
    def __init__(self, asked: CacheStrategy, notes: Notes, model: ModelSpec) -> None:
        super().__init__(asked)
        self._notes, self._model = notes, model

    def pick(self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, **where: Any) -> Tensor:
        here = f"pick for the cache of layer {where['layer']} after {self._model.scale_name(where['scale'])}"
        given = [t for t in (keys_BHnc, queries_BHLc, where["attention_BHn"]) if t is not None]
        before = [tensor.clone() for tensor in given]
        places: Tensor = self.asked.pick(keys_BHnc, queries_BHLc, count, **where)
        if not all(map(torch.equal, before, given)):
            self._notes.inputs.append(f"{here} changed the keys, queries or attention that it was shown")
        self._notes.places += _wrong_places(
            here, places, (*keys_BHnc.shape[:2], count), keys_BHnc.shape[2], ascending=True
        )
        return places


class WatchedWidth(StandIn):
    def __init__(self, asked: WidthPolicy, notes: Notes, model: ModelSpec) -> None:
        super().__init__(asked)
        self._notes, self._model = notes, model

    def route(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        with self._looking_only("route", layer, scale, hidden_RLC, own) as where:
            chosen: Tensor = self.asked.route(hidden_RLC, count, layer=layer, scale=scale, own=own)
        shape, places, available = (*hidden_RLC.shape[:2], count), chosen, self.experts
        if self.varies and type(chosen) is Tensor and tuple(chosen.shape) == shape:
            if not (chosen >= 0).any(dim=-1).all():
                self._notes.places.append(f"{where} left a token no expert")
            # Those that are left out stand for further experts, each once.
            places, available = (
                torch.where(chosen < 0, self.experts + torch.arange(count), chosen),
                self.experts + count,
            )
        self._notes.places += _wrong_places(where, places, shape, available, ascending=False)
        return chosen

    def gate(self, hidden_RLC: Tensor, count: int, *, layer: int, scale: int, own: Own) -> Tensor:
        with self._looking_only("gate", layer, scale, hidden_RLC, own) as where:
            places: Tensor = self.asked.gate(hidden_RLC, count, layer=layer, scale=scale, own=own)
        shape = (len(hidden_RLC), count)
        self._notes.places += _wrong_places(where, places, shape, hidden_RLC.shape[1], ascending=False)
        return places

    def estimate(self, hidden_RLC: Tensor, *, layer: int, scale: int, own: Own) -> Tensor:
        with self._looking_only("estimate", layer, scale, hidden_RLC, own) as where:
            output: Tensor = self.asked.estimate(hidden_RLC, layer=layer, scale=scale, own=own)
        self._notes.places += _not_plain(where, output)
        if output.shape != hidden_RLC.shape:
            self._notes.places.append(f"{where} gave {tuple(output.shape)}, not {tuple(hidden_RLC.shape)}")
        return output

    @contextmanager
    def _looking_only(self, what: str, layer: int, scale: int, hidden_RLC: Tensor, own: Own) -> Iterator[str]:
        where = f"{what} for layer {layer} at {self._model.scale_name(scale)}"
        given = [hidden_RLC, *own.values()]
        before = [tensor.clone() for tensor in given]
        yield where
        if not all(map(torch.equal, before, given)):
            self._notes.inputs.append(f"{where} changed what it was shown")


def _wrong_places(where: str, places: Tensor, shape: tuple[int, ...], available: int, *, ascending: bool) -> list[str]:
    """What is wrong with places that must be distinct and within 0 to `available` - 1."""
    if strange := _not_plain(where, places):
        return strange
    if tuple(places.shape) != shape or places.dtype != torch.int64:
        return [f"{where} gave {tuple(places.shape)} of {places.dtype}, not {shape} of torch.int64"]
    low, high = int(places.min()), int(places.max())
    if low < 0 or high >= available:
        return [f"{where} gave places {low} to {high}; there are 0 to {available - 1}"]
    different = int((places.sort(dim=-1).values.diff(dim=-1) > 0).sum(dim=-1).min()) + 1
    if different < shape[-1]:
        return [f"{where} gave {shape[-1]} places of which {different} are different"]
    if ascending and (places.diff(dim=-1) < 0).any():
        return [f"{where} gave places that do not ascend"]
    return []


def _not_plain(where: str, tensor: Tensor) -> list[str]:
    """A subclass can put its work off, or do another's."""
    return (
        []
        if type(tensor) is Tensor
        else [f"{where} gave a {type(tensor).__module__}.{type(tensor).__name__}, not a plain torch.Tensor"]
    )
