"""What a user would try first: guidance thinned, and smaller models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import models
import naive_var
import pytest
import torch
from test_training import SPEC
from test_training_recipes import given, of, trained  # noqa: F401  (`given` is a fixture)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from varbench import rows
from varbench.engine.pipeline import Pipeline
from varbench.errors import PlanError, UserError
from varbench.plan import cost, presets
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import Plan
from varbench.plan.trace import otherwise_than_planned
from varbench.policies import BothBranches, Stage, TrainStep

TINY = presets.preset("tiny").spec
D30 = presets.preset("var-d30").spec
LABELS = [3, 7]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


def planned(text: str, model: object = TINY) -> Plan:
    return compile_plan(model, rows.resolve(text, model).policies)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "shares"),
    [
        ("guidance@from5", (0, 0.2, 0.4, 0.6, 0, 0)),
        ("guidance@from5:shape=constant", (1, 1, 1, 1, 0, 0)),
        ("guidance@all:shape=0.5/0/1.5/0.2/1/0.3", (0.5, 0, 1.5, 0.2, 1, 0.3)),
        ("guidance@from1", (0, 0, 0, 0, 0, 0)),
    ],
)
def test_guidance_by_its_rule(pipe: Pipeline, method: str, shares: tuple[float, ...]) -> None:
    ours = pipe.generate(LABELS, seed=2, method=method, return_logits=True)
    theirs = naive_var.logits(pipe, ours.tokens, LABELS, cfg=1.5, share=lambda scale: shares[scale])
    assert ours.logits is not None
    assert (ours.logits - theirs).abs().max() < 1e-4
    full = pipe.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert full is not None
    assert (theirs - full).abs().max() > 1e-2


@pytest.mark.parametrize("first", [1, 4, 6])
def test_one_attention_for_both_branches_by_its_rule(pipe: Pipeline, first: int) -> None:
    ours = pipe.generate(LABELS, seed=2, method=f"guidance@share{first}", return_logits=True)
    theirs = naive_var.logits(pipe, ours.tokens, LABELS, cfg=1.5, one_attention=lambda scale: scale >= first - 1)
    assert ours.logits is not None
    assert (ours.logits - theirs).abs().max() < 1e-4
    full = pipe.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert full is not None
    assert (theirs - full).abs().max() > 1e-3
    assert not list(otherwise_than_planned(ours.plan, ours.trace, batch=2, dtype="float32"))
    assert [step.calls[0].attending for step in ours.trace.steps] == [4] * (first - 1) + [2] * (7 - first)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        pipe.generate(LABELS, method=f"guidance@share{first}")
    assert counter.get_total_flops() == pytest.approx(cost.work(ours.plan, batch=2, dtype="float32").flops, rel=1e-3)


def test_shared_attention_leaves_half_of_the_cache_and_a_sixth_of_the_blocks_work() -> None:
    full, shared = (
        cost.work(planned(text, D30), batch=64, dtype="bfloat16") for text in ("full_var", "guidance@share1")
    )
    assert 2 * shared.state_peak == full.state_peak
    saved = 1 - shared.block_flops / full.block_flops
    assert 1 / 6 < saved < 1 / 5
    assert "2 branches at 0.11 with one attention" in str(planned("guidance@share1", D30))
    assert planned("guidance@share6").digest != planned("full_var").digest


def test_shared_attention_does_not_end_and_no_tokens_are_picked_in_it() -> None:
    class OnAndOff(BothBranches):
        def shares(self, scale: int) -> bool:
            return scale == 2

    on_and_off = RowPolicies(name="on and off", guidance=Owned(plugin="mine", policy=OnAndOff()))
    with pytest.raises(PlanError, match=r"mine: the unlabelled branch attends by itself again at scale 4"):
        compile_plan(TINY, on_and_off)
    with pytest.raises(
        PlanError, match="guidance shares attention at scale 5 .* and fastvar picks the tokens that attend"
    ):
        planned("guidance@share4+fastvar@r50")


@pytest.mark.parametrize("other", ["h2o@b25", "variant@d3", "quant_cache@b8", "full_var:accounting=upstream"])
def test_shared_attention_stands_beside_other_methods(pipe: Pipeline, other: str) -> None:
    joined = f"guidance@share4+{other}" if "@" in other else "guidance@share4:accounting=upstream"
    out = pipe.generate(LABELS, seed=3, method=joined)
    assert not list(otherwise_than_planned(out.plan, out.trace, batch=2, dtype="float32"))


def test_a_branch_that_ends_leaves_work_and_state() -> None:
    full, thinned = planned("full_var", D30), planned("guidance@from9", D30)
    assert [step.branches for step in thinned.steps] == [2] * 8 + [1] * 2
    whole, less = (cost.work(plan, batch=64, dtype="bfloat16") for plan in (full, thinned))
    assert 2 * less.state_end == whole.state_end
    halved = sum(step.block_flops for step in whole.steps[8:]) / 2
    assert less.block_flops == whole.block_flops - halved


def test_a_strength_of_nothing_to_the_end_ends_the_branch(pipe: Pipeline) -> None:
    """As liveness has it: what nobody reads is not computed; a strength of 0 that others follow is."""
    said, meant = "guidance@all:shape=0/0.2/0/0.6/0/0", "guidance@from5:shape=0/0.2/0/0.6/9/9"
    assert planned(said).digest == planned(meant).digest
    assert [step.branches for step in planned(said).steps] == [2, 2, 2, 2, 1, 1]
    first, second = (pipe.generate(LABELS, seed=2, method=method) for method in (said, meant))
    assert torch.equal(first.tokens, second.tokens)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance@from7", "from7 is out of range: tiny has 6 scales, so give from1 to from6, or all"),
        ("guidance@from5:shape=0/1", "shape is '0/1'; give ramp, constant, or 6 shares"),
        ("guidance@from5:shape=0/1/1/1/1/-1", "give ramp, constant, or 6 shares of 0 or more"),
        ("guidance@from5:shape=cosine", "give ramp, constant, or 6 shares"),
        ("smaller@d16", "has no setting 'd16'"),
    ],
)
def test_settings_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows.resolve(text, TINY)


def test_smaller_models_are_the_official_ones_or_a_narrower() -> None:
    def names(model: str) -> list[str]:
        return [row.name for row in rows.expand("smaller", presets.preset(model).spec)]

    assert names("var-d30") == ["smaller@d24", "smaller@d20", "smaller@d16"]
    assert names("var-d20") == ["smaller"], "the only one that it has by default"
    assert names("tiny") == ["smaller@narrow", "smaller@alone_d8", "smaller@alone_d2"]
    for name in ("d24", "d20", "d16"):
        plan = planned(f"smaller@{name}", D30)
        assert plan.backbones == ((name, presets.preset(f"var-{name}").spec),), "the main model is not loaded"
        alone = compile_plan(presets.preset(f"var-{name}").spec, rows.resolve("full_var", D30).policies)
        theirs, its = (cost.work(one, batch=8, dtype="bfloat16") for one in (plan, alone))
        assert (theirs.flops, theirs.weight_bytes, theirs.state_peak) == (its.flops, its.weight_bytes, its.state_peak)


def test_a_smaller_model_is_itself_in_the_place_of_the_large_one() -> None:
    narrow = SPEC.narrower()
    tokenizer, small = models.tokenizer(SPEC), models.transformer(narrow, "refiner")
    by_rule = dict.fromkeys(("vae", "main", "narrow"), "by rule")
    beside = Pipeline(
        tokenizer=tokenizer, backbones={"main": models.transformer(SPEC), "narrow": small}, device="cpu",
        dtype="float32", weights=by_rule,
    )  # fmt: skip
    alone = Pipeline(tokenizer=tokenizer, backbones={"main": small}, device="cpu", dtype="float32", weights=by_rule)
    made = beside.generate(LABELS, seed=5, method="smaller@narrow")
    assert torch.equal(made.tokens, alone.generate(LABELS, seed=5).tokens)
    assert not torch.equal(made.tokens, beside.generate(LABELS, seed=5).tokens)


def test_the_shipped_companion_is_found() -> None:
    from varbench.engine.loading import load_pipeline

    pipe = load_pipeline("tiny")
    made = pipe.generate([1], method="smaller@narrow")
    assert set(pipe.backbones_of("smaller@narrow")) == {"narrow"}
    assert pipe.weights["narrow"] != pipe.weights["main"]
    assert made.plan.backbones[0][1] == replace(TINY.narrower(), name="tiny-narrow")


def test_layers_alone_are_a_supernets_point_trained_in_every_step() -> None:
    row = rows.resolve("smaller@alone_d8", TINY)
    assert compile_plan(TINY, row.policies).digest == planned("variant@d8").digest
    assert [len(step.calls) for step in planned("smaller@alone_d8:bridge=0").steps] == [8] * 6
    assert row.schedule is not None
    answers = {row.schedule.at(Stage(name="train"), step, 60, lambda k: 0.5) for step in range(60)}
    assert answers == {TrainStep(point="whole")}


def test_layers_alone_train_as_a_supernet_that_trains_one_depth_only(given: dict[str, Path]) -> None:  # noqa: F811
    point = rows.expand("variant", SPEC)[-1].settings[0].point
    alone = trained(rows.resolve(f"smaller@alone_{point}", SPEC), given)
    every_step = trained(rows.resolve(f"fixed_ratio@p10/{point}:draw={point}", SPEC), given)
    assert torch.equal(of(alone.files["main"]), of(every_step.files["main"]))  # type: ignore[attr-defined]
    assert not torch.equal(of(alone.files["main"]), of(given["main"]))  # type: ignore[attr-defined]
