"""Asks plugins for rows and returns these as data, so that the parent of a run needs no plugin. No torch."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from varbench import rows
from varbench.base.imported import imported
from varbench.errors import PlanError, UserError
from varbench.model import c_kernels
from varbench.model.bundle import recipe_in
from varbench.plan import presets, protocols
from varbench.plan.compiler import compile_plan
from varbench.plan.steps import Plan
from varbench.policies import Generator, Setting, TaughtGenerator, TrainedGenerator
from varbench.record import MethodSource, PublishedLine, StudyWords
from varbench.record.failure import Failure
from varbench.rows.check_policies import metrics_of
from varbench.rows.grammar import Row
from varbench.rows.manager import PluginError, PluginInfo, PluginManager, manager
from varbench.rows.parts import settings_of
from varbench.run import identity
from varbench.run.channel import Channel
from varbench.run.messages import OWN_WEIGHTS, ChildCode, Job, Resolved, ResolvedPlugin, ResolvedRow
from varbench.run.reasons import of_exception
from varbench.run.weight_files import weight_files
from varbench.spec import ModelSpec


def run(job: Job, channel: Channel) -> None:
    plugins = manager()
    plugins.leave_out({name: failure.reason for name, failure in job.left_out.items()})
    plugins.load_all()
    channel.send(resolved(job, plugins))


def resolved(job: Job, plugins: PluginManager) -> Resolved:
    """The denominators, then the rows that were asked for, then those of studies. A row that cannot be made fails alone."""
    options, model = job.options, job.model
    denominators = [rows.resolve(name, model, manager=plugins) for name in (rows.FULL, rows.UPSTREAM)]
    attempts: list[tuple[str | None, rows.Attempt]] = [
        (None, rows.attempt(options.plugins, model, all_settings=options.all_settings, manager=plugins))
    ]
    named = list[str]()
    if job.look_only:
        for wanted in options.study:
            with contextlib.suppress(UserError):  # another plugin offers it
                named += [piece for piece, _ in rows.pieces_of_study(wanted, model, manager=plugins)]
    else:
        attempts += [(study, rows.of_study(study, model, manager=plugins)) for study in options.study]
    made: list[tuple[str | None, Row]] = [(None, row) for row in denominators]
    made += [(study, row) for study, attempt in attempts for row in attempt.rows]
    further, clashes = _second_models([row for _, row in made])
    job = replace(job, files=weight_files(options, further))
    found: dict[str, ResolvedRow] = {}
    for study, row in made:
        known = found.get(row.name)
        if known is None:
            found[row.name] = _resolved(job, row, study, plugins, clash=clashes.get(row.name))
        elif study is not None and known.study is None and known.also_in is None:
            found[row.name] = replace(known, also_in=study, study_words=_words(row))
    for study, attempt in attempts:
        for refused in attempt.refused:
            failed = _failed(refused.name, refused.plugins, _why(refused, job), job, plugins)
            found.setdefault(refused.name, replace(failed, study=study))
    on_cpu = options.device == "cpu"
    lacking = c_kernels.built().lacking if on_cpu else None
    return Resolved(
        rows=tuple(found.values()),
        files=job.files,
        metrics=tuple(info.name for info, given in plugins.each_of(partial(metrics_of, plugins=plugins)) if given),
        problems=(*(problem.message for problem in plugins.problems()), *([lacking] if lacking else [])),
        kernels=c_kernels.built().key if on_cpu else "",
        only_named=tuple(named),
    )


def _failed(name: str, infos: Sequence[PluginInfo], failure: Failure, job: Job, plugins: PluginManager) -> ResolvedRow:
    return ResolvedRow(
        name=name,
        plugins=tuple(resolved_plugin(info, plugins) for info in infos),
        weight_set="pretrained" if job.files else "random",
        failure=failure,
    )


def _why(refused: rows.Refused, job: Job) -> Failure:
    names = (refused.name, *(info.name for info in refused.plugins))
    died = [job.left_out[name] for name in names if name in job.left_out]
    return replace(died[0], reason=refused.reason) if died else of_exception(refused.error)


def _second_models(made: list[Row]) -> tuple[dict[str, ModelSpec], dict[str, str]]:
    """The second models of all rows by name, and for the rows that give a name to another one, what is wrong."""
    first: dict[str, tuple[str, ModelSpec]] = {}
    clashes = {}
    for row in made:
        for name, spec in row.policies.backbones.items():
            owner, known = first.setdefault(name, (row.name, spec))
            if known != spec:
                clashes[row.name] = (
                    f"{row.name} runs on a second model {name!r} of {spec.depth} layers of width {spec.width}, and that of "
                    f"{owner} has the same name and {known.depth} of width {known.width}; run them apart, or let a plugin "
                    "give its own model a name of its own"
                )
    return {name: spec for name, (_, spec) in first.items()}, clashes


def _words(row: Row) -> StudyWords | None:
    study = row.study
    return None if study is None else StudyWords(title=study.title, caption=study.caption, place=row.place)


def _resolved(job: Job, row: Row, study: str | None, plugins: PluginManager, *, clash: str | None) -> ResolvedRow:
    plan, other, failure = None, None, None
    try:
        if clash is not None:
            raise PlanError(clash)
        if row.policies.generator is None:
            plan, other = _plans(row, job)
    except PlanError as error:
        failure = of_exception(error)
    owner = row.recipe_plugin
    points = [s.point for s in row.settings if s.point is not None and s.plugin in (owner, row.plugins[0].name)]
    generator = None if row.policies.generator is None else row.policies.generator.policy
    own = isinstance(generator, TrainedGenerator) and not generator.trained
    trains_generator = own and job.files is not None and trains(job)
    return ResolvedRow(
        name=row.name,
        plugins=tuple(resolved_plugin(info, plugins) for info in row.plugins),
        recipe=row.recipe if row.schedule is not None else None,
        trained_by=row.recipe_name,
        point=points[0] if points else None,
        curve=_curve(row, plugins),
        parameters=dict(row.parameters),
        study=study,
        published=tuple(
            PublishedLine(
                figures=dict(line.figures),
                grade=line.grade,
                source=line.source,
                conditions=line.conditions,
                settings=dict(line.settings),
            )
            for line in row.published
        ),
        paper=row.paper,
        study_words=_words(row),
        accounting=row.accounting,
        plan=plan,
        other_plan=other,
        backbones=tuple(row.policies.backbones),
        calibrates=any(_calibrates(info.name, plugins) for info in row.plugins),
        uncalibrated=any(
            _calibrates(setting.plugin, plugins) and not _found_in(setting, row, plugins) for setting in row.settings
        ),
        trained_generator=_is_trained(generator, trains_generator, given=job.files is not None),
        trains_generator=trains_generator,
        taught_generator=isinstance(generator, TaughtGenerator),
        stated_flops=_stated_flops(row, job.options.batch),
        source=None if row.provenance is None else MethodSource(**_own_fields(row.provenance)),
        read=dict(_files_named(row, plugins)),
        weight_set=weight_set(row, given=job.files is not None, trains=trains(job)),
        failure=failure,
    )


def _curve(row: Row, plugins: PluginManager) -> str | None:
    """Of the first method's, if it has several."""
    setting = row.settings[0]
    curves = settings_of(setting.plugin, row.model, plugins).curves
    return next((name for name, points in curves.items() if re.fullmatch(points, setting.point or "")), None)


