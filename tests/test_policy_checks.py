"""What a hook gives is looked at when its row is made, and a plugin's fault costs its own rows only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import CommandLine

from varbench import rows
from varbench.check.bench import GivenPoint, given
from varbench.errors import PlanError, UserError
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.policies import (
    CacheStrategy,
    DepthPolicy,
    Generator,
    GuidancePolicy,
    Metric,
    Parameter,
    PartChange,
    Settings,
    StepPolicy,
    StoredForm,
    Study,
    TokenPolicy,
    TrainingSchedule,
    Transformed,
)
from varbench.rows.check_policies import metrics_of
from varbench.rows.manager import PluginError, PluginManager

TINY = presets.preset("tiny").spec


def plugin(hook: str, make: Callable[[], Any]) -> object:
    """A plugin with one hook, which gives what `make` makes."""
    if hook == "varbench_settings":
        return type("Plugin", (), {hook: lambda self, model: make()})()
    return type("Plugin", (), {hook: lambda self, setting, model: make()})()


def of(base: type, **members: Any) -> Any:
    for name, member in members.items():
        if callable(member):
            member.__name__ = name  # as if it had been written with `def`
    return type("Mine", (base,), members)()


class NotDerived:
    def layers(self, scale: int, backbone: str) -> range:
        return range(4)


FORM = StoredForm(encode=lambda x: (x,), decode=lambda parts: parts[0], bits=32)

WRONG = {
    "a dict for settings": ("varbench_settings", lambda: {"points": ("a",)}, "gave a dict, not a Settings"),
    "points as one text": ("varbench_settings", lambda: Settings(points="half"), "Settings.points is 'half'; give a tuple"),
    "a default that is no point": (
        "varbench_settings", lambda: Settings(points=("d8",), default_points=("d9",)), "'d9' is none of its points. Did you mean 'd8'",
    ),
    "a parameter that is none": ("varbench_settings", lambda: Settings(parameters={"n": 3}), r"parameters\['n'\] is 3; give a Parameter"),
    "a parameter's default": (
        "varbench_settings", lambda: Settings(parameters={"n": Parameter(default=(1,), help="")}), r"default of parameter 'n' is \(1,\)",
    ),
    "a study that is none": ("varbench_settings", lambda: Settings(studies={"s": ("@a",)}), r"studies\['s'\] is \('@a',\); give a Study"),
    "published figures that are none": ("varbench_settings", lambda: Settings(published=({"fid": 3},)), "give a tuple of Published"),
    "a neutral setting without its mark": (
        "varbench_settings", lambda: Settings(points=("last0",), neutral=("last0",)), "Settings.neutral has 'last0'; .*as @last0",
    ),
    "a pattern that is none": ("varbench_settings", lambda: Settings(point_pattern="d["), "no regular expression"),
    "a curve that is none": ("varbench_settings", lambda: Settings(curves={"a": "d["}), r"curves\['a'\] is 'd\[', no regular expression"),
    "a list for a policy": ("varbench_depth_policy", lambda: [0, 1], "gave a list, which has no layers; subclass varbench.policies.DepthPolicy"),
    "a class": ("varbench_depth_policy", lambda: NotDerived, "gave the class NotDerived and not an instance"),
    "no base class": ("varbench_depth_policy", NotDerived, "has no retains; subclass varbench.policies.DepthPolicy"),
    "a missing method": ("varbench_depth_policy", lambda: of(DepthPolicy), r"has no layers\(\); give layers\(scale, backbone\)"),
    "a signature": (
        "varbench_depth_policy", lambda: of(DepthPolicy, layers=lambda self, scale: range(4)),
        r"layers\(scale\) cannot be called as layers\(scale, backbone\)",
    ),
    "names of arguments": (
        "varbench_token_policy", lambda: of(TokenPolicy, pick=lambda self, x, count, *, layer, scale, part: x),
        r"cannot be called as pick\(x_BLC, count, \*, layer, scale, sublayer\)",
    ),
    "a misspelt method": (
        "varbench_cache_strategy", lambda: of(CacheStrategy, keep=lambda self, layer, written, reader, group: False),
        "has keep, which nothing asks for. Did you mean 'keeps'",
    ),
    "nothing of a cache strategy": (
        "varbench_cache_strategy", lambda: of(CacheStrategy, retain=lambda self, layer: 3),
        "Mine changes nothing, since it gives none of keeps, budget, dtype, form or head_groups",
    ),
    "a pick that no budget asks for": (
        "varbench_cache_strategy", lambda: of(CacheStrategy, pick=lambda self, *given, **where: None), "Mine changes nothing",
    ),
    "nothing of a token policy": (
        "varbench_token_policy", lambda: of(TokenPolicy, retain=lambda self, layer: 3),
        r"has no tokens\(\); give tokens\(layer, scale, sublayer\)",
    ),
    "a misspelt property": ("varbench_step_policy", lambda: of(StepPolicy, steps=lambda self: (), backbone=property(lambda self: {})), "Did you mean 'backbones'"),
    "a value for a method": ("varbench_guidance_policy", lambda: of(GuidancePolicy, branches="both"), r"is a str; give a method branches\(scale\)"),
    "a method for a property": ("varbench_cache_strategy", lambda: of(CacheStrategy, dtype=lambda self: "float16"), "dtype is a method; write @property"),
    "a property that fails": ("varbench_cache_strategy", lambda: of(CacheStrategy, dtype=property(lambda self: 1 / 0)), "dtype failed with ZeroDivisionError"),
    "backbones": ("varbench_step_policy", lambda: of(StepPolicy, steps=lambda self: (), backbones=["main"]), "backbones is a list; give a mapping"),
    "int4": ("varbench_cache_strategy", lambda: of(CacheStrategy, dtype="int4"), "in int4: an integer type needs scales"),
    "int8": ("varbench_cache_strategy", lambda: of(CacheStrategy, dtype="int8"), "in int8: an integer type needs scales"),
    "a form and a type": (
        "varbench_cache_strategy", lambda: of(CacheStrategy, dtype="float16", form=FORM), "gave both a form and dtype 'float16'",
    ),
    "a form that is none": ("varbench_cache_strategy", lambda: of(CacheStrategy, form="int8"), "form is a str; give a varbench.policies.StoredForm"),
    "a form of no bits": (
        "varbench_cache_strategy", lambda: of(CacheStrategy, form=replace(FORM, bits=0)), "give functions, bits of 1 or more",
    ),
    "an unknown type": ("varbench_cache_strategy", lambda: of(CacheStrategy, dtype="floa16"), "Did you mean 'float16'"),
    "a schedule": ("varbench_training_schedule", lambda: of(TrainingSchedule, att=1), r"has no at\(\); give at\(stage, step, total, uniform\)"),
    "a generator": ("varbench_generator", lambda: of(Generator, generate=lambda self, labels: labels, load=lambda self, **given: None), r"generate\(labels\) cannot be called as generate\(labels, \*, seed, first_image\)"),
    "a part": ("varbench_transform_model", lambda: Transformed(apply=len, changes={"fnn": PartChange()}), "names part 'fnn'. Did you mean 'ffn'"),
    "a type of weights": ("varbench_transform_model", lambda: Transformed(apply=len, changes={"ffn": PartChange(weight_type="int5")}), "weight_type of ffn is 'int5'. Did you mean 'int"),
    "a share": ("varbench_transform_model", lambda: Transformed(apply=len, changes={"ffn": PartChange(flops=-1)}), "flops of ffn is -1"),
    "no function": ("varbench_transform_model", lambda: Transformed(apply="int8"), "apply is 'int8'; give a function"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_a_hook_may_not_give_is_refused_by_name(case: str) -> None:
    hook, make, message = WRONG[case]
    manager = given(TINY, "acme", plugin(hook, make)).manager
    with pytest.raises(PluginError, match=message) as refused:
        rows.resolve("acme", TINY, manager=manager)
    assert str(refused.value).startswith("plugin 'acme' (")
    assert hook in str(refused.value)
    assert "\n" not in str(refused.value)


class Helpful(CacheStrategy):
    """Further methods are the plugin's own affair, also when they are called like one that it does give."""

    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        return self.keep(written, reader)

    def keep(self, written: int, reader: int) -> bool:
        return written == 0 or reader - written < 3

    def kept_scales(self) -> int:
        return 3


