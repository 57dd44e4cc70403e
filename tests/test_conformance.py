"""The conformance kit: honest methods pass, and for every invariant there is a liar that it, and it alone, must catch.

Each liar is a plugin of a few lines. It is found by the invariant that it breaks, and with that invariant switched off
it is not found under that name: so an invariant whose check is disabled makes its own liar's test fail.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import varbench.engine.cache
import varbench.engine.expert_ffn
import varbench.engine.generate
import varbench.engine.going_on
import varbench.engine.pipeline
import varbench.engine.sampler
import varbench.engine.sub_layers
import varbench.plan.cost
import varbench.quality.frechet
from varbench.__main__ import main
from varbench.check import check, invariants
from varbench.check.allocations import contents
from varbench.check.small_model import SPEC
from varbench.check.twins import alike
from varbench.check.untouched import Originals, strangers
from varbench.engine.cache import State
from varbench.errors import UserError
from varbench.experts import OwnParameters, WidthPolicy
from varbench.hookspecs import PROJECT
from varbench.measure.process_state import global_state, restored
from varbench.policies import (
    BothBranches,
    CacheStrategy,
    DecisionPolicy,
    DepthPolicy,
    Generator,
    LoadedTeacher,
    LoadedTokenizer,
    PartChange,
    Settings,
    SoFar,
    Stage,
    StoredForm,
    TaughtGenerator,
    TokenPolicy,
    TrainingSchedule,
    TrainStep,
    Transformed,
    Way,
    Work,
)

pytest_plugins = ["pytester"]

HONEST = ("full_var", "variant@d4", "scale_window@w1")


class KeepsHalf(CacheStrategy):
    """Honest: each head keeps the half of the entries with the largest sums of keys."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        return (self.model.starts[scale + 1] + 1) // 2

    def pick(self, keys_BHnc: Any, queries_BHLc: Any, count: int, **where: Any) -> Any:
        return keys_BHnc.sum(dim=-1).topk(count).indices.sort().values


class KeepsHeaviest(KeepsHalf):
    """Honest: each head keeps the half of the entries that were paid most attention so far, by all queries, and merges the
    others into them at the end."""

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        return range(count)

    def accumulates(self, layer: int, group: int) -> bool:
        return True

    def merges(self, layer: int, scale: int, group: int) -> bool:
        return bool(scale == self.model.scales - 2)

    def pick(self, keys_BHnc: Any, queries_BHLc: Any, count: int, **where: Any) -> Any:
        return where["attention_BHn"].topk(count).indices.sort().values


class ComputesHalf(TokenPolicy):
    """Honest: the FFN of the last scale computes the half of the tokens that are longest."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return self.model.tokens[scale] // 2 if scale >= self.model.scales - 2 and sublayer == "ffn" else None

    def pick(self, x_BLC: Any, count: int, *, layer: int, scale: int, sublayer: str) -> Any:
        return x_BLC.square().sum(dim=-1).topk(count).indices.sort().values

    def fill(self, computed_BnC: Any, places_Bn: Any, remembered_BlC: Any, *, length: int, **_: Any) -> Any:
        filled = computed_BnC.new_zeros(len(computed_BnC), length, computed_BnC.shape[-1])
        return filled.scatter(1, places_Bn.unsqueeze(-1).expand_as(computed_BnC), computed_BnC)


class PicksByAProduct(ComputesHalf):
    """Honest: computes the tokens that are like many others, and says what that takes."""

    def picking_flops(self, layer: int, scale: int, sublayer: str) -> int:
        return int(2 * self.model.tokens[scale] ** 2 * self.model.width)

    def pick(self, x_BLC: Any, count: int, **where: Any) -> Any:
        return (x_BLC @ x_BLC.mT).sum(dim=-1).topk(count).indices.sort().values


class PicksOnce(PicksByAProduct):
    """Honest: both sub-layers compute the same half, which are picked once."""

    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return super().tokens(layer, scale, "ffn")

    def shares_places(self, layer: int, scale: int) -> bool:
        return True

    def remembers(self, layer: int, scale: int, sublayer: str) -> bool:
        return bool(scale == self.model.scales - 3)

    def picking_flops(self, layer: int, scale: int, sublayer: str) -> int:
        return super().picking_flops(layer, scale, sublayer) if sublayer == "attention" else 0


class LeavesOut(TokenPolicy):
    """Honest: at the last scale every other layer has no attention, and the first no FFN."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        left = layer == 0 if sublayer == "ffn" else layer % 2
        return 0 if scale == self.model.scales - 1 and left else None


class PicksByNotes(ComputesHalf):
    """Honest: computes the half of the tokens that are most like what it noted at the scale before, by a product, and says so."""

    def notes(self, layer: int, scale: int, sublayer: str) -> int:
        return int(self.model.width) if sublayer == "ffn" and scale < self.model.scales - 1 else 0

    def picking_flops(self, layer: int, scale: int, sublayer: str) -> int:
        notes = 2 * self.model.width**2 if self.notes(layer, scale, sublayer) else 0
        picks = 2 * self.model.tokens[scale] * self.model.width if self.tokens(layer, scale, sublayer) else 0
        return int(notes + picks)

    def note(self, x_RLC: Any, output_RLC: Any, noted_Rn: Any, **where: Any) -> Any:
        mean_RC = (x_RLC + output_RLC).mean(dim=1)
        return mean_RC @ torch.eye(mean_RC.shape[1]) + (0 if noted_Rn is None else 0.5 * noted_Rn)

    def pick(self, x_BLC: Any, count: int, *, noted_Rn: Any = None, **where: Any) -> Any:
        return (x_BLC @ noted_Rn.unsqueeze(-1)).squeeze(-1).topk(count).indices.sort().values


class CachePlugin:
    policy: type[CacheStrategy] = KeepsHalf

    def varbench_cache_strategy(self, setting: Any, model: Any) -> Any:
        return self.policy(model)  # type: ignore[call-arg]


class Heaviest(CachePlugin):
    policy = KeepsHeaviest


class TokenPlugin:
    policy: type[TokenPolicy] = ComputesHalf

    def varbench_token_policy(self, setting: Any, model: Any) -> Any:
        return self.policy(model)  # type: ignore[call-arg]


class WithoutHalves(TokenPlugin):
    policy = LeavesOut


class SharingPlaces(TokenPlugin):
    policy = PicksOnce


class ByAProduct(TokenPlugin):
    policy = PicksByAProduct


class ByNotes(TokenPlugin):
    policy = PicksByNotes


class DepthPlugin:
    def varbench_depth_policy(self, setting: Any, model: Any) -> Any:
        class All(DepthPolicy):
            def layers(self, scale: int, backbone: str) -> Sequence[int]:
                return range(model.depth)

        return All()


def cache_liar(pick: Any = None, **members: Any) -> Any:
    """A cache plugin that is honest but for `pick(self, honest, keys, queries, where)` and other members."""

    class Liar(KeepsHalf):
        def pick(self, keys_BHnc: Any, queries_BHLc: Any, count: int, **where: Any) -> Any:
            honest = super().pick(keys_BHnc, queries_BHLc, count, **where)
            return honest if pick is None else pick(self, honest, keys_BHnc, queries_BHLc, where)

    for name, member in members.items():
        setattr(Liar, name, member)
    return type("Plugin", (CachePlugin,), {"policy": Liar})()


