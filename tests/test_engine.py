"""The engine does what the plan says, and only that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import models
import naive_var
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from varbench import rows
from varbench.check.allocations import Watched
from varbench.engine.captured import can_be_captured
from varbench.engine.generate import Generated, Sampling, generate
from varbench.engine.kernel import KernelSeen, attention_kernel
from varbench.engine.sampler import streams, uniforms
from varbench.engine.storages import Storages
from varbench.engine.teacher import TeacherPass
from varbench.engine.trained_layer import explicit_attention
from varbench.errors import PlanError, UserError, WrongOutputError
from varbench.model import c_kernels
from varbench.plan import cost
from varbench.plan.compiler import compile_plan
from varbench.plan.decided import WaysTaken
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.state import beside_state, state_over_time
from varbench.plan.steps import Plan
from varbench.plan.trace import Trace, differences, foreseen
from varbench.policies import CacheStrategy, DepthPolicy, GuidancePolicy, StepPolicy, StepSpec, StoredForm, TokenPolicy

STATIC = [
    "full_var", "full_var:accounting=upstream", "variant@full", "variant@d3", "variant@d2:bridge=2", "variant@d1",
    "variant@d3:retain=paper", "variant@d2:nested=true", "fixed_ratio@p05/d2", "code@training_free/n3",
    "code@training_free/n5",
]  # fmt: skip


@pytest.fixture(scope="module")
def pipe():  # type: ignore[no-untyped-def]
    return models.pipeline()


class EveryToken(TokenPolicy):
    """Computes all tokens, but by picking them and filling none."""

    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return models.SPEC.tokens[scale]

    def remembers(self, layer: int, scale: int, sublayer: str) -> bool:
        return True

    def pick(self, x_BLC: Tensor, count: int, **_: object) -> Tensor:
        return torch.arange(count).expand(len(x_BLC), -1)

    def fill(self, computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, **_: object) -> Tensor:
        return torch.zeros_like(computed_BnC).scatter(1, places_Bn.unsqueeze(-1).expand_as(computed_BnC), computed_BnC)


def test_logits_that_are_no_numbers_are_called_so() -> None:
    """As where float16 is too small for a model. They ended in "index out of range", and on a GPU in the end of the process."""
    pipe = models.pipeline()
    with torch.no_grad():
        pipe.backbones["main"].blocks[3].ffn.fc2.bias.fill_(torch.inf)
    with pytest.raises(WrongOutputError, match=r"variant@d3:bridge=2: from scale 1 of 6 \(1x1\) on, logits are NaN"):
        pipe.generate([1, 2], method="variant@d3:bridge=2")


class HalfTheTokens(EveryToken):
    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return models.SPEC.tokens[scale] // 2 if scale > 3 else None

    def fill(
        self, computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, *, length: int, **_: object
    ) -> Tensor:
        full = computed_BnC.new_zeros(len(computed_BnC), length, computed_BnC.shape[-1])
        return full.scatter(1, places_Bn.unsqueeze(-1).expand_as(computed_BnC), computed_BnC)


class SharesPlaces(HalfTheTokens):
    """Picked once a layer, by content."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def shares_places(self, layer: int, scale: int) -> bool:
        return scale == 5

    def pick(self, x_BLC: Tensor, count: int, **where: object) -> Tensor:
        self.asked.append(f"{where['sublayer']} at {where['scale']}")
        return x_BLC.square().sum(dim=-1).topk(count).indices


def left_out(layer: int, scale: int, sublayer: str) -> bool:
    """No attention in every other layer of the fourth and the last scale, no FFN in the first three layers of the last two; in the
    fifth layer never any attention, and in the last never any FFN."""
    if sublayer == "attention":
        return layer == 4 or (scale in (3, 5) and layer % 2 == 0)
    return layer == 5 or (scale > 3 and layer < 3)


class LeavesOut(TokenPolicy):
    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return 0 if left_out(layer, scale, sublayer) else None


class LeavesOutAndPicks(HalfTheTokens):
    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return 0 if left_out(layer, scale, sublayer) else super().tokens(layer, scale, sublayer)

    def remembers(self, layer: int, scale: int, sublayer: str) -> bool:
        return not left_out(layer, scale, sublayer)