class TakesAnything(DepthPolicy):
    def layers(self, *given: Any) -> Any:
        return (layer for layer in range(3))


@pytest.mark.parametrize(
    ("hook", "make"),
    [
        ("varbench_cache_strategy", Helpful),
        ("varbench_cache_strategy", lambda: of(CacheStrategy, dtype="float16")),
        ("varbench_depth_policy", TakesAnything),
    ],
)
def test_what_can_be_called_is_accepted(hook: str, make: Callable[[], Any]) -> None:
    row = rows.resolve("acme", TINY, manager=given(TINY, "acme", plugin(hook, make)).manager)
    assert compile_plan(TINY, row.policies).steps


def label_of(images: Any, labels: Any) -> Any:
    return labels


@pytest.mark.parametrize(
    ("given_metrics", "message"),
    [
        (label_of, "gave a function; give a list"),
        ([label_of], "gave a function among its metrics; give varbench.policies.Metric"),
        ([Metric(name="a", better="higher", compute=label_of), None], "gave a NoneType among"),
        ([Metric(name=None, better="higher", compute=label_of)], "called None; give a text"),  # type: ignore[arg-type]
        ([Metric(name="a", better="most", compute=label_of)], "better of metric 'a' is 'most'"),  # type: ignore[arg-type]
        ([Metric(name="a", better="lower", compute=3)], "compute of metric 'a' is 3"),  # type: ignore[arg-type]
        ([Metric(name="a", better="lower", compute=label_of)] * 2, "called 'a'; give a text, and each"),
    ],
)
def test_what_is_no_metric_is_refused_by_name(given_metrics: Any, message: str) -> None:
    method = module_of(varbench_metrics=lambda: given_metrics)
    with pytest.raises(PluginError, match=message) as refused:
        metrics_of("acme", given(TINY, "acme", method).manager)
    assert str(refused.value).startswith("plugin 'acme' (")


