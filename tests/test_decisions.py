"""Work that depends on content: every way that is declared is compiled, what is decided is what runs, and both are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import models
import pytest
import torch
from record_factory import make_record
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from varbench import rows
from varbench.check import check
from varbench.engine.pipeline import Output, Pipeline
from varbench.engine.teacher import TeacherPass, teacher_plan
from varbench.errors import PlanError, UserError
from varbench.measure import honesty
from varbench.plan import cost, presets
from varbench.plan.compiler import compile_plan
from varbench.plan.decided import alone
from varbench.plan.owned import Owned, RowPolicies
from varbench.plan.steps import Plan
from varbench.plan.trace import Trace, otherwise_than_planned
from varbench.policies import DecisionPolicy, Preview, SoFar, TokenPolicy, Way
from varbench.record import decode, encode
from varbench.record.plan_summary import plan_summary, trace_totals
from varbench.rows.grammar import Row
from varbench.show.columns import _work
from varbench.show.entries import blocks_of
from varbench.show.table import _notes

SPEC = models.SPEC
LABELS = [0, 3, 9, 5, 7]
WAYS = (Way(), Way(ends=5), Way(ends=4), Way(labelled=4), Way(ends=5, labelled=4))


class Told(DecisionPolicy):
    """Answers what it is told to."""

    def __init__(self, answer: Any, *, ways: Sequence[Way] = WAYS, after: int = 3, **more: Any) -> None:
        self._answer, self._ways, self._after = answer, ways, after
        self.previews: Sequence[Preview] = more.get("previews", ())
        self.together = more.get("together", False)
        self.seen: SoFar | None = None

    def after(self) -> int:
        return self._after

    def ways(self) -> Sequence[Way]:
        return self._ways

    def decide(self, seen: SoFar) -> Any:
        self.seen = seen
        return self._answer(seen) if callable(self._answer) else self._answer


def row_of(policy: DecisionPolicy, text: str = "full_var") -> Row:
    row = rows.resolve(text, SPEC)
    name = f"{text} {id(policy)}"
    decision = Owned(plugin="told", policy=policy)
    return replace(row, name=name, policies=replace(row.policies, name=name, decision=decision))


def planned(policy: DecisionPolicy, text: str = "full_var") -> Plan:
    row = row_of(policy, text)
    return compile_plan(SPEC, row.policies, accounting=row.accounting)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


def made(pipe: Pipeline, policy: DecisionPolicy, text: str = "full_var", **options: Any) -> Output:
    return pipe.generate(LABELS, seed=4, method=row_of(policy, text), **options)


def unplanned(out: Output, trace: Trace | None = None) -> list[str]:
    return list(otherwise_than_planned(out.plan, trace or out.trace, batch=len(LABELS), dtype="float32"))


def test_a_plan_has_every_way() -> None:
    plan = planned(Told([]))
    assert plan.decision is not None
    assert [[step.samples for step in way.steps] for way in plan.decision.ways] == [[4, 5], [4], [], [4, 5], [4]]
    assert [[step.branches for step in way.steps] for way in plan.decision.ways] == [[2, 2], [2], [], [1, 1], [1]]
    full = compile_plan(SPEC, RowPolicies(name="full"))
    assert plan.steps == full.steps == (*plan.steps[:4], *plan.decision.ways[0].steps)
    assert "each image goes, by content: on as before; ends before 8x8; ends before 6x6" in str(plan)
    assert plan.picks
    assert plan.digest not in {
        full.digest,
        planned(Told([], ways=WAYS[:3])).digest,
        planned(Told([], together=True)).digest,
    }


def test_what_nothing_reads_on_a_way_is_not_kept_there() -> None:
    """On the way that ends before the last scale the one before it stores nothing; buffers keep the room that they were given."""
    plan = planned(Told([]))
    assert plan.decision is not None
    (last,) = plan.decision.ways[1].steps
    assert all(not use.kept and use.capacity == 0 for call in last.calls for use in call.cache)
    before, after = plan.steps[3].calls[0].cache[0], plan.decision.ways[3].steps[0].calls[0].cache[0]
    assert before.capacity == after.capacity == SPEC.starts[5]


WRONG: dict[str, tuple[DecisionPolicy, str]] = {
    "after": (Told([], after=7), "decides after scale 7; the row samples 0, 1, 2, 3, 4, 5"),
    "first way": (Told([], ways=(Way(ends=5), Way())), r"give Way\(\), which goes on as before"),
    "one way": (Told([], ways=(Way(),)), "and then at least one more"),
    "past": (Told([], ways=(Way(), Way(ends=3))), "leaves out from scale 3 on; it is decided after scale 3"),
    "beyond": (Told([], ways=(Way(), Way(labelled=6))), "and small has scales 0 to 5"),
    "twice": (Told([], ways=(Way(), Way(ends=5), Way(ends=5))), "give each way once"),
    "preview to come": (Told([], previews=(Preview(scale=4, side=4),)), "scales that were sampled by then, 0, 1, 2, 3"),
    "preview too large": (Told([], previews=(Preview(scale=3, side=9),)), "sides up to 8"),
    "previews in no order": (Told([], previews=(Preview(scale=3, side=4), Preview(scale=2, side=4))), "order of scales"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_planned_is_refused_by_name(case: str) -> None:
    policy, message = WRONG[case]
    with pytest.raises(PlanError, match=message) as refused:
        planned(policy)
    assert str(refused.value).startswith("told: ")


def test_a_model_that_begins_after_the_decision_is_refused() -> None:
    with pytest.raises(PlanError, match="refiner begins or encodes scales again after that"):
        planned(Told([], after=1), "code@training_free/n3")
    assert planned(Told([], after=3), "code@training_free/n3").decision is not None


@pytest.mark.parametrize(
    "text",
    [
        "full_var", "full_var:accounting=upstream", "variant@d3", "variant@d2:retain=paper", "h2o@b25", "hack@b50", "snapkv@b25",
        "fastvar@r50", "quant_cache@b8", "code@training_free/n3", "guidance@from6", "guidance@share5", "guidance@share2", "scale_window@w1", "streaming@b25",
    ],
)  # fmt: skip
def test_images_that_go_apart_are_those_of_batches_that_go_one_way(pipe: Pipeline, text: str) -> None:
    """With whatever else a row does: what is computed, kept and held is the plan's on each way, to the byte."""
    told = [0, 4, 2, 3, 1]
    apart = made(pipe, Told(told), text)
    assert apart.trace.taken == (1, 1, 1, 1, 1)
    assert not unplanned(apart)
    for image, way in enumerate(told):
        one = made(pipe, Told([way] * 5), text)
        assert one.trace.taken == alone(one.plan, way, batch=5)
        assert not unplanned(one), way
        assert torch.equal(one.tokens[image], apart.tokens[image])
        assert torch.allclose(one.images[image], apart.images[image], atol=1e-5)