class StillGrowing(HalfTheTokens):
    """At the last two scales, the half of the tokens that grew most over the scales before; of the FFN as it adds to them, of
    attention as they come to it. A layer's second call of a step has notes of its own."""

    def notes(self, layer: int, scale: int, sublayer: str) -> int:
        return models.SPEC.tokens[scale] if scale in (1, 2, 3, 4) else 0

    def note(self, x_RLC: Tensor, output_RLC: Tensor, noted_Rn: Tensor | None, **where: Any) -> Tensor:
        sizes_Rn = (x_RLC if where["sublayer"] == "attention" else output_RLC).norm(dim=-1)
        return sizes_Rn if noted_Rn is None else sizes_Rn - stretched(noted_Rn, sizes_Rn.shape[1])

    def pick(self, x_BLC: Tensor, count: int, *, noted_Rn: Tensor | None = None, **_: object) -> Tensor:
        assert noted_Rn is not None
        length = x_BLC.shape[1]  # of tokens with one number the first go before
        return (stretched(noted_Rn, length) - 1e-3 * torch.arange(length)).topk(count).indices


def stretched(noted_Rn: Tensor, count: int) -> Tensor:
    """As many numbers, each that of the nearest place before."""
    return noted_Rn[:, torch.arange(count) * noted_Rn.shape[1] // count]


class EveryEntry(CacheStrategy):
    """Keeps all entries, but by picking them."""

    most = 10_000

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        return self.most

    def pick(self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, **_: object) -> Tensor:
        return torch.arange(count).expand(*keys_BHnc.shape[:2], -1)


class FewEntries(EveryEntry):
    most = 9


class Heaviest(EveryEntry):
    """The entries that were paid most attention, by every third query, over all scales; the others merged into them."""

    most = 9

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        return range(0, count, 3)

    def accumulates(self, layer: int, group: int) -> bool:
        return layer % 2 == 0

    def merges(self, layer: int, scale: int, group: int) -> bool:
        return scale == models.SPEC.scales - 2

    def pick(self, keys_BHnc: Tensor, queries_BHLc: Tensor, count: int, **where: object) -> Tensor:
        paid = where["attention_BHn"]
        assert isinstance(paid, Tensor)
        return paid.topk(count).indices.sort().values


class HeaviestOfTwoGroups(Heaviest):
    def head_groups(self, layer: int) -> Sequence[Sequence[int]] | None:
        return ((1, 3), (0, 2))

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        return 20 if group else 7


class EightBits(CacheStrategy):
    @property
    def form(self) -> StoredForm:
        return StoredForm(encode=eight_bits, decode=lambda parts: parts[0] * parts[1], bits=8, extra_bytes=4)


def eight_bits(x_BHnc: Tensor) -> tuple[Tensor, Tensor]:
    scale = x_BHnc.float().abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127
    return (x_BHnc / scale).round().to(torch.int8), scale


class TwoGroups(CacheStrategy):
    def head_groups(self, layer: int) -> Sequence[Sequence[int]] | None:
        return ((1, 3), (0, 2))


class RecentScales(CacheStrategy):
    """The first scale and the last two; in one group of heads everything."""

    def head_groups(self, layer: int) -> Sequence[Sequence[int]] | None:
        return ((1, 3), (0, 2))

    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        return group == 1 or written == 0 or reader - written <= 2


class LateGuidanceOff(GuidancePolicy):
    def branches(self, scale: int):  # type: ignore[no-untyped-def]
        return "both" if scale < 4 else "labelled"


class Labelled(GuidancePolicy):
    def branches(self, scale: int):  # type: ignore[no-untyped-def]
        return "labelled"


class WithoutLast(StepPolicy):
    def steps(self) -> Sequence[StepSpec]:
        return [StepSpec(scales=(scale,)) for scale in (0, 1, 2, 4)]


class EncodesAgain(StepPolicy):
    """The fourth scale encodes the two before it again, the last all of them."""

    def steps(self) -> Sequence[StepSpec]:
        again = {3: (1, 2, 3), 5: (0, 1, 2, 3, 4, 5)}
        return [StepSpec(scales=again.get(scale, (scale,))) for scale in range(6)]


class FewLayersFirst(DepthPolicy):
    """Some layers draft, and all of them run where scales are encoded again."""

    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        return range(models.SPEC.depth) if scale == 5 else (0, 2) if scale == 3 else (0, 1, 3)


class TwiceTheFirst(DepthPolicy):
    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        return (0, 2, 0) if scale > 2 else (0, 1, 2, 0)


class OtherOrders(DepthPolicy):
    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        return (1, 0) if scale > 2 else (0, 1)


def own(policy: object) -> Owned:  # type: ignore[type-arg]
    return Owned(plugin="test", policy=policy)


CUSTOM = {
    "every token": RowPolicies(name="tokens", tokens=own(EveryToken())),
    "half the tokens": RowPolicies(name="half", tokens=own(HalfTheTokens())),
    "shared places": RowPolicies(name="shared", guidance=own(LateGuidanceOff()), tokens=own(SharesPlaces())),
    "halves left out": RowPolicies(name="left out", tokens=own(LeavesOut())),
    "halves left out, and others picked": RowPolicies(name="picks too", tokens=own(LeavesOutAndPicks())),
    "halves left out where a branch ends": RowPolicies(
        name="left out", guidance=own(LateGuidanceOff()), tokens=own(LeavesOut()), caches=(own(FewEntries()),)
    ),
    "halves left out of a layer that runs twice": RowPolicies(
        name="left out", depth=own(TwiceTheFirst()), tokens=own(LeavesOut())
    ),
    "picked by notes": RowPolicies(name="notes", guidance=own(LateGuidanceOff()), tokens=own(StillGrowing())),
    "picked by notes in a layer that runs twice": RowPolicies(
        name="notes", depth=own(TwiceTheFirst()), tokens=own(StillGrowing())
    ),
    "every entry": RowPolicies(name="entries", caches=(own(EveryEntry()),)),
    "few entries": RowPolicies(name="few", caches=(own(FewEntries()),)),
    "heaviest entries": RowPolicies(name="heaviest", caches=(own(Heaviest()),)),
    "heaviest of two groups": RowPolicies(
        name="heavy groups", guidance=own(LateGuidanceOff()), caches=(own(HeaviestOfTwoGroups()),)
    ),
    "eight bits": RowPolicies(name="eight", caches=(own(EightBits()),)),
    "heaviest in eight bits": RowPolicies(name="both", caches=(own(EightBits()), own(Heaviest()))),
    "recent scales in eight bits": RowPolicies(name="both", caches=(own(EightBits()), own(RecentScales()))),
    "two groups": RowPolicies(name="groups", caches=(own(TwoGroups()),)),
    "recent scales": RowPolicies(name="recent", caches=(own(RecentScales()),)),
    "guidance off": RowPolicies(name="guidance", guidance=own(LateGuidanceOff())),
    "few and guidance": RowPolicies(name="both", guidance=own(LateGuidanceOff()), caches=(own(FewEntries()),)),
    "skipped scales": RowPolicies(name="skip", steps=own(WithoutLast())),
    "encoded again": RowPolicies(name="again", steps=own(EncodesAgain())),
    "a draft encoded again": RowPolicies(name="draft", steps=own(EncodesAgain()), depth=own(FewLayersFirst())),
    "a draft encoded again of which little is kept": RowPolicies(
        name="little",
        steps=own(EncodesAgain()),
        depth=own(FewLayersFirst()),
        guidance=own(LateGuidanceOff()),
        caches=(own(RecentScales()),),
    ),
    "a layer twice": RowPolicies(name="twice", depth=own(TwiceTheFirst())),
}


def run(pipe, row: RowPolicies, **changes: object) -> tuple[Plan, Generated]:  # type: ignore[no-untyped-def]
    plan = compile_plan(pipe.model, row)
    made = generate(
        plan, row, backbones=pipe.backbones, tokenizer=pipe.tokenizer, labels_B=models.LABELS,
        streams_B1=streams(torch.arange(len(models.LABELS)), seed=3), sampling=Sampling(top_k=20, top_p=0.95),
        dtype=torch.float32, **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    return plan, made


def assert_seen_as_planned(trace: Trace, plan: Plan, dtype: str = "float32", taken: WaysTaken = ()) -> None:
    planned = foreseen(plan, batch=len(models.LABELS), dtype=dtype, taken=taken)
    assert list(differences(planned, trace)) == []
    assert trace == planned and trace.digest == planned.digest


@pytest.mark.parametrize("method", STATIC)
def test_trace_equals_plan(pipe, method: str) -> None:  # type: ignore[no-untyped-def]
    out = pipe.generate(models.LABELS, seed=1, method=method)
    assert_seen_as_planned(out.trace, out.plan)


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_policies_do_what_their_plan_says(pipe, name: str) -> None:  # type: ignore[no-untyped-def]
    plan, made = run(pipe, CUSTOM[name])
    assert_seen_as_planned(made.trace, plan)


def test_whoever_picks_and_fills_is_told_where(pipe) -> None:  # type: ignore[no-untyped-def]
    told = []

    class Told(HalfTheTokens):
        def pick(self, x_BLC: Tensor, count: int, **where: object) -> Tensor:
            told.append(("pick", where["layer"], where["scale"], where["sublayer"]))
            return super().pick(x_BLC, count, **where)

        def fill(self, computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, **where: Any) -> Tensor:
            told.append(("fill", where["layer"], where["scale"], where["sublayer"]))
            return super().fill(computed_BnC, places_Bn, remembered_BlC, **where)

    run(pipe, RowPolicies(name="told", tokens=own(Told())))
    places = product((4, 5), range(models.SPEC.depth), ("attention", "ffn"), ("pick", "fill"))
    assert told == [(what, layer, scale, sublayer) for scale, layer, sublayer, what in places]


def test_places_that_are_shared_are_picked_once(pipe) -> None:  # type: ignore[no-untyped-def]
    policy = SharesPlaces()
    plan = run(pipe, RowPolicies(name="shared", tokens=own(policy)))[0]
    assert policy.asked == ["attention at 4", "ffn at 4"] * 6 + ["attention at 5"] * 6
    assert plan.to_json()["steps"][5]["calls"][0]["shared"] and "shared" not in plan.to_json()["steps"][4]["calls"][0]


@pytest.mark.parametrize("name", ["every token", "every entry", "two groups"])
def test_neutral_policies_give_the_full_model(pipe, name: str) -> None:  # type: ignore[no-untyped-def]
    full = run(pipe, RowPolicies(name="full"))[1].tokens_BL
    assert torch.equal(run(pipe, CUSTOM[name])[1].tokens_BL, full)


@pytest.mark.parametrize(
    "name", ["half the tokens", "few entries", "recent scales", "guidance off", "skipped scales", "halves left out"]
)
def test_policies_that_change_something_change_the_images(pipe, name: str) -> None:  # type: ignore[no-untyped-def]
    full = run(pipe, RowPolicies(name="full"))[1].tokens_BL
    assert not torch.equal(run(pipe, CUSTOM[name])[1].tokens_BL, full)


@pytest.mark.parametrize("name", CUSTOM)
def test_all_that_lives_between_steps_is_in_the_plan(pipe, name: str) -> None:  # type: ignore[no-untyped-def]
    """To the byte, whoever holds it: state, and what the loop needs beside it."""
    run(pipe, CUSTOM[name])
    watched = Watched()
    with watched:
        plan, made = run(pipe, CUSTOM[name], observer=watched.observe)
    beside = beside_state(plan, batch=len(models.LABELS), dtype="float32")
    labels = models.LABELS.nbytes  # which were there before
    expected = [state + other - labels for state, other in zip(made.trace.state_after, beside, strict=True)]
    assert watched.held.storages == expected


def test_what_is_noted_is_state_until_it_is_last_used(pipe) -> None:  # type: ignore[no-untyped-def]
    """One number a token of each sub-layer, of every row, in place of the one before; and none where nothing is picked by it."""
    plan = run(pipe, RowPolicies(name="notes", tokens=own(StillGrowing())))[0]
    bare = run(pipe, RowPolicies(name="bare", tokens=own(HalfTheTokens())))[0]
    rows, places, item = 2 * len(models.LABELS), 2 * models.SPEC.depth, 2
    noted = [
        after - other
        for (_, after), (_, other) in zip(
            *(state_over_time(one, batch=len(models.LABELS), dtype="bfloat16") for one in (plan, bare)), strict=True
        )
    ]
    assert noted == [rows * places * item * count for count in (0, *models.SPEC.tokens[1:5], 0)]
    assert plan.digest != bare.digest and plan.to_json()["steps"][2]["calls"][0]["noted"] == [9, 9]
    assert "notes 9 numbers" in str(plan) and "notes" not in str(bare)

    class ForNothing(StillGrowing):
        def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
            return super().tokens(layer, scale, sublayer) if scale < 3 else None

    assert compile_plan(pipe.model, RowPolicies(name="x", tokens=own(ForNothing()))).steps == full_steps(pipe.model)


def full_steps(model: Any) -> Any:
    return compile_plan(model, RowPolicies(name="full")).steps


def test_rows_that_are_noted_cost_what_the_policy_says(pipe) -> None:  # type: ignore[no-untyped-def]
    """Also at scales where nothing is picked."""

    class Costly(StillGrowing):
        def picking_flops(self, layer: int, scale: int, sublayer: str) -> int:
            return 1000 if sublayer == "ffn" else 0

    plan, made = run(pipe, RowPolicies(name="costly", tokens=own(Costly())))
    counted = [step.choosing for step in cost.flops_of(made.trace.steps, plan)]
    assert counted == [0, *[1000 * 2 * len(models.LABELS) * models.SPEC.depth] * 5]


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        (lambda sizes: sizes[:, 1:], r"note gave \(10, 3\) of torch.float32, not \(10, 4\)"),
        (lambda sizes: sizes.long(), r"note gave \(10, 4\) of torch.int64, not \(10, 4\) of a type with fractions"),
    ],
)
def test_other_notes_than_declared_are_refused(pipe, noted: Any, said: str) -> None:  # type: ignore[no-untyped-def]
    class Wrong(StillGrowing):
        def note(self, x_RLC: Tensor, output_RLC: Tensor, noted_Rn: Tensor | None, **where: Any) -> Tensor:
            made: Tensor = noted(super().note(x_RLC, output_RLC, noted_Rn, **where))
            return made

    with pytest.raises(ValueError, match=said):
        run(pipe, RowPolicies(name="wrong", tokens=own(Wrong())))


