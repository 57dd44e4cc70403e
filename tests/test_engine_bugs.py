"""Bugs of the engine, put in one at a time: a bug that every row shares is found too, since rows are held to their plan."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.check import check
from varbench.engine import cache, generate, sub_layers
from varbench.engine import pipeline as engine_pipeline
from varbench.engine.cache import State
from varbench.engine.cache_entries import EncodedForm, PlainForm
from varbench.engine.conditioning import Conditioning
from varbench.engine.watch import Watch
from varbench.model.transformer import FeedForward, Layer, Transformer
from varbench.plan import cache_uses, compiler, steps
from varbench.plan.steps import CacheUse, Plan, SlotKey, Step
from varbench.policies import (
    BothBranches,
    CacheStrategy,
    DepthPolicy,
    GuidancePolicy,
    StepPolicy,
    StepSpec,
    StoredForm,
    TokenPolicy,
)

PROMISES = (
    "trace_equals_plan", "state_bytes_reachable", "kept_is_what_is_read", "picked_is_what_is_computed",
    "measured_flops_equal_plan", "plan_stable", "guided_as_planned", "attention_told_was_paid", "unlabelled_equals_teacher",
)  # fmt: skip
"""About work, memory and content. Left out: that the engine's code is its source's, which is not so here."""


class Half(CacheStrategy):
    """Keeps the half of the entries with the largest sums of keys."""

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        return 2 * (scale + 1)

    def pick(self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, **_: object) -> Tensor:
        return keys_BHnc.sum(dim=-1).topk(count).indices.sort().values


class Remembers(TokenPolicy):
    """From the fourth scale on, the FFN computes a third of the tokens and fills in from the third scale."""

    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return 5 if scale in (3, 4) and sublayer == "ffn" else None

    def remembers(self, layer: int, scale: int, sublayer: str) -> bool:
        return scale == 2 and sublayer == "ffn"

    def pick(self, x_BLC: Tensor, count: int, **_: object) -> Tensor:
        return x_BLC.square().sum(dim=-1).topk(count).indices.sort().values

    def fill(
        self, computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, *, length: int, **_: object
    ) -> Tensor:
        assert remembered_BlC is not None
        filled = remembered_BlC.mean(dim=1, keepdim=True).expand(-1, length, -1).to(computed_BnC.dtype).contiguous()
        return filled.scatter(1, places_Bn.unsqueeze(-1).expand_as(computed_BnC), computed_BnC)


class Notes(Remembers):
    """The fourth scale's tokens of both sub-layers are picked by the largest numbers of those before, which add up, and the fifth's by
    the fourth's."""

    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return 5 if scale in (3, 4) else None

    def remembers(self, layer: int, scale: int, sublayer: str) -> bool:
        return False

    def shares_places(self, layer: int, scale: int) -> bool:
        return scale == 3

    def notes(self, layer: int, scale: int, sublayer: str) -> int:
        return 36 if scale in (1, 2, 3) else 0

    def note(self, x: Tensor, output: Tensor, noted: Tensor | None, **_: object) -> Tensor:
        sizes = (x + output).norm(dim=-1).mean(dim=1, keepdim=True) + torch.arange(36).remainder(5)
        return sizes if noted is None else sizes + noted.roll(1, dims=1)

    def pick(self, x: Tensor, count: int, *, noted_Rn: Tensor | None = None, **_: object) -> Tensor:
        assert noted_Rn is not None
        return noted_Rn[:, : x.shape[1]].topk(count).indices.sort().values

    def fill(self, computed: Tensor, places: Tensor, remembered: Tensor | None, *, length: int, **_: object) -> Tensor:
        filled = computed.new_zeros(len(computed), length, computed.shape[-1])
        return filled.scatter(1, places.unsqueeze(-1).expand_as(computed), computed)


class EndsEarly(GuidancePolicy):
    def branches(self, scale: int) -> Any:
        return "both" if scale < 3 else "labelled"

    def strength(self, scale: int) -> float:
        return 0.7