def test_ways_are_what_rows_without_a_decision_do(pipe: Pipeline) -> None:
    full = pipe.generate(LABELS, seed=4, return_logits=True)
    on, ends, labelled = (made(pipe, Told([way] * 5), return_logits=True) for way in (0, 1, 3))
    assert torch.equal(on.tokens, full.tokens) and torch.equal(on.images, full.images)
    assert full.logits is not None and on.logits is not None and torch.equal(on.logits, full.logits)
    drawn = slice(0, SPEC.starts[5])
    assert torch.equal(ends.tokens[:, drawn], full.tokens[:, drawn]) and (ends.tokens[:, SPEC.starts[5] :] == -1).all()
    maps = pipe.tokenizer.quantize.running_maps(full.tokens)
    assert torch.allclose(ends.images, pipe.tokenizer.decode_map(maps[4]), atol=1e-5)
    thinned = pipe.generate(LABELS, seed=4, method="guidance@from5")
    assert torch.equal(labelled.tokens, thinned.tokens) and torch.equal(labelled.images, thinned.images)


def test_a_decision_sees_map_logits_and_previews(pipe: Pipeline) -> None:
    policy = Told([0] * 5, previews=(Preview(scale=2, side=4), Preview(scale=3, side=8)))
    out = made(pipe, policy, return_logits=True)
    seen, maps = policy.seen, pipe.tokenizer.quantize.running_maps(out.tokens)
    assert seen is not None and out.logits is not None
    assert torch.allclose(seen.map_BDhw, maps[3], atol=1e-5)
    assert torch.equal(seen.logits_BlV, out.logits[:, SPEC.starts[3] : SPEC.starts[4]])
    small = torch.nn.functional.adaptive_avg_pool2d(maps[2], 4)
    for preview, shown in zip(seen.previews, (small, maps[3]), strict=True):
        assert torch.allclose(preview, pipe.tokenizer.decode_map(shown), atol=1e-5)
    assert [step.previewed for step in out.trace.steps] == [(), (), ((5, 4),), ((5, 8),), (), ()]
    assert not unplanned(out)


