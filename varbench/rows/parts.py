"""One plugin's part of a row: as it is written, with everything filled in, and as it is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from varbench.errors import UserError, did_you_mean
from varbench.plan.steps import Accounting
from varbench.policies import Parameter, Setting, Settings
from varbench.rows import check_policies
from varbench.rows.manager import PluginManager
from varbench.spec import ModelSpec

ACCOUNTINGS: tuple[Accounting, ...] = ("lossless", "upstream")

Value = bool | int | float | str


@dataclass(frozen=True)
class WrittenPart:
    """One plugin's part of a row as written."""

    plugin: str
    selection: str | None
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class ChosenPart:
    """One plugin's part of a row with everything filled in."""

    settings: Settings
    setting: Setting
    accounting: Accounting


def parse(text: str) -> WrittenPart:
    head, *pairs = text.strip().split(":")
    plugin, at, selection = head.partition("@")
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", plugin) or (at and not selection):
        raise UserError(f"{text!r} is no row; write name[@[recipe/]point][:key=value], as in my_method@half:first=4")
    parameters = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"{text!r}: {pair!r} is no parameter; write :key=value, as in my_method@half:first=4")
        if key in parameters:
            raise UserError(f"{text!r} sets {key} twice; give it once")
        parameters[key] = value
    return WrittenPart(plugin, selection if at else None, parameters)


def choices(text: str, model: ModelSpec, manager: PluginManager, *, all_settings: bool) -> list[list[ChosenPart]]:
    """Every row that the text stands for."""
    parts = [parse(piece) for piece in text.split("+")]
    names = [part.plugin for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{text!r} names {name} twice; a row takes each plugin once")
    found: list[list[ChosenPart]] = [[]]
    for part in parts:
        options = _options(part, model, manager, all_settings)
        found = [[*chosen, option] for chosen in found for option in options]
    return found


def _options(part: WrittenPart, model: ModelSpec, manager: PluginManager, all_settings: bool) -> list[ChosenPart]:
    settings = settings_of(part.plugin, model, manager)
    recipes: Sequence[str | None] = settings.recipes if all_settings else _default_recipes(settings)
    points: Sequence[str | None] = settings.points if all_settings else settings.default_points or settings.points
    if part.selection is not None:
        first, slash, second = part.selection.partition("/")
        if slash:
            _check_recipe(first, settings, part.plugin)
            recipes = (first,)
            if second:
                points = (second,)
        elif first in settings.recipes and not _is_point(first, settings):
            recipes = (first,)
        else:
            points = (first,)
    for point in points:
        check_point(point, settings, part.plugin)
    accounting = part.parameters.get("accounting", ACCOUNTINGS[0])
    if accounting not in ACCOUNTINGS:
        raise UserError(f"{part.plugin}: accounting is {accounting!r}; give {' or '.join(ACCOUNTINGS)}")
    parameters = _parameters(part, settings)
    return [
        ChosenPart(settings, Setting(plugin=part.plugin, recipe=recipe, point=point, parameters=parameters), accounting)
        for recipe in recipes or (None,)
        for point in points or (None,)
    ]


def settings_of(plugin: str, model: ModelSpec, manager: PluginManager) -> Settings:
    settings = manager.call(plugin, "varbench_settings", model=model)
    if settings is None:
        return Settings()
    check_policies.check(settings, "varbench_settings", manager.info(plugin))
    assert isinstance(settings, Settings)
    return settings


def _default_recipes(settings: Settings) -> tuple[str, ...]:
    return settings.default_recipes or settings.recipes[:1]


def _is_point(name: str, settings: Settings) -> bool:
    return name in settings.points or bool(settings.point_pattern and re.fullmatch(settings.point_pattern, name))


def _check_recipe(name: str, settings: Settings, plugin: str) -> None:
    if name not in settings.recipes:
        raise UserError(
            f"{plugin} has no recipe {name!r}.{did_you_mean(name, settings.recipes)}"
            if settings.recipes
            else f"{plugin} has no recipes, so {name!r} cannot stand before the point"
        )


def check_point(name: str | None, settings: Settings, plugin: str) -> None:
    if name is None or _is_point(name, settings):
        return
    known = (*settings.points, *settings.recipes)
    if not known:
        raise UserError(f"{plugin} has one setting only; write {plugin} without @{name}")
    raise UserError(f"{plugin} has no setting {name!r}.{did_you_mean(name, known)}")


def _parameters(part: WrittenPart, settings: Settings) -> dict[str, Value]:
    given = {
        key: parameter_of(part.plugin, key, text, settings)
        for key, text in part.parameters.items()
        if key != "accounting"
    }
    return {key: given.get(key, parameter.default) for key, parameter in settings.parameters.items()}


def parameter_of(plugin: str, key: str, text: str, settings: Settings) -> Value:
    """A parameter's value as its plugin takes it; one that the plugin does not have is refused."""
    if key not in settings.parameters:
        known = (*settings.parameters, "accounting")
        raise UserError(f"{plugin} has no parameter {key!r}.{did_you_mean(key, known)}")
    return _value(f"{plugin}: {key}", text, settings.parameters[key])


_KINDS: dict[type, tuple[str, Callable[[str], Value]]] = {
    int: ("a whole number", int),
    float: ("a number", float),
    str: ("a text", str),
}


def _value(where: str, text: str, parameter: Parameter) -> Value:
    """The text as the type of the parameter's default."""
    if isinstance(parameter.default, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"{where} is {text!r}; give true or false")
        return text.lower() == "true"
    kind, read = _KINDS[type(parameter.default)]
    try:
        return read(text)
    except ValueError:
        raise UserError(f"{where} is {text!r}; give {kind}") from None


def name_of(chosen: Sequence[ChosenPart]) -> str:
    accounting = accounting_of(chosen)
    suffix = f":accounting={accounting}" if accounting != ACCOUNTINGS[0] else ""
    return "+".join(map(part_name, chosen)) + suffix


def part_name(part: ChosenPart) -> str:
    settings, setting = part.settings, part.setting
    defaults = _default_recipes(settings)
    recipe = "" if setting.recipe is None or (setting.recipe,) == defaults else setting.recipe
    only_point = len(settings.points) <= 1 and setting.point in (*settings.points, None)
    point = "" if only_point or setting.point is None else setting.point
    selection = f"{recipe}/{point}" if recipe and point else recipe or point
    given = [f":{key}={_written(value)}" for key, value in changed(part).items()]
    return setting.plugin + (f"@{selection}" if selection else "") + "".join(given)


def changed(part: ChosenPart) -> dict[str, Value]:
    known = part.settings.parameters
    return {key: value for key, value in part.setting.parameters.items() if value != known[key].default}


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def accounting_of(chosen: Sequence[ChosenPart]) -> Accounting:
    return "upstream" if any(part.accounting == "upstream" for part in chosen) else "lossless"
