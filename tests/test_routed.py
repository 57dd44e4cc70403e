"""Methods with routed experts: their rules against plain loops, and that a recipe trains the routers and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import models
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from test_training import DATA, SPEC
from test_training_recipes import STEPS, given, of, trained  # noqa: F401  # a fixture
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from varbench import rows
from varbench.check import check
from varbench.engine.loading import load_pipeline
from varbench.engine.pipeline import Pipeline
from varbench.errors import UserError
from varbench.experts import FfnSeen
from varbench.experts.routers import RoutedExperts, balanced_split, expert_norms, router_loss
from varbench.model.checkpoints import load_transformer
from varbench.model.transformer import OwnNumbers
from varbench.plan import cost, presets
from varbench.plan.compiler import compile_plan
from varbench.plan.trace import otherwise_than_planned
from varbench.record.plan_summary import plan_summary, trace_totals
from varbench.train.recipes import recipe_weights

LABELS = [3, 7]


def ffn_weights(*, width: int, hidden: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(4)
    shapes = {"fc1.weight": (hidden, width), "fc1.bias": (hidden,), "fc2.weight": (width, hidden), "fc2.bias": (width,)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def test_rows_that_point_the_same_way_make_an_expert_and_experts_are_of_equal_size() -> None:
    """Four directions, six units each, of any length and in any order."""
    random = torch.Generator().manual_seed(0)
    group_H = torch.arange(4).repeat(6)
    rows_HC = torch.eye(4)[group_H] + 0.1 * torch.randn(24, 4, generator=random)
    split_EU = balanced_split(rows_HC * torch.rand(24, 1, generator=random).add(0.1), 4, seed=1)
    assert [sorted(set(group_H[units].tolist())) for units in split_EU] in [
        [[a], [b], [c], [d]] for a, b, c, d in _orders()
    ]
    crowded = balanced_split(torch.cat((torch.randn(30, 5, generator=random), torch.ones(10, 5))), 8, seed=1)
    assert crowded.shape == (8, 5) and sorted(crowded.flatten().tolist()) == list(range(40))


def _orders() -> list[tuple[int, ...]]:
    import itertools

    return list(itertools.permutations(range(4)))


def test_clusters_are_tighter_than_chance() -> None:
    rows_HC = F.normalize(torch.randn(128, 16, generator=torch.Generator().manual_seed(2)), dim=1)

    def spread(split_EU: torch.Tensor) -> float:
        return sum(float((rows_HC[units] - rows_HC[units].mean(dim=0)).square().sum()) for units in split_EU)

    assert spread(balanced_split(rows_HC, 8, seed=0)) < 0.93 * spread(torch.arange(128).view(8, 16))


def test_norms_are_those_of_each_experts_output() -> None:
    given_weights = ffn_weights(width=8, hidden=12)
    split_EU = torch.randperm(12, generator=torch.Generator().manual_seed(1)).view(3, 4)
    x_RLC = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
    found = expert_norms(x_RLC, given_weights, split_EU)
    for row in range(2):
        for token in range(5):
            for expert, units in enumerate(split_EU):
                output = torch.zeros(8)
                for unit in units:
                    inner = given_weights["fc1.weight"][unit] @ x_RLC[row, token] + given_weights["fc1.bias"][unit]
                    output += F.gelu(inner, approximate="tanh") * given_weights["fc2.weight"][:, unit]
                assert float(found[row, token, expert]) == pytest.approx(float(output.norm()), rel=1e-4)


def test_the_loss_is_the_mean_square_and_reaches_the_router_alone() -> None:
    weights = ffn_weights(width=8, hidden=12)
    own = {
        "split": torch.arange(12).view(1, 3, 4),
        "down": torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(5)).requires_grad_(),
        "up": torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(6)).requires_grad_(),
    }
    x_RLC = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(7))
    loss = router_loss(FfnSeen(layer=0, hidden_RLC=x_RLC, output_RLC=x_RLC, weights=weights), own)
    true = expert_norms(x_RLC, weights, own["split"][0])
    total = 0.0
    for token in range(4):
        inner = F.gelu(own["down"][0] @ x_RLC[0, token])
        for expert in range(3):
            total += (abs(float((own["up"][0, expert] @ inner).detach())) - float(true[0, token, expert])) ** 2
    assert float(loss.detach()) == pytest.approx(total / 12, rel=1e-4)
    loss.backward()
    assert own["down"].grad is not None and own["down"].grad.abs().sum() > 0


class OnlyTheseUnits(torch.nn.Module):
    """The dense FFN without the units of experts that are not among a token's best, from the fourth scale on."""

    def __init__(self, ffn: Any, own: dict[str, torch.Tensor], layer: int, count: int) -> None:
        super().__init__()
        self.ffn, self.layer, self.count, self.numbers = ffn, layer, count, [own]

    def forward(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self.tokens = x.shape[1]
        hidden = F.gelu(F.linear(x, self.ffn.fc1.weight, self.ffn.fc1.bias), approximate="tanh")
        down, up, split = (self.numbers[0][name][self.layer] for name in ("down", "up", "split"))
        for row in range(x.shape[0] if x.shape[1] >= 16 else 0):
            for token in range(x.shape[1]):
                norms = [abs(float(u @ F.gelu(down @ x[row, token]))) for u in up]
                hidden[row, token, split[self.left_out(norms)].flatten()] = 0
        return F.linear(hidden, self.ffn.fc2.weight, self.ffn.fc2.bias)

    def left_out(self, norms: list[float]) -> list[int]:
        return sorted(range(len(norms)), key=lambda expert: -norms[expert])[self.count :]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


def test_dmoe_by_its_rule(pipe: Pipeline) -> None:
    """m25 of 8 experts at the last three of six scales: two of each token's experts, those of the largest predicted norms."""
    method = "dmoe@untrained/m25:experts=8"
    ours = pipe.generate(LABELS, seed=2, method=method, return_logits=True)
    own = pipe.backbones_of(method)["main"].own.tensors()
    other = models.pipeline()
    for layer, block in enumerate(other.backbones["main"].blocks):
        block.ffn = OnlyTheseUnits(block.ffn, own, layer, 2)
    theirs = other.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert ours.logits is not None and theirs is not None
    assert (ours.logits - theirs).abs().max() < 1e-4
    full = pipe.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert full is not None and (full - theirs).abs().max() > 1e-2
    # The teacher-forced pass is the same network, before guidance.
    cached = pipe.generate(LABELS, tokens=ours.tokens, cfg=0.0, method=method, return_logits=True).logits
    assert cached is not None
    assert (pipe.logits(ours.tokens, LABELS, method=method) - cached).abs().max() < 1e-3


class NearTheBest(OnlyTheseUnits):
    """The same without the units of experts whose expected norm is clearly below the token's largest."""

    computed = 0
    thresholds: ClassVar = {16: 0.7, 36: 0.7, 64: 0.7}
    """By tokens of a scale."""

    def left_out(self, norms: list[float]) -> list[int]:
        found = [expert for expert, norm in enumerate(norms) if norm < (1 - self.thresholds[self.tokens]) * max(norms)]
        NearTheBest.computed += len(norms) - len(found)
        return found


@pytest.mark.parametrize(("point", "by_scale"), [("t70", (0.7, 0.7, 0.7)), ("t900-500-655", (0.9, 0.5, 0.655))])
def test_dmoe_by_its_threshold(
    pipe: Pipeline, point: str, by_scale: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 experts: what is computed hangs on content, lies within the plan's bounds and is counted as it ran."""
    method = f"dmoe@untrained/{point}:experts=8"
    monkeypatch.setattr(NearTheBest, "thresholds", dict(zip((16, 36, 64), by_scale, strict=True)))
    ours = pipe.generate(LABELS, seed=2, method=method, return_logits=True)
    own = pipe.backbones_of(method)["main"].own.tensors()
    other, NearTheBest.computed = models.pipeline(), 0
    for layer, block in enumerate(other.backbones["main"].blocks):
        block.ffn = NearTheBest(block.ffn, own, layer, 0)
    theirs = other.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert ours.logits is not None and theirs is not None
    assert (ours.logits - theirs).abs().max() < 1e-4
    hidden = sum(call.hidden for step in ours.trace.steps[3:] for call in step.calls)
    assert hidden == 32 * NearTheBest.computed, "units of an expert, for each one that a token computed"
    assert not list(otherwise_than_planned(ours.plan, ours.trace, batch=2, dtype="float32"))
    plan = ours.plan
    assert plan.varies and "1..8 of 8 experts in 6 layers" in str(plan)
    least, most = (count(plan, batch=2, dtype="float32").transformer_flops for count in (cost.least, cost.work))
    ran = trace_totals(ours.trace, plan).flops
    assert ran is not None and least < ran < most
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        again = pipe.generate(LABELS, seed=2, method=method)
    decoder = cost.work(plan, batch=2, dtype="float32").decoder_flops
    assert again.trace == ours.trace
    assert counter.get_total_flops() == pytest.approx(ran + decoder, rel=2e-3)
    summary = plan_summary(plan, batch=2, dtype="float32")
    assert summary.least is not None and (summary.least.flops, summary.totals.flops) == (least, most)


@pytest.mark.parametrize(("hidden", "said"), [(0, "0 hidden numbers"), (10**9, "1000000000 hidden numbers")])
def test_work_outside_of_its_bounds_is_told(pipe: Pipeline, hidden: int, said: str) -> None:
    out = pipe.generate(LABELS, method="dmoe@untrained/t70:experts=8")
    step = out.trace.steps[5]
    lie = step._replace(calls=(step.calls[0]._replace(hidden=hidden), *step.calls[1:]))
    trace = replace(out.trace, steps=(*out.trace.steps[:5], lie))
    (told,) = otherwise_than_planned(out.plan, trace, batch=2, dtype="float32")
    assert said in told


def test_a_token_without_an_expert_is_told() -> None:
    class None_(RoutedExperts):
        varies = True

        def route(self, hidden_RLC: torch.Tensor, count: int, **_: Any) -> torch.Tensor:
            return torch.full((*hidden_RLC.shape[:2], count), -1)

    plugin = type(
        "P",
        (),
        {"varbench_width_policy": lambda self, setting, model: None_(model, experts=4, router=16, chosen=[4] * 6)},
    )()
    found = {
        finding.invariant for finding in check(plugin, name="none", only={"picks_are_places", "trace_equals_plan"})
    }
    assert found == {"picks_are_places", "trace_equals_plan"}


@pytest.mark.slow
def test_dmoe_with_thresholds_keeps_its_promises() -> None:
    promises = {
        "runs", "picks_are_places", "trace_equals_plan", "chosen_experts_are_computed", "measured_flops_equal_plan",
        "neutral_equals_full", "state_bytes_reachable", "work_falls_as_knob_tightens",
    }  # fmt: skip
    assert [str(finding) for finding in check("dmoe@untrained/t70", only=promises)] == []


@pytest.mark.parametrize("point", ["t900-800", "t900-800-1001", "t9-8-7-6"])
def test_thresholds_that_are_none(point: str) -> None:
    with pytest.raises(UserError, match=rf"{point} gives \d thresholds; give 3 from 0 to 1000"):
        rows.resolve(f"dmoe@untrained/{point}", models.SPEC)


def test_dmoe_on_published_sizes() -> None:
    """d16 and d20 have experts of 128 units; the published saving of 19 to 20 percent lies between m50 and m60."""
    for name, experts in (("var-d16", 32), ("var-d20", 40)):
        model = presets.preset(name).spec
        policies = {point: rows.resolve(f"dmoe@{point}", model).policies for point in ("m50", "m60")}
        width = policies["m50"].width
        assert width is not None and width.policy.experts == experts and width.policy.own is not None
        assert width.policy.own.shapes["split"] == (model.depth, experts, 128)
        assert width.policy.own.shapes["down"] == (model.depth, 128, model.width)
        full = cost.work(compile_plan(model, rows.resolve("full_var", model).policies), batch=1, dtype="bfloat16")
        saved = {
            point: 1
            - cost.work(compile_plan(model, row), batch=1, dtype="bfloat16").transformer_flops / full.transformer_flops
            for point, row in policies.items()
        }
        assert saved["m60"] < 0.195 < saved["m50"]


def test_dmoe_says_what_it_cannot_be() -> None:
    with pytest.raises(UserError, match="3 experts of small's 256"):
        compile_plan(models.SPEC, rows.resolve("dmoe@m50:experts=3", models.SPEC).policies)
    with pytest.raises(UserError, match="dense is 9"):
        rows.resolve("dmoe@m50:dense=9", models.SPEC)


def test_the_recipe_trains_routers_and_leaves_the_model_as_it_was(given: dict[str, Path]) -> None:  # noqa: F811
    row = rows.resolve("dmoe@m50:experts=8", SPEC)
    pretrained = {name: path for name, path in given.items() if name != "vae"}
    budget = replace(STEPS, steps=30, looks=1, peak_rate=2e-2)
    done = recipe_weights(row, vae=given["vae"], pretrained=pretrained, data=DATA, budget=budget)
    assert done.record is not None
    losses = [loss for _, loss in done.record["stages"]["routers"]["losses"]["full"]]
    assert losses[-1] < 0.7 * losses[0]
    assert {look["point"] for look in done.record["stages"]["routers"]["evaluations"]} == {"full", "m75", "m50", "m25"}
    before, after = (load_transformer(files["main"], SPEC.tokenizer) for files in (given, done.files))
    assert all(
        torch.equal(tensor, before.state_dict()[name])
        for name, tensor in after.state_dict().items()
        if "own." not in name
    )
    with safe_open(done.files["main"], "pt") as file:
        assert {"own.dmoe/split", "own.dmoe/down", "own.dmoe/up"} <= set(file.keys())
    again = recipe_weights(row, vae=given["vae"], pretrained=pretrained, data=DATA, budget=budget)
    assert again.origin == "cache"
    other = rows.resolve("dmoe@m50:experts=16", SPEC)
    assert recipe_weights(other, vae=given["vae"], pretrained=pretrained, data=DATA, budget=budget).files != done.files
    pipe = load_pipeline(vae=given["vae"], var=done.files["main"])
    own = pipe.backbones_of(rows.resolve("dmoe@m25:experts=8", pipe.model))["main"].own.tensors()
    assert torch.equal(own["down"], after.own.tensors()["down"])
    with pytest.raises(UserError, match=r"hold numbers of dmoe's own that are not of this row: split is \(3, 8, 16\)"):
        pipe.generate(LABELS, method="dmoe@m25:experts=16")


def test_routers_of_layers_are_trained_apart() -> None:
    policy = RoutedExperts(models.SPEC, experts=8, router=16, chosen=[8, 8, 8, 2, 2, 2])
    assert policy.own is not None and [policy.count(0, scale) for scale in range(6)] == [8, 8, 8, 2, 2, 2]
    weights = {f"blocks.{layer}.ffn.fc1.weight": torch.randn(256, 64) for layer in range(6)}
    made = policy.own.initial(weights, 0)
    assert {name: tuple(one.shape) for name, one in made.items()} == dict(policy.own.shapes)
    assert not torch.equal(made["split"][0], made["split"][1])


@pytest.mark.parametrize("experts", ["m50", "t70"])
def test_actvar_by_its_rule(pipe: Pipeline, experts: str) -> None:
    """Of 16, 36 and 64 tokens 4, 9 and 16 go through two of 4 experts each, or through those near the largest, the others through
    the map."""
    method = f"actvar@{experts}r25:experts=4"
    mine, other = models.pipeline(), models.pipeline()
    own = random_own(rows.resolve(method, pipe.model))
    mine.backbones["main"].own = OwnNumbers("actvar", own)
    ours_pipe = Pipeline(tokenizer=mine.tokenizer, backbones=mine.backbones, device="cpu", dtype="float32", weights={})
    ours = ours_pipe.generate(LABELS, seed=2, method=method, return_logits=True)
    for layer, block in enumerate(other.backbones["main"].blocks):
        block.ffn = (SomeTokens if experts == "m50" else SomeNearTheBest)(block.ffn, own, layer)
    theirs = other.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert ours.logits is not None and theirs is not None
    assert (ours.logits - theirs).abs().max() < 1e-4
    full = ours_pipe.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert full is not None and (full - theirs).abs().max() > 1e-2
    cached = ours_pipe.generate(LABELS, tokens=ours.tokens, cfg=0.0, method=method, return_logits=True).logits
    assert cached is not None
    assert (ours_pipe.logits(ours.tokens, LABELS, method=method) - cached).abs().max() < 1e-3
    assert list(otherwise_than_planned(ours.plan, ours.trace, batch=2, dtype="float32")) == []
    most = cost.work(ours.plan, batch=2, dtype="float32")
    ran = trace_totals(ours.trace, ours.plan).flops
    assert ran is not None and (ran < most.transformer_flops) == ours.plan.varies == (experts == "t70")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        ours_pipe.generate(LABELS, method=method, seed=2)
    assert counter.get_total_flops() == pytest.approx(ran + most.decoder_flops, rel=2e-3)


def random_own(row: rows.Row) -> dict[str, torch.Tensor]:
    """Numbers of the right sizes, among which none is zero."""
    width = row.policies.width
    assert width is not None and width.policy.own is not None
    random = torch.Generator().manual_seed(8)
    made = {name: 0.2 * torch.randn(shape, generator=random) for name, shape in width.policy.own.shapes.items()}
    depth, experts, units = width.policy.own.shapes["split"]
    made["split"] = torch.stack([torch.randperm(experts * units, generator=random) for _ in range(depth)])
    return {**made, "split": made["split"].view(depth, experts, units)}


class SomeTokens(OnlyTheseUnits):
    def __init__(self, ffn: Any, own: dict[str, torch.Tensor], layer: int) -> None:
        super().__init__(ffn, own, layer, count=2)

    def forward(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        output = super().forward(x, dtype)
        if x.shape[1] < 16:
            return output
        own = {name: numbers[self.layer] for name, numbers in self.numbers[0].items()}
        for row in range(len(x)):
            change = [float(own["gate"][0] @ token + own["gate_bias"][0]) for token in x[row]]
            for token in sorted(range(len(change)), key=lambda at: change[at])[: len(change) - len(change) // 4]:
                output[row, token] = own["lift"] @ (own["lower"] @ x[row, token]) + own["mean"]
        return output


class SomeNearTheBest(SomeTokens, NearTheBest):
    """The same with the experts near the largest."""


def test_actvar_on_published_sizes() -> None:
    """The printed 21.2 percent are reached on d30 between two points of the table, and the curve goes on from there."""
    model = presets.preset("var-d30").spec
    full = cost.work(compile_plan(model, rows.resolve("full_var", model).policies), batch=1, dtype="bfloat16")
    saved = []
    for row in rows.expand("actvar", model):
        work = cost.work(compile_plan(model, row.policies), batch=1, dtype="bfloat16")
        saved.append(1 - work.transformer_flops / full.transformer_flops)
    assert saved == sorted(saved) and saved[0] < 0.21 < saved[1] + 0.002 and saved[-1] > 0.3


def test_actvar_trains_in_two_stages(given: dict[str, Path]) -> None:  # noqa: F811
    """First its own numbers alone, whose errors fall; then the model too, at sparse points, from its own start as teacher."""
    pretrained = {name: path for name, path in given.items() if name != "vae"}
    budget = replace(STEPS, steps=40, looks=0, peak_rate=1e-2)
    asked = {"vae": given["vae"], "pretrained": pretrained, "data": DATA, "budget": budget}
    before = load_transformer(given["main"], SPEC.tokenizer)
    frozen = recipe_weights(rows.resolve("actvar@frozen/m50r50:experts=8", SPEC), **asked)
    assert frozen.record is not None
    losses = [loss for _, loss in frozen.record["stages"]["frozen"]["losses"]["full"]]
    assert losses[-1] < 0.7 * losses[0]
    after = load_transformer(frozen.files["main"], SPEC.tokenizer)
    assert torch.equal(after.block(0).ffn.fc1.weight, before.block(0).ffn.fc1.weight)
    assert after.own.tensors()["lift"].abs().sum() > 0
    both = recipe_weights(rows.resolve("actvar@m50r50:experts=8", SPEC), **asked)
    assert both.record is not None
    stages = both.record["stages"]
    assert {name: stage["steps"] for name, stage in stages.items()} == {"frozen": 20, "distilled": 20}
    assert set(stages["distilled"]["steps_by_point"]) <= {"m75r90", "m75r75", "m50r50", "m25r25"}
    distilled = load_transformer(both.files["main"], SPEC.tokenizer)
    assert not torch.equal(distilled.block(0).ffn.fc1.weight, before.block(0).ffn.fc1.weight)
    assert torch.equal(distilled.own.tensors()["split"], after.own.tensors()["split"])
