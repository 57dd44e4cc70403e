"""Replaced modules: executed on a copy, counted as declared, and refused where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

from varbench import rows
from varbench.check import check
from varbench.check.bench import given
from varbench.engine.pipeline import Pipeline
from varbench.engine.storage import storage_bytes
from varbench.engine.subjects import EngineSubject
from varbench.engine.transforms import stored
from varbench.errors import PlanError, UserError
from varbench.model.transformer import Transformer
from varbench.plan import cost, sizes
from varbench.plan.compiler import compile_plan
from varbench.plan.hardware import Hardware
from varbench.plan.owned import OwnedTransform, RowPolicies
from varbench.policies import PARTS, PartChange, Settings, Transformed
from varbench.record.plan_summary import plan_summary
from varbench.rows.grammar import Row

LABELS = (1, 4, 7)


class Int8Linear(nn.Module):
    """Weights in int8 with a scale a row, made whole again to multiply."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        peak = linear.weight.abs().amax(dim=1, keepdim=True).float() / 127
        self.register_buffer("scale", peak)
        self.register_buffer("whole", (linear.weight.float() / peak).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, (self.whole.float() * self.scale).to(x.dtype), self.bias)


def int8_ffn(transformer: Any) -> Any:
    for block in transformer.blocks:
        block.ffn.fc1, block.ffn.fc2 = Int8Linear(block.ffn.fc1), Int8Linear(block.ffn.fc2)
    return transformer


class Int8:
    """FFN weights in int8; at point `off` nothing is replaced."""

    extra = staticmethod(lambda model: 4 * model.depth * (model.hidden + model.width))

    def varbench_settings(self, model: Any) -> Settings:
        return Settings(points=("on", "off"), default_points=("on",), neutral=("@off",))

    def varbench_transform_model(self, setting: Any, model: Any) -> Transformed | None:
        if setting.point == "off":
            return None
        return Transformed(
            apply=int8_ffn, changes={"ffn": PartChange(weight_type="int8", extra_bytes=self.extra(model))}
        )


class Doubled:
    """Changes weights where they lie."""

    def varbench_transform_model(self, setting: Any, model: Any) -> Transformed:
        def double(transformer: Any) -> Any:
            for block in transformer.blocks:
                block.attn.proj.weight.mul_(2)
            return transformer

        return Transformed(apply=double)


def row_of(plugin: object, text: str = "acme", model: Any = models.SPEC) -> Row:
    return rows.resolve(text, model, manager=given(model, "acme", plugin).manager)


def with_transforms(*transforms: Transformed, name: str = "row") -> Row:
    owned = tuple(
        OwnedTransform(plugin="acme", part=f"acme@{number}", backbone="main", policy=one)
        for number, one in enumerate(transforms)
    )
    full = rows.resolve("full_var", models.SPEC)
    return replace(full, name=name, policies=RowPolicies(name=name, transforms=owned))


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


@pytest.mark.parametrize("plugin", [Int8(), Doubled()], ids=["replaced", "in place"])
def test_it_is_executed_and_others_are_left_as_they_were(plugin: object) -> None:
    pipe = models.pipeline()
    plain = pipe.generate(LABELS, return_logits=True)
    row = row_of(plugin, "acme@on" if isinstance(plugin, Int8) else "acme")
    changed = pipe.generate(LABELS, method=row, return_logits=True)
    again = pipe.generate(LABELS, return_logits=True)
    assert plain.logits is not None and changed.logits is not None and again.logits is not None
    assert not torch.equal(changed.logits, plain.logits)
    assert torch.equal(again.logits, plain.logits) and torch.equal(again.images, plain.images)


def test_int8_is_close_and_the_teacher_runs_the_same_network(pipe: Pipeline) -> None:
    row = row_of(Int8(), "acme@on")
    tokens = pipe.generate(LABELS, method=row).tokens
    cached = pipe.generate(LABELS, method=row, tokens=tokens, return_logits=True, cfg=0.0).logits
    plain = pipe.generate(LABELS, tokens=tokens, return_logits=True, cfg=0.0).logits
    assert cached is not None and plain is not None
    assert torch.allclose(pipe.logits(tokens, LABELS, method=row), cached, atol=1e-3)
    assert 1e-3 < float((cached - plain).abs().max()) < 1


def test_several_are_applied_in_order(pipe: Pipeline) -> None:
    def adding(transformer: Any) -> Any:
        transformer.head.bias.add_(1)
        return transformer

    def doubling(transformer: Any) -> Any:
        transformer.head.bias.mul_(2)
        return transformer

    add, double = Transformed(apply=adding), Transformed(apply=doubling)
    before = pipe.backbones["main"].head.bias.clone()
    orders = {"add, double": (add, double), "double, add": (double, add)}
    found = {
        name: models.pipeline().backbones_of(with_transforms(*order, name=name))["main"].head.bias
        for name, order in orders.items()
    }
    assert torch.equal(found["add, double"], (before + 1) * 2)
    assert torch.equal(found["double, add"], before * 2 + 1)