def test_a_view_keeps_its_bytes_alive() -> None:
    storages = Storages()
    whole = torch.zeros(8, 4)
    storages.take(whole, whole[2:])
    assert storages.nbytes == whole.nbytes
    part = whole[:2]
    storages.let_go(whole)
    del whole
    assert storages.nbytes == 8 * 4 * 4
    del part
    assert storages.nbytes == 0


def test_one_image_of_one_branch_holds_no_more_than_it_needs(pipe) -> None:  # type: ignore[no-untyped-def]
    """A single row's values are a contiguous part of a larger tensor, which must not live on in their name."""
    row = RowPolicies(name="labelled", guidance=own(Labelled()))
    plan = compile_plan(pipe.model, row, accounting="upstream")
    made = generate(
        plan, row, backbones=pipe.backbones, tokenizer=pipe.tokenizer, labels_B=models.LABELS[:1],
        streams_B1=streams(torch.arange(1), seed=0), sampling=Sampling(), dtype=torch.float32,
    )  # fmt: skip
    assert made.trace == foreseen(plan, batch=1, dtype="float32")


@pytest.mark.parametrize(("backend", "name"), [
    (SDPBackend.MATH, "scaled_dot_product_attention_math"),
    (SDPBackend.FLASH_ATTENTION, "scaled_dot_product_flash_attention_for_cpu"),
])  # fmt: skip
def test_the_kernel_is_the_one_that_ran(pipe, backend: SDPBackend, name: str) -> None:  # type: ignore[no-untyped-def]
    with sdpa_kernel(backend):
        seen = attention_kernel(lambda: pipe.generate(models.LABELS))
    arithmetic = "products float32 by oneDNN; convolutions float32 channels last"
    passes = "; passes in C" if c_kernels.there(torch.float32) else ""
    assert seen == KernelSeen(name=name, arithmetic=arithmetic + passes)