def token_liar(pick: Any = None, fill: Any = None) -> Any:
    class Liar(ComputesHalf):
        def pick(self, x_BLC: Any, count: int, **where: Any) -> Any:
            honest = super().pick(x_BLC, count, **where)
            return honest if pick is None else pick(self, honest, x_BLC, where)

        def fill(self, computed_BnC: Any, places_Bn: Any, remembered_BlC: Any, **where: Any) -> Any:
            honest = super().fill(computed_BnC, places_Bn, remembered_BlC, **where)
            return honest if fill is None else fill(honest, computed_BnC)

    return type("Plugin", (TokenPlugin,), {"policy": Liar})()


UNDO: list[Callable[[], object]] = []
"""What liars leave behind that nobody else can put back."""

LIARS: dict[str, dict[str, Any]] = {}
"""For each invariant, liars by name: functions that make a plugin."""


def breaks(invariant: str) -> Any:
    def register(make: Any) -> Any:
        LIARS.setdefault(invariant, {})[make.__name__] = make
        return make

    return register


# --- what policies answer ---------------------------------------------------------------------------------------------


@breaks("runs")
def fails_at_the_third_scale() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        if where["scale"] == 2:
            raise RuntimeError("no idea what to keep")
        return honest

    return cache_liar(pick)


@breaks("runs")
def cannot_be_compiled() -> Any:
    return cache_liar(budget=lambda self, layer, scale, group: 0)


@breaks("picks_are_places")
def keeps_one_entry_twice() -> Any:
    return cache_liar(lambda self, honest, keys, queries, where: honest[..., :1].expand_as(honest))


@breaks("picks_are_places")
def computes_one_token_twice() -> Any:
    return token_liar(lambda self, honest, x, where: honest[..., :1].expand_as(honest))


@breaks("picks_are_places")
def asks_for_a_token_that_is_not_there() -> Any:
    return token_liar(lambda self, honest, x, where: honest + x.shape[1])


@breaks("picks_are_places")
def answers_with_a_tensor_of_its_own_kind() -> Any:
    class Later(torch.Tensor):
        pass

    return cache_liar(lambda self, honest, keys, queries, where: honest.as_subclass(Later))


@breaks("inputs_untouched")
def merges_into_the_cache() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        keys.mul_(0.5)
        return honest

    return cache_liar(pick)


@breaks("inputs_untouched")
def computes_the_rest_in_place() -> Any:
    def pick(self: Any, honest: Any, x: Any, where: Any) -> Any:
        x.add_(0.01)
        return honest

    return token_liar(pick)


@breaks("images_in_range")
def brightens_its_images() -> Any:
    real = varbench.engine.pipeline.Pipeline._decode_map
    varbench.engine.pipeline.Pipeline._decode_map = lambda self, f_hat: real(self, f_hat) * 2
    return DepthPlugin()


@breaks("plan_stable")
def plans_by_chance() -> Any:
    return cache_liar(budget=lambda self, layer, scale, group: random.Random().randrange(5, 500))


@breaks("plan_stable")
def plans_less_each_time() -> Any:
    asked: list[int] = []

    class Fewer(DepthPolicy):
        def layers(self, scale: int, backbone: str) -> Sequence[int]:
            asked.append(scale)
            return range(2 if len(asked) > 18 else 8)

    return type("Plugin", (), {"varbench_depth_policy": lambda self, setting, model: Fewer()})()


@breaks("trace_equals_plan")
def computes_more_than_planned() -> Any:
    def pick(self: Any, honest: Any, x: Any, where: Any) -> Any:
        return torch.arange(x.shape[1]).expand(x.shape[0], -1)

    return token_liar(pick)


@breaks("kept_is_what_is_read")
def has_the_engine_keep_the_oldest() -> Any:
    real = State.settle

    def settle(self: Any, place: Any, use: Any, own: Any, attended: Any, picked: Any) -> int:
        oldest = None if picked is None else torch.arange(picked.shape[-1]).expand_as(picked)
        return real(self, place, use, own, attended, oldest)

    State.settle = settle
    return cache_liar()


@breaks("attention_told_was_paid")
def has_the_engine_tell_of_even_attention() -> Any:
    real = varbench.engine.generate.attention_paid
    varbench.engine.generate.attention_paid = lambda *given, **named: torch.full_like(real(*given, **named), 0.1)
    return Heaviest()


@breaks("trace_equals_plan")
def says_four_bits_and_stores_a_type_of_eight() -> Any:
    form = StoredForm(encode=lambda x: (x.to(torch.float8_e4m3fn),), decode=lambda parts: parts[0].float(), bits=4)
    policy = type("Form", (CacheStrategy,), {"form": form})
    return type("Plugin", (), {"varbench_cache_strategy": lambda self, setting, model: policy()})()


def every_fourth(weights: Any, seed: int) -> dict[str, torch.Tensor]:
    return {"units": torch.arange(SPEC.hidden).view(-1, 4).T.contiguous()}


