"""Plugins of strangers: found, called alone, and reported by distribution when they cannot be used."""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
from conftest import CommandLine

from varbench import hookspecs, rows
from varbench.errors import UserError
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import RowPolicies
from varbench.plan.steps import Plan
from varbench.rows.manager import PluginManager

TINY = presets.preset("tiny").spec
HOOKS = [name for name in dir(hookspecs) if name.startswith("varbench_")]
ROW_HOOKS = {"setting", "model"}


OF_EVERY_POLICY = ("runs", "trace_equals_plan", "measured_flops_equal_plan", "state_bytes_reachable")
PROMISES = {
    "varbench_depth_policy": ("teacher_equals_cached",),
    "varbench_step_policy": ("tokens_are_drawn_from_logits", "kept_is_what_is_read", "teacher_equals_cached"),
    "varbench_guidance_policy": ("guided_as_planned", "unlabelled_equals_teacher", "teacher_equals_cached"),
    "varbench_token_policy": ("picks_are_places", "inputs_untouched", "picked_is_what_is_computed", "neutral_equals_full"),
    "varbench_width_policy": ("picks_are_places", "inputs_untouched", "chosen_experts_are_computed", "weights_equal_plan"),
    "varbench_cache_strategy": (
        "picks_are_places", "kept_is_what_is_read", "attention_told_was_paid", "neutral_equals_full",
    ),
    "varbench_decision_policy": ("decided_as_declared", "neutral_equals_full"),
}  # fmt: skip
"""What examples of policies are held to, by hook: they generate."""


def examples(hook: str) -> list[str]:
    documentation = inspect.getdoc(getattr(hookspecs, hook))
    assert documentation is not None
    return [textwrap.dedent(part) for part in re.split(r"^Example.*:\n", documentation, flags=re.MULTILINE)[1:]]


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_says_what_it_gives_and_names_its_parameters(hook: str) -> None:
    function = getattr(hookspecs, hook)
    documentation = inspect.getdoc(function) or ""
    first = documentation.split("\n\n")[0]
    assert first.count(".") == 1, "one sentence"
    assert first.endswith(".")
    parameters = list(inspect.signature(function).parameters)
    described = documentation.split("Parameters:\n")[1].split("\n\n")[0] if parameters else ""
    assert [line.split(":")[0].strip() for line in described.splitlines()] == parameters
    assert set(function.__annotations__) == {*parameters, "return"}, "typed"


@pytest.mark.parametrize(("hook", "code"), [(hook, code) for hook in HOOKS for code in examples(hook)])
def test_each_example_of_a_hook_is_a_plugin_that_runs(hook: str, code: str) -> None:
    """Its signature is the hook's, it registers as it stands, and it gives what the hook is for."""
    module = types.ModuleType(f"example_of_{hook}")
    exec(compile(code, hook, "exec"), module.__dict__)
    spec, given = inspect.signature(getattr(hookspecs, hook)), inspect.signature(getattr(module, hook))
    assert list(given.parameters) == list(spec.parameters)
    manager = PluginManager([_entry("example", module)])
    result = _ask(manager, hook)
    assert result is not None
    _use(hook, result, manager)


def _entry(name: str, module: types.ModuleType) -> EntryPoint:
    sys.modules[module.__name__] = module
    return EntryPoint(name=name, value=module.__name__, group=hookspecs.PROJECT)


def _ask(manager: PluginManager, hook: str) -> Any:
    from varbench.policies import Setting

    arguments: dict[str, Any] = {
        "setting": Setting(plugin="example"), "model": TINY, "plugin": "example", "records": [], "pipe": None
    }  # fmt: skip
    if hook == "varbench_calibrate":
        from varbench.engine.loading import load_pipeline

        arguments["pipe"] = load_pipeline("tiny", random=True)
    wanted = inspect.signature(getattr(hookspecs, hook)).parameters
    return manager.call("example", hook, **{name: arguments[name] for name in wanted})