def test_attention_that_is_written_out_has_no_kernel() -> None:
    q = torch.randn(1, 2, 3, 4)
    seen = attention_kernel(lambda: explicit_attention(q, q, q, torch.ones(3, 3, dtype=torch.bool), 1.0))
    assert seen.name is None
    assert "written out" in str(seen.missing)


def test_images_do_not_depend_on_the_batch(pipe) -> None:  # type: ignore[no-untyped-def]
    labels = torch.arange(24) % 10
    whole = pipe.generate(labels, seed=5, top_p=0.95).tokens
    parts = [
        pipe.generate(labels[i : i + n], seed=5, top_p=0.95, first_image=i).tokens for i, n in ((0, 1), (1, 7), (8, 16))
    ]
    assert (torch.cat(parts) == whole).float().mean() >= 0.999
    assert torch.equal(pipe.generate(labels, seed=5, top_p=0.95).tokens, whole)
    assert not torch.equal(pipe.generate(labels, seed=6, top_p=0.95).tokens, whole)


def test_uniform_numbers_are_uniform_and_never_shared() -> None:
    images = torch.arange(64)
    noise = [uniforms(streams(images, seed=s), scale=k, count=49) for s in (0, 1) for k in (0, 1)]
    numbers = torch.stack(noise).flatten()
    assert len(numbers.unique()) > len(numbers) * 0.999
    assert 0 <= numbers.min()
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 1 / 12) < 0.005
    assert torch.equal(uniforms(streams(images[7:9], seed=0), scale=0, count=49), noise[0][7:9])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("accounting", ["lossless", "upstream"])
