"""Rows: from `method@recipe/point+other:key=value` to settings, policies and a schedule.

    row      one or more parts joined by `+`
    part     name[@[recipe/]point][:key=value]...

`accounting` is the row's own parameter, `lossless` or `upstream`; every other one is the plugin's. A row is made by
asking each of its plugins, alone, for each hook; two that claim the same are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from varbench.base import variables
from varbench.errors import UserError, did_you_mean
from varbench.plan.owned import Owned, OwnedTransform, RowPolicies
from varbench.plan.steps import Accounting
from varbench.policies import MAIN, Paper, Provenance, Published, Setting, Settings, Study, TrainingSchedule
from varbench.rows import check_policies
from varbench.rows.manager import PluginError, PluginInfo, PluginManager
from varbench.rows.manager import manager as default_manager
from varbench.rows.parts import (
    ChosenPart,
    Value,
    accounting_of,
    changed,
    check_point,
    choices,
    name_of,
    parameter_of,
    parse,
    part_name,
    settings_of,
)
from varbench.spec import ModelSpec

"""Where the user stands, for processes that run elsewhere: relative paths in rows are meant from there."""

FULL = "full_var"
"""The row that all others are divided by."""

ALL = "all"
"""What stands for every method that is installed."""

UPSTREAM = f"{FULL}:accounting=upstream"
"""It once more, as the official code accounts for its cache: the other denominator."""


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
    paper: Paper | None = None
    """The table of the first method's paper, as its plugin says."""
    study: Study | None = None
    """The study that the row is asked for in, and its place there."""
    place: int = 0
    policies: RowPolicies = field(compare=False)
    schedule: TrainingSchedule | None = field(compare=False, default=None)
    """None where the recipe leaves the pretrained weights as they are."""

    @property
    def recipe_name(self) -> str:
        """What the row's weights are trained by, as files of trained weights name it."""
        return self.name if self.recipe_plugin is None else f"{self.recipe_plugin}@{self.recipe}"


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A row, or all rows of a text, that a plugin's fault keeps from being made."""

    name: str
    """The row's canonical name; the text as it was asked for where not even its settings are known."""
    plugins: tuple[PluginInfo, ...]
    error: UserError

    @property
    def reason(self) -> str:
        return " ".join(str(self.error).split())


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What became of the rows that were asked for."""

    rows: tuple[Row, ...]
    refused: tuple[Refused, ...]

    def or_raise(self) -> tuple[Row, ...]:
        """All rows, or the error of the first that could not be made."""
        if self.refused:
            raise self.refused[0].error
        return self.rows


def resolve(text: str, model: ModelSpec, *, manager: PluginManager | None = None) -> Row:
    """The one row that the text names."""
    manager = manager or default_manager()
    found = choices(text, model, manager, all_settings=False)
    if len(found) > 1:
        names = [name_of(parts) for parts in found]
        raise UserError(f"{text!r} stands for {len(names)} rows; name one of them: {', '.join(names)}")
    return _row(found[0], model, manager)


def expand(
    text: str, model: ModelSpec, *, all_settings: bool = False, manager: PluginManager | None = None
) -> tuple[Row, ...]:
    """All rows of a comma list: a part without a recipe or a point stands for the default ones, or for all."""
    return attempt(text, model, all_settings=all_settings, manager=manager).or_raise()


def attempt(
    text: str, model: ModelSpec, *, all_settings: bool = False, manager: PluginManager | None = None
) -> Attempt:
    """As `expand`, where a plugin's fault costs its own rows only; a text that names nothing is still an error."""
    manager = manager or default_manager()
    pieces = [piece for part in text.split(",") if part.strip() for piece in _pieces(part.strip(), model, manager)]
    found = [_attempt(piece, model, manager, all_settings=all_settings) for piece in pieces]
    made = {row.name: row for one in found for row in one.rows}
    refused = {one.name: one for some in found for one in some.refused}
    return Attempt(rows=tuple(made.values()), refused=tuple(refused.values()))


def _pieces(part: str, model: ModelSpec, manager: PluginManager) -> list[str]:
    """`all` is every usable plugin that makes rows."""
    if part != ALL or ALL in manager.names():
        return [part]
    known = [info.name for info, _ in every_settings(model, manager=manager)]
    return [name for name in known if manager.hooks(name) & check_policies.GIVES.keys()]


def _attempt(
    piece: str, model: ModelSpec, manager: PluginManager, *, all_settings: bool = False, of_plugin: bool = False
) -> Attempt:
    """The rows of one text. What a person wrote out and is refused is that person's mistake; what a plugin named itself, as
    its default points and (`of_plugin`) the settings of its studies, is the plugin's."""
    if why := manager.left_out_rows.get(piece):
        infos = tuple(manager.info(parse(part).plugin) for part in piece.split("+"))
        return Attempt(rows=(), refused=(Refused(name=piece, plugins=infos, error=UserError(why)),))
    try:
        found = choices(piece, model, manager, all_settings=all_settings)
    except UserError as error:
        if not (of_plugin or isinstance(error, PluginError)):
            raise
        plugin = error.plugin if isinstance(error, PluginError) else piece.partition("@")[0].partition(":")[0]
        return Attempt(rows=(), refused=(Refused(name=piece, plugins=(manager.info(plugin),), error=error),))
    rows, refused = [], []
    for parts in found:
        try:
            rows.append(_row(parts, model, manager))
        except UserError as error:
            if not (of_plugin or isinstance(error, PluginError)) and ("@" in piece or ":" in piece):
                raise
            plugins = tuple(manager.info(part.setting.plugin) for part in parts)
            refused.append(Refused(name=name_of(parts), plugins=plugins, error=error))
    return Attempt(rows=tuple(rows), refused=tuple(refused))