def _use(hook: str, result: Any, manager: PluginManager) -> None:
    """What can be tried without weights: plans compile and differ from the full model's, images and figures come out."""
    if hook == "varbench_generator":
        import torch

        from varbench.engine.subjects import load_generator

        load_generator(result, model=TINY, device=torch.device("cpu"), dtype="float32", seed=0)
        assert result.generate([0, 1], seed=0, first_image=0).shape == (2, 3, 32, 32)
        assert result.work(2).steps == 1
    elif hook == "varbench_metrics":
        import torch

        white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
        assert result[0].compute(white, torch.zeros(2)).tolist() == [1, 1]
    elif hook == "varbench_report_sections":
        from varbench.record.sections import checked

        assert checked(result[0]).title
    elif hook == "varbench_calibrate":
        assert json.loads(json.dumps(result))["codes_used"] > 1
    elif hook == "varbench_transform_model":
        from varbench.check import check

        assert not check(manager.plugin("example"), name="example", only={"runs", "weights_equal_plan"})
    elif hook in PROMISES:
        from varbench.check import check

        assert not check(manager.plugin("example"), name="example", only={*OF_EVERY_POLICY, *PROMISES[hook]})
        plan = _differs_from_full(manager)
        if hook == "varbench_guidance_policy":
            assert [(step.branches, step.shares) for step in plan.steps][2:] == [
                (2, False),
                *[(2, True)] * 2,
                (1, False),
            ]
    elif hook == "varbench_training_schedule":
        if len(result.stages()) == 1 and result.stages()[0].teacher:
            from varbench.check import check

            only = {"runs", "schedule_repeats", "own_loss_teaches"}
            assert not check(manager.plugin("example"), name="example", only=only)
            return
        assert {result.at(None, 0, 10, lambda k, u=u: u).point for u in (0.1, 0.9)} == {"short", None}
    elif hook == "varbench_settings":
        names = [row.name for row in rows.expand("example", TINY, manager=manager)]
        assert names == ["example@half", "example@third"]
    else:
        _differs_from_full(manager)


def _differs_from_full(manager: PluginManager) -> Plan:
    plan = compile_plan(TINY, rows.resolve("example", TINY, manager=manager).policies)
    assert plan.digest != compile_plan(TINY, RowPolicies(name="full")).digest
    return plan


@pytest.fixture
def installed(strangers: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(strangers))
    before = set(sys.modules)
    yield strangers
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(strangers) in str(sys.modules[name].__file__):
            del sys.modules[name]


def manager_of(site: Path, *names: str, disable: tuple[str, ...] = ()) -> PluginManager:
    """The plugins of the folder, or those of these names, beside what ships."""
    return PluginManager(
        [p for p in entry_points(group=hookspecs.PROJECT) if not names or p.name in (*names, "variant")],
        disable=disable,
    )


def test_a_strangers_plugin_is_a_row_like_any_other(installed: Path) -> None:
    manager = manager_of(installed, "every_other")
    assert manager.load_all() == ("every_other", "variant")
    assert manager.info("every_other").distribution == "strangers-every-other"
    assert manager.info("every_other").version == "1.2.3"
    row = rows.resolve("every_other:first=5", TINY, manager=manager)
    assert row.name == "every_other@plain:first=5"
    steps = compile_plan(TINY, row.policies).steps
    assert [len(step.calls) for step in steps] == [16, 16, 16, 16, 16, 8]
    forgetful = rows.resolve("every_other@forgetful", TINY, manager=manager)
    assert [owned.plugin for owned in forgetful.policies.caches] == ["every_other"]


def test_each_plugin_is_called_alone(installed: Path) -> None:
    """`variant` also gives a depth policy; a row of one plugin must not ask the other."""
    manager = manager_of(installed, "every_other")
    row = rows.resolve("every_other@forgetful", TINY, manager=manager)
    assert row.policies.depth is not None
    assert row.policies.depth.plugin == "every_other"
    assert row.schedule is None


def test_two_owners_in_a_row_are_refused_naming_both_distributions(installed: Path) -> None:
    manager = manager_of(installed, "every_other")
    with pytest.raises(UserError) as refused:
        rows.resolve("variant@d8+every_other@forgetful", TINY, manager=manager)
    for part in ("variant (varbench)", "every_other (strangers-every-other)", "varbench_depth_policy"):
        assert part in str(refused.value)