def raises(self: Any, *given: Any) -> Any:
    raise RuntimeError("a fault\nof its own")


ANSWERS = {
    "a method raises": (
        "varbench_depth_policy", of(DepthPolicy, layers=raises),
        r"acme: Mine.layers\(0, 'main'\) failed: RuntimeError: a fault of its own",
    ),
    "a list that is none": ("varbench_depth_policy", of(DepthPolicy, layers=lambda self, s, b: None), "layers.* failed: TypeError"),
    "half a layer": ("varbench_depth_policy", of(DepthPolicy, layers=lambda self, s, b: [1.5]), "answers 1.5; layers, tokens and budgets are whole"),
    "a forgotten return": ("varbench_cache_strategy", of(CacheStrategy, keeps=lambda self, a, b, c, d: None), r"keeps\(0, 0, 1, 0\) answers None; give True or False"),
    "no step": ("varbench_step_policy", of(StepPolicy, steps=lambda self: [0, 1]), r"step 1 is 0; give a StepSpec"),
    "half a token": ("varbench_token_policy", of(TokenPolicy, tokens=lambda self, a, b, c: 0.5), "tokens.* answers 0.5"),
    "heads": ("varbench_cache_strategy", of(CacheStrategy, head_groups=lambda self, layer: [0, 1]), r"head groups \[0, 1\] of layer 0"),
    "it leaves": ("varbench_guidance_policy", of(GuidancePolicy, branches=lambda self, scale: exit(1)), "branches.* failed: SystemExit"),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_what_a_policy_answers_wrongly_is_its_plugins_failure(case: str) -> None:
    hook, policy, message = ANSWERS[case]
    row = rows.resolve("acme", TINY, manager=given(TINY, "acme", plugin(hook, lambda: policy)).manager)
    with pytest.raises(PlanError, match=message) as refused:
        compile_plan(TINY, row.policies)
    assert "acme: " in str(refused.value)


def module_of(**functions: Any) -> Any:
    return type("Plugin", (), {name: staticmethod(function) for name, function in functions.items()})()


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"varbnch_depth_policy": lambda setting, model: None}, "varbnch_depth_policy.* Did you mean 'varbench_depth_policy'"),
        ({"varbench_depht_policy": lambda setting, model: None}, "Did you mean 'varbench_depth_policy'"),
        ({"var_bench_settings": lambda model: None, "varbench_generator": lambda setting, model: None}, "Did you mean 'varbench_settings'"),
        ({}, "has no hook; give it at least one function called varbench_"),
        ({"depth": lambda setting, model: None}, "has no hook"),
        ({"varbench_metrics": lambda: []}, "acme is no method: it gives varbench_metrics"),
    ],
)  # fmt: skip
def test_what_gives_no_hook_is_never_the_full_model_under_its_name(functions: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows.resolve("acme", TINY, manager=given(TINY, "acme", module_of(**functions)).manager)


class SomePoints:
    """Of its own default points one cannot be made."""

    def varbench_settings(self, model: Any) -> Settings:
        return Settings(points=("good", "bad", "worse"))

    def varbench_depth_policy(self, setting: Any, model: Any) -> Any:
        if setting.point == "bad":
            raise UserError("no such depth on this model")
        return [1] if setting.point == "worse" else of(DepthPolicy, layers=lambda self, s, b: range(4))


class Fails:
    def varbench_settings(self, model: Any) -> Settings:
        raise RuntimeError("oh")


def test_rows_and_refusals_stand_side_by_side() -> None:
    points = [GivenPoint("acme", SomePoints()), GivenPoint("fails", Fails())]
    bench = given(TINY, "acme", SomePoints())
    manager = PluginManager((*(point for point in bench.points if point.name != "acme"), *points))
    found = rows.attempt("acme,fails,variant@d8", TINY, manager=manager)
    assert [row.name for row in found.rows] == ["acme@good", "variant@d8"]
    assert [(refused.name, refused.plugins[0].name) for refused in found.refused] == [
        ("acme@bad", "acme"), ("acme@worse", "acme"), ("fails", "fails"),
    ]  # fmt: skip
    assert "no such depth on this model" in found.refused[0].reason
    assert "gave a list" in found.refused[1].reason
    assert "varbench_settings failed: RuntimeError: oh" in found.refused[2].reason
    with pytest.raises(UserError, match="no such depth"):
        rows.attempt("acme@bad", TINY, manager=manager)  # written out, so it is the writer's mistake
    with pytest.raises(UserError, match="no plugin 'acne'"):
        rows.attempt("acne,variant@d8", TINY, manager=manager)


def test_a_study_goes_on_without_a_plugin_that_fails() -> None:
    bench = given(TINY, "fails", Fails())
    study = next(name for _, settings in rows.every_settings(TINY, manager=bench.manager) for name in settings.studies)
    assert rows.of_study(study, TINY, manager=bench.manager).rows
    assert [problem.plugin for problem in bench.manager.problems()] == ["fails"]


def test_a_study_that_names_what_is_not_there_costs_that_row() -> None:
    study = Study(title="", settings=("", ":first=1", "@none"))
    settings = Settings(studies={"mine": study}, parameters={"first": Parameter(default=0, help="")})
    found = rows.of_study(
        "mine", TINY, manager=given(TINY, "acme", plugin("varbench_settings", lambda: settings)).manager
    )
    assert [row.name for row in found.rows] == ["acme", "acme:first=1"]
    assert [refused.name for refused in found.refused] == ["acme@none"]


def test_plan_shows_the_rest_and_says_what_failed(strangers: Any, varbench: CommandLine) -> None:
    some = varbench("plan", "raises,faulty,variant@d8", path=strangers)
    assert some.returncode == 3
    assert "variant@d8" in some.stdout
    said = [line for line in some.stderr.splitlines() if line.startswith("varbench plan: ")]
    assert len(said) == 2
    assert "raises failed: plugin 'raises' (strangers-broken): varbench_settings failed: RuntimeError" in said[0]
    assert "faulty failed: faulty: Faulty.layers(3, 'main') failed: KeyError: 3" in said[1]
    assert varbench("plan", "raises", path=strangers).returncode == 5
    shown = json.loads(varbench("plan", "variant@d8,faulty", "--json", path=strangers).stdout)
    assert [(entry["row"], "failed" in entry) for entry in shown][-2:] == [("variant@d8", False), ("faulty", True)]


def test_list_shows_the_rest(strangers: Any, varbench: CommandLine) -> None:
    listed = varbench("list", "plugins", path=strangers)
    assert listed.returncode == 0
    assert "  variant " in listed.stdout
    assert "settings_dict" not in listed.stdout
    assert "varbench_settings: gave a dict, not a Settings" in listed.stderr


def test_a_run_has_a_failed_row_for_each(strangers: Any, varbench: CommandLine) -> None:
    asked = "settings_dict,faulty,not_importable,variant@untrained/d8"
    planned = varbench("run", "--plugins", asked, "--dry-run", path=strangers)
    assert planned.returncode == 0, planned.stderr
    lines = {line.split()[0]: line for line in planned.stdout.splitlines() if line.strip()}
    assert "varbench_settings: gave a dict, not a Settings" in lines["settings_dict"]
    assert "Faulty.layers(3, 'main') failed: KeyError: 3" in lines["faulty"]
    assert "cannot be imported: ModuleNotFoundError" in lines["not_importable"]
    assert "ms" in lines["variant@untrained/d8"]
