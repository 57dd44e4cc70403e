"""Methods that keep a number of entries, and stored forms, each against its rule written out with lists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import models
import naive_var
import pytest
import torch
from torch import Tensor

from varbench import rows
from varbench.engine import calibration
from varbench.engine.pipeline import Pipeline
from varbench.errors import PlanError, UserError
from varbench.plan import cost, presets
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import Plan, total
from varbench.plan.trace import foreseen
from varbench.policies import CacheStrategy
from varbench.rows.manager import manager
from varbench.spec import ModelSpec
from varbench_plugins.eviction.hack import budgets, read_kinds
from varbench_plugins.eviction.shared import entries
from varbench_plugins.quant_cache import FORMS, Quantised

TINY, D30 = presets.preset("tiny").spec, presets.preset("var-d30").spec
EVICTING = ["streaming", "h2o", "snapkv", "hack"]
LABELS = [3, 7]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


def agrees(pipe: Pipeline, method: str, kept: Any, *, least: float = 1e-2) -> None:
    """The engine under the plugin gives the logits of the rule written out, on the codes that it drew itself."""
    ours = pipe.generate(LABELS, seed=2, method=method, return_logits=True)
    theirs = naive_var.logits(pipe, ours.tokens, LABELS, cfg=1.5, kept=kept)
    assert ours.logits is not None
    assert (ours.logits - theirs).abs().max() < 1e-4
    full = pipe.generate(LABELS, tokens=ours.tokens, return_logits=True).logits
    assert full is not None
    assert (theirs - full).abs().max() > least


def paid(held: list[Any], queries: list[Tensor]) -> list[float]:
    """What each entry is paid by some queries, whose softmax scale is 1."""
    sums = [0.0] * len(held)
    for query in queries:
        scores = [math.exp(float(query @ entry[0])) for entry in held]
        sums = [before + score / sum(scores) for before, score in zip(sums, scores, strict=True)]
    return sums


def largest(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda place: -scores[place])[:count]


def test_streaming_by_its_rule(pipe: Pipeline) -> None:
    """b25 is 16 of 66: the first four and the latest twelve."""

    def kept(layer: int, scale: int, held: list[Any], queries: Tensor) -> list[Any]:
        return held if len(held) <= 16 else held[:4] + held[-12:]

    agrees(pipe, "streaming@b25", kept)


def test_h2o_by_its_rule(pipe: Pipeline) -> None:
    """b25: the latest eight, and eight of the others by all that was paid to them; what was paid goes with the entry."""

    def kept(layer: int, scale: int, held: list[Any], queries: Tensor) -> list[Any]:
        before = [entry[3] if len(entry) > 3 else 0.0 for entry in held]
        sums = [now + then for now, then in zip(paid(held, list(queries)), before, strict=True)]
        known = [(*entry[:3], so_far) for entry, so_far in zip(held, sums, strict=True)]
        if len(known) <= 16:
            return known
        older = len(known) - 8
        return [known[place] for place in sorted(largest(dict(enumerate(sums[:older])), 8))] + known[older:]

    agrees(pipe, "h2o@b25", kept)


def test_snapkv_by_its_rule(pipe: Pipeline) -> None:
    """b25: the last eight queries of a scale observe; their entries stay, and others by a mean over five neighbours."""

    def kept(layer: int, scale: int, held: list[Any], queries: Tensor) -> list[Any]:
        if len(held) <= 16:
            return held
        window = min(8, len(queries))
        older = len(held) - window
        sums = paid(held, list(queries[-window:]))[:older]
        pooled = {place: sum(sums[max(0, place - 2) : place + 3]) / 5 for place in range(older)}
        return [held[place] for place in sorted(largest(pooled, 16 - window))] + held[older:]

    agrees(pipe, "snapkv@b25", kept)


@pytest.mark.parametrize(
    "method",
    [
        "hack@b50:contextual=3.1.f.0.8.5",
        "hack@b25:merge=true",
        "hack@b25:merge=true:weighed=true",
        "hack@b25:products=true",
    ],
)
def test_hack_by_its_rule(pipe: Pipeline, method: str) -> None:
    """b50 has 10 of 24 heads contextual: 8 entries, and 51 of a structural one. b25, half of them: 4 and 28. There, what goes
    from contextual heads at the last choice is averaged into what stays."""
    contextual = {"b50": [0x3, 0x1, 0xF, 0x0, 0x8, 0x5], "b25": [0x3] * 6}[method[5:8]]
    few, many = {"b50": (8, 51), "b25": (4, 28)}[method[5:8]]
    assert budgets(models.SPEC, 33, contextual=10 / 24, ratio=0.25) == (8, 51)
    turn = itertools.count()

    def kept(layer: int, scale: int, held: list[Any], queries: Tensor) -> list[Any]:
        head = next(turn) % 4
        is_contextual = bool(contextual[layer] >> head & 1)
        count = few if is_contextual else many
        if len(held) <= count or scale == 5:
            return held
        observers = min(32, len(queries))
        looking = [queries[number * len(queries) // observers] for number in range(observers)]
        if "products" in method:
            sums = [sum(float(query @ entry[0]) for query in looking) for entry in held]
        else:
            sums = paid(held, looking)
        if is_contextual:
            stay = sorted(largest(dict(enumerate(sums)), count))
            counts = sums if "weighed" in method else [1.0] * len(held)
            return merged(held, stay, counts) if "merge" in method and scale == 4 else [held[place] for place in stay]
        always = list(range(5))
        recent = largest({p: sums[p] for p in range(5, len(held)) if held[p][2] == scale}, count - 5)
        middle = {p: sums[p] for p in range(5, len(held)) if held[p][2] != scale}
        return [held[place] for place in sorted([*always, *recent, *largest(middle, count - 5 - len(recent))])]

    agrees(pipe, method, kept)


def merged(held: list[Any], stay: list[int], counts: list[float]) -> list[Any]:
    groups = {place: [place] for place in stay}
    for gone in set(range(len(held))) - set(stay):
        groups[max(stay, key=lambda place: float(held[place][0] @ held[gone][0]))].append(gone)  # keys have length 1
    return [
        (
            *(
                sum(counts[one] * held[one][what] for one in group) / sum(counts[one] for one in group)
                for what in (0, 1)
            ),
            held[place][2],
        )
        for place, group in groups.items()
    ]


@pytest.mark.parametrize(("point", "most"), [("b8", 127), ("b4", 7)])
def test_quantised_entries_are_read_as_they_were_rounded(pipe: Pipeline, point: str, most: int) -> None:
    def rounded(vector: Tensor) -> Tensor:
        worth = max(abs(float(number)) for number in vector) / most
        return torch.tensor([round(float(number) / worth) * worth for number in vector])

    def kept(layer: int, scale: int, held: list[Any], queries: Tensor) -> list[Any]:
        older = len(held) - len(queries)
        return held[:older] + [(rounded(key), rounded(value), scale) for key, value, _ in held[older:]]

    agrees(pipe, f"quant_cache@{point}", kept, least=1e-3)


def test_what_the_teacher_forced_pass_cannot_say_is_refused_by_name(pipe: Pipeline) -> None:
    tokens, labels = torch.zeros(1, sum(pipe.model.tokens), dtype=torch.long), [0]
    with pytest.raises(UserError, match="quant_cache@b4 reads keys and values that were encoded and decoded"):
        pipe.logits(tokens, labels, method="quant_cache@b4")
    for row in ("fastvar@r50", "h2o@b25"):
        with pytest.raises(PlanError, match=rf"{row}: layer \d at .* chooses tokens or cache entries by content"):
            pipe.logits(tokens, labels, method=row)


@pytest.mark.parametrize("point", FORMS)
def test_a_stored_form_takes_what_it_declares_and_knows_any_size(point: str) -> None:
    form = FORMS[point]
    x = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-3, 1.0, 1e4]).view(
        3, 1, 1
    )
    parts = form.encode(x)
    assert sum(part.nbytes for part in parts) == 2 * 3 * 5 * (64 * form.bits // 8 + form.extra_bytes)
    step = x.abs().amax(dim=-1, keepdim=True) / (2 ** (form.bits - 1) - 1)
    assert ((form.decode(parts) - x).abs() <= 0.501 * step).all()


@pytest.mark.parametrize("plugin", EVICTING)
def test_neutral_settings_give_the_full_model(pipe: Pipeline, plugin: str) -> None:
    full = pipe.compile("full_var")[0].digest
    neutral = manager().call(plugin, "varbench_settings", model=pipe.model).neutral
    assert neutral
    assert {pipe.compile(plugin + setting)[0].digest for setting in neutral} == {full}


def plan_of(method: str, model: ModelSpec) -> Plan:
    return compile_plan(model, rows.resolve(method, model).policies)


@pytest.mark.parametrize("model", [TINY, D30])
@pytest.mark.parametrize("plugin", [*EVICTING, "quant_cache"])
def test_settings_form_a_curve(plugin: str, model: ModelSpec) -> None:
    points = manager().call(plugin, "varbench_settings", model=model).points
    ends = [cost.work(plan_of(f"{plugin}@{point}", model), batch=4, dtype="bfloat16").state_end for point in points]
    full = cost.work(plan_of("full_var", model), batch=4, dtype="bfloat16").state_end
    assert [full, *ends] == sorted({full, *ends}, reverse=True)


@pytest.mark.parametrize("plugin", EVICTING)
def test_budgets_are_equal_and_of_what_is_read(plugin: str) -> None:
    """On average over all heads: the part that shows them side by side depends on it."""
    for point, mean in (("b75", 318), ("b10", 42), ("r50", 340), ("r70", 204)):
        assert entries(point, D30) == mean
        uses = [use for call in plan_of(f"{plugin}@{point}", D30).steps[-1].calls for use in call.cache]
        held = sum(len(use.heads) * total(use.read) for use in uses) / sum(len(use.heads) for use in uses)
        assert held == pytest.approx(mean, abs=1)


def test_what_a_plan_says_of_attention_and_forms() -> None:
    h2o, full = plan_of("h2o@b25", D30), plan_of("full_var", D30)
    ninth = h2o.steps[8].calls[0].cache[0]
    assert (len(ninth.observed), ninth.accumulated, h2o.steps[9].calls[0].cache[0].observed) == (169, False, ())
    assert h2o.steps[7].calls[0].cache[0].accumulated, "the next scale chooses again"
    works = [cost.work(plan, batch=1, dtype="bfloat16") for plan in (h2o, full)]
    observed = (
        2 * 30 * 30 * 64 * 2 * sum(len(s.calls[0].cache[0].observed) * s.calls[0].cache[0].attended for s in h2o.steps)
    )
    saved = (
        2
        * 30
        * 30
        * 64
        * 4
        * sum(
            step.calls[0].attention.tokens * (model.calls[0].cache[0].attended - step.calls[0].cache[0].attended)
            for step, model in zip(h2o.steps, full.steps, strict=True)
        )
    )
    assert works[0].block_flops == works[1].block_flops + observed - saved
    # Two numbers of two bytes for each of 64, and room for 106 entries; beside each that is held, what it was paid.
    (state,) = {step.state_after for step in works[0].steps[5:6]}
    assert state == 2 * 30 * 30 * (106 * 2 * 2 * 64 + 91 * 4)
    eight = cost.work(plan_of("quant_cache@b8", D30), batch=1, dtype="bfloat16")
    assert eight.state_peak / works[1].state_peak == (64 + 4) / (2 * 64)


@pytest.mark.parametrize(
    "method",
    ["h2o@b25+quant_cache@b8", "hack@b25:merge=true:cumulative=true+quant_cache@b8", "variant@d3+h2o@b50",
     "fastvar@r60+snapkv@b25", "h2o@b25:accounting=upstream", "quant_cache@b8:accounting=upstream"],
)  # fmt: skip
def test_joined_rows_do_what_their_plan_says(method: str) -> None:
    for dtype in ("float32", "bfloat16"):
        pipe = models.pipeline(dtype=dtype)
        out = pipe.generate(models.LABELS, seed=1, method=method)
        assert out.trace == foreseen(out.plan, batch=len(models.LABELS), dtype=dtype)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("h2o@b101", "b101 is out of range"),
        ("h2o@b50:recent=2", "recent is 2.0; give a share"),
        ("streaming@b50:sinks=-1", "sinks is -1"),
        ("snapkv@b50:pool=4", "pool is 4; give a window of 1 or more and an odd pool"),
        ("hack@b50:contextual=3.1", "give 6 hexadecimal numbers of 4 bits"),
        ("hack@b50:contextual=g.1.1.1.1.1", "give 6 hexadecimal numbers of 4 bits"),
        ("hack@b50:share=2", "share is 2.0"),
        ("hack@b50:products=true:cumulative=true", "cumulative is of attention, and products=true looks at none"),
        ("hack@b50:products=true:merge=true:weighed=true", "weighed is of attention, and products=true looks at none"),
    ],
)
def test_wrong_settings(method: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows.resolve(method, models.SPEC)


class Observing(CacheStrategy):
    """Picks nine entries, and looks at a query that its scale may not have."""

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        return 9

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        return (0, 20)


class Forgetful(CacheStrategy):
    """Picks late, and drops whole scales before."""

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        return 9 if scale == 4 else None

    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        return reader - written < 3

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        return range(count)

    def accumulates(self, layer: int, group: int) -> bool:
        return True


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ([Observing()], r"test: observes queries \(0, 20\) of 1 of layer 0 at scale 1.*give places from 0 to 0"),
        ([Forgetful()], "attention adds up over scales in layer 0, which drops whole scales beside"),
        ([Quantised(FORMS["b8"]), Quantised(FORMS["b4"])], "test and test both set how keys and values are stored"),
    ],
)
def test_what_cannot_be_planned_is_refused(policies: list[CacheStrategy], message: str) -> None:
    row = RowPolicies(name="row", caches=tuple(Owned(plugin="test", policy=policy) for policy in policies))
    with pytest.raises(PlanError, match=message):
        compile_plan(models.SPEC, row)


def test_rows_say_where_a_budget_is_degenerate() -> None:
    """On tiny few entries are left; on the large model nothing is said."""
    for plugin, words in (
        ("streaming", "b10 (7)"),
        ("snapkv", "b75 (50), b50 (33), b25 (16), b10 (7)"),
        ("hack", "b50 (33)"),
    ):
        note = manager().call(plugin, "varbench_settings", model=TINY).provenance.note
        assert words in note
    assert "fewer than" not in manager().call("streaming", "varbench_settings", model=D30).provenance.note


def test_hack_finds_the_heads_whose_queries_agree(
    pipe: Pipeline, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variance of each head's last step, from attention written out query by query."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: dict[tuple[int, int], list[Tensor]] = {}

    def look(layer: int, scale: int, keys: Tensor, queries: Tensor) -> None:
        if scale == 5:
            for row, head in itertools.product(range(len(keys)), range(4)):
                shares = torch.stack([(query @ keys[row, head].T).softmax(dim=-1) for query in queries[row, head]])
                mean = shares.mean(dim=0)
                seen.setdefault((layer, head), []).append(((shares - mean) ** 2).mean(dim=0).sum())

    labels = [image * 10 // 8 for image in range(8)]
    calibration.observe(pipe, labels, seed=20_253, look=look)
    expected = {place: float(torch.stack(rows).mean()) for place, rows in seen.items()}
    found = calibration.calibrate(rows.resolve("hack@b50:share=0.25", pipe.model), pipe)
    variance = found.found["hack"]["variance"]
    assert all(variance[layer][head] == pytest.approx(value, rel=1e-3) for (layer, head), value in expected.items())
    lowest = set(sorted(expected, key=expected.__getitem__)[:6])
    text = found.parameters["hack.contextual"]
    assert text == calibration.written_masks([head for at, head in lowest if at == layer] for layer in range(6))
    kinds = read_kinds(str(text), pipe.model, share=0.25)
    assert {(layer, head) for layer, (first, _) in enumerate(kinds) for head in first} == lowest