def test_lower_precision_stays_near(pipe, dtype: str, accounting: str) -> None:  # type: ignore[no-untyped-def]
    method = f"full_var:accounting={accounting}"
    tokens = pipe.generate(models.LABELS, seed=2).tokens
    exact = pipe.generate(models.LABELS, tokens=tokens, return_logits=True).logits
    half = models.pipeline(dtype=dtype).generate(models.LABELS, tokens=tokens, return_logits=True, method=method)
    assert (half.logits - exact).abs().mean() / exact.std() < (0.05 if dtype == "bfloat16" else 0.01)
    assert_seen_as_planned(half.trace, half.plan, dtype)


def test_upstream_keys_cost_half_as_much_again() -> None:
    pipe = models.pipeline(dtype="bfloat16")
    out = pipe.generate(models.LABELS, method="full_var:accounting=upstream")
    per_token = 6 * 64 * (4 + 2) * 2 * len(models.LABELS)
    assert out.trace.state_after[-1] == models.SPEC.length * per_token
    assert out.trace.state_after[-1] == cost.work(out.plan, batch=len(models.LABELS), dtype="bfloat16").state_end


@pytest.mark.parametrize("method", [m for m in STATIC if "upstream" not in m])
def test_teacher_forcing_equals_cached_generation(pipe, method: str) -> None:  # type: ignore[no-untyped-def]
    out = pipe.generate(models.LABELS, seed=4, cfg=0.0, method=method, return_logits=True)
    assert (pipe.logits(out.tokens, models.LABELS, method=method) - out.logits).abs().max() < 2e-5