class Plugin:
    """Every kind of state and choice: picked entries, remembered maps, a branch that ends."""

    def varbench_cache_strategy(self, setting: Any, model: Any) -> CacheStrategy:
        return Half()

    def varbench_token_policy(self, setting: Any, model: Any) -> TokenPolicy:
        return Remembers()

    def varbench_guidance_policy(self, setting: Any, model: Any) -> GuidancePolicy:
        return EndsEarly()


class Heaviest(Half):
    """Keeps what all queries so far paid most attention to, and merges at last."""

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        return range(0, count, 2)

    def accumulates(self, layer: int, group: int) -> bool:
        return True

    def merges(self, layer: int, scale: int, group: int) -> bool:
        return scale == 4

    def pick(self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, **where: Any) -> Tensor:
        places: Tensor = where["attention_BHn"].topk(count).indices.sort().values
        return places

    def merging_weights(self, attention_BHn: Tensor | None, *, layer: int, scale: int, group: int) -> Tensor | None:
        return None if attention_BHn is None or layer % 2 else attention_BHn + 1e-3


class Looks:
    """Chooses by attention."""

    def varbench_cache_strategy(self, setting: Any, model: Any) -> CacheStrategy:
        return Heaviest()


def eight_bits(x_BHnc: Tensor) -> tuple[Tensor, Tensor]:
    scale = x_BHnc.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127
    return (x_BHnc / scale).round().to(torch.int8), scale


class EightBits:
    """Stores keys and values in eight bits, with scales."""

    def varbench_cache_strategy(self, setting: Any, model: Any) -> CacheStrategy:
        form = StoredForm(encode=eight_bits, decode=lambda parts: parts[0] * parts[1], bits=8, extra_bytes=4)
        return type("EightBits", (CacheStrategy,), {"form": form})()


class EncodesAgain(StepPolicy, DepthPolicy):
    """Half the layers draft the first four scales, and all encode them again with the fifth."""

    def steps(self) -> list[StepSpec]:
        return [*(StepSpec(scales=(k,)) for k in range(4)), StepSpec(scales=(0, 1, 2, 3, 4)), StepSpec(scales=(5,))]

    def layers(self, scale: int, backbone: str) -> range:
        return range(8 if scale > 3 else 4)


class Again:
    def varbench_step_policy(self, setting: Any, model: Any) -> StepPolicy:
        return EncodesAgain()

    def varbench_depth_policy(self, setting: Any, model: Any) -> DepthPolicy:
        return EncodesAgain()


class AgainWithOneAttention(Again):
    def varbench_guidance_policy(self, setting: Any, model: Any) -> GuidancePolicy:
        return type("Shares", (BothBranches,), {"shares": lambda self, scale: scale > 3})()


class Narrow:
    """Stores keys and values in half the bits."""

    def varbench_cache_strategy(self, setting: Any, model: Any) -> CacheStrategy:
        return type("Narrow", (CacheStrategy,), {"dtype": "bfloat16"})()


def broken(method: object, *promises: str) -> set[str]:
    return {finding.invariant for finding in check(method, name="bugs", only={"runs", *promises})}


class Noting(Plugin):
    def varbench_token_policy(self, setting: Any, model: Any) -> TokenPolicy:
        return Notes()


class SharesAttention:
    """Uses the labelled branch's attention for both from the third scale on."""

    def varbench_guidance_policy(self, setting: Any, model: Any) -> GuidancePolicy:
        return type("Shares", (BothBranches,), {"shares": lambda self, scale: scale >= 2})()


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(Plugin(), id="all kinds"),
        pytest.param(Narrow(), id="narrow", marks=pytest.mark.slow),
        pytest.param(SharesAttention(), id="one attention", marks=pytest.mark.slow),
        pytest.param(Noting(), id="notes", marks=pytest.mark.slow),
        pytest.param(Again(), id="encoded again", marks=pytest.mark.slow),
        pytest.param(AgainWithOneAttention(), id="encoded again with one attention", marks=pytest.mark.slow),
    ],
)
def test_without_a_bug_every_promise_is_kept(method: object) -> None:
    assert not check(method, name="bugs", only={"runs", *PROMISES})