OUT_OF_BOUNDS: dict[str, Any] = {
    "a way that was not declared": [0, 0, 5, 0, 0], "a way before the first": [0, 0, -1, 0, 0], "too few": [0, 1],
    "no whole numbers": [0.5] * 5, "yes and no": [True] * 5, "words": ["end"] * 5, "nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("case", OUT_OF_BOUNDS)
def test_a_decision_out_of_its_bounds_is_refused(pipe: Pipeline, case: str) -> None:
    with pytest.raises(ValueError, match=r"Told\.decide gave .*; give 5 places of ways, 0 to 4"):
        made(pipe, Told(OUT_OF_BOUNDS[case]))


def test_a_batch_that_was_to_go_together_may_not_go_apart(pipe: Pipeline) -> None:
    assert made(pipe, Told([2] * 5, together=True)).trace.taken == (0, 0, 5, 0, 0)
    with pytest.raises(ValueError, match="said that all images of a batch go the same way"):
        made(pipe, Told([2, 2, 2, 2, 1], together=True))


def test_a_lying_trace_is_caught(pipe: Pipeline) -> None:
    """One that says other ways than ran, ways that the plan does not have, or fewer images."""
    out = made(pipe, Told([0, 4, 2, 3, 1]))
    assert not unplanned(out)
    lies: dict[tuple[int, ...], str] = {
        (0, 1, 2, 1, 1): "steps ran", (1, 1, 1, 1, 0): "and 5 were made", (1, 1, 1, 2): "the plan's 5 ways", (): "no images",
    }  # fmt: skip
    for taken, said in lies.items():
        assert said in unplanned(out, replace(out.trace, taken=taken))[0], taken
    moved = replace(out.trace, taken=(2, 0, 1, 1, 1))
    assert unplanned(out, moved)
    shortened = replace(out.trace, steps=out.trace.steps[:-1])
    assert "steps ran" in unplanned(out, shortened)[0]
    full = pipe.generate(LABELS, seed=4)
    assert "the plan has one" in unplanned(full, replace(full.trace, taken=(5,)))[0]
    together = replace(out.plan, decision=replace(out.plan.decision, together=True))
    assert "must go one together" in unplanned(replace(out, plan=together))[0]
    assert honesty.against_plan(out.plan, moved, batch=5, dtype="float32")
    # What lives between steps is held against the same ways.
    live = [bytes_ for _, bytes_ in cost_free(out)]
    assert honesty.undeclared(live, out.plan, batch=5, dtype="float32", taken=out.trace.taken) is None
    assert honesty.undeclared(live, out.plan, batch=5, dtype="float32", taken=(0, 1, 2, 1, 1)) is not None


def cost_free(out: Output) -> list[tuple[int, int]]:
    from varbench.plan.state import beside_state, state_over_time

    given: dict[str, Any] = {"batch": 5, "dtype": "float32", "taken": out.trace.taken}
    states, beside = state_over_time(out.plan, **given), beside_state(out.plan, **given)
    return [(peak, after + other) for (peak, after), other in zip(states, beside, strict=True)]


@pytest.mark.parametrize("told", [[0, 4, 2, 3, 1], [2] * 5, [3, 3, 0, 3, 3]])
def test_flops_are_those_that_are_counted(pipe: Pipeline, told: list[int]) -> None:
    policy = Told(told, previews=(Preview(scale=2, side=4), Preview(scale=3, side=8)))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = made(pipe, policy, "variant@d3")
    work = cost.work(out.plan, batch=5, dtype="float32", device="cpu", taken=out.trace.taken)
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.002)
    assert trace_totals(out.trace, out.plan).flops == work.transformer_flops


