"""Methods of others, each against the authors' choices or a naive implementation of its rule, alone and joined."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import golden_files as golden
import models
import naive_var
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from varbench import rows
from varbench.engine import calibration
from varbench.engine.generate import Sampling, generate
from varbench.engine.pipeline import Pipeline
from varbench.engine.sampler import streams
from varbench.errors import UserError
from varbench.plan import cost, presets
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import Plan, Segment, total
from varbench.plan.trace import foreseen
from varbench.policies import CacheStrategy
from varbench.rows.manager import manager
from varbench.spec import ModelSpec
from varbench_plugins.fastvar.policies import computed_tokens
from varbench_plugins.fastvar.selection import farthest_from_mean, restored
from varbench_plugins.scale_window.similarity import distance
from varbench_plugins.scalekv.selection import best_entries, products
from varbench_plugins.scalekv.selectivity import lowest, selectivity
from varbench_plugins.scalekv.strategy import ScaleKV, budgets, observers, read_drafters

TEN = presets.preset("var-d16").spec
TRAINING_FREE = ["fastvar", "scale_window", "scalekv", "prefix_exit"]
JOINED = ["variant@d3+scale_window@w1", "variant@d3+fastvar@r60", "variant@d3+scalekv@b50", "fastvar@r60+scale_window@w1",
          "fastvar@r60+scalekv@b50", "fastvar@skip1+scale_window@w1", "prefix_exit@e3+scale_window@w1+fastvar@r75skip1"]  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


def golden_cases(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(golden.FOLDER / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["cases"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def normal(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype("float32"))


def test_fastvar_chooses_and_restores_as_the_authors_do() -> None:
    cases, theirs = golden_cases("fastvar_select")
    for name, case in cases.items():
        batch, side, channels, tag = case["batch"], case["side"], case["channels"], case["tag"]
        x, y = (normal(tag + letter, batch, side**2, channels) for letter in "xy")
        remembered = normal(tag + "cache", batch, case["cached_side"] ** 2, channels)
        count = computed_tokens(side**2, round(case["ratio"] * 100))
        places = farthest_from_mean(x, count)
        assert torch.equal(places, theirs[f"{name}.selected"].long().sort(dim=1).values), name
        chosen = y.gather(1, places.unsqueeze(-1).expand(-1, -1, channels))
        assert (restored(chosen, places, remembered, side=side) - theirs[f"{name}.restored"]).abs().max() < 1e-6, name


def test_scalekv_keeps_the_authors_entries() -> None:
    """Each golden case, replayed scale by scale: what the cache held before is what was kept so far."""
    cases, theirs = golden_cases("scalekv_select")
    compared = 0
    for name, case in cases.items():
        shape, size = (case["batch"], case["heads"]), case["head_dim"]
        grid = math.isqrt(case["observation_queries"])
        held, keys = torch.zeros(*shape, 0, dtype=torch.long), torch.zeros(*shape, 0, size)
        start = 0
        for scale, side in enumerate(case["sides"]):
            tag, count = case["tags"][str(scale)], side**2
            held = torch.cat((held, torch.arange(start, start + count).expand(*shape, -1)), dim=-1)
            keys = torch.cat((keys, normal(tag + "k", *shape, count, size)), dim=2)
            start += count
            assert held.shape[-1] == case["length_before"][scale]
            if f"{name}.kept_{scale}" in theirs:
                watching = observers(count, side=side, grid=grid)
                scores = products(keys, normal(tag + "q", *shape, count, size)[:, :, watching])
                always = [keys.shape[2] - count + place for place in watching]
                capacity = case["capacity_after_scale"][scale]
                places = best_entries(scores, capacity, always=always, pool=case["pool_kernel"])
                held = held.gather(2, places)
                keys = keys.gather(2, places.unsqueeze(-1).expand(-1, -1, -1, size))
                assert torch.equal(held, theirs[f"{name}.kept_{scale}"].long()), (name, scale)
                compared += 1
    assert compared == sum(".kept_" in key for key in theirs)
    for key, window in theirs.items():
        if key.startswith("window_side"):
            side = int(key.removeprefix("window_side"))
            assert observers(side**2, side=side, grid=4) == sorted(window.tolist())


LABELS = [3, 7]


def agrees(pipe: Pipeline, method: str, **rule: Any) -> None:
    """The engine under the plugin gives the logits of the rule written out, on the codes that it drew itself."""
    ours = pipe.generate(LABELS, seed=2, method=method, return_logits=True)
    theirs = naive_var.logits(pipe, ours.tokens, LABELS, cfg=1.5, **rule)
    assert ours.logits is not None
    assert (ours.logits - theirs).abs().max() < 1e-4
    full = pipe.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert full is not None
    assert (theirs - full).abs().max() > 1e-2


@pytest.mark.parametrize("shared", [False, True])
def test_fastvar_by_its_rule(pipe: Pipeline, shared: bool) -> None:
    """r60 of tiny's six scales: 40 percent of 6x6 and 60 of 8x8 are pruned, restored from 4x4; layers 1 to 4 of 6."""

    def chosen(layer: int, scale: int, x_LC: Tensor) -> list[int] | None:
        if scale < 4 or not 1 <= layer <= 4:
            return None
        count = {4: 36 - 14, 5: 64 - 38}[scale]
        mean = sum(x_LC) / len(x_LC)
        distances = [float(((token - mean) ** 2).sum()) for token in x_LC]
        return sorted(sorted(range(len(x_LC)), key=lambda i: -distances[i])[:count])

    def restored(map_lC: Tensor, side: int) -> Tensor:
        small = math.isqrt(len(map_lC))
        cells = []
        for row in range(side):
            for column in range(side):
                covered = [
                    map_lC[r * small + c]
                    for r in range(row * small // side, -(-(row + 1) * small // side))
                    for c in range(column * small // side, -(-(column + 1) * small // side))
                ]
                cells.append(sum(covered) / len(covered))
        return torch.stack(cells)

    method = f"fastvar@r60:share={str(shared).lower()}"
    agrees(pipe, method, chosen=chosen, shared=shared, remembered_scale=3, restored=restored)


def test_scale_window_by_its_rule(pipe: Pipeline) -> None:
    """w1: the first two scales are locked, and of the others one is held, in layers 0 and 4 two: the oldest goes first."""

    def kept(layer: int, scale: int, entries: list[naive_var.Entry], queries: Tensor) -> list[naive_var.Entry]:
        room = 2 if layer in (0, 4) else 1
        queue = sorted({entry[2] for entry in entries} - {0, 1})
        while len(queue) > room:
            queue.pop(0)
        return [entry for entry in entries if entry[2] in (0, 1, *queue)]

    agrees(pipe, "scale_window@w1:demanding=0.4:more=1", kept=kept)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_scalekv_by_its_rule(pipe: Pipeline, form: str) -> None:
    """b50 is 33 on average: after the fifth scale 17 in a refiner (33 x (0.92 - 4 x 0.1)) and 49 in a drafter, which layers 1,
    3 and 5 are; before it there are no more than 33. The observers of a scale always stay."""

    def kept(layer: int, scale: int, entries: list[naive_var.Entry], queries: Tensor) -> list[naive_var.Entry]:
        side, budget = models.SPEC.sides[scale], 49 if layer % 2 else 17
        if scale != 4:
            return entries
        own = len(entries) - side**2
        middles = [cell * (side // 4) + (side // 4 - 1) // 2 for cell in range(4)]
        watch = [row * side + column for row in middles for column in middles]
        always = {own + w for w in watch}
        keys = torch.stack([entry[0] for entry in entries])
        if form == "code":
            scores = [sum(float(queries[w] @ key) for w in watch) for key in keys]
            scores = [-math.inf if i in always else score for i, score in enumerate(scores)]
            pooled = {i: max(scores[max(0, i - 2) : i + 3]) for i in range(len(entries)) if i not in always}
        else:
            shares = sum((keys @ queries[w]).softmax(dim=0) for w in watch)
            assert isinstance(shares, Tensor)
            scores = [0.0 if i in always else float(share) for i, share in enumerate(shares)]
            pooled = {i: sum(scores[max(0, i - 2) : i + 3]) for i in range(len(entries)) if i not in always}
        best = sorted(pooled, key=lambda i: -pooled[i])[: budget - len(always)]
        return [entries[i] for i in sorted([*best, *always])]

    agrees(pipe, f"scalekv@b50:drafters=2a.2a.2a.2a.2a:form={form}", kept=kept)


def test_scalekv_shares_one_budget_among_the_layers_of_a_scale() -> None:
    """The large model at 10 %: a drafter has what refiners leave, and at no scale more than there is."""
    d30 = presets.preset("var-d30").spec
    for scale, (drafter, refiner) in {5: (67, 18), 8: (69, 16)}.items():
        assert budgets(d30, scale, mean=42.4, drafters=15, start=0.92, decay=0.1) == (drafter, refiner)
        assert (drafter + refiner) / 2 == pytest.approx(42.4, abs=0.5)
    assert budgets(d30, 8, mean=318, drafters=10, start=0.92, decay=0.1) == (424, 265), "the rest goes to refiners"
    assert read_drafters("", d30)[0] == frozenset(range(15))


def test_prefix_exit_by_its_rule(pipe: Pipeline) -> None:
    agrees(pipe, "prefix_exit@e4", layers=[0, 1, 2, 3])


@pytest.mark.parametrize("plugin", TRAINING_FREE)
def test_neutral_settings_give_the_full_model(pipe: Pipeline, plugin: str) -> None:
    full = pipe.generate(models.LABELS, seed=1).tokens
    settings = manager().call(plugin, "varbench_settings", model=pipe.model)
    assert settings.neutral
    for setting in settings.neutral:
        assert torch.equal(pipe.generate(models.LABELS, seed=1, method=plugin + setting).tokens, full), setting


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_choosing_everything_changes_nothing(dtype: str) -> None:
    """The methods' own code runs, and gathers every token or entry."""
    pipe = models.pipeline(dtype=dtype)
    full = pipe.generate(models.LABELS, seed=1).tokens
    out = pipe.generate(models.LABELS, seed=1, method="fastvar@r0:first=0:last=0")
    assert out.plan.picks
    assert torch.equal(out.tokens, full)

    class Everything(ScaleKV):
        def budget(self, layer: int, scale: int, group: int) -> int | None:
            return models.SPEC.length

    everything = Everything(models.SPEC, drafters=read_drafters("", models.SPEC), mean=1)
    row = RowPolicies(name="all", caches=(Owned[CacheStrategy](plugin="test", policy=everything),))
    plan = compile_plan(pipe.model, row)
    made = generate(
        plan, row, backbones=pipe.backbones, tokenizer=pipe.tokenizer, labels_B=models.LABELS,
        streams_B1=streams(torch.arange(len(models.LABELS)), seed=1), sampling=Sampling(), dtype=pipe.dtype,
    )  # fmt: skip
    assert plan.picks
    assert torch.equal(made.tokens_BL, full)


@pytest.mark.parametrize("method", [*(f"{name}" for name in JOINED), "code@training_free/n3+fastvar@r60"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_joined_rows_do_what_their_plan_says(method: str, dtype: str) -> None:
    pipe = models.pipeline(dtype=dtype)
    out = pipe.generate(models.LABELS, seed=1, method=method)
    assert out.trace == foreseen(out.plan, batch=len(models.LABELS), dtype=dtype)


def plan_of(method: str, model: ModelSpec = TEN) -> Plan:
    row = rows.resolve(method, model)
    return compile_plan(model, row.policies, accounting=row.accounting)


def test_plans_merge() -> None:
    """Layers come from one, entries and tokens from the other, and the work is that of what both leave."""
    depth, window, pivotal = (plan_of(m) for m in ("variant@d8", "scale_window@w2", "fastvar@r75"))
    both = plan_of("variant@d8+scale_window@w2")
    for step, deep, wide in zip(both.steps, depth.steps, window.steps, strict=True):
        assert [call.layer for call in step.calls] == [call.layer for call in deep.calls]
        for call in step.calls:
            assert [use.read for use in call.cache] == [use.read for use in wide.calls[call.layer].cache]
    joined = plan_of("variant@d8+fastvar@r75")
    for step, deep, sparse in zip(joined.steps, depth.steps, pivotal.steps, strict=True):
        assert [call.layer for call in step.calls] == [call.layer for call in deep.calls]
        assert all(call.attention.tokens == sparse.calls[call.layer].attention.tokens for call in step.calls)
        assert all(call.ffn.tokens == sparse.calls[call.layer].ffn.tokens for call in step.calls)
    held = [cost.work(plan, batch=4, dtype="bfloat16").state_end for plan in (both, depth, window)]
    assert held[0] < min(held[1:])
    for whole, parts in ((both, (depth, window)), (joined, (depth, pivotal))):
        counted = cost.work(whole, batch=4, dtype="bfloat16")
        alone = [cost.work(part, batch=4, dtype="bfloat16") for part in parts]
        assert counted.block_flops < min(work.block_flops for work in alone)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("scalekv@b25+scale_window@w2", ("scalekv", "scale_window")),
        ("variant@d3+prefix_exit@e3", ("variant", "prefix_exit")),
        ("code@training_free/n4+fastvar@skip1", ("code", "fastvar")),
        ("code@training_free/n4+fastvar@r60", ("fastvar",)),
        ("code@training_free/n4+prefix_exit@e3", ("refiner",)),
    ],
)
def test_what_cannot_be_joined_is_refused_by_name(pipe: Pipeline, method: str, names: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refusal:
        pipe.compile(method)
    assert all(name in str(refusal.value) for name in names)


@pytest.mark.parametrize("model", [TEN, presets.preset("tiny").spec])
@pytest.mark.parametrize("plugin", TRAINING_FREE)
def test_settings_form_a_curve(plugin: str, model: ModelSpec) -> None:
    """From the mildest to the harshest point, work or state falls at each, and nothing costs more than the full model."""
    points = manager().call(plugin, "varbench_settings", model=model).points
    if plugin == "scale_window":
        shares = [point for point in points if point[0] == "b"]
        assert len(shares) == 4
        assert falling(plugin, shares, model)
        points = tuple(point for point in points[::-1] if point[0] == "w")
    if plugin == "fastvar":
        points = ("r0", *points[:4], "skip1", "r50skip2")
    works = [cost.work(plan_of(f"{plugin}@{point}", model), batch=4, dtype="bfloat16") for point in points]
    costs = [work.block_flops if plugin in ("fastvar", "prefix_exit") else work.state_end for work in works]
    assert costs == sorted(set(costs), reverse=True)
    full = cost.work(plan_of("full_var", model), batch=4, dtype="bfloat16")
    assert all(work.block_flops <= full.block_flops for work in works)


def falling(plugin: str, points: Sequence[str], model: ModelSpec) -> bool:
    held = [cost.work(plan_of(f"{plugin}@{point}", model), batch=4, dtype="bfloat16").state_end for point in points]
    return held == sorted(set(held), reverse=True)


@pytest.mark.parametrize(
    ("point", "capacity", "demanding"), [("b75", 2, 13), ("b50", 1, 7), ("b25", 0, 11), ("b10", 0, 4)]
)
def test_a_share_for_scale_window_is_as_near_as_whole_scales_of_whole_layers_allow(
    point: str, capacity: int, demanding: int
) -> None:
    """Of the ten scales' 424 entries; a layer more or less would be farther away. The first layers are the demanding ones."""
    d30 = presets.preset("var-d30").spec
    reads = [total(call.cache[0].read) for call in plan_of(f"scale_window@{point}", d30).steps[9].calls]
    ends = [5 + sum(d30.tokens[9 - held : 9]) for held in (capacity, capacity + 2)]
    assert reads == [ends[1]] * demanding + [ends[0]] * (30 - demanding)
    wanted = 424 * int(point[1:]) / 100
    off = [abs(sum(ends[1] if layer < many else ends[0] for layer in range(30)) / 30 - wanted) for many in range(31)]
    assert off.index(min(off)) == demanding


def test_rules_at_the_usual_sizes() -> None:
    assert [p.attention.tokens for p in (plan_of("fastvar@r75").steps[s].calls[8] for s in (7, 8, 9))] == [100, 85, 64]
    assert [c.layer for c in plan_of("fastvar@r75").steps[9].calls if c.ffn.picked] == list(range(2, 14))
    assert {use.read for c in plan_of("scale_window@w1").steps[9].calls for use in c.cache} == {
        (Segment(0, 1), Segment(1, 4), Segment(8, 169))
    }
    kept = [total(c.cache[0].kept) for c in plan_of("scalekv@b25").steps[8].calls]
    assert kept == [196] * 8 + [16] * 8
    d20 = presets.preset("var-d20").spec
    assert manager().call("prefix_exit", "varbench_settings", model=d20).points == ("e16", "e12", "e10")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fastvar@skip6", "skip6 leaves no scale: small has 6"),
        ("fastvar@r50:scales=6", "6 of small's 6 scales run.*give 0 to 5"),
        ("fastvar@r50:first=5:last=2", "first is 5 and last is 2; small has 6 layers"),
        ("scale_window@w1:coarse=7", "coarse is 7; small has 6 scales"),
        ("scale_window@w1:demanding=6", "demanding names layer 6; small has layers 0 to 5"),
        ("scale_window@w1:demanding=a", "demanding is 'a'; list layers with dots"),
        ("scalekv@b101", "b101 is out of range"),
        ("scale_window@b101", "b101 is out of range"),
        ("scale_window@b25:threshold=2", "b25 says how many layers are demanding; give share and threshold with a wN"),
        ("scale_window@b25:share=0.5", "b25 says how many layers are demanding; give share and threshold with a wN"),
        ("scale_window@w1:threshold=-1", "threshold -1.0; give a share above 0"),
        ("scale_window@b50:demanding=0.1.2.3.4.5", "b50 has [1-5] demanding layers, and demanding lists 6"),
        ("scale_window@w1:more=-1", "more is -1"),
        ("scalekv@b50:start=2", "start is 2.0 and decay is 0.1"),
        ("scalekv@b50:form=both", "form is 'both'; give code or paper"),
        ("scalekv@b50:drafters=3.1", "give 5 hexadecimal numbers of 6 bits"),
        ("scalekv@b50:base=-1", "base is -1"),
        ("prefix_exit@e7", "e7 is out of range: small has 6 layers"),
        ("prefix_exit@e3:whole=7", "whole is 7; small has 6 scales"),
    ],
)
def test_wrong_settings(method: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows.resolve(method, models.SPEC)


def test_measures_of_calibration() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert distance(one.expand(2, 3, 4, 2), one.expand(2, 3, 9, 2)) == pytest.approx(0)
    assert distance(one.expand(2, 3, 4, 2), other.expand(2, 3, 9, 2)) == pytest.approx(2**0.5)
    # Left and right half of two places; between them, by a quarter, lie the places of four.
    halves = torch.stack((one, other, one, other)).view(1, 1, 4, 2)
    mixed = (
        torch.stack([one, 0.75 * one + 0.25 * other, 0.25 * one + 0.75 * other, other]).repeat(4, 1).view(1, 1, 16, 2)
    )
    assert distance(halves, mixed) == pytest.approx(0, abs=1e-6)
    # Even attention to 20 entries, 5 of them own: a quarter, times the 4 that history gives most of it.
    assert selectivity(torch.zeros(1, 2, 20, 4), torch.zeros(1, 2, 5, 4), 1.0, top=4) == pytest.approx(5 / 20 * 4 / 20)
    assert selectivity(torch.zeros(1, 2, 20, 4), torch.zeros(1, 2, 5, 4), 1.0, top=99) == pytest.approx(
        5 / 20 * 15 / 20
    )
    # The second scale is higher throughout, and varies more; by deviations its last layer is the lowest of all.
    assert lowest(torch.tensor([[0.1, 0.2, 0.3], [9.0, 9.0, 5.0]]), share=0.34) == [(1, 2), (0, 0)]


@pytest.mark.parametrize("method", ["scale_window@w1", "scalekv@b25"])
def test_calibration_writes_what_it_found_into_the_row(
    pipe: Pipeline, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = rows.resolve(method, pipe.model)
    found = calibration.calibrate(row, pipe)
    result = found.found[method.partition("@")[0]]
    ((parameter, text),) = result["parameters"].items()
    if parameter == "demanding":
        far = sorted(range(6), key=lambda layer: -result["distance"][layer])[:2]
        assert text == ".".join(map(str, sorted(far)))
    else:
        low = lowest(torch.tensor(result["selectivity"]), share=0.5)
        drafters = read_drafters(text, pipe.model)
        assert {(scale - 2, layer) for scale, layers in enumerate(drafters) for layer in layers} == set(low)
        assert len(low) == 9, "half of six layers at three scales"
    assert found.row.name == rows.resolve(f"{method}:{parameter}={text}", pipe.model).name
    kept = json.loads(found.path.read_text())
    assert (kept["found"], kept["digest"], kept["weights"]) == (found.found, found.digest, pipe.weights)
    assert calibration.calibrate(row, pipe).digest == found.digest
    assert pipe.generate(LABELS, method=found.row).plan.digest == pipe.compile(found.row.name)[0].digest


def test_scale_window_calibrates_as_many_layers_as_its_point_has_or_those_beyond_a_threshold(
    pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def found(method: str) -> tuple[list[int], list[float]]:
        result = calibration.calibrate(rows.resolve(method, pipe.model), pipe).found["scale_window"]
        return [int(layer) for layer in result["parameters"]["demanding"].split(".")], result["distance"]

    (half, distances), near_half = found("scale_window@b50"), rows.resolve("scale_window@b50", pipe.model)
    ranked = sorted(range(6), key=lambda layer: -distances[layer])
    reads = [total(c.cache[0].read) for c in compile_plan(pipe.model, near_half.policies).steps[-1].calls]
    assert half == sorted(ranked[: reads.count(max(reads))])
    assert 0 < len(half) < 6
    between = (distances[ranked[3]] + distances[ranked[4]]) / 2
    assert found(f"scale_window@w1:threshold={between:.6f}")[0] == sorted(ranked[:4])
    with pytest.raises(UserError, match="threshold is 99.0, and keys lie no farther than .* in any layer"):
        found("scale_window@w1:threshold=99")


def test_a_row_without_calibration(pipe: Pipeline) -> None:
    with pytest.raises(UserError, match="prefix_exit@e3 has nothing to calibrate"):
        calibration.calibrate(rows.resolve("prefix_exit@e3", pipe.model), pipe)