def _calibrates(plugin: str, plugins: PluginManager) -> bool:
    return "varbench_calibrate" in plugins.hooks(plugin)


def _found_in(setting: Setting, row: Row, plugins: PluginManager) -> bool:
    """Whether the row gives anything that its plugin's calibration finds, which is any parameter where it does not say which."""
    known = settings_of(setting.plugin, row.model, plugins).parameters
    found = [name for name, parameter in known.items() if parameter.calibrated] or list(known)
    return any(f"{setting.plugin}.{name}" in row.parameters for name in found)


def _stated_flops(row: Row, batch: int) -> float | None:
    owned = row.policies.generator
    with contextlib.suppress(UserError):  # said when the row runs
        return None if owned is None else owned.ask(owned.policy.work, batch).flops
    return None


def _is_trained(generator: Generator | None, trained_here: bool, *, given: bool) -> bool | None:
    if generator is None:
        return None
    if isinstance(generator, TrainedGenerator):  # trained weights are of no use beside a random tokenizer
        return trained_here or (given and generator.trained)
    return bool(generator.trained)


def _plans(row: Row, job: Job) -> tuple[Plan, Plan]:
    """The row's plan under its own accounting, and under the other one."""
    plan = compile_plan(job.model, row.policies, accounting=row.accounting)
    (accounting,) = set(rows.ACCOUNTINGS) - {row.accounting}
    needed = (
        {} if job.files is None else {name: spec for name, spec in plan.backbones if name not in (*job.files, "main")}
    )
    if needed:
        wanted = ", ".join(_companion(name, spec) for name, spec in needed.items())
        raise PlanError(f"{row.name} runs on a second model; give its weights: {wanted}")
    return plan, compile_plan(job.model, row.policies, accounting=accounting)