def test_the_least_and_the_most() -> None:
    policy = Told([], previews=(Preview(scale=3, side=8),))
    plan = planned(policy)
    given: dict[str, Any] = {"batch": 8, "dtype": "float32"}
    each = [cost.work(plan, taken=alone(plan, way, batch=8), **given).transformer_flops for way in range(5)]
    assert cost.least(plan, **given).transformer_flops == min(each) == each[2]
    assert cost.work(plan, **given).transformer_flops == max(each) == each[0]
    full = cost.work(compile_plan(SPEC, RowPolicies(name="full")), **given)
    assert each[0] - full.transformer_flops == full.decoder_flops, "a preview of the whole map is decoded"
    mixed = cost.work(plan, taken=(4, 1, 1, 1, 1), **given).transformer_flops
    assert min(each) < mixed < max(each)


def test_a_record_and_the_page_say_that_work_depends_on_content(pipe: Pipeline) -> None:
    out = made(pipe, Told([0, 4, 2, 3, 1]))
    totals = trace_totals(out.trace, out.plan)
    assert totals.ways == {way.said: 1 for way in out.plan.decision.ways} and totals.steps == 10  # type: ignore[union-attr]
    summary = plan_summary(out.plan, batch=5, dtype="float32")
    full = plan_summary(compile_plan(SPEC, RowPolicies(name="full")), batch=5, dtype="float32")
    assert summary.least is not None and full.least is None
    anchor = make_record("full_var", denominator="lossless", plan=full, trace=full.totals)
    (block,) = blocks_of([anchor, make_record("variant@d8", plan=summary, trace=totals)])
    (entry,) = [one for one in block.entries if one.first.row.row == "variant@d8"]
    cell = _work(entry, block)
    least, most = (100 * one.flops / full.totals.flops for one in (summary.least, summary.totals))  # type: ignore[operator]
    assert cell.text == f"{totals.flops / full.totals.flops:.0%} ({least:.0f}-{most:.0f}%)"  # type: ignore[operator]
    assert cell.note.startswith(f"depends on content: {least:.0f}-{most:.0f}% of the work; here 1 images on as before")
    notes = " ".join(_notes(block))
    assert f"depends on content: {least:.0f}-{most:.0f}% of the work." in notes
    assert decode(type(out.trace), encode(out.trace, "trace"), "trace") == out.trace
    assert decode(Plan, encode(out.plan, "plan"), "plan") == out.plan


@pytest.mark.parametrize("text", ["full_var", "variant@d3"])
def test_training_runs_the_first_way_and_so_what_any_other_computes(pipe: Pipeline, text: str) -> None:
    plan, row = planned(Told([]), text), rows.resolve(text, SPEC)
    assert plan.decision is not None
    assert teacher_plan(plan, "main") == teacher_plan(compile_plan(SPEC, row.policies), "main")
    tokens = pipe.generate(LABELS, seed=4, method=text).tokens
    features = pipe.tokenizer.teacher_input(tokens)
    with torch.inference_mode():
        trained = TeacherPass(plan, "main").logits(
            pipe.backbones["main"], features, torch.tensor(LABELS), dtype=torch.float32
        )
    for number, way in enumerate(plan.decision.ways):
        out = made(pipe, Told([number] * len(LABELS)), text, tokens=tokens, return_logits=True, cfg=0.0)
        assert out.logits is not None
        for step in (*plan.steps[:4], *way.steps):
            span = slice(SPEC.starts[step.samples], SPEC.starts[step.samples + 1])
            assert torch.allclose(out.logits[:, span], trained[:, span], atol=1e-4), (way.said, step.samples)


def test_given_tokens_have_no_logits_on_unknown_ways(pipe: Pipeline) -> None:
    out = pipe.generate(LABELS)
    with pytest.raises(UserError, match="decides by content how it goes on"):
        pipe.logits(out.tokens, LABELS, method=row_of(Told([0] * 5)))


