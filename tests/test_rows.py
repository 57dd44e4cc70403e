"""From the text of a row to what it runs, and the messages for texts that name nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

import pytest

from varbench import rows
from varbench.check.bench import GivenPoint
from varbench.errors import UserError
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.steps import Plan
from varbench.policies import MAIN, Setting, Settings, StepPolicy, StepSpec, Study
from varbench.record.coding import decode, encode
from varbench.record.options import Options
from varbench.rows.manager import PluginManager
from varbench.run.defaults import filled_in
from varbench.run.messages import Job, ResolvedRow
from varbench.run.tasks.resolving import resolved
from varbench.spec import ModelSpec

TINY = presets.preset("tiny").spec
D30 = presets.preset("var-d30").spec


@pytest.mark.parametrize(
    ("text", "name", "recipe"),
    [
        ("full_var", "full_var", "pretrained"),
        ("full_var@continued", "full_var@continued", "continued"),
        ("full_var:accounting=upstream", "full_var:accounting=upstream", "pretrained"),
        ("variant@d8", "variant@d8", "progressive"),
        ("variant@progressive/d8:bridge=3:nested=false", "variant@d8", "progressive"),
        ("variant@untrained/d8:nested=TRUE:bridge=4", "variant@untrained/d8:bridge=4:nested=true", "untrained"),
        ("variant@d8:zone=2-3", "variant@d8:zone=2-3", "progressive"),
        ("fixed_ratio@p05/d8", "fixed_ratio@p05/d8", "p05"),
        ("code@training_free/n4", "code@training_free/n4", "training_free"),
        ("variant@d5", "variant@d5", "progressive"),
    ],
)
def test_a_row_has_one_canonical_name(text: str, name: str, recipe: str) -> None:
    row = rows.resolve(text, TINY)
    assert (row.name, row.recipe) == (name, recipe)
    assert rows.resolve(row.name, TINY) == row
    assert row.plugins[0].distribution == "varbench"


def test_parameters_are_read_as_the_type_of_their_default() -> None:
    row = rows.resolve("variant@d8:bridge=2:nested=true:zone=1-2", TINY)
    assert row.parameters == {"variant.bridge": 2, "variant.nested": True, "variant.zone": "1-2"}
    assert row.settings[0].parameters["retain"] == "none", "defaults are filled in for the plugin"


def test_a_method_stands_for_its_default_recipes_and_points() -> None:
    names = [row.name for row in rows.expand("full_var, variant,fixed_ratio,variant@d8", TINY)]
    assert names == [
        "full_var",
        *(f"variant@{point}" for point in ("full", "d8", "d2")),
        *(f"fixed_ratio@{recipe}/{point}" for recipe in ("p01", "p05", "p10") for point in ("full", "d8", "d2")),
    ]
    assert [row.name for row in rows.expand("fixed_ratio@p10", TINY)] == [
        "fixed_ratio@p10/full", "fixed_ratio@p10/d8", "fixed_ratio@p10/d2"
    ]  # fmt: skip
    assert rows.expand(" , ", TINY) == ()


def test_all_is_every_method() -> None:
    names = [row.name for row in rows.expand("all", TINY)]
    assert names == [
        row.name for name in sorted({name.partition("@")[0] for name in names}) for row in rows.expand(name, TINY)
    ]
    assert {"full_var", "variant@d8", "smaller@narrow", "dit@s20"} <= set(names)


def test_every_plan_comes_out_of_a_message_as_it_went_in() -> None:
    """What a child answers is held against it by its digest."""
    model = presets.preset("tiny").spec
    checked = set()
    for row in rows.expand("all,quant@w8a8:parts=ends,guidance@from4:shape=0/0.5/1/1/1/1", model):
        if row.policies.generator is not None:
            continue
        plan = compile_plan(model, row.policies)
        there = decode(Plan, json.loads(json.dumps(encode(plan, row.name))), row.name)
        assert there.digest == plan.digest, row.name
        checked.add(row.plugins[0].name)
    assert {"quant", "code", "guidance", "skipvar", "dmoe", "actvar"} <= checked


def test_all_settings_are_every_recipe_and_point() -> None:
    assert [row.name for row in rows.expand("variant", D30, all_settings=True)] == [
        *(f"variant@{point}" for point in ("full", "d16", "d8", "d4", "d2")),
        *(f"variant@untrained/{point}" for point in ("full", "d16", "d8", "d4", "d2")),
    ]
    assert [row.name for row in rows.expand("code@trained", D30)] == [f"code@n{count}" for count in (6, 7, 8, 9)]


def test_a_row_moves_to_another_point_with_its_recipe_and_parameters() -> None:
    row = rows.resolve("fixed_ratio@p05/d8:bridge=4", TINY)
    assert rows.at_point(row, "d2").name == "fixed_ratio@p05/d2:bridge=4"
    assert rows.at_point(row, None).name == "full_var"
    with pytest.raises(UserError, match="d16 is out of range"):
        rows.at_point(row, "d16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("varint@d8", "no plugin 'varint'. Did you mean 'variant'?"),
        ("variant", "'variant' stands for 3 rows; name one of them: variant@full, variant@d8, variant@d2"),
        ("fixed_ratio@d8", "stands for 3 rows; name one of them: fixed_ratio@p01/d8"),
        ("variant@dd8", "variant has no setting 'dd8'. Did you mean 'd8'?"),
        ("variant@progresive/d8", "variant has no recipe 'progresive'. Did you mean 'progressive'?"),
        ("variant@d16", "d16 is out of range: tiny has 16 layers, so give d1 to d15, or full"),
        ("variant@d0", "d0 is out of range"),
        ("code@n6", "n6 is out of range: tiny has 6 scales, so give n1 to n5"),
        ("code@n4:trained_for=n9", "trained_for is 'n9'; give one of n3, n4, n5"),
        ("variant@d8:brige=3", "variant has no parameter 'brige'. Did you mean 'bridge'?"),
        ("variant@d8:bridge=three", "variant: bridge is 'three'; give a whole number"),
        ("variant@d8:bridge=7", "bridge is 7; tiny has 6 scales, so give 0 to 6"),
        ("variant@d8:nested=yes", "variant: nested is 'yes'; give true or false"),
        ("variant@d8:retain=all", "retain is 'all'; give none or paper"),
        ("variant@d8:zone=5-7", "zone is '5-7'; give first-last within 1-6"),
        ("variant@d8:draw=d3", "draw is 'd3'; give uniform, or one of d8, d4, d2"),
        ("variant@d8:bridge=2:bridge=3", "sets bridge twice"),
        ("variant@d8:bridge", "'bridge' is no parameter; write :key=value"),
        ("full_var:accounting=upsteam", "accounting is 'upsteam'; give lossless or upstream"),
        ("full_var@d8", "full_var has no setting 'd8'. Known: continued, pretrained."),
        ("variant@", "is no row; write name[@[recipe/]point][:key=value]"),
        ("+variant@d8", "is no row"),
        ("variant@d8+variant@d4", "names variant twice"),
        ("variant@d8+fixed_ratio@p01/d8", "variant (varbench) and fixed_ratio (varbench) both give varbench_depth_policy"),
    ],
)  # fmt: skip
def test_a_text_that_names_no_row_is_told_why(text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        rows.resolve(text, TINY)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_further_model_is_shipped_by_its_sizes_whatever_a_method_calls_it() -> None:
    shipped = presets.shipped_files("tiny", {"second": replace(TINY.narrower(), name="any"), "third": D30})
    assert {part: path.name for part, path in shipped.items()} == {
        "vae": "tokenizer.safetensors", "main": "base.safetensors", "second": "narrow.safetensors"
    }  # fmt: skip
    assert presets.shipped_files("tiny").keys() == {"vae", "main"}
    assert presets.shipped_files("var-d30", {"second": TINY}) == {}


def test_presets_have_what_they_are_known_for() -> None:
    assert presets.names() == ("tiny", "fashion", "var-d16", "var-d20", "var-d24", "var-d30", "var-d36")
    assert (D30.depth, D30.width, D30.heads, D30.length, D30.image_side) == (30, 1920, 30, 680, 256)
    assert presets.preset("var-d36").spec.length == 2240
    assert presets.preset("var-d36").spec.image_side == 512
    with pytest.raises(UserError, match=r"no model preset 'vard30'\. Did you mean 'var-d30'\?"):
        presets.preset("vard30")


class OnTwoModels(StepPolicy):
    def __init__(self, model: ModelSpec, depth: int) -> None:
        self.model, self.depth = model, depth

    @property
    def backbones(self) -> Mapping[str, ModelSpec]:
        return {"draft": replace(self.model, depth=self.depth)}

    def steps(self) -> Sequence[StepSpec]:
        last = self.model.scales - 1
        return [StepSpec(scales=(scale,), backbone="draft" if scale == last else MAIN) for scale in range(last + 1)]


class DraftPlugin:
    def __init__(self, depth: int) -> None:
        self.depth = depth

    def varbench_settings(self, model: ModelSpec) -> Settings:
        study = Study(title="One or two", settings=("@two", "@one"))
        return Settings(points=("one", "two"), studies={"one_or_two": study})

    def varbench_step_policy(self, setting: Setting, model: ModelSpec) -> OnTwoModels:
        return OnTwoModels(model, self.depth)


def resolved_rows(**asked: Any) -> dict[str, ResolvedRow]:
    points = [GivenPoint(name, DraftPlugin(depth)) for name, depth in (("thin", 2), ("deep", 3))]
    manager = PluginManager((*entry_points(group="varbench"), *points))
    options = Options(**filled_in({"model": "tiny", "weights": "random", **asked}))
    return {row.name: row for row in resolved(Job(task="resolving", options=options, model=TINY), manager).rows}


def test_second_models_of_one_name_and_other_sizes_are_told_apart() -> None:
    found = resolved_rows(plugins="thin@one,thin@two,deep@one")
    assert found["thin@one"].failure is None and found["thin@two"].failure is None
    failure = found["deep@one"].failure
    assert failure is not None
    assert "second model 'draft' of 3 layers" in failure.reason
    assert "that of thin@one has the same name and 2 of width" in failure.reason
    assert resolved_rows(plugins="deep@one")["deep@one"].failure is None


def test_points_lie_on_the_curves_that_their_plugin_names() -> None:
    names = ("fastvar@r30", "fastvar@skip1", "fastvar@r50skip2", "scalekv@b10")
    found = resolved_rows(plugins=",".join(names))
    assert [found[name].curve for name in names] == ["tokens pruned", "scales skipped", "scales skipped", None]


def test_a_row_of_the_table_stands_in_its_study_too() -> None:
    found = resolved_rows(plugins="thin@one", study=("one_or_two",))
    one, two = found["thin@one"], found["thin@two"]
    assert (one.study, one.also_in, two.study, two.also_in) == (None, "one_or_two", "one_or_two", None)
    assert one.study_words is not None and two.study_words is not None
    assert one.study_words.place == two.study_words.place + 1
