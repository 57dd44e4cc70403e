"""From options to rows with plans, grouped by the weights they share. Plugins are asked in a child; here is only data."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from varbench.base.hashing import digest, file_hash, path_hash
from varbench.errors import UserError
from varbench.measure.kept_rates import kept_rates
from varbench.measure.overseer import WARM
from varbench.model.bundle import recipe_in
from varbench.plan import presets
from varbench.plan.hardware import Hardware, sheet_of
from varbench.plan.steps import Plan
from varbench.record import CalibrationRun, PluginVersion, RowIdentity
from varbench.record.option_forms import absolute, contents, deciding
from varbench.record.options import FEWEST_PROCESSES, FEWEST_ROUNDS, Options
from varbench.rows import FULL, UPSTREAM
from varbench.run import apart, children, identity
from varbench.run.messages import OWN_WEIGHTS, Ahead, Calibrated, ChildCode, Job, Resolved, ResolvedRow
from varbench.spec import ModelSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class RowInRun:
    """A row as the parent knows it, with what it is made from. It equals itself only, and is a key of what is worked out once."""

    resolved: ResolvedRow
    identity: RowIdentity
    inputs: str
    """Hash of all that decides its figures."""
    read: dict[str, str] = field(default_factory=dict)
    """Hashes of what its parameters name to be read, by the parameter."""
    calibration: CalibrationRun | None = None
    calibrated_by: ChildCode | None = None
    """What the pass ran; None where there was none."""

    @property
    def name(self) -> str:
        return self.resolved.name

    @property
    def plan(self) -> Plan | None:
        return self.resolved.plan

    @property
    def replaces_loop(self) -> bool:
        return self.resolved.trained_generator is not None


TOGETHER: dict[str, int | None] = {"cpu": None, "cuda": 6}
"""Rows in one process, at most. On a GPU what is captured of each takes memory, and an interruption costs them all their round."""


@dataclass(frozen=True)
class WeightSet:
    """Rows that run on the same weights."""

    key: str
    trains: str | None
    """A row whose recipe makes the weights; None where they are there already."""
    rows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is measured, and how: all rows of a run share it."""

    name: str
    options: Options
    model: ModelSpec
    files: dict[str, str] | None
    """Pretrained files by part; None for random weights."""
    hashes: dict[str, str]
    """Of these files."""
    rows: dict[str, RowInRun]
    code: str
    """Hash of the code that measures."""
    contents: dict[str, str] = field(default_factory=dict)
    """Of what lies at the options' paths, by option, and of the preset's own networks where they stand in for one."""
    metrics: tuple[str, ...] = ()
    """Plugins that bring metrics."""
    available_memory: int | None = None
    """Of the machine that the rows run on; None where nobody knows."""
    part_seconds: dict[str, float] = field(default_factory=dict)
    """Predicted, of a part of each kind that the live display counts; a kind that is not there is not predicted."""
    began: int = 0
    """Before any code of a plugin ran, in nanoseconds since 1970: only what lay on disk by then is taken over."""

    @cached_property
    def trained_for(self) -> str | None:
        """The recipe that the weights which were given are of, where they are trained weights in one file."""
        return recipe_in(self.options.weights)

    @property
    def together(self) -> int | None:
        return TOGETHER[self.options.device.partition(":")[0]]

    @property
    def weight_sets(self) -> tuple[WeightSet, ...]:
        """Rows grouped by their weights; the full model's group comes first."""
        found: dict[str, list[ResolvedRow]] = {}
        for row in self.rows.values():
            found.setdefault(row.resolved.weight_set, []).append(row.resolved)
        return tuple(
            WeightSet(
                key=key,
                trains=sharing[0].name if sharing[0].trains_generator or self.is_recipe(key) else None,
                rows=tuple(row.name for row in sharing),
            )
            for key, sharing in found.items()
        )

    def ships(self, weights: WeightSet) -> bool:
        """Whether weights of that name come with the package for such a run, so that hardly anything is left to train."""
        options = self.options
        if options.train or options.weights is not None or options.data is not None:
            return False
        steps = presets.steps_that_ship(options.model, seed=options.seed, steps=options.steps)
        return steps is not None and bool(presets.recipe_files(options.model, weights.key))

    @staticmethod
    def is_recipe(key: str) -> bool:
        return key not in ("pretrained", "random") and not key.startswith(OWN_WEIGHTS)

    def rounds_of(self, *names: str) -> int:
        """Rounds of speed that these rows take, the most of any."""
        return max(map(self._rounds, names), default=0)

    def _rounds(self, name: str) -> int:
        """As many as were asked for, and more where few other weights run the row's plan. Who asks for no interval gets none."""
        asked = self.options.rounds
        return asked if asked < FEWEST_ROUNDS else max(asked, -(-FEWEST_PROCESSES // (1 + len(self._same_plan(name)))))

    def processes_of(self, name: str) -> int:
        """Processes that a row's figure rests on: its own, and those of other weights that run the same plan."""
        return self._rounds(name) * (1 + len(self._same_plan(name)))

    def _same_plan(self, name: str) -> set[str]:
        """Other sets of weights that run the row's plan, where no policy is asked in it."""
        mine = self.rows[name]
        if mine.plan is None or mine.plan.asks:
            return set()
        same = {
            row.resolved.weight_set
            for row in self.rows.values()
            if row.plan is not None and row.plan.digest == mine.plan.digest
        }
        return same - {mine.resolved.weight_set}

    def of_first_plugin(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those that are made by the same plugins as the first."""
        return tuple(name for name in names if self._makers(name) == self._makers(names[0]))

    def _makers(self, name: str) -> set[str]:
        return {plugin.name for plugin in self.rows[name].identity.plugins}

    def is_scored(self, name: str) -> bool:
        """Whether images of the row are made and looked at."""
        return bool(self.options.images) and self.has_trained_weights(name) and name != UPSTREAM

    def has_trained_weights(self, name: str) -> bool:
        """Whether images of the row are worth a look."""
        own = self.rows[name].resolved.trained_generator
        return self.files is not None if own is None else own

    @property
    def warm_calls(self) -> int:
        """Of a row's batch, before any is timed. On a CPU one sets up all there is: the second takes what the tenth does."""
        options = self.options
        return 1 if options.device == "cpu" and options.compile == "off" else WARM

    def job(self, **given: Any) -> Job:
        """A job under the run's options."""
        whole = Job(task="making", options=absolute(self.options), model=self.model, files=self.files)
        return replace(whole, **given)


class NothingSelectedError(UserError):
    """No row was asked for; the exit code is its own."""


def prepare(options: Options, *, name: str, known: tuple[str, ...] = ()) -> Run:
    """Rows are resolved and compiled in a child. A plan that cannot be compiled is that row's failure, not the run's."""
    if not options.plugins.strip(" ,") and not options.study:
        raise NothingSelectedError(
            f"nothing is selected; give --plugins, as in --plugins NAME,NAME@POINT. Known: {', '.join(known)}"
        )
    began = time.time_ns()
    model = presets.preset(options.model).spec
    resolved, job = apart.resolved(Job(task="resolving", options=absolute(options), model=model))
    calibrated = _calibrated(resolved, options, model) if options.calibrate else Calibrated(rows={}, runs={})
    if calibrated.rows:
        found = [calibrated.rows.get(row.name, row.name) for row in resolved.rows if row.study is None]
        chosen = replace(absolute(options), plugins=",".join(found))
        resolved, _ = apart.resolved(replace(job, options=chosen))
    files = resolved.files
    options = _with_companions(options, files or {})
    for problem in resolved.problems:
        print(f"warning: {problem}", file=sys.stderr)
    hashes = {part: file_hash(path) for part, path in sorted((files or {}).items())}
    read = contents(options)
    own = {kind: file_hash(path) for kind, path in _own_networks(options).items()}
    shared = digest(
        [
            identity.measuring_hash(),
            f"torch {identity.torch_version()}",
            *([f"kernels {resolved.kernels}"] if options.device == "cpu" else []),
            json.dumps(model.to_json(), sort_keys=True),
            *(f"{part} {hashes[part]}" for part in ("main", "vae") if part in hashes),
            *deciding(options, read),
            *(f"{kind} {sha256}" for kind, sha256 in own.items()),
        ]
    )
    ships = {} if options.weights else {row.name: _ships(options.model, row) for row in resolved.rows}
    rows = {row.name: _in_run(row, [shared, ships.get(row.name, "")], hashes) for row in resolved.rows}
    for asked, filled in calibrated.rows.items():
        rows[filled] = replace(rows[filled], calibration=calibrated.runs[asked], calibrated_by=calibrated.codes[asked])
    for asked, failure in calibrated.failures.items():
        failed = replace(failure, reason=f"its calibration failed: {failure.reason}")
        rows[asked] = replace(rows[asked], resolved=replace(rows[asked].resolved, failure=failed))
    return Run(
        name=name, options=options, model=model, files=files, hashes=hashes, rows=rows, code=identity.measuring_hash(),
        contents={**read, **own}, metrics=resolved.metrics, began=began,
    )  # fmt: skip


def _own_networks(options: Options) -> dict[str, Path]:
    """The preset's own networks, where images are scored and no file is given in their place."""
    known = {kind: presets.scoring_network(options.model, kind) for kind in ("features", "judge") if options.images}
    return {kind: path for kind, path in known.items() if getattr(options, kind) is None and path.is_file()}


def _with_companions(options: Options, files: dict[str, str]) -> Options:
    """Second models that a protocol's files brought, as if they had been given: who repeats a row needs them."""
    if options.protocol is None:
        return options
    given = {named.partition("=")[0] for named in options.companion}
    brought = (f"{part}={path}" for part, path in files.items() if part not in ("vae", "main", *given))
    return replace(options, companion=(*options.companion, *brought))


def ahead(run: Run) -> Ahead:
    """By recipe, where its weights lie ready, and what they are."""
    trained = {weights.key: weights.trains for weights in run.weight_sets if weights.trains is not None}
    if not trained:
        return Ahead(origins={})
    found = children.answer_of(run.job(task="training", rows=tuple(trained.values()), look_only=True), Ahead)
    return Ahead(
        origins={key: found.origins[row] for key, row in trained.items()},
        hashes={key: found.hashes[row] for key, row in trained.items() if row in found.hashes},
    )


def _calibrated(resolved: Resolved, options: Options, model: ModelSpec) -> Calibrated:
    """The offline passes of the rows whose methods have one."""
    names = tuple(row.name for row in resolved.rows if row.calibrates and row.failure is None)
    if not names:
        print("warning: --calibrate: no row's method has an offline pass", file=sys.stderr)
        return Calibrated(rows={}, runs={})
    print(f"calibrating {', '.join(names)}", file=sys.stderr)
    job = Job(task="calibrating", options=absolute(options), model=model, rows=names, files=resolved.files)
    return apart.calibrated(job)


def _ships(model: str, row: ResolvedRow) -> str:
    """The hash of what is told of the weights that ship under the row's name. Of a row that trains, and whose name nothing has, of
    all that ship: which of them are its own only their key says, and that takes torch."""
    if not (row.trains_generator or Run.is_recipe(row.weight_set)):
        return ""
    name, assets = row.plugins[0].name if row.trains_generator else row.weight_set, presets.asset_folder(model)
    told = presets.recipe_folder(assets, name) / presets.RECORD
    all_told = (folder / presets.RECORD for folder, _ in presets.recipe_records(assets))
    return file_hash(told) if told.is_file() else digest([file_hash(path) for path in all_told])


def _in_run(row: ResolvedRow, shared: list[str], hashes: dict[str, str]) -> RowInRun:
    plugins = tuple(
        PluginVersion(
            name=plugin.name,
            distribution=plugin.distribution,
            version=plugin.version,
            code_hash=identity.plugin_hash(plugin),
        )
        for plugin in row.plugins
    )
    read = {key: path_hash(path) for key, path in row.read.items()}
    meant = row.name
    for key, sha256 in read.items():  # what it is called is not what it is
        meant = meant.replace(str(row.parameters[key]), sha256[:16])
    return RowInRun(
        resolved=row,
        identity=RowIdentity(
            row=row.name,
            plugins=plugins,
            recipe=row.recipe,
            point=row.point,
            curve=row.curve,
            params=row.parameters,
            denominator={FULL: "lossless", UPSTREAM: "upstream"}.get(row.name),
            study=row.study,
            also_in=row.also_in,
        ),
        inputs=digest(
            [
                *shared,
                meant,
                *(f"{p.name} {p.version} {p.code_hash}" for p in plugins),
                *(f"{k} {v}" for k, v in read.items()),
                # Another row's second model makes no record old.
                *(f"{part} {hashes[part]}" for part in row.backbones if part in hashes),
            ]
        ),
        read=read,
    )


def hardware_like(device: str, cores: int, memory: int | None = None) -> Hardware | None:
    """What was measured of the device, else its data sheet, for predictions; None where there is neither."""
    return kept_rates(device, cores) or sheet_of(device, cores=cores, memory=memory)