@pytest.mark.parametrize(
    "name",
    [
        "two groups",
        "recent scales",
        "a layer twice",
        "guidance off",
        "halves left out",
        "halves left out of a layer that runs twice",
        "encoded again",
        "a draft encoded again",
        "a draft encoded again of which little is kept",
    ],
)
def test_teacher_forcing_follows_the_plan_of_any_static_policy(pipe, name: str) -> None:  # type: ignore[no-untyped-def]
    plan = compile_plan(pipe.model, CUSTOM[name])
    made = generate(
        plan, CUSTOM[name], backbones=pipe.backbones, tokenizer=pipe.tokenizer, labels_B=models.LABELS,
        streams_B1=streams(torch.arange(5), seed=0), sampling=Sampling(cfg=0.0), dtype=torch.float32, return_logits=True,
    )  # fmt: skip
    features = pipe.tokenizer.teacher_input(made.tokens_BL)
    for trains, recompute in ((True, False), (True, True), (False, False)):
        with torch.set_grad_enabled(trains):
            logits = TeacherPass(plan, "main", recompute=recompute).logits(
                pipe.backbones["main"], features, models.LABELS, dtype=torch.float32, attend=explicit_attention
            )
        assert (logits - made.logits_BLV).abs().max() < 2e-5


def test_a_draft_that_is_encoded_again_against_loops(pipe) -> None:  # type: ignore[no-untyped-def]
    """Row by row of two images, with lists for caches from which a scale goes when it comes again, and scores left out one by
    one."""
    labels, steps = models.LABELS[:2].tolist(), EncodesAgain().steps()
    made = run(pipe, CUSTOM["a draft encoded again"], return_logits=True)[1]
    tokens_BL = made.tokens_BL[:2]
    rule = {
        "again": lambda scale: steps[scale].scales[:-1],
        "layers_at": lambda scale: FewLayersFirst().layers(scale, "main"),
    }
    by_hand = naive_var.logits(pipe, tokens_BL, labels, cfg=1.5, **rule)
    torch.testing.assert_close(made.logits_BLV[:2], by_hand, rtol=1e-3, atol=1e-3)
    without = naive_var.logits(pipe, tokens_BL, labels, cfg=1.5, layers_at=rule["layers_at"])
    assert (without - by_hand).abs().max() > 1e-1