def test_a_folder_that_hides_an_installed_plugin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the project's own folder does where Python starts above it, which looks there first."""
    (tmp_path / "hidden_plugin").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    manager = PluginManager([EntryPoint(name="hidden", value="hidden_plugin", group=hookspecs.PROJECT)])
    with pytest.raises(UserError, match=f"is found as {tmp_path / 'hidden_plugin'}, a folder without code"):
        rows.resolve("hidden", TINY, manager=manager)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("not_importable", ("strangers-broken", "cannot be imported", "surely_not_installed_anywhere")),
        ("leaves", ("strangers-broken", "cannot be imported", "SystemExit")),
        ("misspelt", ("strangers-broken", "varbench_depth_polcy", "Did you mean 'varbench_depth_policy'?")),
        ("wrong_parameters", ("strangers-broken", "settings", "varbench_depth_policy")),
        ("nothing", ("strangers-broken", "has no hook", "varbench_...")),
        ("twin", ("strangers-twin-one and by strangers-twin-two", "--disable strangers-twin-two:twin")),
    ],
)
def test_a_plugin_that_cannot_be_used_names_its_distribution_and_the_rest_goes_on(
    installed: Path, name: str, parts: tuple[str, ...]
) -> None:
    manager = manager_of(installed)
    usable = manager.load_all()
    assert name not in usable
    assert {"variant", "full_var", "every_other"} <= set(usable)
    (problem,) = [problem for problem in manager.problems() if problem.plugin == name]
    assert all(part in problem.message for part in parts), problem.message
    assert "\n" not in problem.message
    with pytest.raises(UserError) as refused:
        rows.resolve(name, TINY, manager=manager)
    assert str(refused.value) == problem.message


def test_a_hook_that_fails_names_plugin_hook_and_error(installed: Path) -> None:
    manager = manager_of(installed, "raises")
    with pytest.raises(UserError, match=r"'raises' \(strangers-broken\): varbench_settings failed: RuntimeError"):
        rows.resolve("raises", TINY, manager=manager)
    assert [info.name for info, _ in manager.each("varbench_settings", model=TINY)] == ["variant"]
    assert [problem.plugin for problem in manager.problems()] == ["raises"]


@pytest.mark.parametrize("disable", ["not_importable", "strangers-broken:not_importable"])
def test_disabling_acts_before_import(installed: Path, disable: str) -> None:
    manager = manager_of(installed, "not_importable", disable=(disable,))
    assert manager.load_all() == ("variant",)
    assert manager.problems() == ()
    with pytest.raises(UserError, match="is disabled"):
        manager.plugin("not_importable")


def test_of_two_with_one_name_one_can_be_disabled(installed: Path) -> None:
    manager = manager_of(installed, "twin", disable=("strangers-twin-two:twin",))
    assert manager.load_all() == ("twin", "variant")
    assert manager.info("twin").distribution == "strangers-twin-one"


def test_a_row_imports_only_its_own_plugins(installed: Path) -> None:
    manager = manager_of(installed)
    rows.resolve("variant@d8", TINY, manager=manager)
    assert "every_other" not in sys.modules


def test_the_command_line_warns_on_stderr_and_goes_on(strangers: Path, varbench: CommandLine) -> None:
    listed = varbench("list", "plugins", path=strangers)
    assert listed.returncode == 0
    assert "every second layer" in listed.stdout
    warnings = listed.stderr.splitlines()
    assert len(warnings) == 8, listed.stderr
    assert all(line.startswith("warning: plugin ") and "strangers-" in line for line in warnings)
    assert "Traceback" in varbench("list", "plugins", "--traceback", path=strangers).stderr


def test_the_command_line_disables_by_flag_and_by_variable(strangers: Path, varbench: CommandLine) -> None:
    broken = "not_importable,misspelt,wrong_parameters,leaves,raises,settings_dict,nothing"
    flag = varbench("list", "plugins", "--disable", broken, "--disable", "twin", path=strangers)
    assert (flag.returncode, flag.stderr) == (0, "")
    variable = varbench("list", "plugins", path=strangers, VARBENCH_DISABLE=f"{broken},twin,variant")
    assert variable.stderr == ""
    assert "  variant " not in variable.stdout
    assert varbench("plan", "every_other", "--disable", f"{broken},twin", path=strangers).returncode == 0
