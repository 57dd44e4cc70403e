"""From options to rows with plans, grouped by the weights they share. No torch, no CUDA."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from varbench import rows
from varbench.base import hashing
from varbench.errors import PlanError, UserError
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.cost import Prediction, predict, work
from varbench.plan.hardware import KNOWN, Hardware
from varbench.plan.owned import RowPolicies
from varbench.plan.steps import Plan
from varbench.policies import Generator, Provenance
from varbench.record import PlanSummary, PluginVersion
from varbench.record.option_forms import deciding
from varbench.record.options import Options
from varbench.rows.grammar import Row
from varbench.rows.manager import PluginManager
from varbench.run import identity
from varbench.run.defaults import companions
from varbench.run.reasons import Failure, of_exception
from varbench.spec import ModelSpec

UPSTREAM = f"{rows.FULL}:accounting=upstream"
OWN_WEIGHTS = "own weights of "


@dataclass
class Measured:
    """A row on its way: what it is, and what children have found out about it so far."""

    row: Row
    plan: Plan | None
    other_plan: Plan | None
    """Under the other accounting, to be shown beside."""
    plugins: tuple[PluginVersion, ...]
    provenance: Provenance | None
    inputs: str
    weight_set: str
    read: dict[str, str] = field(default_factory=dict)
    """Hashes of what the row's parameters name to be read, by the parameter, as in `my_method.weights`."""
    study: str | None = None
    """The panel that it was asked for, outside the table."""
    started: str | None = None
    failure: Failure | None = None
    exit_code: int | None = None
    stderr_tail: str | None = None
    hello: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    speed: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By round."""
    memory: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    kept: set[str] = field(default_factory=set)
    """Tasks whose findings an earlier run on this machine had left."""
    summaries: dict[str | None, PlanSummary] = field(default_factory=dict)
    """The plan in the words of a record, by the hardware it is predicted for."""

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def ran(self) -> dict[str, Any]:
        """What a child says of what ran: that of the memory pass, else of the first round."""
        return self.memory or next((self.speed[number] for number in sorted(self.speed)), {})

    @property
    def generator(self) -> Generator | None:
        """What replaces the loop, in rows that have no plan."""
        owned = self.row.policies.generator
        return owned.policy if owned else None

    @property
    def denominator(self) -> str | None:
        return {rows.FULL: "lossless", UPSTREAM: "upstream"}.get(self.name)


@dataclass(frozen=True)
class WeightSet:
    """Rows that run on the same weights."""

    key: str
    trains: Row | None
    """A row whose recipe makes the weights; None where they are there already."""
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    model: ModelSpec
    files: dict[str, str] | None
    """Pretrained files by part; None for random weights."""
    measured: dict[str, Measured]
    weight_sets: tuple[WeightSet, ...]
    """That of the full model first."""
    inputs: str


@dataclass(frozen=True)
class Run:
    """What all rows of a run share."""

    name: str
    options: Options
    prepared: Prepared
    order: tuple[str, ...]
    quality_rows: frozenset[str]
    available_memory: int | None


class NothingSelectedError(UserError):
    """No row was asked for; the exit code is its own."""


def prepare(options: Options, manager: PluginManager) -> Prepared:
    """Resolves rows and compiles plans. A plan that cannot be compiled is that row's failure, not the run's."""
    model = presets.preset(options.model).spec
    asked = rows.attempt(options.plugins, model, all_settings=options.all_settings, manager=manager)
    studies = {name: rows.of_study(name, model, manager=manager) for name in options.study}
    attempts = (asked, *studies.values())
    if not any(attempt.rows or attempt.refused for attempt in attempts):
        known = ", ".join(manager.names())
        raise NothingSelectedError(
            f"nothing is selected; give --plugins, as in --plugins NAME,NAME@POINT. Known: {known}"
        )
    denominators = tuple(rows.resolve(name, model, manager=manager) for name in (rows.FULL, UPSTREAM))
    studied = [(name, row) for name, attempt in studies.items() for row in attempt.rows]
    further = {
        part: spec
        for row in (*asked.rows, *(row for _, row in studied))
        for part, spec in row.policies.backbones.items()
    }
    files = weight_files(options, further)
    shipped = (files or {}).keys() - further.keys() if options.weights is None else ()
    shared = hashing.digest(
        [
            identity.measuring_hash(),
            f"torch {identity.torch_version()}",
            json.dumps(model.to_json(), sort_keys=True),
            *_hashed(files, shipped),
            *deciding(options),
        ]
    )
    measured: dict[str, Measured] = {}
    for study, row in (*((None, row) for row in (*denominators, *asked.rows)), *studied):
        if row.name not in measured:
            measured[row.name] = _measured(row, model, shared, files, manager, trains=_trains(options))
            measured[row.name].study = study
    for refused in (refused for attempt in attempts for refused in attempt.refused):
        measured.setdefault(refused.name, _refused(refused, model, shared, given=files is not None))
    weight_sets = _weight_sets(measured, manager)
    return Prepared(model=model, files=files, measured=measured, weight_sets=weight_sets, inputs=shared)


def _hashed(files: dict[str, str] | None, parts: Collection[str]) -> list[str]:
    """The files of these parts, by content."""
    return [f"{part} {hashing.file_hash(path)}" for part, path in sorted((files or {}).items()) if part in parts]


def weight_files(options: Options, further: Mapping[str, ModelSpec]) -> dict[str, str] | None:
    """Files by part: those given, else those that the preset ships, else none, which means random weights.

    `further` are the models that rows run on beside the main one.
    """
    if options.weights == "random":
        return None
    if options.weights is not None:
        return {"vae": str(options.vae), "main": options.weights, **companions(options.companion)}
    shipped = {part: str(path) for part, path in presets.shipped_files(options.model, further).items()}
    if not shipped and not presets.preset(options.model).assets:
        raise UserError(
            f"{options.model} ships no weights: give --weights and --vae, or --weights random to measure speed and memory only"
        )
    return {**shipped, **companions(options.companion)} if shipped else None


def _measured(
    row: Row, model: ModelSpec, shared: str, files: dict[str, str] | None, manager: PluginManager, *, trains: bool
) -> Measured:
    modules = {info.name: manager.plugin(info.name) for info in row.plugins}
    plugins = identity.plugin_versions(row, modules)
    settings = manager.call(row.plugins[0].name, "varbench_settings", model=model)
    read = dict(_read(row, manager))
    plan, other, failure = None, None, None
    try:
        if row.policies.generator is None:
            plan, other = _plans(row, model, files)
    except PlanError as error:
        failure = of_exception(error)
    return Measured(
        row=row,
        plan=plan,
        other_plan=other,
        plugins=plugins,
        provenance=settings.provenance if settings else None,
        inputs=hashing.digest(
            [
                shared,
                row.name,
                *(f"{p.name} {p.version} {p.code_hash}" for p in plugins),
                *(f"{k} {v}" for k, v in read.items()),
                *_hashed(files, row.policies.backbones.keys()),
            ]
        ),
        read=read,
        weight_set=_weight_set(row, given=files is not None, trains=trains),
        failure=failure,
    )


def _refused(refused: rows.Refused, model: ModelSpec, shared: str, *, given: bool) -> Measured:
    """A row that its plugin's fault kept from being made: it fails under the name that it has or was asked for by."""
    policies = RowPolicies(name=refused.name)
    row = Row(name=refused.name, model=model, settings=(), plugins=refused.plugins, parameters={}, policies=policies)
    return Measured(
        row=row,
        plan=None,
        other_plan=None,
        plugins=identity.plugin_versions(row, {}),
        provenance=None,
        inputs=hashing.digest([shared, refused.name, refused.reason]),
        weight_set="pretrained" if given else "random",
        failure=of_exception(refused.error),
    )