def test_what_watches_is_handed_nothing_of_a_plan() -> None:
    """Tensors, numbers, weights and caches: else it could note what was meant to be."""
    planned = {kind for kind in vars(steps).values() if is_dataclass(kind)}
    assert {Plan, Step, CacheUse} <= planned
    handed = {
        kind
        for method in vars(Watch).values()
        if inspect.isfunction(method)
        for name, hint in typing.get_type_hints(method).items()
        if name != "return"
        for kind in leaves(hint)
    }
    assert {Tensor, State, Layer, Transformer} <= handed
    assert handed <= {Tensor, State, Layer, Transformer, SlotKey, int, bool, str, type(None)}
    assert not {kind for hint in typing.get_type_hints(State.__init__).values() for kind in leaves(hint)} & planned


def leaves(hint: Any) -> set[Any]:
    """The types that a type is made of."""
    inner = [one for one in typing.get_args(hint) if not isinstance(one, str)]
    if typing.get_origin(hint) is typing.Literal:
        return {str}
    return {kind for one in inner for kind in leaves(one)} if inner else {hint}


# --- the bugs ---------------------------------------------------------------------------------------------------------


def freed_caches_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "_free", lambda self, place: None)


def freed_caches_live_on_elsewhere(patch: pytest.MonkeyPatch) -> None:
    real, elsewhere = State._free, []

    def free(self: Any, place: Any) -> None:
        elsewhere.append(self._buffers.get(place))
        real(self, place)

    patch.setattr(State, "_free", free)


def forgotten_maps_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "forget", lambda self, key, name: None)


def an_ended_branch_stays_behind_a_view(patch: pytest.MonkeyPatch) -> None:
    def keep_rows(self: Any, backbone: str, rows: int) -> None:
        for buffer in self._buffers.values():
            buffer.tensors = tuple(tensor[:rows] for tensor in buffer.tensors)
        self._memories = {place: memory[:rows] for place, memory in self._memories.items()}

    patch.setattr(State, "keep_rows", keep_rows)


def vectors_of_an_ended_branch_stay_behind_a_view(patch: pytest.MonkeyPatch) -> None:
    def narrowed(self: Conditioning, rows: int) -> Conditioning:
        blocks = {layer: tuple(t[:rows] for t in six) for layer, six in self.blocks.items()}
        head = self.head[0][:rows], self.head[1][:rows]
        return Conditioning(first_RLC=None, blocks=blocks, head=head, biases=self.biases)

    patch.setattr(Conditioning, "narrowed", narrowed)


def keeps_the_first_entries_instead_of_the_picked(patch: pytest.MonkeyPatch) -> None:
    real = State.settle

    def settle(self: Any, place: Any, use: Any, own: Any, attended: Any, picked: Tensor | None) -> int:
        return real(self, place, use, own, attended, None if picked is None else torch.zeros_like(picked))

    patch.setattr(State, "settle", settle)


def keeps_fewer_entries_than_planned(patch: pytest.MonkeyPatch) -> None:
    real = cache._replace

    def replaced(buffer: Any, kept: tuple[Tensor, ...]) -> int:
        for tensor, part in zip(buffer.tensors, kept, strict=True):
            tensor[:, :, part.shape[2] - 1] = 0  # what is read there in the place of the last one
        return real(buffer, tuple(part[:, :, :-1] for part in kept))

    patch.setattr(cache, "_replace", replaced)


def keeps_other_scales_than_planned(patch: pytest.MonkeyPatch) -> None:
    real = cache._spans

    def spans(entries: Any, kept: Any) -> Any:
        return {(0, end - start): segment for (start, end), segment in real(entries, kept).items()}

    patch.setattr(cache, "_spans", spans)