def test_what_is_encoded_again_as_it_was_changes_nothing(pipe) -> None:  # type: ignore[no-untyped-def]
    """By the same layers, it gives what it gave; the tokens are the full model's."""
    full = run(pipe, RowPolicies(name="full"), return_logits=True)[1]
    again = run(pipe, CUSTOM["encoded again"], return_logits=True, forced_BL=full.tokens_BL)[1]
    torch.testing.assert_close(again.logits_BLV, full.logits_BLV, rtol=1e-4, atol=1e-4)
    assert torch.equal(run(pipe, CUSTOM["encoded again"])[1].tokens_BL, full.tokens_BL)


@pytest.mark.parametrize("name", ["encoded again", "a draft encoded again"])
def test_a_cache_that_grows_by_concatenation_lets_go_of_what_comes_again(pipe, name: str) -> None:  # type: ignore[no-untyped-def]
    lossless = run(pipe, CUSTOM[name])[1]
    plan = compile_plan(pipe.model, CUSTOM[name], accounting="upstream")
    made = generate(
        plan, CUSTOM[name], backbones=pipe.backbones, tokenizer=pipe.tokenizer, labels_B=models.LABELS,
        streams_B1=streams(torch.arange(len(models.LABELS)), seed=3), sampling=Sampling(top_k=20, top_p=0.95),
        dtype=torch.float32,
    )  # fmt: skip
    assert_seen_as_planned(made.trace, plan)
    assert torch.equal(made.tokens_BL, lossless.tokens_BL)


def test_what_will_be_encoded_again_is_not_kept(pipe) -> None:  # type: ignore[no-untyped-def]
    """Until then it is read; at the step that encodes it again it is that step's own, and behind it nothing of before is there."""
    plan = compile_plan(pipe.model, CUSTOM["encoded again"])
    uses = [step.calls[0].cache[0] for step in plan.steps]
    tokens = models.SPEC.tokens
    assert [[segment.scale for segment in use.read] for use in uses] == [[], [0], [0, 1], [0], [0, 1, 2, 3], []]
    assert [[segment.scale for segment in use.kept] for use in uses] == [[0], [0, 1], [0], [0, 1, 2, 3], [], []]
    assert [use.own for use in uses] == [tokens[0], tokens[1], tokens[2], sum(tokens[1:4]), tokens[4], sum(tokens)]
    full = compile_plan(pipe.model, RowPolicies(name="full"))
    more = cost.work(plan, batch=1, dtype="float32").transformer_flops
    assert more > cost.work(full, batch=1, dtype="float32").transformer_flops
    assert [step.embedded for step in foreseen(plan, batch=1, dtype="float32").steps] == [
        0, tokens[1], tokens[2], sum(tokens[1:4]), tokens[4], sum(tokens[1:]),
    ]  # fmt: skip