class ByContent(DecisionPolicy):
    """Honest: images go apart by the mean of their map."""

    previews = (Preview(scale=2, side=4), Preview(scale=3, side=4))

    def after(self) -> int:
        return 3

    def ways(self) -> Sequence[Way]:
        return WAYS

    def decide(self, seen: SoFar) -> Tensor:
        return (seen.map_BDhw.mean(dim=(1, 2, 3)) * 200).round().long() % len(WAYS)


def plugin(policy: Callable[[], DecisionPolicy] = ByContent) -> Any:
    return type("Plugin", (), {"varbench_decision_policy": lambda self, setting, model: policy()})()


def test_an_honest_decision_keeps_every_promise() -> None:
    assert [str(finding) for finding in check(plugin(), name="honest", without={"repeat_as_slow_as_first"})] == []


def test_an_honest_decision_for_a_whole_batch_keeps_every_promise() -> None:
    class Together(ByContent):
        together = True

        def decide(self, seen: SoFar) -> Tensor:
            return super().decide(replace(seen, map_BDhw=seen.map_BDhw[:1])).expand(len(seen.map_BDhw))

    only = {
        "runs",
        "decided_as_declared",
        "batch_invariance",
        "trace_equals_plan",
        "state_bytes_reachable",
        "deterministic",
    }
    assert [str(finding) for finding in check(plugin(Together), name="honest", only=only)] == []


def test_the_command_says_between_what_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    from varbench.__main__ import main

    assert main(["plan", "skipvar@s88", "--model", "var-d30", "--batch", "8"]) == 0
    printed = capsys.readouterr().out
    assert "skipvar@s88 depends on content: " in printed and " % of the work; the table has the most" in printed
    model = presets.preset("var-d30").spec
    plan = compile_plan(model, rows.resolve("skipvar@s88", model).policies)
    assert plan.decision is not None and len(plan.decision.ways) == 7


class Noting(TokenPolicy):
    """The FFN of the last two scales computes the half of the tokens that are picked by notes of before the decision, and after it."""

    def tokens(self, layer: int, scale: int, sublayer: str) -> int | None:
        return SPEC.tokens[scale] // 2 if scale > 3 and sublayer == "ffn" else None

    def notes(self, layer: int, scale: int, sublayer: str) -> int:
        return 64 if scale in (3, 4) and sublayer == "ffn" else 0

    def note(self, x_RLC: Tensor, output_RLC: Tensor, noted_Rn: Tensor | None, **_: object) -> Tensor:
        sizes_Rn = (x_RLC + output_RLC)[:, :16].norm(dim=-1).repeat(1, 4)
        return sizes_Rn + (torch.arange(64) if noted_Rn is None else noted_Rn)

    def pick(self, x_RLC: Tensor, count: int, *, noted_Rn: Tensor | None = None, **_: object) -> Tensor:
        assert noted_Rn is not None
        return noted_Rn[:, : x_RLC.shape[1]].topk(count).indices

    def fill(self, computed: Tensor, places: Tensor, remembered: Tensor | None, *, length: int, **_: object) -> Tensor:
        filled = computed.new_zeros(len(computed), length, computed.shape[-1])
        return filled.scatter(1, places.unsqueeze(-1).expand_as(computed), computed)


def test_notes_go_with_their_images(pipe: Pipeline) -> None:
    """In rows of their own, of the branches that go on, until nothing on the way picks by them."""
    row = row_of(Told([0, 4, 2, 3, 1]))
    noting = replace(row, policies=replace(row.policies, tokens=Owned(plugin="noting", policy=Noting())))
    apart = pipe.generate(LABELS, seed=4, method=noting)
    assert not unplanned(apart)
    assert max(apart.trace.state_after) > max(made(pipe, Told([0, 4, 2, 3, 1])).trace.state_after)
    for image, way in enumerate([0, 4, 2, 3, 1]):
        one = row_of(Told([way] * 5))
        one = replace(one, policies=replace(one.policies, tokens=noting.policies.tokens))
        together = pipe.generate(LABELS, seed=4, method=one)
        assert not unplanned(together)
        assert torch.equal(together.tokens[image], apart.tokens[image])