def computes_the_first_tokens_instead_of_the_picked(patch: pytest.MonkeyPatch) -> None:
    def on_picked(self: Any, x: Tensor, sub: Any) -> Tensor:
        key, scale, places, count = sub.call.key, sub.call.step.samples, sub.places_Rn, sub.planned.tokens
        part, remembered = sub.compute(x[:, :count]), self.state.recall(key, sub.name)
        return self.policy.fill(
            part, places, remembered, length=x.shape[1], layer=key.layer, scale=scale, sublayer=sub.name
        )

    patch.setattr(sub_layers.SubLayers, "_on_picked", on_picked)


def fills_in_at_other_places(patch: pytest.MonkeyPatch) -> None:
    real = sub_layers.SubLayers._on_picked

    def on_picked(self: Any, x: Tensor, sub: Any) -> Tensor:
        return real(self, x, sub).roll(1, dims=1)

    patch.setattr(sub_layers.SubLayers, "_on_picked", on_picked)


def fills_in_under_another_name(patch: pytest.MonkeyPatch) -> None:
    real = sub_layers.SubLayers._on_picked

    def on_picked(self: Any, x: Tensor, sub: Any) -> Tensor:
        policy = self.policy

        class Renamed:
            pick = policy.pick

            @staticmethod
            def fill(*given: Any, **where: Any) -> Tensor:
                return policy.fill(*given, **{**where, "sublayer": "attention", "layer": 0})

        self.policy = Renamed()
        try:
            return real(self, x, sub)
        finally:
            self.policy = policy

    patch.setattr(sub_layers.SubLayers, "_on_picked", on_picked)


def remembers_nothing_but_zeros(patch: pytest.MonkeyPatch) -> None:
    real = State.remember
    patch.setattr(State, "remember", lambda self, key, name, output: real(self, key, name, torch.zeros_like(output)))


def notes_live_on(patch: pytest.MonkeyPatch) -> None:
    real = State.forget

    def forget(self: Any, key: Any, name: str) -> None:
        if "noted" not in name or inspect.stack()[1].function == "remember":
            real(self, key, name)

    patch.setattr(State, "forget", forget)


def forgets_what_was_noted(patch: pytest.MonkeyPatch) -> None:
    real = sub_layers.SubLayers._told

    def told(self: Any, sub: Any) -> dict[str, Any]:
        found = real(self, sub)
        return {**found, "noted_Rn": torch.zeros_like(found["noted_Rn"])}

    patch.setattr(sub_layers.SubLayers, "_told", told)


def notes_of_what_the_sub_layer_left(patch: pytest.MonkeyPatch) -> None:
    real = sub_layers.SubLayers._noted
    patch.setattr(sub_layers.SubLayers, "_noted", lambda self, x, output, sub: real(self, x + output, output, sub))


def computes_an_ffn_twice(patch: pytest.MonkeyPatch) -> None:
    real = sub_layers.SubLayers.run

    def sub_layer(self: Any, stream: Any, sub: Any) -> Tensor:
        if sub.name == "ffn" and not sub.planned.picked:
            sub.compute(sub.normed(stream.whole()))
        return real(self, stream, sub)

    patch.setattr(sub_layers.SubLayers, "run", sub_layer)


def leaves_out_half_of_each_ffn(patch: pytest.MonkeyPatch) -> None:
    def into(self: FeedForward, x: Tensor, dtype: torch.dtype) -> Tensor:
        half = self.fc1.out_features // 2
        return F.gelu(F.linear(x.to(dtype), self.fc1.weight[:half], self.fc1.bias[:half]), approximate="tanh")

    patch.setattr(FeedForward, "into", into)
    patch.setattr(
        FeedForward,
        "out",
        lambda self, made, dtype: F.linear(made, self.fc2.weight[:, : made.shape[-1]], self.fc2.bias),
    )