def _companion(name: str, spec: ModelSpec) -> str:
    file = protocols.published_weights(spec)
    return f"--companion {name}=FILE" + ("" if file is None else f", published as {file.name} ({file.source})")


def trains(job: Job) -> bool:
    """Whether recipes can be trained: of `tiny` images are drawn, the others need a folder; weights of `varbench export` are
    trained already.

    Without one, the weights that are given are taken for those of the recipe, and the record says so.
    """
    if job.options.weights != "random" and recipe_in(job.options.weights) is not None:
        return False
    return presets.preset(job.options.model).draws_images or job.options.data is not None


def weight_set(row: Row, *, given: bool, trains: bool) -> str:
    """Rows with one recipe and one set of parameters of the plugin that trains share their weights."""
    if row.policies.generator is not None:
        return f"{OWN_WEIGHTS}{row.name}"
    if not (given and trains) or row.schedule is None or row.recipe_plugin is None:
        return "pretrained" if given else "random"
    own = next(setting for setting in row.settings if setting.plugin == row.recipe_plugin)
    known = [f":{key}={value}" for key, value in sorted(own.parameters.items())]
    changed = [f":{key.partition('.')[2]}" for key in row.parameters if key.startswith(f"{row.recipe_plugin}.")]
    return f"{row.recipe_plugin}@{row.recipe}" + ("".join(known) if changed else "")


def _files_named(row: Row, plugins: PluginManager) -> Iterator[tuple[str, str]]:
    """The files that parameters of the row name, by parameter."""
    for setting in row.settings:
        settings = settings_of(setting.plugin, row.model, plugins)
        given = rows.located(setting, settings).parameters
        for name, parameter in settings.parameters.items():
            path = given.get(name)
            if parameter.kind == "path" and path:
                yield f"{setting.plugin}.{name}", str(path)


def resolved_plugin(info: PluginInfo, plugins: PluginManager) -> ResolvedPlugin:
    files: tuple[str, ...] = ()
    with contextlib.suppress(PluginError):  # one that cannot be imported has rows that say so
        files = files_of(plugins.plugin(info.name))
    return ResolvedPlugin(name=info.name, distribution=info.distribution, version=info.version, files=files)


def code_of(infos: Iterable[PluginInfo]) -> ChildCode:
    """What a child says of its plugins' code, and of what measures. Files that several plugins lie in are read once."""
    plugins = {info.name: resolved_plugin(info, manager()) for info in infos}
    places = {name: replace(plugin, name="") for name, plugin in plugins.items()}
    hashes = {place: identity.plugin_hash(place) for place in set(places.values())}
    return ChildCode(
        measuring=identity.measuring_hash(),
        plugin_files={name: plugin.files for name, plugin in plugins.items()},
        plugin_hashes={name: hashes[place] for name, place in places.items()},
    )


def files_of(plugin: Any) -> tuple[str, ...]:
    """Where a plugin's code lies: its top-level package's folder, or its module and those beside it that it imports."""
    module = sys.modules.get(str(getattr(plugin, "__module__", None) or getattr(plugin, "__name__", "")), plugin)
    file = getattr(module, "__file__", None)
    if file is None:
        return ()
    top = sys.modules.get(str(getattr(module, "__name__", "")).partition(".")[0])
    if top is not None and (places := list(getattr(top, "__path__", ()))):
        return tuple(places)
    found = [Path(file)]
    for one in found:  # which grows: a helper has helpers
        beside = (one.with_name(f"{name}.py") for name in sorted(_imported(one)))
        found += [other for other in beside if other not in found and other.is_file()]
    return tuple(map(str, found))


def _imported(module: Path) -> set[str]:
    """Top-level names."""
    source = module.read_bytes() if module.suffix == ".py" and module.is_file() else b""
    return {name.partition(".")[0] for name in imported(source, package="")}


def _own_fields(found: Any) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in fields(found)}