def test_tokens_picked_by_notes_against_loops(pipe) -> None:  # type: ignore[no-untyped-def]
    """Row by row, with lists of numbers for what was noted."""
    labels = models.LABELS.tolist()
    made = run(pipe, RowPolicies(name="notes", tokens=own(StillGrowing())), return_logits=True)[1]

    def noting(layer: int, scale: int, name: str, x: Tensor, output: Tensor, before: Tensor | None) -> Tensor | None:
        if scale not in (1, 2, 3, 4):
            return before
        sizes = [float(one.square().sum().sqrt()) for one in (x if name == "attention" else output)]
        if before is not None:
            sizes = [size - float(before[at * len(before) // len(sizes)]) for at, size in enumerate(sizes)]
        return torch.tensor(sizes)

    def by_notes(layer: int, scale: int, name: str, noted: Tensor | None) -> list[int] | None:
        if scale < 4:
            return None
        assert noted is not None
        count = models.SPEC.tokens[scale]
        numbers = [float(noted[at * len(noted) // count]) - 1e-3 * at for at in range(count)]
        return sorted(range(count), key=numbers.__getitem__)[-(count // 2) :]

    by_hand = naive_var.logits(pipe, made.tokens_BL, labels, cfg=1.5, noting=noting, by_notes=by_notes)
    torch.testing.assert_close(made.logits_BLV, by_hand, rtol=1e-3, atol=1e-3)


def test_halves_that_are_left_out_by_hand(pipe) -> None:  # type: ignore[no-untyped-def]
    labels = [3, 7]
    row = CUSTOM["halves left out"]
    made = generate(
        compile_plan(pipe.model, row), row, backbones=pipe.backbones, tokenizer=pipe.tokenizer, labels_B=torch.tensor(labels),
        streams_B1=streams(torch.arange(2), seed=0), sampling=Sampling(cfg=1.5), dtype=torch.float32, return_logits=True,
    )  # fmt: skip
    by_hand = naive_var.logits(pipe, made.tokens_BL, labels, cfg=1.5, left_out=left_out)
    assert (made.logits_BLV - by_hand).abs().max() < 1e-4
    assert (naive_var.logits(pipe, made.tokens_BL, labels, cfg=1.5) - by_hand).abs().max() > 1e-2


@pytest.mark.parametrize(
    "method",
    ["full_var:accounting=upstream", "code@training_free/n3", "guidance@share4", "skipvar@s84", "dmoe@untrained/m50"],
)
def test_halves_are_left_out_of_rows_of_every_kind(pipe, method: str) -> None:  # type: ignore[no-untyped-def]
    """Also of steps of several scales, where picking single tokens is refused."""
    row = rows.resolve(method, pipe.model)
    halves = replace(row, name="halves", policies=replace(row.policies, tokens=own(LeavesOut())))
    out = pipe.generate(models.LABELS, seed=1, method=halves)
    assert any(not call.cache for step in out.plan.steps for call in step.calls)
    assert_seen_as_planned(out.trace, out.plan, taken=out.trace.taken)


def test_nobody_is_asked_for_halves_that_are_left_out(pipe) -> None:  # type: ignore[no-untyped-def]
    """So that the row may be captured without a word of its own, and a sub-layer that ran nowhere costs nothing."""
    row = RowPolicies(name="left out", tokens=own(LeavesOut()))
    plan = compile_plan(pipe.model, row)
    assert not plan.picks and can_be_captured(plan, row)
    picks = CUSTOM["halves left out, and others picked"]
    assert not can_be_captured(compile_plan(pipe.model, picks), picks)
    for sublayer in ("attention", "ffn"):

        class OneOnly(TokenPolicy):
            def tokens(self, layer: int, scale: int, name: str, run: str = sublayer) -> int | None:
                return None if name == run else 0

        one, made = run(pipe, RowPolicies(name="one", tokens=own(OneOnly())))
        assert_seen_as_planned(made.trace, one)
        (full,) = (cost.work(compile_plan(pipe.model, RowPolicies(name="full")), batch=2, dtype="float32"),)
        work = cost.work(one, batch=2, dtype="float32")
        assert work.block_flops < full.block_flops and work.steps[3].bytes_moved < full.steps[3].bytes_moved
        assert (work.state_peak == 0) == (sublayer == "ffn")
        assert "attention on 0" in str(one) if sublayer == "ffn" else "FFN on 0" in str(one)


def test_layers_in_different_orders_have_no_one_pass(pipe) -> None:  # type: ignore[no-untyped-def]
    row = RowPolicies(name="orders", depth=own(OtherOrders()))
    assert run(pipe, row)[1].trace.steps
    with pytest.raises(PlanError, match="different orders"):
        TeacherPass(compile_plan(pipe.model, row), "main")


@pytest.mark.parametrize("name", ["few entries", "half the tokens"])
def test_content_policies_have_no_teacher_forced_form(pipe, name: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PlanError, match="chooses tokens or cache"):
        TeacherPass(compile_plan(pipe.model, CUSTOM[name]), "main")


def test_depth_switches_without_touching_weights(pipe) -> None:  # type: ignore[no-untyped-def]
    before = {name: tensor.data_ptr() for name, tensor in pipe.backbones["main"].state_dict().items()}
    first = pipe.generate(models.LABELS, method="variant@d2").tokens
    pipe.generate(models.LABELS, method="variant@full")
    assert torch.equal(pipe.generate(models.LABELS, method="variant@d2").tokens, first)
    assert before == {name: tensor.data_ptr() for name, tensor in pipe.backbones["main"].state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [11]}, "label 11 is not a class"),
        ({"labels": [-1]}, "label -1 is not a class"),
        ({"labels": []}, "non-empty"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 65}, "top_k is 65"),
        ({"tokens": torch.zeros(1, 7, dtype=torch.long)}, r"tokens have shape \(1, 7\)"),
    ],
)
def test_bad_requests(pipe, change: dict[str, object], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        pipe.generate(**{"labels": [0], **change})


def test_bad_images(pipe) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"images have shape \(2, 3, 8, 8\)"):
        pipe.encode(torch.zeros(2, 3, 8, 8))