def computes_an_ffn_twice_unseen(patch: pytest.MonkeyPatch) -> None:
    real = generate._Run._call

    def call(self: Any, stream: Any, call: Any) -> Tensor:
        call.block.ffn(stream.whole(), self.dtype)
        return real(self, stream, call)

    patch.setattr(generate._Run, "_call", call)


def computes_all_tokens_and_takes_the_picked(patch: pytest.MonkeyPatch) -> None:
    def on_picked(self: Any, x: Tensor, sub: Any) -> Tensor:
        key, scale, places = sub.call.key, sub.call.step.samples, sub.places_Rn
        part = (sub.compute(sub.normed(x)) * sub.gamma_R1C).gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        remembered = self.state.recall(key, sub.name)
        return self.policy.fill(
            part, places, remembered, length=x.shape[1], layer=key.layer, scale=scale, sublayer=sub.name
        )

    patch.setattr(sub_layers.SubLayers, "_on_picked", on_picked)


def runs_both_branches_to_the_end(patch: pytest.MonkeyPatch) -> None:
    real = compiler._branches
    patch.setattr(engine_pipeline, "compile_plan", _with(compiler, "_branches", lambda *given: [2] * len(real(*given))))


def guides_by_the_official_ramp(patch: pytest.MonkeyPatch) -> None:
    real = generate._Run.step

    def step(self: Any, step: Any, *given: Any) -> Tensor:
        return real(self, replace(step, strength=step.samples / 5), *given)

    patch.setattr(generate._Run, "step", step)


