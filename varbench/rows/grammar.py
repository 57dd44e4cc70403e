"""Rows: from `method@recipe/point+other:key=value` to settings, policies and a schedule.

    row      one or more parts joined by `+`
    part     name[@[recipe/]point][:key=value]...

`accounting` is the row's own parameter, `lossless` or `upstream`; every other one is the plugin's. A row is made by
asking each of its plugins, alone, for each hook; two that claim the same are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from varbench.errors import UserError, did_you_mean
from varbench.plan.compiler import Owned, RowPolicies
from varbench.plan.steps import Accounting
from varbench.policies import Parameter, Provenance, Published, Setting, Settings, Study, TrainingSchedule
from varbench.rows.manager import PluginInfo, PluginManager
from varbench.rows.manager import manager as default_manager
from varbench.spec import ModelSpec

FULL = "full_var"
"""The row that all others are divided by."""

ACCOUNTINGS: tuple[Accounting, ...] = ("lossless", "upstream")

NOT_EXECUTED = {
    "varbench_transform_model": "replaced modules",
}
"""Hooks that are specified and that nothing runs yet: a row whose plugin gives one is refused, never half obeyed."""

Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row runs. Equal rows have equal names."""

    name: str
    """Canonical: defaults are left out, and parameters stand in the plugin's order."""
    model: ModelSpec
    settings: tuple[Setting, ...]
    plugins: tuple[PluginInfo, ...]
    accounting: Accounting = "lossless"
    parameters: Mapping[str, Value]
    """Those that differ from their defaults, by `plugin.key`."""
    recipe: str | None = None
    """How the weights were trained."""
    recipe_plugin: str | None = None
    """The plugin whose recipe it is."""
    provenance: Provenance | None = None
    """Where the first of its methods comes from, as the plugin says."""
    published: tuple[Published, ...] = ()
    """What others printed of this very setting on this model; of rows of several plugins nothing is."""
    study: Study | None = None
    """The study that the row is asked for in, and its place there."""
    place: int = 0
    policies: RowPolicies = field(compare=False)
    schedule: TrainingSchedule | None = field(compare=False, default=None)
    """None where the recipe leaves the pretrained weights as they are."""


def resolve(text: str, model: ModelSpec, *, manager: PluginManager | None = None) -> Row:
    """The one row that the text names."""
    manager = manager or default_manager()
    found = _choices(text, model, manager, all_settings=False)
    if len(found) > 1:
        names = [_name(parts) for parts in found]
        raise UserError(f"{text!r} stands for {len(names)} rows; name one of them: {', '.join(names)}")
    return _row(found[0], model, manager)


def expand(
    text: str, model: ModelSpec, *, all_settings: bool = False, manager: PluginManager | None = None
) -> tuple[Row, ...]:
    """All rows of a comma list: a part without a recipe or a point stands for the default ones, or for all."""
    manager = manager or default_manager()
    rows: dict[str, Row] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        for parts in _choices(part, model, manager, all_settings=all_settings):
            row = _row(parts, model, manager)
            rows.setdefault(row.name, row)
    return tuple(rows.values())


def of_study(name: str, model: ModelSpec, *, manager: PluginManager | None = None) -> tuple[Row, ...]:
    """The rows that all plugins offer for a study."""
    manager = manager or default_manager()
    offered = {plugin: _settings(plugin, model, manager).studies for plugin in manager.load_all()}
    known = sorted({study for studies in offered.values() for study in studies})
    if name not in known:
        raise UserError(f"no plugin offers a study {name!r}.{did_you_mean(name, known)}")
    found = [
        (studies[name], row)
        for plugin, studies in offered.items()
        if name in studies
        for setting in studies[name].settings
        for row in expand(plugin + setting, model, manager=manager)
    ]
    return tuple(replace(row, study=study, place=place) for place, (study, row) in enumerate(found))


def without_parameters(row: Row, *, manager: PluginManager | None = None) -> Row:
    """The row at its recipe and point with every parameter at its default."""
    manager = manager or default_manager()
    parts = []
    for setting in row.settings:
        settings = _settings(setting.plugin, row.model, manager)
        defaults = {key: parameter.default for key, parameter in settings.parameters.items()}
        parts.append(_Chosen(settings, replace(setting, parameters=defaults), row.accounting))
    return _row(parts, row.model, manager)


