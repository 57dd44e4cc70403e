"""The methods that ship: which layers they take, how they train, which models they run."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import pytest
from record_factory import make_record

from varbench import rows, supernet
from varbench.errors import UserError
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.policies import Stage, TrainStep
from varbench.record import Record, Verdict
from varbench.record.sections import Table, Text
from varbench.spec import ModelSpec
from varbench.supernet import SupernetSchedule
from varbench.train.order import uniforms
from varbench_plugins.variant import ablations, claims, probability

TINY = presets.preset("tiny").spec
D30 = presets.preset("var-d30").spec
TRAIN = Stage(name="train")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (16, (0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29)),
        (8, (0, 4, 8, 12, 16, 20, 24, 29)),
        (4, (0, 9, 19, 29)),
        (2, (0, 29)),
        (1, (0,)),
    ],
)
def test_layers_are_equidistant(layers: int, expected: tuple[int, ...]) -> None:
    assert supernet.subnet(f"d{layers}", D30) == expected


def test_nested_sets_lie_within_each_other_and_are_as_even_as_can_be() -> None:
    sets = {n: supernet.subnet(f"d{n}", D30, is_nested=True) for n in (29, 16, 8, 4, 2, 1)}
    assert all(len(layers) == n for n, layers in sets.items())
    for larger, smaller in itertools.pairwise((16, 8, 4, 2, 1)):
        assert set(sets[smaller]) < set(sets[larger])
    # 29 over 7 gaps of odd layers: one gap of 5 and six of 4 is the best there is.
    assert sorted(b - a for a, b in itertools.pairwise(sets[8])) == [4, 4, 4, 4, 4, 4, 5]
    assert not set(supernet.subnet("d8", D30)) <= set(supernet.subnet("d16", D30)), (
        "the formula's own sets are not nested"
    )


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("variant@d8", [16, 16, 16, 8, 8, 8]),
        ("variant@d8:bridge=0", [8, 8, 8, 8, 8, 8]),
        ("variant@full", [16, 16, 16, 16, 16, 16]),
        ("variant@d4:zone=1-2", [4, 4, 16, 16, 16, 16]),
        ("fixed_ratio@p01/d2:bridge=5", [16, 16, 16, 16, 16, 2]),
        ("code@n4", [16, 16, 16, 16, 16, 16]),
    ],
)
def test_layers_run_at_each_scale(text: str, layers: list[int]) -> None:
    plan = compile_plan(TINY, rows.resolve(text, TINY).policies)
    assert [len(step.calls) for step in plan.steps] == layers


def test_the_bridge_is_six_of_ten_scales_and_three_of_six() -> None:
    assert [len(s.calls) for s in compile_plan(D30, rows.resolve("variant@d2", D30).policies).steps] == [30] * 6 + [
        2
    ] * 4
    assert supernet.default_bridge(TINY) == 3


def test_variant_and_fixed_ratio_run_the_same_network() -> None:
    variant, fixed = (compile_plan(TINY, rows.resolve(t, TINY).policies) for t in ("variant@d8", "fixed_ratio@p05/d8"))
    assert variant.digest == fixed.digest


@pytest.mark.parametrize("total", [6, 7, 12, 60, 601])
def test_the_progressive_probability_at_every_step(total: int) -> None:
    """0.2 for a sixth of the steps, then linearly to 1 over half of them, then 1: exactly, at every step."""
    phases = set()
    for step in range(total):
        done = Fraction(step, total)
        if done < Fraction(1, 6):
            phase, expected = 1, Fraction(1, 5)
        elif done < Fraction(2, 3):
            phase, expected = 2, Fraction(1, 5) + Fraction(4, 5) * (done - Fraction(1, 6)) * 2
        else:
            phase, expected = 3, Fraction(1)
        assert probability(step, total) == pytest.approx(float(expected), abs=1e-15)
        phases.add(phase)
    assert phases == {1, 2, 3}


def test_the_probability_has_no_jump_at_either_end() -> None:
    total = 600_000
    values = [probability(step, total) for step in (99_999, 100_000, 399_999, 400_000)]
    assert values[0] == 0.2
    assert values[1] == 0.2
    assert values[2] == pytest.approx(1, abs=1e-5)
    assert values[3] == 1


@pytest.mark.parametrize(("recipe", "expected"), [("p01", 0.1), ("p05", 0.5), ("p10", 1.0)])
def test_fixed_ratios_are_fixed(recipe: str, expected: float) -> None:
    schedule = rows.resolve(f"fixed_ratio@{recipe}/d8", TINY).schedule
    assert isinstance(schedule, SupernetSchedule)
    assert {schedule.probability(step, 50) for step in range(50)} == {expected}


def test_a_step_trains_one_plan_drawn_from_the_points() -> None:
    schedule = rows.resolve("variant@d8", TINY).schedule
    assert schedule is not None
    drawn = [
        schedule.at(TRAIN, 0, 60, lambda k, pair=pair: pair[k])
        for pair in [(0.2, 0), (0.19, 0), (0.19, 0.34), (0, 0.99)]
    ]
    assert [step.point for step in drawn] == [None, "d8", "d4", "d2"]
    assert all(step == TrainStep(point=step.point) for step in drawn), "cross-entropy on all tokens alike"
    only = rows.resolve("variant@d8:draw=d2", TINY).schedule
    assert only is not None
    assert {only.at(TRAIN, 59, 60, lambda k, u=u: u).point for u in (0, 0.3, 0.6, 0.99)} == {"d2"}


def test_each_choice_of_the_supernet_can_be_changed_alone() -> None:
    def steps(text: str) -> list[TrainStep]:
        schedule = rows.resolve(text, TINY).schedule
        assert schedule is not None
        shares = [uniforms(seed=0, step=step) for step in range(60)]
        return [schedule.at(TRAIN, step, 60, uniform) for step, uniform in enumerate(shares)]

    published = steps("variant@d8")
    backwards = steps("variant@d8:phases=reversed")
    assert all(step.point is not None for step in published[-20:]) and all(
        step.point is not None for step in backwards[:20]
    )
    assert sum(step.point is None for step in backwards[-10:]) > sum(step.point is None for step in published[-10:])
    taught = steps("variant@d8:targets=full")
    assert [step.point for step in taught] == [step.point for step in published], "the same draws"
    assert [step.loss for step in taught] == ["ce" if step.point is None else "kl" for step in taught]
    given = rows.resolve("variant@d8:targets=full", TINY).schedule
    assert given is not None and [stage.teacher for stage in given.stages()] == ["main"]
    prefix = compile_plan(TINY, rows.resolve("variant@d8:spread=prefix", TINY).policies)
    assert [call.layer for call in prefix.steps[-1].calls] == list(range(8))


@pytest.mark.parametrize("model", [TINY, D30])
def test_ablations_change_one_choice_and_are_drawn_at_every_point(model: ModelSpec) -> None:
    found = rows.of_study("ablations", model)
    assert not found.refused
    plain = {setting.plugin: setting for setting in rows.resolve("variant@d8", model).settings}["variant"].parameters
    changed = [
        {name for name, value in row.settings[0].parameters.items() if value != plain[name]} for row in found.rows
    ]
    assert {len(names) for names in changed} == {0, 1}
    points = [str(row.settings[0].point) for row in found.rows]
    assert points == list(supernet.points(model)) * (len(points) // len(supernet.points(model)))
    assert len({row.name for row in found.rows}) == len(found.rows)


def test_the_full_model_continued_is_the_control() -> None:
    schedule = rows.resolve("full_var@continued", TINY).schedule
    assert schedule is not None
    assert schedule.at(TRAIN, 3, 10, lambda k: 0.0) == TrainStep()


@pytest.mark.parametrize("text", ["full_var", "variant@untrained/d8", "code@training_free/n4"])
def test_recipes_that_train_nothing_have_no_schedule(text: str) -> None:
    assert rows.resolve(text, TINY).schedule is None


def test_a_budget_too_short_for_three_phases_is_refused() -> None:
    schedule = rows.resolve("variant@d8", TINY).schedule
    assert schedule is not None
    schedule.check(6)
    with pytest.raises(UserError, match=r"5 optimiser steps are too few .* at least 6"):
        schedule.check(5)


def test_the_pair_trains_the_drafter_on_its_scales_then_the_refiner_by_moving_weights() -> None:
    schedule = rows.resolve("code@n5", TINY).schedule
    assert schedule is not None
    drafter, refiner = schedule.stages()
    assert (drafter.backbone, refiner.backbone, refiner.teacher) == ("main", "refiner", "main")
    assert drafter.share + refiner.share == 1
    draft = schedule.at(drafter, 7, 10, lambda k: 0.0)
    assert (draft.loss, draft.scale_weights) == ("ce", (1, 1, 1, 1, 0, 0)), "trained for n4, whatever point runs"
    weights = [schedule.at(refiner, step, 11, lambda k: 0.0).scale_weights for step in (0, 5, 10)]
    assert weights == [(1,) * 6, (0.5,) * 4 + (1, 1), (0,) * 4 + (1, 1)]
    assert schedule.at(refiner, 0, 11, lambda k: 0.0).loss == "kl"
    other = rows.resolve("code@n5:trained_for=n5", TINY).schedule
    assert other is not None
    assert other.at(drafter, 0, 10, lambda k: 0.0).scale_weights == (1, 1, 1, 1, 1, 0)


def test_the_pair_runs_two_models_and_passes_no_keys() -> None:
    plan = compile_plan(D30, rows.resolve("code@n8", D30).policies)
    assert plan.backbone("refiner") == presets.preset("var-d16").spec
    assert [step.backbone for step in plan.steps] == ["main"] * 8 + ["refiner"] * 2
    switch = plan.steps[8]
    assert switch.scales == tuple(range(9))
    assert switch.mask == "block_causal"
    assert all(not use.read for call in switch.calls for use in call.cache)
    assert plan.steps[7].drops_backbone


def of_seed(record: Record, seed: int) -> Record:
    return dataclasses.replace(record, protocol=dataclasses.replace(record.protocol, seed=seed))


@pytest.mark.parametrize(("ours", "verdict"), [(3.0, "holds"), (5.0, "does not hold"), (4.0, "no difference shown")])
def test_a_claim_holds_only_where_the_intervals_say_so(ours: float, verdict: str) -> None:
    given = {"variant@d8": ours, "fixed_ratio@p05/d8": 4.0}
    records = [
        *(of_seed(make_record("full_var", denominator="lossless"), seed) for seed in range(3)),
        *(of_seed(make_record(row, quality=value), seed) for row, value in given.items() for seed in range(3)),
    ]
    (section,) = claims.sections("variant", records)
    table = section.parts[1]
    assert isinstance(table, Table)
    _, measured, least, said = table.rows[0]
    assert said == verdict
    # Three seeds that agree to the digit leave the interval of their images: a difference of 0.2 shows.
    assert 0 < float(least) < 0.5
    assert "variant@d8" in measured and "fixed_ratio@p05/d8" in measured


def test_claims_under_several_conditions_are_tables_of_one_section() -> None:
    def under(steps: int) -> list[Record]:
        names = {"full_var": 5.0, "variant@d8": 3.0, "fixed_ratio@p05/d8": 4.0}
        made = [
            make_record(name, quality=value, denominator="lossless" if name == "full_var" else None)
            for name, value in names.items()
        ]
        return [dataclasses.replace(one, protocol=dataclasses.replace(one.protocol, steps=steps)) for one in made]

    (section,) = claims.sections("variant", [*under(250), *under(1000)])
    notes = [part.text for part in section.parts if isinstance(part, Text)]
    assert [note.partition(" steps a recipe")[0][-5:].strip(" ,") for note in notes] == ["1,000", "250"]
    assert [type(part) for part in section.parts] == [Text, Table, Text, Table]


def test_one_seed_decides_no_claim_about_training_however_far_apart() -> None:
    given = {"variant@full": 1.0, "variant@d8": 3.0, "smaller@alone_d8": 1.0, "full_var@continued": 0.5}
    records = [
        make_record("full_var", denominator="lossless"),
        *(make_record(row, quality=value) for row, value in given.items()),
    ]
    (section,) = claims.sections("variant", records)
    table = section.parts[1]
    assert isinstance(table, Table)
    assert [row[-1] for row in table.rows] == ["one seed decides nothing"] * 2
    assert [row[1].partition(";")[0].split()[0] for row in table.rows] == ["variant@full", "variant@d8"]


def test_an_invalid_row_supports_no_claim() -> None:
    records = [
        make_record("full_var", denominator="lossless"),
        make_record("variant@d8", quality=3.0, verdict=Verdict.INVALID, reasons=("it cheated",)),
        make_record("fixed_ratio@p05/d8", quality=4.0),
    ]
    assert claims.sections("variant", records) == []


def test_a_changed_choice_stands_beside_the_method_as_published_at_every_point() -> None:
    given = {
        "full": 1.0,
        "d8": 2.0,
        "d2": 5.0,
        "d8:bridge=0": 9.0,
        "full:bridge=0": 1.0,
        "d2:phases=reversed": 3.0,
        "d8:zone=1-2": 4.0,
    }
    records = [
        make_record("full_var", denominator="lossless"),
        *(
            make_record(f"variant@{name}", quality=value, study="choices" if ":" in name else None)
            for name, value in given.items()
        ),
    ]
    (section,) = ablations.sections("variant", records)
    note, table = section.parts
    assert isinstance(note, Text) and "another seed may turn them around" in note.text
    assert isinstance(table, Table) and table.columns == ("changed", "full", "d8", "d2", "so")
    no_bridge, backwards = table.rows
    assert no_bridge[0] == "no bridge: subnets at every scale" and no_bridge[2].startswith("9.00 (+7.00 ±")
    assert no_bridge[3:] == ("-", "full not told apart; d8 worse")
    assert backwards[0] == "subnets first, the full model last" and backwards[-1] == "d2 better"
    assert ablations.sections("variant", records[:4]) == [], "nothing was changed"
    # Where some rows have several seeds, those that have one are told.
    again = [of_seed(record, seed) for record in (*records[:4], records[-2]) for seed in (1, 2)]
    (_, table) = ablations.sections("variant", [*records, *again])[0].parts
    assert isinstance(table, Table)
    assert [row[-1] for row in table.rows] == ["one seed: full not told apart; d8 worse", "d2 better"]