def _read(row: Row, manager: PluginManager) -> Iterator[tuple[str, str]]:
    """What the row's parameters name to be read, by content."""
    for setting in row.settings:
        settings = manager.call(setting.plugin, "varbench_settings", model=row.model)
        for name, parameter in settings.parameters.items() if settings else ():
            path = setting.parameters.get(name)
            if parameter.kind == "path" and path:
                yield f"{setting.plugin}.{name}", hashing.path_hash(str(path))


def _plans(row: Row, model: ModelSpec, files: dict[str, str] | None) -> tuple[Plan, Plan]:
    """Under the row's accounting, and under the other."""
    plan = compile_plan(model, row.policies, accounting=row.accounting)
    (accounting,) = set(rows.ACCOUNTINGS) - {row.accounting}
    lacking = [name for name, _ in plan.backbones if files is not None and name not in files and name != "main"]
    if lacking:
        raise PlanError(f"{row.name} runs on a second model; give its weights: --companion {lacking[0]}=FILE")
    return plan, compile_plan(model, row.policies, accounting=accounting)


def _trains(options: Options) -> bool:
    """Whether recipes can be trained: `tiny` has data of its own, the others need a folder.

    Without one, the weights that are given are taken for those of the recipe, and the record says so.
    """
    return presets.preset(options.model).assets or options.data is not None


def _weight_set(row: Row, *, given: bool, trains: bool) -> str:
    """Rows with one recipe and one set of parameters of the plugin that trains share their weights.

    A generator brings its own.
    """
    if row.policies.generator is not None:
        return f"{OWN_WEIGHTS}{row.name}"
    if not (given and trains) or row.schedule is None or row.recipe_plugin is None:
        return "pretrained" if given else "random"
    own = next(setting for setting in row.settings if setting.plugin == row.recipe_plugin)
    known = [f":{key}={value}" for key, value in sorted(own.parameters.items())]
    changed = [f":{key.partition('.')[2]}" for key in row.parameters if key.startswith(f"{row.recipe_plugin}.")]
    return f"{row.recipe_plugin}@{row.recipe}" + ("".join(known) if changed else "")


def _weight_sets(measured: dict[str, Measured], manager: PluginManager) -> tuple[WeightSet, ...]:
    found: dict[str, list[Measured]] = {}
    for one in measured.values():
        found.setdefault(one.weight_set, []).append(one)
    return tuple(
        WeightSet(
            key=key,
            trains=None
            if key in ("pretrained", "random") or key.startswith(OWN_WEIGHTS)
            else _trained(sharing, manager),
            rows=tuple(one.name for one in sharing),
        )
        for key, sharing in found.items()
    )


def _trained(sharing: list[Measured], manager: PluginManager) -> Row:
    """The row that makes the weights of those that share them: plain weights, whatever replaces modules afterwards."""
    return rows.without_transforms(sharing[0].row, manager=manager)


def hardware_like(device: str, cores: int) -> Hardware | None:
    """The known device of this name, for predictions; None where none is."""
    if device == "cpu":
        return KNOWN.get(f"cpu-{cores}-cores")
    words = device.upper().replace("-", " ").split()
    return next((known for name, known in KNOWN.items() if name.upper().partition("-")[0] in words), None)


def predicted(plan: Plan, *, batch: int, dtype: str, hardware: Hardware) -> Prediction:
    return predict(work(plan, batch=batch, dtype=dtype), hardware)