class HalfOfTheExperts(WidthPolicy):
    """Honest width policy, whose experts are not side by side."""

    experts = 4
    own = OwnParameters(shapes={"units": (4, SPEC.hidden // 4)}, whole=("units",), initial=every_fourth)

    def split(self, layer: int, *, own: Any) -> Any:
        return own["units"]

    def count(self, layer: int, scale: int) -> int | None:
        return 2 if scale == SPEC.scales - 1 else None

    def route(self, hidden_RLC: Any, count: int, *, layer: int, scale: int, own: Any) -> Any:
        return hidden_RLC[..., :4].topk(count).indices


def width_plugin(policy: type[WidthPolicy] = HalfOfTheExperts) -> Any:
    return type("Plugin", (), {"varbench_width_policy": lambda self, setting, model: policy()})()


def test_an_honest_width_policy_keeps_what_is_promised_of_experts() -> None:
    only = {"runs", "chosen_experts_are_computed", "trace_equals_plan", "picks_are_places", "inputs_untouched"}
    assert check(width_plugin(), name="honest", only=only) == []


@breaks("chosen_experts_are_computed")
def has_the_engine_compute_other_experts() -> Any:
    real = varbench.engine.expert_ffn.chosen_experts
    varbench.engine.expert_ffn.chosen_experts = lambda x, chosen, experts: real(x, (chosen + 1) % 4, experts)
    return width_plugin()


class EndsOrGoesOn(DecisionPolicy):
    """Honest: what ends before the last scale hangs on the map."""

    def after(self) -> int:
        return SPEC.scales - 3

    def ways(self) -> Sequence[Way]:
        return Way(), Way(ends=SPEC.scales - 1)

    def decide(self, seen: SoFar) -> Any:
        return (seen.map_BDhw.mean(dim=(1, 2, 3)) > 0).long()


def decision_plugin(policy: type[DecisionPolicy] = EndsOrGoesOn) -> Any:
    return type("Plugin", (), {"varbench_decision_policy": lambda self, setting, model: policy()})()


@breaks("decided_as_declared")
def has_the_engine_send_images_elsewhere() -> Any:
    real = varbench.engine.going_on.Deciding._checked
    varbench.engine.going_on.Deciding._checked = (  # type: ignore[method-assign]
        lambda self, answer, batch: 1 - real(self, answer, batch)
    )
    return decision_plugin()


@breaks("decided_as_declared")
def has_a_split_batch_run_on_with_other_images_keys() -> Any:
    real = varbench.engine.cache.StatePart.rows_of
    varbench.engine.cache.StatePart.rows_of = lambda self, *given, **named: real(self, *given, **named).flip(0)  # type: ignore[method-assign]
    return decision_plugin()


@breaks("decided_as_declared")
def draws_on_the_map_that_it_decides_by() -> Any:
    class Draws(EndsOrGoesOn):
        def decide(self, seen: SoFar) -> Any:
            seen.map_BDhw.mul_(0.5)
            return super().decide(seen)

    return decision_plugin(Draws)


@breaks("inputs_untouched")
def draws_on_the_logits_that_it_decides_by() -> Any:
    class Draws(EndsOrGoesOn):
        def decide(self, seen: SoFar) -> Any:
            seen.logits_BlV.zero_()
            return super().decide(seen)

    return decision_plugin(Draws)


@breaks("runs")
def decides_for_what_it_did_not_declare() -> Any:
    class Elsewhere(EndsOrGoesOn):
        def decide(self, seen: SoFar) -> Any:
            return super().decide(seen) + 1

    return decision_plugin(Elsewhere)


@breaks("trace_equals_plan")
def decodes_a_preview_that_is_not_planned() -> Any:
    real = varbench.engine.going_on.Deciding.drawn

    def drawn(self: Any, scale: int, map_BDhw: Any, logits_BlV: Any) -> None:
        real(self, scale, map_BDhw, logits_BlV)
        if scale == 0:
            self._watch.previewed(map_BDhw)

    varbench.engine.going_on.Deciding.drawn = drawn  # type: ignore[method-assign]
    return decision_plugin()


@breaks("trace_equals_plan")
def has_the_engine_compute_more_of_an_ffn() -> Any:
    real = varbench.engine.expert_ffn.chosen_experts

    def more(x: Any, chosen: Any, experts: Any) -> Any:
        experts.seen.part(x)
        return real(x, chosen, experts)

    varbench.engine.expert_ffn.chosen_experts = more
    return width_plugin()


@breaks("picks_are_places")
def chooses_an_expert_twice() -> Any:
    class Twice(HalfOfTheExperts):
        def route(self, hidden_RLC: Any, count: int, *, layer: int, scale: int, own: Any) -> Any:
            return hidden_RLC[..., :4].topk(1).indices.repeat(1, 1, count)

    return width_plugin(Twice)


@breaks("trace_equals_plan")
def has_the_engine_run_what_it_says_is_left_out() -> Any:
    real = varbench.engine.sub_layers.SubLayers.run

    def sub_layer(self: Any, stream: Any, sub: Any) -> Any:
        if sub.name == "ffn" and not sub.planned.tokens:
            sub = replace(sub, planned=replace(sub.planned, tokens=1))
        return real(self, stream, sub)

    varbench.engine.sub_layers.SubLayers.run = sub_layer
    return WithoutHalves()


def places_of_attention(changed: Callable[[Any], Any]) -> Any:
    real = varbench.engine.sub_layers.SubLayers.run

    def sub_layer(self: Any, stream: Any, sub: Any) -> Any:
        if sub.planned.shared:
            sub = replace(sub, places_Rn=changed(sub.places_Rn))
        return real(self, stream, sub)

    varbench.engine.sub_layers.SubLayers.run = sub_layer
    return SharingPlaces()


@breaks("trace_equals_plan")
def has_the_engine_pick_again_where_places_are_shared() -> Any:
    return places_of_attention(lambda places: None)


@breaks("picked_is_what_is_computed")
def has_the_engine_compute_other_tokens_in_the_ffn() -> Any:
    return places_of_attention(lambda places: places.flip(1).sub(places.max()).neg())


@breaks("inputs_untouched")
def routes_by_changing_what_it_is_shown() -> Any:
    class Changes(HalfOfTheExperts):
        def route(self, hidden_RLC: Any, count: int, *, layer: int, scale: int, own: Any) -> Any:
            return hidden_RLC.mul_(0.5)[..., :4].topk(count).indices

    return width_plugin(Changes)


@breaks("picked_is_what_is_computed")
def has_the_engine_leave_out_what_was_filled_in() -> Any:
    real = varbench.engine.sub_layers.SubLayers._on_picked
    varbench.engine.sub_layers.SubLayers._on_picked = lambda self, x, sub: 0.5 * real(self, x, sub)
    return token_liar()


def captured(look: Callable[[Any, Any], object]) -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        look(self, keys)
        return honest

    return cache_liar(pick, capturable=True, calls=0)


@breaks("asks_nothing_of_the_host")
def is_captured_and_looks_at_a_number() -> Any:
    return captured(lambda self, keys: float(keys[0, 0, 0, 0]))


@breaks("asks_nothing_of_the_host")
def is_captured_and_decides() -> Any:
    return captured(lambda self, keys: 1 if keys.sum() > 0 else 0)


@breaks("asks_nothing_of_the_host")
def is_captured_and_brings_places() -> Any:
    return captured(lambda self, keys: keys[:, :, [0]])


@breaks("asks_nothing_of_the_host")
def is_captured_and_counts_calls() -> Any:
    return captured(lambda self, keys: setattr(self, "calls", self.calls + 1))


@breaks("measured_flops_equal_plan")
def works_while_filling_in() -> Any:
    def fill(honest: Any, computed: Any) -> Any:
        width = honest.shape[-1]
        for _ in range(20):
            honest = honest + 1e-9 * (honest @ torch.eye(width))
        return honest

    return token_liar(fill=fill)


def says_that_picking_takes(flops: Callable[[int], int]) -> Any:
    class Says(PicksByAProduct):
        def picking_flops(self, layer: int, scale: int, sublayer: str) -> int:
            return flops(super().picking_flops(layer, scale, sublayer))

    return type("Plugin", (TokenPlugin,), {"policy": Says})()


@breaks("measured_flops_equal_plan")
def picks_by_a_product_that_it_keeps_to_itself() -> Any:
    return says_that_picking_takes(lambda flops: 0)


@breaks("measured_flops_equal_plan")
def says_that_picking_takes_more_than_it_does() -> Any:
    return says_that_picking_takes(lambda flops: 2 * flops)


def notes_otherwise(**members: Any) -> Any:
    return type("Plugin", (TokenPlugin,), {"policy": type("Otherwise", (PicksByNotes,), members)})()


@breaks("measured_flops_equal_plan")
def notes_by_products_that_it_keeps_to_itself() -> Any:
    def note(self: Any, x: Any, output: Any, noted: Any, **where: Any) -> Any:
        for _ in range(20):
            output = output + 1e-9 * (output @ torch.eye(output.shape[-1]))
        return PicksByNotes.note(self, x, output, noted, **where)

    return notes_otherwise(note=note)


@breaks("inputs_untouched")
def picks_by_changing_what_it_noted() -> Any:
    def pick(self: Any, x: Any, count: int, *, noted_Rn: Any = None, **where: Any) -> Any:
        return PicksByNotes.pick(self, x, count, noted_Rn=noted_Rn.mul_(2), **where)

    return notes_otherwise(pick=pick)


@breaks("inputs_untouched")
def notes_by_changing_the_stream() -> Any:
    def note(self: Any, x: Any, output: Any, noted: Any, **where: Any) -> Any:
        return PicksByNotes.note(self, x, output.mul_(1.01), noted, **where)

    return notes_otherwise(note=note)


@breaks("state_bytes_reachable")
def notes_on_paper_of_its_own() -> Any:
    def note(self: Any, x: Any, output: Any, noted: Any, **where: Any) -> Any:
        self.paper = {**getattr(self, "paper", {}), where["layer"]: output}
        return PicksByNotes.note(self, x, output, noted, **where)

    return notes_otherwise(note=note)


@breaks("picked_is_what_is_computed")
def has_the_engine_note_of_another_stream() -> Any:
    real = varbench.engine.sub_layers.SubLayers._noted
    varbench.engine.sub_layers.SubLayers._noted = lambda self, x, output, sub: real(self, 2 * x, output, sub)
    return ByNotes()


@breaks("measured_flops_equal_plan")
def attends_to_nothing() -> Any:
    F.scaled_dot_product_attention = lambda q, k, v, **options: v[:, :, -q.shape[2] :]
    return DepthPlugin()


@breaks("products_in_type")
def multiplies_in_half() -> Any:
    import varbench.model.transformer as model

    real = model.product

    def product(x: Any, weight: Any, bias: Any, *, gelu: bool = False) -> Any:
        return real(x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16(), gelu=gelu).float()

    model.product = product
    return DepthPlugin()


@breaks("weights_equal_plan")
def says_int8_and_stores_float32() -> Any:
    def transform(self: Any, setting: Any, model: Any) -> Any:
        said = {"ffn": PartChange(weight_type="int8")}
        return Transformed(apply=lambda transformer: transformer, changes=said)

    return type("Plugin", (), {"varbench_transform_model": transform})()


@breaks("neutral_equals_full")
def is_not_neutral_when_it_picks_everything() -> Any:
    return token_liar(fill=lambda honest, computed: honest * 1.001)


@breaks("neutral_equals_full")
def calls_itself_neutral() -> Any:
    plugin = cache_liar()
    type(plugin).varbench_settings = lambda self, model: Settings(neutral=("",))
    return plugin


# --- results that depend on something else ----------------------------------------------------------------------------


@breaks("deterministic")
def picks_by_the_clock() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        stream = torch.Generator().manual_seed(time.perf_counter_ns() % 2**31)
        return (
            torch.rand(honest.shape[0], honest.shape[1], keys.shape[2], generator=stream)
            .topk(honest.shape[2])
            .indices.sort()
            .values
        )

    return cache_liar(pick)


@breaks("deterministic")
def picks_otherwise_after_a_while() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        asked[0] += 1
        return honest if asked[0] < 60 else torch.arange(honest.shape[-1]).expand_as(honest).contiguous()

    asked = [0]
    return cache_liar(pick)


@breaks("seeds_and_labels_matter")
def answers_one_image() -> Any:
    real = varbench.engine.pipeline.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        options["labels_B"] = torch.zeros_like(options["labels_B"])
        return real(*arguments, **options)

    varbench.engine.pipeline.generate = generate
    return DepthPlugin()


@breaks("no_memoised_repeat")
def picks_what_it_picked_first() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        known = self.__dict__.setdefault("known", {})
        return known.setdefault((where["layer"], where["scale"], honest.shape), honest.clone())

    return cache_liar(pick)


@breaks("repeat_as_slow_as_first")
def remembers_whole_images() -> Any:
    real, known = varbench.engine.pipeline.generate, {}

    def generate(*arguments: Any, **options: Any) -> Any:
        key = (
            options["sampling"],
            tuple(options["labels_B"].tolist()),
            tuple(options["streams_B1"].flatten().tolist()),
        )
        if options.get("observer") or options.get("forced_BL") is not None or options["return_logits"]:
            return real(*arguments, **options)
        if key not in known:
            known[key] = real(*arguments, **options)
        return known[key]

    varbench.engine.pipeline.generate = generate
    return DepthPlugin()


@breaks("batch_invariance")
def picks_for_the_whole_batch() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        together = keys.sum(dim=-1).sum(dim=0, keepdim=True)
        return together.topk(honest.shape[2]).indices.sort().values.expand_as(honest).contiguous()

    return cache_liar(pick)


@breaks("teacher_equals_cached")
def reads_less_of_the_cache() -> Any:
    real = varbench.engine.generate.attention

    def attention(q: Any, k: Any, v: Any, **options: Any) -> Any:
        return real(q, k, v * 0.9, **options)

    varbench.engine.generate.attention = attention
    return DepthPlugin()


# --- work and time ----------------------------------------------------------------------------------------------------


@breaks("work_falls_as_knob_tightens")
def turns_a_knob_without_effect() -> Any:
    class Plugin(DepthPlugin):
        def varbench_settings(self, model: Any) -> Any:
            return Settings(points=("d4", "d2"))

    return Plugin()


@breaks("work_falls_as_knob_tightens")
def does_more_in_the_middle() -> Any:
    class Plugin:
        def varbench_settings(self, model: Any) -> Any:
            return Settings(points=("first", "second", "third"))

        def varbench_depth_policy(self, setting: Any, model: Any) -> Any:
            count = {"first": 6, "second": 8, "third": 4}[setting.point]
            return type("Some", (DepthPolicy,), {"layers": lambda self, scale, backbone: range(count)})()

    return Plugin()


@breaks("schedule_repeats")
def trains_what_it_likes() -> Any:
    class Moody(TrainingSchedule):
        def at(self, stage: Any, step: int, total: int, uniform: Any) -> TrainStep:
            return TrainStep(point="half" if random.Random().random() < 0.5 else None)

    class Plugin(DepthPlugin):
        def varbench_settings(self, model: Any) -> Any:
            return Settings(points=("full", "half"), recipes=("moody",))

        def varbench_training_schedule(self, setting: Any, model: Any) -> Any:
            return Moody()

    return Plugin()


@breaks("schedule_repeats")
def trains_a_point_that_is_not_there() -> Any:
    class Lost(TrainingSchedule):
        def at(self, stage: Any, step: int, total: int, uniform: Any) -> TrainStep:
            return TrainStep(point="third")

    class Plugin(DepthPlugin):
        def varbench_settings(self, model: Any) -> Any:
            return Settings(points=("full", "half"), recipes=("lost",))

        def varbench_training_schedule(self, setting: Any, model: Any) -> Any:
            return Lost()

    return Plugin()


def learner(own_loss: Any) -> Any:
    """A plugin that trains by a loss of its own, of the attention of every layer."""

    class Own(TrainingSchedule):
        def stages(self) -> Sequence[Stage]:
            return (Stage(name="own", teacher="main"),)

        def at(self, stage: Any, step: int, total: int, uniform: Any) -> TrainStep:
            return TrainStep(loss="own", sees=("attention",))

        def own_loss(self, seen: Any, *, own: Any) -> Any:
            return own_loss(seen)

    class Plugin(DepthPlugin):
        def varbench_settings(self, model: Any) -> Any:
            return Settings(recipes=("own",))

        def varbench_training_schedule(self, setting: Any, model: Any) -> Any:
            return Own()

    return Plugin()


@breaks("own_loss_teaches")
def trains_by_what_hangs_on_nothing() -> Any:
    return learner(lambda seen: seen.output_RLC.detach().square().mean())


@breaks("own_loss_teaches")
def trains_by_what_is_taught_alone() -> Any:
    return learner(lambda seen: seen.taught.output_RLC.square().mean())


@breaks("own_loss_teaches")
def trains_by_many_numbers() -> Any:
    return learner(lambda seen: seen.output_RLC.square().mean(dim=0))


@breaks("own_loss_teaches")
def trains_by_chance() -> Any:
    return learner(lambda seen: seen.output_RLC.square().mean() * torch.rand(()))


@breaks("own_loss_teaches")
def changes_what_its_loss_is_shown() -> Any:
    return learner(lambda seen: seen.taught.output_RLC.zero_().add(seen.output_RLC).square().mean())


@breaks("no_speedup_without_less_work")
def is_faster_than_its_work() -> Any:
    real, last = varbench.engine.pipeline.generate, []

    def generate(plan: Any, row: Any, **options: Any) -> Any:
        if "(plain)" in row.name or options.get("observer") or options["return_logits"] or not last:
            last[:] = [real(plan, row, **options)]
        return last[0]

    varbench.engine.pipeline.generate = generate
    return cache_liar()


# --- memory -----------------------------------------------------------------------------------------------------------


@breaks("state_bytes_reachable")
def hides_keys_on_itself() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        self.__dict__.setdefault("hidden", {})[where["layer"], where["scale"]] = keys.clone()
        return honest

    return cache_liar(pick)


@breaks("state_bytes_reachable")
def hides_keys_in_a_closure_as_numpy() -> Any:
    hidden: list[Any] = []

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        if where["layer"] == 0 and where["scale"] == 0:
            hidden.clear()
        hidden.append(keys.numpy().copy())
        return honest

    return cache_liar(pick)


@breaks("state_bytes_reachable")
def hides_keys_in_an_old_buffer() -> Any:
    buffer = torch.zeros(1 << 16)

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        flat = keys.flatten()[: len(buffer)]
        buffer[: len(flat)] = flat
        return honest

    return cache_liar(pick)


@breaks("the_same_unwatched")
def hides_keys_in_an_old_array() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        flat = keys.numpy().ravel()[: len(self.array)]
        self.array[: len(flat)] = flat
        return honest

    return cache_liar(pick, array=np.zeros(1 << 16, dtype=np.float32))


@breaks("state_bytes_reachable")
def hides_keys_in_a_file() -> Any:
    import os
    import tempfile

    path = os.path.join(tempfile.gettempdir(), f"varbench-liar-{os.getpid()}")

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        with open(path, "wb") as file:
            file.write(b"keys")
        os.remove(path)
        return honest

    return cache_liar(pick)


@breaks("the_same_unwatched")
def hides_keys_in_memory_of_c() -> Any:
    import ctypes

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        ctypes.memmove(self.room, keys.contiguous().data_ptr(), min(4 * keys.numel(), ctypes.sizeof(self.room)))
        return honest

    return cache_liar(pick, room=(ctypes.c_float * (1 << 16))())


@breaks("the_same_unwatched")
def hides_keys_on_anothers_module() -> Any:
    import json

    json.room = np.zeros(1 << 16, dtype=np.float32)  # type: ignore[attr-defined]
    UNDO.append(lambda: vars(json).pop("room"))

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        flat = keys.numpy().ravel()[: 1 << 16]
        json.room[: len(flat)] = flat  # type: ignore[attr-defined]
        return honest

    return cache_liar(pick)


@breaks("state_bytes_reachable")
def hides_keys_as_sparse_ones() -> Any:
    hidden: list[Any] = []

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        if where["layer"] == 0 and where["scale"] == 0:
            hidden.clear()
        hidden.append(keys.to_sparse())
        return honest

    return cache_liar(pick)


@breaks("state_bytes_reachable")
def hides_keys_down_a_pipe() -> Any:
    import os

    out, into = os.pipe()
    UNDO.extend((lambda: os.close(out), lambda: os.close(into)))

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        os.read(out, os.write(into, keys.numpy().tobytes()[:4096]))
        return honest

    return cache_liar(pick)


@breaks("state_bytes_reachable")
def lets_torch_write_the_file() -> Any:
    import os
    import tempfile

    path = os.path.join(tempfile.gettempdir(), f"varbench-liar-{os.getpid()}.pt")
    UNDO.append(lambda: os.remove(path))

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        torch.save(keys, path)
        return honest

    return cache_liar(pick)


@breaks("state_bytes_reachable")
def hides_keys_in_a_thread() -> Any:
    import threading

    hidden: list[Any] = []

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        if where["layer"] == 0 and where["scale"] == 0:
            hidden.clear()
        thread = threading.Thread(target=lambda: hidden.append(keys.clone()))
        thread.start()
        thread.join()
        return honest

    return cache_liar(pick)


@breaks("the_same_unwatched")
def hides_keys_when_nobody_watches() -> Any:
    hidden: list[Any] = []

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        if where["layer"] == 0 and where["scale"] == 0:
            hidden.clear()
        if not torch._C._len_torch_dispatch_stack():
            hidden.append(keys.clone())
        return honest

    return cache_liar(pick)


@breaks("released_memory_freed")
def never_lets_go() -> Any:
    everything: list[Any] = []

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        everything.append(keys.detach())
        return honest

    return cache_liar(pick)


# --- what belongs to others -------------------------------------------------------------------------------------------


@breaks("no_global_state_change")
def seeds_torch() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        torch.manual_seed(0)
        return honest

    return cache_liar(pick)


@breaks("no_global_state_change")
def draws_from_numpy() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        np.random.rand()
        return honest

    return cache_liar(pick)


@breaks("no_global_state_change")
def sets_the_default_type_while_it_is_asked() -> Any:
    class Plugin(DepthPlugin):
        def varbench_depth_policy(self, setting: Any, model: Any) -> Any:
            torch.set_default_dtype(torch.float64)
            return super().varbench_depth_policy(setting, model)

    return Plugin()


@breaks("no_global_state_change")
def stops_the_clock() -> Any:
    class Plugin(DepthPlugin):
        def varbench_depth_policy(self, setting: Any, model: Any) -> Any:
            time.perf_counter = lambda: 0.0
            return super().varbench_depth_policy(setting, model)

    return Plugin()


@breaks("no_global_state_change")
def switches_for_one_step_only() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        torch.backends.mkldnn.enabled = where["scale"] != 2
        return honest

    return cache_liar(pick)


@breaks("no_global_state_change")
def replaces_a_kernel() -> Any:
    class Plugin(DepthPlugin):
        def varbench_depth_policy(self, setting: Any, model: Any) -> Any:
            if not UNDO:
                library = torch.library.Library("aten", "IMPL")
                UNDO.append(library._destroy)
                library.impl("gelu", lambda x, approximate="none": torch.relu(x), "CPU")
            return super().varbench_depth_policy(setting, model)

    return Plugin()


@breaks("no_global_state_change")
def looks_at_every_call_of_torch() -> Any:
    from torch.overrides import TorchFunctionMode

    class Looks(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    class Plugin(DepthPlugin):
        def varbench_depth_policy(self, setting: Any, model: Any) -> Any:
            if not UNDO:
                mode = Looks()
                mode.__enter__()
                UNDO.append(lambda: mode.__exit__(None, None, None))
            return super().varbench_depth_policy(setting, model)

    return Plugin()


@breaks("no_global_state_change")
def works_between_calls() -> Any:
    import _thread
    import queue

    class Plugin(DepthPlugin):
        def varbench_depth_policy(self, setting: Any, model: Any) -> Any:
            if not UNDO:
                tasks: Any = queue.SimpleQueue()
                _thread.start_new_thread(lambda: tasks.get(), ())
                UNDO.append(lambda: tasks.put(None))
            return super().varbench_depth_policy(setting, model)

    return Plugin()


def the_only(kind: str) -> Any:
    """Objects of the kit that a liar has found."""
    import gc

    return [thing for thing in gc.get_objects() if type(thing).__name__ == kind]


@breaks("weights_untouched")
def shrinks_weights_for_two_scales() -> Any:
    found: list[Any] = []

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        found[:] = found or the_only("Transformer")
        for transformer in found:
            bias = transformer.head.bias.data.numpy()
            if where["layer"] == 0 and where["scale"] in (2, 4):
                bias *= 0.5 if where["scale"] == 2 else 2
        return honest

    return cache_liar(pick)


@breaks("weights_untouched")
def exchanges_a_class() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        if where["layer"] == 0 and where["scale"] == 0:
            for module in the_only("Attention"):
                kind = type(module)
                module.__class__ = type(
                    kind.__name__, (kind,), {"__qualname__": kind.__qualname__, "__module__": kind.__module__}
                )
        return honest

    return cache_liar(pick)


@breaks("weights_untouched")
def hides_a_method_of_the_pipeline() -> Any:
    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        if where["layer"] == 0 and where["scale"] == 0:
            for pipe in the_only("Pipeline"):
                pipe._decode_map = type(pipe)._decode_map.__get__(pipe)
        return honest

    return cache_liar(pick)


@breaks("weights_untouched")
def shrinks_weights() -> Any:
    import gc

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        if where["layer"] == 0 and where["scale"] == 0:
            for thing in gc.get_objects():
                if type(thing).__name__ == "Transformer":
                    thing.head.bias.data.mul_(0.5)
        return honest

    return cache_liar(pick)


@breaks("tokens_are_drawn_from_logits")
def always_draws_the_likeliest() -> Any:
    import varbench.engine.loop as engine

    engine.drawn = lambda logits, noise, **filters: logits.argmax(dim=-1)
    return DepthPlugin()


@breaks("tokens_are_drawn_from_logits")
def filters_by_other_code() -> Any:
    varbench.engine.sampler.filtered.__code__ = (lambda logits_BlV, *, top_k, top_p: logits_BlV).__code__
    return DepthPlugin()


@breaks("nothing_replaced")
def replaces_the_linear_function() -> Any:
    real = F.linear
    F.linear = lambda *arguments: real(*arguments)
    return DepthPlugin()


@breaks("nothing_replaced")
def replaces_something_for_two_steps() -> Any:
    real = State.remember

    def pick(self: Any, honest: Any, keys: Any, queries: Any, where: Any) -> Any:
        State.remember = (lambda *arguments: real(*arguments)) if where["scale"] == 1 else real
        return honest

    return cache_liar(pick)


@breaks("nothing_replaced")
def does_not_wait_for_the_gpu() -> Any:
    class Plugin(DepthPlugin):
        def varbench_depth_policy(self, setting: Any, model: Any) -> Any:
            torch.cuda.synchronize = lambda device=None: None
            return super().varbench_depth_policy(setting, model)

    return Plugin()


@breaks("nothing_replaced")
def flatters_the_distance() -> Any:
    varbench.quality.frechet.frechet_distance = lambda first, second: 0.0
    return DepthPlugin()


@breaks("nothing_replaced")
def counts_less_work() -> Any:
    varbench.plan.cost._decoder = lambda spec, side, batch: (0, 0)
    return DepthPlugin()


@breaks("guided_as_planned")
def guides_with_all_its_strength_everywhere() -> Any:
    real = varbench.engine.generate._Run.step

    def step(self: Any, step: Any, *given: Any) -> Any:
        return real(self, dataclasses.replace(step, strength=1.0), *given)

    varbench.engine.generate._Run.step = step  # type: ignore[method-assign]

    class Plugin:
        def varbench_guidance_policy(self, setting: Any, model: Any) -> Any:
            return BothBranches()

    return Plugin()


@breaks("unlabelled_equals_teacher")
def attends_for_the_labelled_half_alone() -> Any:
    """Which half is which can be guessed by the number of rows."""

    class Halved(torch.nn.Module):
        def __init__(self, proj: torch.nn.Linear) -> None:
            super().__init__()
            self.weight, self.bias = proj.weight, proj.bias

        def forward(self, mixed: torch.Tensor) -> torch.Tensor:
            half = max(4, len(mixed) // 2)
            given = F.linear(mixed[:half], self.weight, self.bias)
            return torch.cat((given, torch.zeros_like(given)))[: len(mixed)]

    def apply(transformer: Any) -> Any:
        for block in transformer.blocks:
            block.attn.proj = Halved(block.attn.proj)
        return transformer

    class Plugin:
        def varbench_transform_model(self, setting: Any, model: Any) -> Transformed:
            return Transformed(apply=apply)

    return Plugin()


# --- what a generator learns from -------------------------------------------------------------------------------------


class LearnsFromItsBatch(TaughtGenerator):
    """What the full model finds likeliest, and which place in the batch an example has."""

    def meet(self, teacher: LoadedTeacher, *, tokenizer: LoadedTokenizer) -> None:
        self.teacher = teacher

    def take(self, *, tokenizer: LoadedTokenizer, weights: Any) -> None:
        pass

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        self.teacher = None  # type: ignore[assignment]

    def made(self, labels_B: torch.Tensor, numbers: range) -> torch.Tensor:
        codes = self.teacher.draw(labels_B, lambda logits, scale: logits.argmax(-1), cfg=1.0, until=4)
        return codes + torch.arange(len(codes))[:, None]

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> torch.Tensor:
        return torch.full((len(labels), 3, SPEC.image_side, SPEC.image_side), 0.5)

    def work(self, batch: int) -> Work:
        return Work(flops=0.0, steps=1)


@breaks("examples_are_their_numbers_own")
def makes_examples_of_its_batch() -> Any:
    return type("Plugin", (), {"varbench_generator": lambda self, setting, model: LearnsFromItsBatch()})()


CASES = [pytest.param(name, make, id=f"{name}-{liar}") for name, liars in LIARS.items() for liar, make in liars.items()]


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Liars that replace things when they are made are undone here, whatever the kit did."""
    originals = Originals()
    with restored():
        try:
            yield
        finally:
            originals.restore()
            while UNDO:
                UNDO.pop()()


@pytest.mark.parametrize(("invariant", "make"), CASES)
def test_liar_is_caught_by_its_invariant(invariant: str, make: Any) -> None:
    findings = check(make(), name="liar", only={"runs", invariant})
    assert invariant in {finding.invariant for finding in findings}, [str(f) for f in findings]
    assert all(len(finding.message) > 10 for finding in findings)


def test_every_invariant_has_a_liar() -> None:
    assert set(LIARS) == set(invariants())


class Blobs(Generator):
    """Honest generator: noise of its own stream through one matrix, with the label as brightness."""

    def __init__(self, side: int) -> None:
        self.side = side

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        self.weight = torch.randn(self.side, self.side, generator=torch.Generator().manual_seed(seed))

    def noise(self, seed: int, image: int) -> torch.Tensor:
        stream = torch.Generator().manual_seed(1000 * seed + image)
        return torch.randn(3, self.side, self.side, generator=stream)

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> torch.Tensor:
        noise = torch.stack([self.noise(seed, first_image + place) for place in range(len(labels))])
        return (noise @ self.weight + torch.tensor(labels).view(-1, 1, 1, 1)).sigmoid()

    def work(self, batch: int) -> Work:
        return Work(flops=2.0 * batch * 3 * self.side**3, steps=1)


def generator_plugin(generator: type[Blobs] = Blobs) -> Any:
    return type("Plugin", (), {"varbench_generator": lambda self, setting, model: generator(model.image_side)})()


class LooksUp(Blobs):
    known: ClassVar[dict[Any, Any]] = {}

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> torch.Tensor:
        key = (tuple(labels), seed, first_image)
        if key not in self.known:
            self.known[key] = super().generate(labels, seed=seed, first_image=first_image)
        return self.known[key]


class Understates(Blobs):
    def work(self, batch: int) -> Work:
        return Work(flops=1.0 * batch * 3 * self.side**3, steps=1)


class SeedsTheWorld(Blobs):
    def noise(self, seed: int, image: int) -> torch.Tensor:
        # Not torch.manual_seed: without a GPU that also keeps the stack of every call, which is a leak of its own.
        torch.default_generator.manual_seed(1000 * seed + image)
        return torch.randn(3, self.side, self.side)


class IgnoresLabels(Blobs):
    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> torch.Tensor:
        return super().generate([0] * len(labels), seed=seed, first_image=first_image)


class LooksUpTheLast(Blobs):
    last: ClassVar[dict[Any, Any]] = {}

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> torch.Tensor:
        key = (tuple(labels), seed, first_image)
        if key not in self.last:
            self.last.clear()
            self.last[key] = super().generate(labels, seed=seed, first_image=first_image)
        return self.last[key]


class Rounds(Blobs):
    """Fewer bits than were asked for."""

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        super().load(device=device, dtype=dtype, seed=seed)
        self.weight = self.weight.bfloat16()

    def noise(self, seed: int, image: int) -> torch.Tensor:
        return super().noise(seed, image).bfloat16()


class PutsOff(Blobs):
    class Later(torch.Tensor):
        pass

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> torch.Tensor:
        return super().generate(labels, seed=seed, first_image=first_image).as_subclass(self.Later)


class WorksElsewhere(Blobs):
    """In a thread, where nobody counts."""

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> torch.Tensor:
        import threading

        made: list[Any] = []
        make = super().generate
        thread = threading.Thread(target=lambda: made.append(make(labels, seed=seed, first_image=first_image)))
        thread.start()
        thread.join()
        return made[0]

    def work(self, batch: int) -> Work:
        return Work(flops=0.0, steps=1)


class KeepsAFile(Blobs):
    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> torch.Tensor:
        import tempfile

        images = super().generate(labels, seed=seed, first_image=first_image)
        with tempfile.TemporaryFile() as file:
            np.save(file, images.numpy())
        return images


class HidesACache(Blobs):
    stated = 0

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> torch.Tensor:
        cache = torch.zeros(500_000)
        for place in range(8):
            cache[place] += torch.ones(9).sum()
        return super().generate(labels, seed=seed, first_image=first_image)

    def work(self, batch: int) -> Work:
        return Work(flops=2.0 * batch * 3 * self.side**3, steps=4, cache_peak_bytes=self.stated)


class SaysWhatItCaches(HidesACache):
    stated = 4 * 500_000


@pytest.mark.parametrize("honest", [Blobs, SaysWhatItCaches])
def test_an_honest_generator_passes(honest: type[Blobs]) -> None:
    assert not check(generator_plugin(honest), name="blobs")


@pytest.mark.parametrize(
    ("liar", "invariants"),
    [
        (LooksUp, {"repeat_as_slow_as_first", "released_memory_freed"}),
        (Understates, {"measured_flops_equal_plan"}),
        (SeedsTheWorld, {"no_global_state_change"}),
        (IgnoresLabels, {"seeds_and_labels_matter"}),
        (LooksUpTheLast, {"repeat_as_slow_as_first"}),
        (Rounds, {"products_in_type"}),
        (PutsOff, {"images_in_range"}),
        (WorksElsewhere, {"state_bytes_reachable"}),
        (KeepsAFile, {"state_bytes_reachable"}),
        (HidesACache, {"state_bytes_reachable"}),
    ],
)
def test_a_lying_generator_is_caught(liar: type[Blobs], invariants: set[str]) -> None:
    assert {finding.invariant for finding in check(generator_plugin(liar), name="blobs")} == invariants


@pytest.mark.parametrize(
    "plugin",
    [
        pytest.param(Heaviest(), id="attention"),
        pytest.param(TokenPlugin(), id="tokens"),
        pytest.param(DepthPlugin(), id="depth"),
        pytest.param(CachePlugin(), id="cache", marks=pytest.mark.slow),
        pytest.param(ByAProduct(), id="product", marks=pytest.mark.slow),
        pytest.param(ByNotes(), id="notes", marks=pytest.mark.slow),
        pytest.param(SharingPlaces(), id="shared", marks=pytest.mark.slow),
        pytest.param(WithoutHalves(), id="halves", marks=pytest.mark.slow),
    ],
)
def test_an_honest_plugin_passes(plugin: Any) -> None:
    assert not check(plugin)


def ran(plugin: Any) -> list[str]:
    """The rows that the kit runs of it."""
    rows: list[str] = []
    found = check(plugin, only={"runs"}, progress=lambda row, *more: rows.append(row))
    assert [finding.invariant for finding in found] in ([], ["runs"])
    return rows


@pytest.mark.parametrize(
    ("plugin", "rows"),
    [("dmoe", 6), pytest.param("actvar", 5, marks=pytest.mark.slow), ("skipvar", 1), ("h2o", 4)],
)
def test_of_rows_that_nothing_tells_apart_on_random_weights_one_is_run(plugin: str, rows: int) -> None:
    """Of recipes of one method, and of points that differ only by what calibration finds."""
    assert len(ran(plugin)) == rows
    assert not any("@untrained/" in row or "@frozen/" in row for row in ran(plugin))


def test_rows_that_store_in_forms_of_equal_bytes_by_other_code_are_all_run() -> None:
    """Bits and bytes beside are all that a plan has of a form."""

    class Forms(CachePlugin):
        def varbench_settings(self, model: Any) -> Settings:
            return Settings(points=("floor", "nearest"))

        def varbench_cache_strategy(self, setting: Any, model: Any) -> Any:
            return Stored(floor if setting.point == "floor" else nearest)

    class Stored(CacheStrategy):
        def __init__(self, encode: Any) -> None:
            self._form = StoredForm(encode=encode, decode=lambda parts: parts[0] / 64, bits=8)

        @property
        def form(self) -> StoredForm:
            return self._form

    def floor(x: Any) -> Any:
        return ((64 * x).floor().to(torch.int8),)

    def nearest(x: Any) -> Any:
        return ((64 * x).round().to(torch.int8),)

    assert len(ran(Forms())) == 2


@pytest.mark.parametrize("how", ["attribute", "closure", "inner"])
def test_a_recipe_by_which_a_policy_answers_otherwise_is_run(how: str) -> None:
    """Though its plan is the other's."""

    class Recipes(CachePlugin):
        def varbench_settings(self, model: Any) -> Settings:
            return Settings(points=("half",), recipes=("good", "bad"))

        def varbench_cache_strategy(self, setting: Any, model: Any) -> Any:
            def answer(*given: Any, **where: Any) -> Any:
                if bad:
                    raise RuntimeError("of this recipe it fails")
                return KeepsHalf.pick(policy, *given, **where)

            bad, policy = setting.recipe == "bad", KeepsHalf(model)
            if how == "closure":
                policy.pick = answer  # type: ignore[method-assign]
                return policy
            told = Told(model)
            told.told = {"how": (setting.recipe,)} if how == "attribute" else SimpleNamespace(recipe=setting.recipe)
            return told

        def varbench_training_schedule(self, setting: Any, model: Any) -> Any:
            return None

    class Told(KeepsHalf):
        told: Any

        def pick(self, *given: Any, **where: Any) -> Any:
            if "bad" in repr(self.told):
                raise RuntimeError("of this recipe it fails")
            return super().pick(*given, **where)

    (finding,) = check(Recipes(), name="recipes", only={"runs"})
    assert finding.row == "recipes@bad" and "of this recipe it fails" in finding.message


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (KeepsHalf(SPEC), KeepsHalf(SPEC), True),
        (KeepsHalf(SPEC), KeepsHeaviest(SPEC), False),
        (KeepsHalf(SPEC).pick, KeepsHalf(SPEC).pick, True),
        (lambda: 1, lambda: 1, False),
        ([1, {"a": torch.ones(2)}], [1, {"a": torch.ones(2)}], True),
        ([1, {"a": torch.ones(2)}], [1, {"a": torch.zeros(2)}], False),
        (1, True, False),
        (np.arange(2), np.arange(2), True),
        (random.Random(1), random.Random(2), False),
        ({1, 2}, {1, 2}, False),  # what cannot be seen into is another one
    ],
)
def test_what_is_alike_is_the_same_in_all_it_holds(one: Any, other: Any, same: bool) -> None:
    assert alike(one, other) is same


def test_masked_arrays_of_numpy_are_looked_at_as_arrays() -> None:
    masked = np.ma.masked_array(np.arange(3.0), mask=[True, False, False])
    before = contents()
    assert id(np.ma.masked) in before
    masked.data[1] = 5.0
    assert contents()[id(masked)][1] != before[id(masked)][1]


@pytest.mark.parametrize("row", [HONEST[0], *(pytest.param(row, marks=pytest.mark.slow) for row in HONEST[1:])])
def test_what_ships_passes(row: str) -> None:
    assert not check(row)


SHIPPED = (
    "actvar@frozen/m50r50", "code@training_free/n3", "dmoe@untrained/m50", "fastvar@r50", "fastvar@skip1",
    "fixed_ratio@p05/d2", "guidance@from5", "guidance@share4", "guidance@share5+h2o@b50", "h2o@b50", "hack@b25:merge=true", "hack@b25:products=true", "prefix_exit@e4", "quant@w8",
    "quant_cache@b8", "scale_window@w0", "scalekv@b50", "skipvar@s88", "smaller@alone_d4", "smaller@narrow", "snapkv@b50",
    "streaming@b50",
)  # fmt: skip
"""Of every method that the engine runs by a plan, and that is not among `HONEST`, a point that costs little."""
NEEDS = {"quant": "torchao"}
ABOVE = ("varbench_plugins.", "varbench_baselines.")


@pytest.mark.slow
@pytest.mark.parametrize("row", SHIPPED)
def test_every_method_that_ships_passes(row: str) -> None:
    if (needed := NEEDS.get(re.split("[@+]", row)[0])) is not None:
        pytest.importorskip(needed, reason=f"{row} needs {needed}, which the extra of its name installs")
    assert [str(finding) for finding in check(row)] == []


def test_no_method_that_ships_is_left_unchecked() -> None:
    """Those that replace the loop are checked beside their other tests."""
    named = {re.split("[@+]", row)[0] for row in (*HONEST, *SHIPPED)}
    ships = {point.name for point in entry_points(group=PROJECT) if point.value.startswith(ABOVE)}
    assert ships - {"distilled", "dit", "llamagen"} == named


def test_leaving_an_invariant_out() -> None:
    assert not check(computes_one_token_twice(), without={"picks_are_places", "neutral_equals_full"})
    with pytest.raises(UserError, match="no invariant 'picks_are_place'. Did you mean 'picks_are_places'"):
        check("full_var", without={"picks_are_place"})


def test_what_is_loaded_while_something_is_replaced_is_put_right_too() -> None:
    real = varbench.quality.frechet.frechet_distance
    loaded = {name: sys.modules.pop(name) for name in list(sys.modules) if name == "varbench.quality.fidelity"}
    originals = Originals()
    flatters_the_distance()
    fidelity = importlib.import_module("varbench.quality.fidelity")
    assert fidelity.frechet_distance is not real
    originals.restore()
    sys.modules.update(loaded)
    assert fidelity.frechet_distance is real is varbench.quality.frechet.frechet_distance


HONEST_MODULE = """
import numpy.ma
from varbench.policies import CacheStrategy


class Largest(CacheStrategy):
    def budget(self, layer, scale, group):
        return 5

    def pick(self, keys_BHnc, queries_BHLc, count, *, attention_BHn, layer, scale, group):
        import pandas  # loaded while images are made
        import torch

        sums = numpy.ma.masked_invalid(keys_BHnc.sum(dim=-1).numpy()).filled(0)
        order = pandas.DataFrame(sums.reshape(-1, sums.shape[-1])).rank(axis=1, method="first").to_numpy(copy=True)
        places = torch.from_numpy(order.reshape(sums.shape)).topk(count).indices
        return places.sort().values


def varbench_cache_strategy(setting, model):
    return Largest()
"""
BURNER = "while True: pass"


@pytest.mark.slow
def test_heavy_imports_and_a_busy_machine_break_no_promise(tmp_path: Path) -> None:
    (tmp_path / "largest.py").write_text(HONEST_MODULE)
    script = "import sys; assert 'pandas' not in sys.modules; import largest; from varbench.check import check; print(check(largest))"
    others = [subprocess.Popen([sys.executable, "-c", BURNER]) for _ in range(os.cpu_count() or 1)]
    try:
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    finally:
        for other in others:
            other.kill()
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_global_state_is_put_back() -> None:
    before = global_state()
    check(sets_the_default_type_while_it_is_asked(), only={"runs"})
    assert not list(before.changes(global_state()))


def test_varbench_itself_holds_no_strangers() -> None:
    assert list(strangers()) == []


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "variant@d4", "--only", "runs,deterministic,batch_invariance"]) == 0
    assert capsys.readouterr().out.strip().endswith("variant@d4 keeps 3 promises")
    assert main(["check", "--list"]) == 0
    assert set(invariants()) <= set(capsys.readouterr().out.split())
    assert main(["check", "no_such_plugin"]) == 2
    assert "no plugin or package 'no_such_plugin'" in capsys.readouterr().err


def test_each_promise_is_a_test_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        import torch
        from varbench.policies import CacheStrategy

        class Liar(CacheStrategy):
            def budget(self, layer, scale, group):
                return 3

            def pick(self, keys_BHnc, queries_BHLc, count, *, attention_BHn, layer, scale, group):
                torch.rand(1)
                return torch.arange(count).expand(*keys_BHnc.shape[:2], -1)

        class Plugin:
            def varbench_cache_strategy(self, setting, model):
                return Liar()

        @pytest.mark.varbench(Plugin())
        def test_promises(varbench_promise):
            varbench_promise()
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:benchmark", "-k", "deterministic or global or picks_are")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*no_global_state_change: *torch random state changed*"])