def _attention_for_both(patch: pytest.MonkeyPatch, changed: Callable[[Any, int], Any]) -> None:
    """Where attention is shared, it is added to the stream otherwise."""
    real = sub_layers.SubLayers.run

    def sub_layer(self: Any, stream: Any, sub: Any) -> Any:
        shared = sub.name == "attention" and sub.call.step.shares
        return real(self, stream, changed(sub, len(sub.gamma_R1C) // 2) if shared else sub)

    patch.setattr(sub_layers.SubLayers, "run", sub_layer)


def gives_the_unlabelled_branch_no_attention(patch: pytest.MonkeyPatch) -> None:
    def changed(sub: Any, batch: int) -> Any:
        def compute(hidden: Tensor) -> Tensor:
            given: Tensor = sub.compute(hidden)
            given[batch:] = 0
            return given

        return replace(sub, compute=compute)

    _attention_for_both(patch, changed)


def gates_one_attention_once_for_both(patch: pytest.MonkeyPatch) -> None:
    _attention_for_both(patch, lambda sub, batch: replace(sub, gamma_R1C=sub.gamma_R1C[:batch].repeat(2, 1, 1)))


def gives_one_images_attention_to_all(patch: pytest.MonkeyPatch) -> None:
    def changed(sub: Any, batch: int) -> Any:
        return replace(sub, compute=lambda hidden: sub.compute(hidden)[[*range(batch), *[0] * batch]])

    _attention_for_both(patch, changed)


def conditions_the_unlabelled_branch_on_a_class(patch: pytest.MonkeyPatch) -> None:
    real = generate.condition

    def condition(backbone: Any, labels: Tensor, *, unlabelled: bool, **given: Any) -> Conditioning:
        every = torch.cat((labels, torch.zeros_like(labels))) if unlabelled else labels
        return real(backbone, every, unlabelled=False, **given)

    patch.setattr(generate, "condition", condition)


def lets_tokens_look_ahead(patch: pytest.MonkeyPatch) -> None:
    real = generate.coarser_or_own
    patch.setattr(generate, "coarser_or_own", lambda counts, device: torch.ones_like(real(counts, device)))


def reads_what_was_encoded_before_it_came_again(patch: pytest.MonkeyPatch) -> None:
    real = cache_uses.Caches._kept

    def kept(self: Any, key: Any, entries: Any, specs: list[StepSpec], group: int) -> Any:
        return real(self, key, entries, [replace(spec, scales=spec.scales[-1:]) for spec in specs], group)

    patch.setattr(cache_uses.Caches, "_kept", kept)


def encodes_again_from_another_map(patch: pytest.MonkeyPatch) -> None:
    real = generate._Run._embed

    def embed(self: Any, step: Any, backbone: Any, conditioning: Any, features: Any) -> Tensor:
        earlier = {scale: tensor if scale == step.samples else 0.9 * tensor for scale, tensor in features.items()}
        return real(self, step, backbone, conditioning, earlier)

    patch.setattr(generate._Run, "_embed", embed)


def encodes_the_first_scale_again_of_another_class(patch: pytest.MonkeyPatch) -> None:
    real = generate.first_again
    patch.setattr(generate, "first_again", lambda backbone, labels, *, rows: real(backbone, labels.flip(0), rows=rows))


def _with(module: Any, name: str, other: Any) -> Any:
    """`compile_plan` while another function stands in its module."""

    def compile_plan(*given: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, other)
            return compiler.compile_plan(*given, **options)

    return compile_plan


def stores_as_upstream_does(patch: pytest.MonkeyPatch) -> None:
    real = State.__init__
    patch.setattr(State, "__init__", lambda self, *, accounting, **types: real(self, accounting="upstream", **types))


def compiles_upstream_as_lossless(patch: pytest.MonkeyPatch) -> None:
    real = compiler.compile_plan

    def compile_plan(*given: Any, accounting: str, **options: Any) -> Any:
        return real(*given, accounting="lossless", **options)

    patch.setattr(engine_pipeline, "compile_plan", compile_plan)


def stores_in_the_compute_type(patch: pytest.MonkeyPatch) -> None:
    real = State.__init__

    def init(self: Any, *, accounting: Any, form: Any) -> None:
        real(self, accounting=accounting, form=PlainForm(torch.float32, torch.float32))

    patch.setattr(State, "__init__", init)


def tells_of_twice_the_attention(patch: pytest.MonkeyPatch) -> None:
    real = generate.attention_paid
    patch.setattr(generate, "attention_paid", lambda *given, **named: 2 * real(*given, **named))


def observes_the_first_queries(patch: pytest.MonkeyPatch) -> None:
    real = generate.attention_paid

    def paid(queries: Tensor, keys: Tensor, **named: Any) -> Tensor:
        return real(queries[:, :, :1].expand_as(queries), keys, **named)

    patch.setattr(generate, "attention_paid", paid)


def forgets_what_was_paid_before(patch: pytest.MonkeyPatch) -> None:
    real = State.recall

    def recall(self: Any, key: Any, name: str) -> Tensor | None:
        found = real(self, key, name)
        return None if found is None or "paid" in name else found

    patch.setattr(State, "recall", recall)


def drops_what_should_be_merged(patch: pytest.MonkeyPatch) -> None:
    def gathered(keys: Tensor, values: Tensor, places: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        index = places.unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, index), values.gather(2, index)

    patch.setattr(generate, "merged", gathered)


def merges_all_alike(patch: pytest.MonkeyPatch) -> None:
    real = generate.merged
    patch.setattr(generate, "merged", lambda keys, values, places, weights: real(keys, values, places))


def stores_codes_as_floats(patch: pytest.MonkeyPatch) -> None:
    real = EncodedForm.stored
    patch.setattr(EncodedForm, "stored", lambda self, keys, values: tuple(p.float() for p in real(self, keys, values)))


def reads_codes_without_their_scales(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EncodedForm, "read", lambda self, parts: (parts[0].float() / 127, parts[2].float() / 127))


@pytest.mark.parametrize(
    ("put_in", "promise", "method"),
    [
        (freed_caches_stay, "trace_equals_plan", Plugin()),
        (freed_caches_live_on_elsewhere, "trace_equals_plan", Plugin()),
        (freed_caches_live_on_elsewhere, "state_bytes_reachable", "full_var"),
        (forgotten_maps_stay, "trace_equals_plan", Plugin()),
        (notes_live_on, "trace_equals_plan", Noting()),
        (forgets_what_was_noted, "picked_is_what_is_computed", Noting()),
        (remembers_nothing_but_zeros, "picked_is_what_is_computed", Noting()),
        (notes_of_what_the_sub_layer_left, "picked_is_what_is_computed", Noting()),
        (an_ended_branch_stays_behind_a_view, "trace_equals_plan", Plugin()),
        (vectors_of_an_ended_branch_stay_behind_a_view, "state_bytes_reachable", Plugin()),
        (runs_both_branches_to_the_end, "plan_stable", Plugin()),
        (guides_by_the_official_ramp, "guided_as_planned", Plugin()),
        (gives_the_unlabelled_branch_no_attention, "unlabelled_equals_teacher", SharesAttention()),
        (gives_the_unlabelled_branch_no_attention, "unlabelled_equals_teacher", "guidance@share4"),
        (gives_the_unlabelled_branch_no_attention, "unlabelled_equals_teacher", "guidance@share5+h2o@b50"),
        (gates_one_attention_once_for_both, "unlabelled_equals_teacher", SharesAttention()),
        (gives_one_images_attention_to_all, "unlabelled_equals_teacher", AgainWithOneAttention()),
        (gives_one_images_attention_to_all, "unlabelled_equals_teacher", SharesAttention()),
        (conditions_the_unlabelled_branch_on_a_class, "unlabelled_equals_teacher", "full_var"),
        (keeps_the_first_entries_instead_of_the_picked, "kept_is_what_is_read", Plugin()),
        (keeps_fewer_entries_than_planned, "trace_equals_plan", Plugin()),
        (keeps_fewer_entries_than_planned, "trace_equals_plan", "scale_window@w1"),
        (keeps_other_scales_than_planned, "kept_is_what_is_read", "scale_window@w1"),
        (computes_the_first_tokens_instead_of_the_picked, "picked_is_what_is_computed", Plugin()),
        (fills_in_at_other_places, "picked_is_what_is_computed", Plugin()),
        (fills_in_under_another_name, "picked_is_what_is_computed", Plugin()),
        (remembers_nothing_but_zeros, "picked_is_what_is_computed", Plugin()),
        (computes_all_tokens_and_takes_the_picked, "trace_equals_plan", Plugin()),
        (computes_an_ffn_twice, "trace_equals_plan", "full_var"),
        (leaves_out_half_of_each_ffn, "trace_equals_plan", "full_var"),
        (computes_an_ffn_twice_unseen, "measured_flops_equal_plan", "full_var"),
        (stores_as_upstream_does, "trace_equals_plan", "full_var"),
        (compiles_upstream_as_lossless, "plan_stable", "full_var:accounting=upstream"),
        (stores_in_the_compute_type, "trace_equals_plan", Narrow()),
        (tells_of_twice_the_attention, "attention_told_was_paid", Looks()),
        (observes_the_first_queries, "attention_told_was_paid", Looks()),
        (forgets_what_was_paid_before, "attention_told_was_paid", Looks()),
        (drops_what_should_be_merged, "kept_is_what_is_read", Looks()),
        (merges_all_alike, "kept_is_what_is_read", Looks()),
        (lets_tokens_look_ahead, "kept_is_what_is_read", Again()),
        (reads_what_was_encoded_before_it_came_again, "kept_is_what_is_read", Again()),
        (encodes_again_from_another_map, "teacher_equals_cached", Again()),
        (encodes_the_first_scale_again_of_another_class, "teacher_equals_cached", Again()),
        (stores_codes_as_floats, "trace_equals_plan", EightBits()),
        (reads_codes_without_their_scales, "kept_is_what_is_read", EightBits()),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else type(value).__name__),
)
def test_a_bug_breaks_its_promise(
    monkeypatch: pytest.MonkeyPatch, put_in: Callable[[pytest.MonkeyPatch], None], promise: str, method: object
) -> None:
    put_in(monkeypatch)
    assert broken(method, promise) == {promise}