def of_study(name: str, model: ModelSpec, *, manager: PluginManager | None = None) -> Attempt:
    """The rows that all plugins offer for a study. A plugin whose settings fail offers none, and is a problem."""
    manager = manager or default_manager()
    found = [
        (study, _attempt(piece, model, manager, of_plugin=True))
        for piece, study in pieces_of_study(name, model, manager=manager)
    ]
    made = [(study, row) for study, one in found for row in one.rows]
    return Attempt(
        rows=tuple(replace(row, study=study, place=place) for place, (study, row) in enumerate(made)),
        refused=tuple(refused for _, one in found for refused in one.refused),
    )


def pieces_of_study(name: str, model: ModelSpec, *, manager: PluginManager) -> list[tuple[str, Study]]:
    """The rows of a study as they are asked for, each with what its plugin says of the study."""
    offered = {info.name: settings.studies for info, settings in every_settings(model, manager=manager)}
    known = sorted({study for studies in offered.values() for study in studies})
    if name not in known:
        raise UserError(f"no plugin offers a study {name!r}.{did_you_mean(name, known)}")
    studies = [(settings[name], plugin) for plugin, settings in offered.items() if name in settings]
    return [(plugin + setting, study) for study, plugin in studies for setting in study.settings]


def every_settings(model: ModelSpec, *, manager: PluginManager) -> tuple[tuple[PluginInfo, Settings], ...]:
    """Settings of every usable plugin; one whose settings fail or are none becomes a problem of the manager."""
    return tuple(manager.each_of(lambda plugin: settings_of(plugin, model, manager)))


def without_parameters(row: Row, *, manager: PluginManager | None = None) -> Row:
    """The row at its recipe and point with every parameter at its default."""
    manager = manager or default_manager()
    parts = []
    for setting in row.settings:
        settings = settings_of(setting.plugin, row.model, manager)
        defaults = {key: parameter.default for key, parameter in settings.parameters.items()}
        parts.append(ChosenPart(settings, replace(setting, parameters=defaults), row.accounting))
    return _row(parts, row.model, manager)


def at_point(row: Row, point: str | None, *, manager: PluginManager | None = None) -> Row:
    """The row at another point of the plugin that owns its recipe; None is that plugin's full model."""
    manager = manager or default_manager()
    if point is None:
        return resolve(FULL, row.model, manager=manager)
    parts = []
    for setting in row.settings:
        settings = settings_of(setting.plugin, row.model, manager)
        chosen = replace(setting, point=point) if setting.plugin == row.recipe_plugin else setting
        check_point(chosen.point, settings, setting.plugin)
        parts.append(ChosenPart(settings, chosen, row.accounting))
    return _row(parts, row.model, manager)


def with_parameters(row: Row, given: Mapping[str, Mapping[str, Value]], *, manager: PluginManager | None = None) -> Row:
    """The row with these parameters of its plugins, by plugin and name."""
    manager = manager or default_manager()
    parts = []
    for setting in row.settings:
        settings, values = settings_of(setting.plugin, row.model, manager), given.get(setting.plugin, {})
        read = {key: parameter_of(setting.plugin, key, str(value), settings) for key, value in values.items()}
        filled = replace(setting, parameters={**setting.parameters, **read})
        parts.append(ChosenPart(settings, filled, row.accounting))
    return _row(parts, row.model, manager)


def at_default_points(row: Row, *, manager: PluginManager | None = None) -> dict[str, Row]:
    """By point, the row at each default point of the plugin that owns its recipe."""
    manager = manager or default_manager()
    if row.recipe_plugin is None:
        return {}
    settings = settings_of(row.recipe_plugin, row.model, manager)
    return {point: at_point(row, point, manager=manager) for point in settings.default_points or settings.points}


