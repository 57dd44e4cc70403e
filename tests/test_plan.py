"""Compiling: figures that are known, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import models
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from varbench import rows
from varbench.engine.loading import load_pipeline
from varbench.engine.subjects import EngineSubject
from varbench.errors import PlanError, UserError
from varbench.plan import cost, presets, sizes, state
from varbench.plan.compiler import compile_plan
from varbench.plan.hardware import KNOWN, from_file, hardware
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import Plan
from varbench.policies import (
    BothBranches,
    CacheStrategy,
    DepthPolicy,
    GuidancePolicy,
    StepPolicy,
    StepSpec,
    TokenPolicy,
)

MIB = 2**20


def counted(method: str, model: str = "var-d30", *, batch: int = 64, dtype: str = "float16") -> cost.PlanWork:
    return cost.work(planned(method, model), batch=batch, dtype=dtype)


def planned(method: str, model: str = "var-d30") -> Plan:
    row = rows.resolve(method, presets.preset(model).spec)
    return compile_plan(row.model, row.policies, accounting=row.accounting)


@pytest.mark.parametrize(
    ("method", "end"),
    [
        ("full_var:accounting=upstream", 28687.5),
        ("full_var", 11925),
        ("variant@d16:accounting=upstream", 17091.5625),
        ("variant@d8:accounting=upstream", 10465.3125),
        ("variant@d4:accounting=upstream", 7152.1875),
        ("variant@d2:accounting=upstream", 5495.625),
        ("variant@d16", 6360),
        ("variant@d8", 3180),
        ("variant@d4", 1590),
        ("variant@d2", 795),
    ],
)
def test_cache_of_d30_at_batch_64(method: str, end: float) -> None:
    assert counted(method).state_end / MIB == end


def test_the_peak_of_a_shallow_point_is_at_the_end_of_the_bridge() -> None:
    work = counted("variant@d2")
    assert work.state_peak / MIB == 1614.375
    assert work.steps[5].state_peak == work.state_peak > work.steps[6].state_after


@pytest.mark.parametrize(("method", "speedup"), [("d16", 1.68), ("d8", 2.74), ("d4", 4.00), ("d2", 5.20)])
def test_flops_of_variant(method: str, speedup: float) -> None:
    assert counted("full_var").transformer_flops / counted(f"variant@{method}").transformer_flops == pytest.approx(
        speedup, abs=0.015
    )


def test_retaining_keeps_what_nothing_reads() -> None:
    kept = counted("variant@d2:retain=paper").state_end
    assert kept / MIB == (2 * 424 + 28 * 91) * 0.9375
    assert kept > counted("variant@d2").state_end


@pytest.mark.parametrize("method", ["full_var", "variant@d3:bridge=2", "variant@d2:bridge=4", "code@training_free/n3"])
@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("spec", [models.SPEC, models.NARROW], ids=lambda spec: spec.name)
def test_flops_are_those_torch_counts(method: str, batch: int, spec: models.ModelSpec) -> None:
    pipe = models.pipeline(spec)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = pipe.generate(torch.arange(batch), method=method)
    assert counter.get_total_flops() == pytest.approx(cost.work(out.plan, batch=batch, dtype="float32").flops, rel=0.01)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("l2", [False, True])
def test_parameters_are_counted(shared: bool, l2: bool) -> None:
    spec = models.ModelSpec(
        name="x",
        sides=(1, 2, 4),
        depth=3,
        width=64,
        heads=2,
        shared_adaln=shared,
        l2_attention=l2,
        tokenizer=models.TOKENIZER,
    )
    from varbench.model.tokenizer import Tokenizer
    from varbench.model.transformer import Transformer

    assert sum(p.numel() for p in Transformer(spec).parameters()) == sum(sizes.parameters(spec).values())
    stored = sum(t.numel() for t in Tokenizer.for_model(spec).state_dict().values())
    assert stored == sizes.tokenizer_parameters(spec.tokenizer, spec.scales)


def test_official_sizes() -> None:
    """2.0 billion numbers in d30, as its authors say."""
    assert sum(sizes.parameters(presets.preset("var-d30").spec).values()) / 1e9 == pytest.approx(2.0, abs=0.05)
    assert sum(sizes.parameters(presets.preset("var-d16").spec).values()) / 1e6 == pytest.approx(310, abs=5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_planned_weights_are_those_that_are_loaded(dtype: str) -> None:
    pipe = load_pipeline("tiny", random=True, dtype=dtype)
    plan, _ = pipe.compile(rows.FULL)
    subject = EngineSubject(pipe=pipe, cfg=1.5, top_k=0, top_p=0.0)
    assert sizes.weight_bytes(plan, dtype, "cpu") == pytest.approx(subject.weight_bytes(rows.FULL), rel=1e-4)
    # On a GPU the tokenizer stays in float32 whatever the compute type.
    numbers = sum(tensor.numel() for tensor in pipe.tokenizer.state_dict().values())
    assert sizes.weight_bytes(plan, dtype, "cuda") == 4 * numbers + sizes.backbone_bytes(plan, "main", dtype)


def test_upstream_accounting_is_never_predicted_to_be_faster() -> None:
    for name in ("tiny", "var-d16", "var-d30", "var-d36"):
        for batch, dtype in itertools.product((1, 4, 64), ("float32", "bfloat16")):
            both = (
                counted(row, name, batch=batch, dtype=dtype) for row in ("full_var", "full_var:accounting=upstream")
            )
            lossless, upstream = both
            for device in KNOWN.values():
                assert cost.predict(lossless, device).transformer <= cost.predict(upstream, device).transformer, (
                    f"{name}, batch {batch}, {dtype}, {device.name}"
                )


def test_every_preset_is_planned_on_every_device() -> None:
    for name in ("var-d16", "var-d30", "var-d36"):
        work = counted("full_var", name)
        for device in KNOWN:
            assert cost.predict(work, hardware(device)).transformer > 0


def test_a_plan_asks_its_policies_once_for_each_call_and_not_more() -> None:
    """What planning costs is what it asks: on the largest preset as many answers as there are layers and scales."""
    asked: list[tuple[int, str]] = []

    class Counting(DepthPolicy):
        def layers(self, scale: int, backbone: str) -> Sequence[int]:
            asked.append((scale, backbone))
            return range(36)

    model = presets.preset("var-d36").spec
    compile_plan(model, RowPolicies(name="counting", depth=Owned(plugin="mine", policy=Counting())))
    assert sorted(asked) == [(scale, "main") for scale in range(model.scales)]


@pytest.mark.parametrize("method", ["full_var", "h2o@b10", "fastvar@r30"])
def test_what_lives_is_added_up_once_a_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []

    def whole(held: state._Held) -> int:
        added.append(real(held))
        return added[-1]

    real = vars(state._Held)["nbytes"].fget
    monkeypatch.setattr(state._Held, "nbytes", property(whole))
    plan = planned(method)
    assert len(list(state.state_over_time(plan, batch=64, dtype="float16"))) == len(plan.steps)
    assert len(added) <= len(plan.steps) < sum(len(step.calls) for step in plan.steps)


@pytest.mark.parametrize("name", ["l20", "L20", "h100-sxm", "CPU-2-CORES"])
def test_hardware_is_found_in_capitals_or_not(name: str) -> None:
    assert hardware(name).name.lower() == name.lower()


@pytest.mark.parametrize(
    ("name", "near"), [("h100", "H100-SXM"), ("L40", "L40S"), ("RTX4090", "RTX-4090"), ("cpu", "cpu-2-cores")]
)
def test_hardware_that_is_unknown_has_a_neighbour(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"no hardware '{name}'. Did you mean '{near}'?"):
        hardware(name)


DEVICE = {"name": '"mine"', "bandwidth_gbs": "1000", "memory_gb": "10", "tflops": "{bfloat16 = 100}"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_gb": None}, "memory_gb is missing; give it, as in memory_gb = 48"),
        ({"name": "3"}, 'name is 3; give a text, as in name = "mine"'),
        ({"bandwidth_gbs": '"fast"'}, "bandwidth_gbs is 'fast'; give a number above 0, as in bandwidth_gbs = 864"),
        ({"bandwidth_gbs": "0"}, "bandwidth_gbs is 0; give a number above 0"),
        ({"memory_gb": "true"}, "memory_gb is True; give a number above 0"),
        ({"memory_gb": "nan"}, "memory_gb is nan; give a number above 0"),
        ({"tflops": "100"}, r"tflops is 100; give a table of numbers by type, as in \[tflops\] float32 = 59.8"),
        ({"tflops": "{}"}, "tflops is {}; give a table of numbers by type"),
        ({"tflops": "{bfloat16 = -1}"}, "tflops.bfloat16 is -1; give a number above 0"),
        ({"efficiency": "{bfloat16 = 60}"}, "efficiency.bfloat16 is 60; give a share above 0 and up to 1, as in"),
        ({"efficiency": "{bf16 = 0.6}"}, r"efficiency.bf16 is a share of a rate that \[tflops\] does not give"),
        ({"bandwith_gbs": "1"}, "no key 'bandwith_gbs'. Did you mean 'bandwidth_gbs'?"),
        ({"name": "mine"}, "cannot be read as hardware"),
    ],
)
def test_what_is_wrong_in_a_hardware_file_is_named(tmp_path: Path, change: dict[str, str | None], message: str) -> None:
    content = {key: value for key, value in {**DEVICE, **change}.items() if value is not None}
    path = tmp_path / "mine.toml"
    path.write_text("".join(f"{key} = {value}\n" for key, value in content.items()))
    with pytest.raises(UserError, match=f"mine.toml: {message}"):
        from_file(path)


def test_a_hardware_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("".join(f"{key} = {value}\n" for key, value in DEVICE.items()) + "efficiency = {bfloat16 = 0.5}\n")
    found = from_file(path)
    assert (found.name, found.rate("bfloat16"), found.reached("bfloat16")) == ("mine", 1e14, 0.5)
    assert found.source == str(path)


def test_equal_plans_have_equal_digests() -> None:
    model = presets.preset("tiny").spec
    plans = [
        compile_plan(model, rows.resolve(text, model).policies)
        for text in ("full_var", "variant@full", "variant@d8", "fixed_ratio@p05/d8")
    ]
    assert plans[0].digest == plans[1].digest != plans[2].digest == plans[3].digest
    assert "d8" in str(plans[2])
    assert "reads" in str(plans[2])


class Depth(DepthPolicy):
    def __init__(self, *layers: int) -> None:
        self.answer = layers

    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        return self.answer if scale == 3 else (0,)


class Steps(StepPolicy):
    def __init__(self, *steps: tuple[int, ...]) -> None:
        self.answer = steps

    def steps(self) -> Sequence[StepSpec]:
        return [StepSpec(scales=scales) for scales in self.answer]


class Tokens(TokenPolicy):
    def __init__(self, count: int, flops: int = 0) -> None:
        self.count, self.flops = count, flops

    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return self.count

    def picking_flops(self, layer: int, scale: int, sublayer: str) -> int:
        return self.flops * scale if sublayer == "ffn" else self.flops


class Forgets(Tokens):
    def __init__(self) -> None:
        super().__init__(0)

    def remembers(self, layer: int, scale: int, sublayer: str) -> bool:
        return True


class OneToken(TokenPolicy):
    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return 1 if sublayer == "ffn" else None

    def shares_places(self, layer: int, scale: int) -> bool:
        return True


class Back(CacheStrategy):
    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        return reader != 3


class Groups(CacheStrategy):
    def head_groups(self, layer: int) -> Sequence[Sequence[int]] | None:
        return ((0, 1), (1, 2, 3))


class Budget(CacheStrategy):
    def __init__(self, count: int = 5) -> None:
        self.count = count

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        return self.count


class Return(GuidancePolicy):
    def branches(self, scale: int):  # type: ignore[no-untyped-def]
        return "labelled" if scale == 2 else "both"


class Strength(BothBranches):
    def __init__(self, share: object) -> None:
        self.share = share

    def strength(self, scale: int):  # type: ignore[no-untyped-def]
        return self.share if scale == 2 else None


def own(policy: object) -> Owned:  # type: ignore[type-arg]
    return Owned(plugin="acme", policy=policy)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ({"depth": own(Depth(99))}, r"acme: scale 4 of 6 \(4x4\) asks for layer 99"),
        ({"depth": own(Depth())}, r"acme: scale 4 of 6 \(4x4\) runs no layer"),
        ({"steps": own(Steps())}, "acme: the step policy gives no step"),
        ({"steps": own(Steps((0,), ()))}, "acme: step 2 encodes no scale"),
        ({"steps": own(Steps((0,), (9,)))}, "acme: step 2 encodes scale 9"),
        ({"steps": own(Steps((0,), (2,), (1,)))}, "scales ascend"),
        ({"steps": own(Steps((1,), (2,)))}, "must encode the first scale alone"),
        ({"steps": own(Steps((0,), (1, 2)))}, "whose tokens no step has sampled"),
        (
            {"steps": own(Steps((0,), (1,), (2,), (1, 3)))},
            r"acme: step 4 encodes scale 2 of 6 .* again on backbone 'main', but not scale 3 of 6 .* encode again all from there",
        ),
        (
            {"steps": own(Steps((0,), (1,), (0, 1, 2), (3,))), "caches": (own(Budget(3)),)},
            r"layer 0 picks single cache entries after scale 1 of 6 .*, and scale 1 of 6 \(1x1\) is encoded again later",
        ),
        (
            {"steps": own(Steps((0,), (1,), (0, 1, 2), (3,))), "tokens": own(Tokens(1))},
            "acme: attention of layer 0 at scale 3 of 6 .* picks tokens in a step that encodes 3 scales",
        ),
        ({"tokens": own(Tokens(7))}, "acme: attention of layer 0 at scale 1 of 6 .* computes 7 tokens of 1"),
        ({"tokens": own(Tokens(-1))}, "computes -1 tokens of 1; give 0 to 1"),
        (
            {"tokens": own(OneToken())},
            "acme: the FFN of layer 0 at .* is to compute the tokens that attention computes, but picks 1 where attention picks 0",
        ),
        (
            {"tokens": own(Forgets())},
            "acme: attention of layer 0 .* is left out, so that there is no output to remember",
        ),
        (
            {"tokens": own(Tokens(1, flops=-3))},
            "acme: attention of layer 0 at .* takes -3 FLOPs to pick tokens; give 0 or",
        ),
        ({"guidance": own(Return())}, r"acme: the unlabelled branch comes back at scale 4 of 6"),
        ({"guidance": own(Strength(-0.5))}, r"acme: a guidance strength of -0.5 at scale 3 of 6 .*; give a share"),
        ({"guidance": own(Strength(float("nan")))}, "acme: a guidance strength of nan"),
        ({"guidance": own(Strength("ramp"))}, "acme: a guidance strength of 'ramp'"),
        (
            {"caches": (own(Back()),)},
            r"acme: scale 5 of 6 \(6x6\) reads what layer 0 stored at scale 1 of 6 .* released",
        ),
        ({"caches": (own(Groups()),)}, "acme: head groups .* no partition of 4 heads"),
        ({"caches": (own(Budget(0)),)}, "acme: a budget of 0 entries"),
        ({"caches": (own(Budget()), own(Back()))}, "acme"),
        ({"caches": (own(Budget()), own(Budget()))}, "acme and acme both set a budget"),
    ],
)
def test_impossible_plans_are_refused_by_name(policies: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        compile_plan(models.SPEC, RowPolicies(name="row", **policies))  # type: ignore[arg-type]


def test_what_picking_takes_is_in_plan_and_work() -> None:
    free, dear = (
        compile_plan(models.SPEC, RowPolicies(name="row", tokens=own(Tokens(1, flops=flops)))) for flops in (0, 5)
    )
    assert free.digest != dear.digest
    assert "picking" not in free.to_json()["steps"][3]["calls"][2]
    assert dear.to_json()["steps"][3]["calls"][2]["picking"] == [5, 15]
    works = [cost.work(plan, batch=3, dtype="float32") for plan in (free, dear)]
    more = [two.block_flops - one.block_flops for one, two in zip(works[0].steps, works[1].steps, strict=True)]
    assert more == [2 * 3 * models.SPEC.depth * (5 + 5 * scale) for scale in range(models.SPEC.scales)]