def at_point(row: Row, point: str | None, *, manager: PluginManager | None = None) -> Row:
    """The row at another point of the plugin that owns its recipe; None is that plugin's full model."""
    manager = manager or default_manager()
    if point is None:
        return resolve(FULL, row.model, manager=manager)
    parts = []
    for setting in row.settings:
        settings = _settings(setting.plugin, row.model, manager)
        chosen = replace(setting, point=point) if setting.plugin == row.recipe_plugin else setting
        _check_point(chosen.point, settings, setting.plugin)
        parts.append(_Chosen(settings, chosen, row.accounting))
    return _row(parts, row.model, manager)


def at_default_points(row: Row, *, manager: PluginManager | None = None) -> dict[str, Row]:
    """By point, the row at each default point of the plugin that owns its recipe."""
    manager = manager or default_manager()
    if row.recipe_plugin is None:
        return {}
    settings = _settings(row.recipe_plugin, row.model, manager)
    return {point: at_point(row, point, manager=manager) for point in settings.default_points or settings.points}


@dataclass(frozen=True)
class _Part:
    """One plugin's part of a row as written."""

    plugin: str
    selection: str | None
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class _Chosen:
    """One plugin's part of a row with everything filled in."""

    settings: Settings
    setting: Setting
    accounting: Accounting


def _parse(text: str) -> _Part:
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
    return _Part(plugin, selection if at else None, parameters)