def _row(chosen: Sequence[ChosenPart], model: ModelSpec, manager: PluginManager) -> Row:
    settings = tuple(part.setting for part in chosen)
    for setting in settings:
        _refuse_no_row(setting.plugin, manager)
    name = name_of(chosen)
    asked = tuple(located(part.setting, part.settings) for part in chosen)
    steps = _one(name, "varbench_step_policy", asked, model, manager)
    policies = RowPolicies(
        name=name,
        depth=_one(name, "varbench_depth_policy", asked, model, manager),
        steps=steps,
        guidance=_one(name, "varbench_guidance_policy", asked, model, manager),
        tokens=_one(name, "varbench_token_policy", asked, model, manager),
        width=_one(name, "varbench_width_policy", asked, model, manager),
        caches=tuple(_given("varbench_cache_strategy", asked, model, manager)),
        decision=_one(name, "varbench_decision_policy", asked, model, manager),
        transforms=_transforms(chosen, asked, {MAIN: model, **(steps.policy.backbones if steps else {})}, manager),
        generator=_one(name, "varbench_generator", asked, model, manager),
    )
    if policies.generator is not None and len(settings) > 1:
        raise UserError(f"{name}: {policies.generator.plugin} replaces the whole loop, so it must be alone in its row")
    schedule = _one(name, "varbench_training_schedule", asked, model, manager)
    recipe = _recipe(name, settings, schedule)
    return Row(
        name=name,
        model=model,
        settings=settings,
        plugins=tuple(manager.info(setting.plugin) for setting in settings),
        accounting=accounting_of(chosen),
        parameters={f"{part.setting.plugin}.{key}": value for part in chosen for key, value in changed(part).items()},
        recipe=recipe.recipe if recipe else None,
        recipe_plugin=recipe.plugin if recipe else None,
        provenance=chosen[0].settings.provenance,
        published=_published(chosen, model, manager),
        paper=chosen[0].settings.paper,
        policies=policies,
        schedule=schedule.policy if schedule else None,
    )


def _published(chosen: Sequence[ChosenPart], model: ModelSpec, manager: PluginManager) -> tuple[Published, ...]:
    """A line printed for a recipe alone, or a point alone, is that of each row that this stands for."""
    if len(chosen) > 1:
        return ()
    (part,) = chosen
    plugin, found = part.setting.plugin, []
    for line in part.settings.published:
        if line.model != model.name:
            continue
        try:
            meant = choices(plugin + line.setting, model, manager, all_settings=False)
        except UserError as error:
            message = f"plugin {plugin!r}: the published figures of {line.setting!r} are of no row: {error}"
            raise PluginError(message, plugin=plugin) from None
        if part.setting in [option.setting for (option,) in meant]:
            found.append(line)
    return tuple(found)


def _recipe(name: str, settings: Sequence[Setting], schedule: Owned[TrainingSchedule] | None) -> Setting | None:
    """A row has one recipe: that of the plugin that trains, and else of the only one that has any."""
    owners = [s for s in settings if s.recipe is not None and (schedule is None or s.plugin == schedule.plugin)]
    if len(owners) > 1:
        both = " and ".join(f"{s.plugin}@{s.recipe}" for s in owners)
        raise UserError(f"{name}: a row has one recipe, and {both} are two")
    return owners[0] if owners else None


def without_transforms(row: Row, *, manager: PluginManager | None = None) -> Row:
    """The row whose weights it runs on: less the plugins that replace modules once weights are loaded."""
    replacing = {owned.plugin for owned in row.policies.transforms}
    kept = [setting for setting in row.settings if setting.plugin not in replacing]
    if not replacing or not kept or row.recipe_plugin in replacing:
        return row
    manager = manager or default_manager()
    parts = [ChosenPart(settings_of(s.plugin, row.model, manager), s, row.accounting) for s in kept]
    return _row(parts, row.model, manager)


def located(setting: Setting, settings: Settings) -> Setting:
    """With whole paths in place of those that are meant from where the user stands: processes run elsewhere."""
    known = settings.parameters
    folder = Path(os.environ.get(variables.FOLDER, ""))
    paths = {name: value for name, value in setting.parameters.items() if known[name].kind == "path" and value}
    return replace(setting, parameters={**setting.parameters, **{k: str(folder / str(v)) for k, v in paths.items()}})


def _ask(hook: str, setting: Setting, model: ModelSpec, manager: PluginManager) -> Any:
    """What the plugin gives for a hook, looked at; None where it gives nothing."""
    policy = manager.call(setting.plugin, hook, setting=setting, model=model)
    if policy is not None:
        check_policies.check(policy, hook, manager.info(setting.plugin))
    return policy


def _given(hook: str, settings: Sequence[Setting], model: ModelSpec, manager: PluginManager) -> list[Owned[Any]]:
    found = [(s.plugin, _ask(hook, s, model, manager)) for s in settings]
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


def _transforms(
    chosen: Sequence[ChosenPart], asked: Sequence[Setting], backbones: Mapping[str, ModelSpec], manager: PluginManager
) -> tuple[OwnedTransform, ...]:
    """In the row's order, for every backbone: each plugin is asked about each with that one's own sizes."""
    found = []
    for backbone, spec in backbones.items():
        for part, setting in zip(chosen, asked, strict=True):
            given = _ask("varbench_transform_model", setting, spec, manager)
            if given is not None:
                owner = {"plugin": part.setting.plugin, "part": part_name(part)}
                found.append(OwnedTransform(**owner, policy=given, backbone=backbone))
    return tuple(found)


def _refuse_no_row(plugin: str, manager: PluginManager) -> None:
    """A plugin of columns and panels alone would be the full model under its own name."""
    given = manager.hooks(plugin)
    if not given & check_policies.GIVES.keys():
        raise UserError(
            f"{plugin} is no method: it gives {', '.join(sorted(given))}, so its row would be the full model's; "
            f"name {FULL} or a method"
        )