def test_bytes_are_those_that_are_stored(pipe: Pipeline) -> None:
    row = row_of(Int8(), "acme@on")
    plan = pipe.compile(row)[0]
    held = storage_bytes(stored(pipe.backbones_of(row)["main"]))
    assert sizes.backbone_bytes(plan, "main", "float32") == pytest.approx(held, rel=0.003)
    subject = EngineSubject(pipe=pipe, cfg=1.5, top_k=0, top_p=0.0)
    assert subject.weight_bytes(row.name) < subject.weight_bytes(rows.FULL), "a memory figure is the row's own"
    shared = {tensor.data_ptr() for tensor in stored(pipe.backbones["main"])}
    own = [tensor for tensor in stored(pipe.backbones_of(row)["main"]) if tensor.data_ptr() not in shared]
    assert {tensor.dtype for tensor in own if tensor.dtype != torch.int64} == {torch.int8, torch.float32}
    assert storage_bytes(own) < 0.4 * held, "what is not replaced lies in memory once"


@pytest.mark.parametrize("alone", ["full_var", "acme@on"])
def test_what_is_shared_stays_so_when_a_row_was_looked_at_alone(
    alone: str, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models go to the host one by one meanwhile, and what they come back as is new: here a copy stands for that."""
    row = row_of(Int8(), "acme@on")
    changed = pipe.backbones_of(row)["main"]

    def shared() -> int:
        places = {one.data_ptr() for one in pipe.backbones["main"].parameters()}
        return sum(one.data_ptr() in places for one in changed.parameters())

    before = shared()
    labels = models.LABELS
    images = pipe.generate(labels, seed=1, method=row).images
    monkeypatch.setattr(Transformer, "cpu", lambda model: model._apply(torch.clone))
    with pipe.alone(row if alone == row.name else alone):
        assert shared() < before
    assert shared() == before > 0
    assert torch.equal(pipe.generate(labels, seed=1, method=row).images, images)


def test_what_is_declared_enters_plan_cost_and_record() -> None:
    half = PartChange(flops=0.5, weights=0.25, weight_type="int8", extra_bytes=100, compute_type="int8")
    plain = compile_plan(models.SPEC, RowPolicies(name="plain"))
    plan = compile_plan(models.SPEC, with_transforms(Transformed(apply=int8_ffn, changes={"ffn": half})).policies)
    assert plan.digest != plain.digest
    before, after = (cost.work(one, batch=2, dtype="bfloat16") for one in (plain, plan))
    spec = models.SPEC
    ffn = 2 * 2 * sum(spec.tokens) * spec.depth * 4 * spec.width * spec.hidden
    assert before.transformer_flops - after.transformer_flops == ffn // 2
    numbers = 2 * spec.depth * spec.width * spec.hidden
    assert before.weight_bytes - after.weight_bytes == 2 * numbers - numbers // 4 - 100
    assert before.steps[-1].bytes_moved > after.steps[-1].bytes_moved
    assert sum(dict(step.other_types)["int8"] for step in after.steps) == ffn // 2
    (entry,) = plan_summary(plan, batch=2, dtype="bfloat16").transforms
    assert (entry.plugin, entry.part, entry.flops, entry.weight_type) == ("acme@0", "ffn", 0.5, "int8")
    assert "acme@0 replaces modules of main: ffn flops 0.5" in str(plan)


def test_a_type_has_the_rate_of_its_own() -> None:
    def seconds(change: PartChange, rates: dict[str, float]) -> float:
        row = with_transforms(Transformed(apply=int8_ffn, changes=dict.fromkeys(PARTS, change)))
        counted = cost.work(compile_plan(models.SPEC, row.policies), batch=2, dtype="bfloat16")
        device = Hardware(name="x", tflops=rates, bandwidth_gbs=1e9, memory_gb=1, source="made up")
        return cost.predict(counted, device).transformer

    plain = seconds(PartChange(), {"bfloat16": 1})
    int8 = PartChange(compute_type="int8")
    assert 0.5 < seconds(int8, {"bfloat16": 1, "int8": 4}) / plain * 2 < 1
    assert seconds(int8, {"bfloat16": 1}) == pytest.approx(plain), "no rate of its own, no gain"


def test_transforms_stack_in_the_plan() -> None:
    first = Transformed(apply=int8_ffn, changes={"ffn": PartChange(flops=0.5, weight_type="int8", extra_bytes=8)})
    second = Transformed(apply=int8_ffn, changes={"ffn": PartChange(flops=0.5, weight_type="int4", extra_bytes=8)})
    plan = compile_plan(models.SPEC, with_transforms(first, second).policies)
    assert plan.change("main", "ffn") == PartChange(flops=0.25, weight_type="int4", extra_bytes=16)
    assert plan.change("main", "attention") == PartChange()


def test_an_honest_one_passes_the_kit_and_one_that_understates_its_bytes_does_not() -> None:
    assert not check(Int8(), name="acme")

    class Hides(Int8):
        """Says int8, and keeps the weights as they were on the side."""

        def varbench_transform_model(self, setting: Any, model: Any) -> Transformed | None:
            honest = super().varbench_transform_model(setting, model)

            def apply(transformer: Any) -> Any:
                kept = [block.ffn.fc1.weight.clone() for block in transformer.blocks]
                transformer = int8_ffn(transformer)
                for block, weight in zip(transformer.blocks, kept, strict=True):
                    block.ffn.fc1.whole_weight = [weight]
                return transformer

            return honest and replace(honest, apply=apply)

    assert {f.invariant for f in check(Hides(), name="acme", only={"runs", "weights_equal_plan"})} == {
        "weights_equal_plan"
    }


class Int8Products(Int8):
    """Multiplies in int8 too, with a scale for each token; at point `mixed` it also looks at the other images."""

    def varbench_settings(self, model: Any) -> Settings:
        return Settings(points=("own", "mixed"))

    def varbench_transform_model(self, setting: Any, model: Any) -> Transformed:
        class Both(Int8Linear):
            def forward(self, x: Tensor) -> Tensor:
                if setting.point == "mixed":
                    x = x + x.mean(dim=0, keepdim=True)
                step = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-6) / 127
                rows = (x / step).round().to(torch.int8).flatten(0, -2)
                made = torch._int_mm(rows, self.whole.t()).view(*x.shape[:-1], -1) * self.scale.t() * step
                return made + self.bias

        def apply(transformer: Any) -> Any:
            for block in transformer.blocks:
                block.ffn.fc1, block.ffn.fc2 = Both(block.ffn.fc1), Both(block.ffn.fc2)
            return transformer

        change = PartChange(weight_type="int8", extra_bytes=self.extra(model), compute_type="int8")
        return Transformed(apply=apply, changes={"ffn": change})


def test_products_in_few_bits_are_counted_and_are_each_images_own() -> None:
    """Rounding may turn a last place into a step, and so tokens; logits of the same tokens stay near."""
    asked = {"runs", "batch_invariance", "teacher_equals_cached", "products_in_type", "measured_flops_equal_plan"}
    found = check(Int8Products(), name="acme", only=asked)
    assert {finding.row for finding in found} == {"acme@mixed"}
    assert "batch_invariance" in {finding.invariant for finding in found}


def test_a_replaced_module_that_changes_its_own_weights_is_caught() -> None:
    class Drifts(Int8):
        def varbench_transform_model(self, setting: Any, model: Any) -> Transformed | None:
            class Drifting(Int8Linear):
                def forward(self, x: Tensor) -> Tensor:
                    self.scale *= 0.999
                    return super().forward(x)

            def apply(transformer: Any) -> Any:
                for block in transformer.blocks:
                    block.ffn.fc1, block.ffn.fc2 = Drifting(block.ffn.fc1), Drifting(block.ffn.fc2)
                return transformer

            honest = super().varbench_transform_model(setting, model)
            return honest and replace(honest, apply=apply)

    found = check(Drifts(), name="acme", only={"runs", "weights_untouched"})
    assert {finding.invariant for finding in found} == {"weights_untouched"}


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda transformer: None, "acme: apply gave NoneType, not the transformer to run"),
        (lambda transformer: transformer.no_such, "acme: .* failed: AttributeError"),
    ],
)
def test_what_cannot_be_applied_is_told_by_name(pipe: Pipeline, apply: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        pipe.generate(LABELS, method=with_transforms(Transformed(apply=apply), name=message))


def test_every_backbone_is_asked_about_with_its_own_sizes() -> None:
    asked: list[str] = []

    class Notes(Int8):
        def varbench_transform_model(self, setting: Any, model: Any) -> Transformed | None:
            asked.append(model.name)
            return super().varbench_transform_model(setting, model)

    row = row_of(Notes(), "code@training_free/n3+acme@on")
    assert [owned.backbone for owned in row.policies.transforms] == ["main", "refiner"]
    assert len(set(asked)) == 2
    assert rows.without_transforms(row).name == rows.resolve("code@training_free/n3", models.SPEC).name


def test_the_trainer_refuses_it_by_name(tmp_path: Path) -> None:
    from varbench.data.shapes import Shapes
    from varbench.train.budgets import recipe_budget
    from varbench.train.recipes import recipe_weights

    row = row_of(Int8(), "variant@d2+acme@on")
    with pytest.raises(
        UserError, match=r"variant@d2\+acme@on: acme@on replaces modules .*only plain weights are trained"
    ):
        recipe_weights(row, vae=tmp_path, pretrained={"main": tmp_path}, data=Shapes(side=32), budget=recipe_budget(12))
    assert rows.without_transforms(row).name == "variant@d2"