def _choices(text: str, model: ModelSpec, manager: PluginManager, *, all_settings: bool) -> list[list[_Chosen]]:
    """Every row that the text stands for."""
    parts = [_parse(piece) for piece in text.split("+")]
    names = [part.plugin for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{text!r} names {name} twice; a row takes each plugin once")
    found: list[list[_Chosen]] = [[]]
    for part in parts:
        options = _options(part, model, manager, all_settings)
        found = [[*chosen, option] for chosen in found for option in options]
    return found


def _options(part: _Part, model: ModelSpec, manager: PluginManager, all_settings: bool) -> list[_Chosen]:
    settings = _settings(part.plugin, model, manager)
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
        _check_point(point, settings, part.plugin)
    accounting = part.parameters.get("accounting", ACCOUNTINGS[0])
    if accounting not in ACCOUNTINGS:
        raise UserError(f"{part.plugin}: accounting is {accounting!r}; give {' or '.join(ACCOUNTINGS)}")
    parameters = _parameters(part, settings)
    return [
        _Chosen(settings, Setting(plugin=part.plugin, recipe=recipe, point=point, parameters=parameters), accounting)
        for recipe in recipes or (None,)
        for point in points or (None,)
    ]


def _settings(plugin: str, model: ModelSpec, manager: PluginManager) -> Settings:
    settings = manager.call(plugin, "varbench_settings", model=model)
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise UserError(f"plugin {plugin!r}: varbench_settings gave a {type(settings).__name__}, not a Settings")
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


def _check_point(name: str | None, settings: Settings, plugin: str) -> None:
    if name is None or _is_point(name, settings):
        return
    known = (*settings.points, *settings.recipes)
    if not known:
        raise UserError(f"{plugin} has one setting only; write {plugin} without @{name}")
    raise UserError(f"{plugin} has no setting {name!r}.{did_you_mean(name, known)}")


def _parameters(part: _Part, settings: Settings) -> dict[str, Value]:
    known = settings.parameters
    for key in part.parameters:
        if key not in known and key != "accounting":
            raise UserError(f"{part.plugin} has no parameter {key!r}.{did_you_mean(key, (*known, 'accounting'))}")
    return {
        key: _value(f"{part.plugin}: {key}", part.parameters[key], parameter)
        if key in part.parameters
        else parameter.default
        for key, parameter in known.items()
    }


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


def _name(chosen: Sequence[_Chosen]) -> str:
    names = []
    for part in chosen:
        settings, setting = part.settings, part.setting
        defaults = _default_recipes(settings)
        recipe = "" if setting.recipe is None or (setting.recipe,) == defaults else setting.recipe
        only_point = len(settings.points) <= 1 and setting.point in (*settings.points, None)
        point = "" if only_point or setting.point is None else setting.point
        selection = f"{recipe}/{point}" if recipe and point else recipe or point
        given = [f":{key}={_written(value)}" for key, value in _changed(part).items()]
        names.append(setting.plugin + (f"@{selection}" if selection else "") + "".join(given))
    accounting = _accounting(chosen)
    return "+".join(names) + (f":accounting={accounting}" if accounting != ACCOUNTINGS[0] else "")


def _changed(part: _Chosen) -> dict[str, Value]:
    known = part.settings.parameters
    return {key: value for key, value in part.setting.parameters.items() if value != known[key].default}


def _written(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _accounting(chosen: Sequence[_Chosen]) -> Accounting:
    return "upstream" if any(part.accounting == "upstream" for part in chosen) else "lossless"


def _row(chosen: Sequence[_Chosen], model: ModelSpec, manager: PluginManager) -> Row:
    settings = tuple(part.setting for part in chosen)
    for setting in settings:
        _refuse_not_executed(setting, model, manager)
    name = _name(chosen)
    policies = RowPolicies(
        name=name,
        depth=_one(name, "varbench_depth_policy", settings, model, manager),
        steps=_one(name, "varbench_step_policy", settings, model, manager),
        guidance=_one(name, "varbench_guidance_policy", settings, model, manager),
        tokens=_one(name, "varbench_token_policy", settings, model, manager),
        caches=tuple(_given("varbench_cache_strategy", settings, model, manager)),
        generator=_one(name, "varbench_generator", settings, model, manager),
    )
    if policies.generator is not None and len(settings) > 1:
        raise UserError(f"{name}: {policies.generator.plugin} replaces the whole loop, so it must be alone in its row")
    schedule = _one(name, "varbench_training_schedule", settings, model, manager)
    recipe = _recipe(name, settings, schedule)
    return Row(
        name=name,
        model=model,
        settings=settings,
        plugins=tuple(manager.info(setting.plugin) for setting in settings),
        accounting=_accounting(chosen),
        parameters={f"{part.setting.plugin}.{key}": value for part in chosen for key, value in _changed(part).items()},
        recipe=recipe.recipe if recipe else None,
        recipe_plugin=recipe.plugin if recipe else None,
        provenance=chosen[0].settings.provenance,
        published=_published(chosen, model, manager),
        policies=policies,
        schedule=schedule.policy if schedule else None,
    )


def _published(chosen: Sequence[_Chosen], model: ModelSpec, manager: PluginManager) -> tuple[Published, ...]:
    """A line printed for a recipe alone, or a point alone, is that of each row that this stands for."""
    if len(chosen) > 1:
        return ()
    (part,) = chosen
    plugin, found = part.setting.plugin, []
    for line in part.settings.published:
        if line.model != model.name:
            continue
        try:
            meant = _options(_parse(plugin + line.setting), model, manager, all_settings=False)
        except UserError as error:
            raise UserError(
                f"plugin {plugin!r}: the published figures of {line.setting!r} are of no row: {error}"
            ) from None
        if part.setting in [option.setting for option in meant]:
            found.append(line)
    return tuple(found)


def _recipe(name: str, settings: Sequence[Setting], schedule: Owned[TrainingSchedule] | None) -> Setting | None:
    """A row has one recipe: that of the plugin that trains, and else of the only one that has any."""
    owners = [s for s in settings if s.recipe is not None and (schedule is None or s.plugin == schedule.plugin)]
    if len(owners) > 1:
        both = " and ".join(f"{s.plugin}@{s.recipe}" for s in owners)
        raise UserError(f"{name}: a row has one recipe, and {both} are two")
    return owners[0] if owners else None


def _given(hook: str, settings: Sequence[Setting], model: ModelSpec, manager: PluginManager) -> list[Owned[Any]]:
    found = [(s.plugin, manager.call(s.plugin, hook, setting=s, model=model)) for s in settings]
    return [Owned(plugin=plugin, policy=policy) for plugin, policy in found if policy is not None]


def _one(
    name: str, hook: str, settings: Sequence[Setting], model: ModelSpec, manager: PluginManager
) -> Owned[Any] | None:
    found = _given(hook, settings, model, manager)
    if len(found) > 1:
        owners = " and ".join(f"{o.plugin} ({manager.info(o.plugin).distribution})" for o in found)
        raise UserError(
            f"{name}: {owners} both give {hook}; a row has one owner of it, so run them in rows of their own"
        )
    return found[0] if found else None


def _refuse_not_executed(setting: Setting, model: ModelSpec, manager: PluginManager) -> None:
    for hook, what in NOT_EXECUTED.items():
        if manager.call(setting.plugin, hook, setting=setting, model=model) is not None:
            raise UserError(
                f"{setting.plugin} ({manager.info(setting.plugin).distribution}) gives {hook}: this version of varbench "
                f"does not execute {what}, and will not run the row without"
            )
