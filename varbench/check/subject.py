"""What is checked: a plugin's rows on the kit's model, and the generations that several invariants look at."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from varbench import hookspecs, rows
from varbench.check import stand_ins
from varbench.check.allocations import Watched, contents
from varbench.check.chosen import Look
from varbench.check.global_state import GlobalState
from varbench.check.small_model import lively_pipeline
from varbench.engine.pipeline import Output, Pipeline
from varbench.plan.compiler import compile_plan
from varbench.plan.steps import Plan
from varbench.rows.grammar import Row
from varbench.rows.manager import PluginManager
from varbench.spec import ModelSpec

LABELS = (3, 7, 1, 3)
SEED = 11
SAMPLING: dict[str, Any] = {"cfg": 1.5, "top_k": 100, "top_p": 0.95}

Observer = Callable[[str, int], None]


class GivenPoint(EntryPoint):
    """An entry point for hooks that are at hand and need not be installed."""

    def __init__(self, name: str, plugin: object) -> None:
        super().__init__(name=name, value=getattr(plugin, "__name__", type(plugin).__name__), group=hookspecs.PROJECT)
        vars(self)["plugin"] = plugin

    def load(self) -> Any:
        return vars(self)["plugin"]


class Bench:
    """The kit's pipelines, and the plugins that can be asked."""

    def __init__(self, model: ModelSpec, points: tuple[EntryPoint, ...]) -> None:
        self.model, self.points = model, points
        self.manager = PluginManager(points)
        self.warm = False
        self.before = GlobalState()
        self._pipelines: dict[tuple[tuple[str, ModelSpec], ...], Pipeline] = {}

    def pipeline(self, row: Row) -> Pipeline:
        """Random weights for every model that the row runs on."""
        key = tuple(sorted(row.policies.backbones.items()))
        if key not in self._pipelines:
            self._pipelines[key] = lively_pipeline(self.model, dict(key))
        return self._pipelines[key]

    def expand(self, text: str) -> tuple[Row, ...]:
        return rows.expand(text, self.model, manager=self.manager, all_settings=True)


def installed(model: ModelSpec) -> Bench:
    return Bench(model, tuple(entry_points(group=hookspecs.PROJECT)))


def given(model: ModelSpec, name: str, plugin: object) -> Bench:
    """The installed plugins and this one, which takes the place of one that is installed under its name."""
    others = tuple(point for point in entry_points(group=hookspecs.PROJECT) if point.name != name)
    return Bench(model, (*others, GivenPoint(name, plugin)))


class RowUnderTest:
    """One row, with the generations that more than one invariant looks at, each made once."""

    def __init__(self, bench: Bench, row: Row) -> None:
        self.bench, self.row = bench, row
        self.pipe = bench.pipeline(row)
        self.plan = self.compile()
        self.notes = stand_ins.Notes()

    def compile(self, row: Row | None = None) -> Plan:
        """The plan, asked for anew."""
        row = row or self.row
        loaded = {name: model.spec for name, model in self.pipe.backbones.items()}
        return compile_plan(row.model, row.policies, accounting=row.accounting, loaded=loaded)

    def generate(self, row: Row | None = None, **options: Any) -> Output:
        row = row or self.row
        given: dict[str, Any] = {"labels": LABELS, "seed": SEED, **SAMPLING, **options}
        return self.pipe.generate(given.pop("labels"), method=row, **given)

    @cached_property
    def first(self) -> Output:
        return self.generate(return_logits=True)

    @cached_property
    def plain(self) -> Row:
        return stand_ins.plain(self.row)

    @cached_property
    def watched(self) -> stand_ins.Notes:
        """What its policies answered in one generation; a generation that fails for it has still been noted."""
        notes = stand_ins.Notes()
        try:
            self.generate(stand_ins.watched(self.row, notes))
        except Exception:
            if not (notes.places or notes.inputs):
                raise
        return notes

    @cached_property
    def looked_into(self) -> Look:
        """What of its choices took effect in one generation."""
        look = Look(self.plan)
        with look:
            self.generate(look.row(self.row), observer=look.observe)
        return look

    @cached_property
    def memory(self) -> Watched:
        _ = self.first
        self._warm()
        return self._measured(self.row)

    @cached_property
    def plain_memory(self) -> Watched:
        self._warm()
        self.generate(self.plain)
        return self._measured(self.plain)

    def _warm(self) -> None:
        """The first generation that is watched imports what following operations takes."""
        if not self.bench.warm:
            self._measured(self.plain)
            self.bench.warm = True

    @cached_property
    def buffers(self) -> tuple[list[str], int]:
        """Kinds of the buffers that one more generation changed, and bytes of those that are new after it."""
        # Nothing watches this one, so it shows what a method does that hides from being watched.
        before = contents()
        self.generate(seed=SEED + 2)
        after = contents()
        changed = [
            type(thing).__name__
            for place, (thing, data) in before.items()
            if place in after and after[place][1] != data
        ]
        new = {place: thing for place, (thing, _) in after.items() if place not in before}
        return changed, sum(thing.nbytes for thing in new.values() if isinstance(thing, (Tensor, np.ndarray)))

    def _measured(self, row: Row) -> Watched:
        """Of a second generation: what a first one leaves behind for good, such as masks, is not this one's."""
        memory = Watched()
        with memory:
            self.generate(row, observer=memory.observe, seed=SEED + 1)
        return memory

    @contextmanager
    def afresh(self) -> Iterator[RowUnderTest]:
        """The same row of plugins that are imported again."""
        with afresh(self.bench, {setting.plugin for setting in self.row.settings}) as bench:
            (row,) = rows.expand(_spelled(self.row), bench.model, manager=bench.manager)
            yield RowUnderTest(bench, replace(row, name=f"{row.name} (imported again)"))


@contextmanager
def afresh(bench: Bench, plugins: Collection[str]) -> Iterator[Bench]:
    """A bench whose plugins of these names are imported again, as a new process would."""
    removed: dict[str, ModuleType] = {}
    for point in bench.points:
        if point.name in plugins:
            removed.update(_modules_of(point))
    for name in removed:
        del sys.modules[name]
    try:
        importlib.invalidate_caches()
        yield Bench(bench.model, tuple(map(_again, bench.points)))
    finally:
        for name in [name for name in sys.modules if name in removed]:
            del sys.modules[name]
        sys.modules.update(removed)


def _spelled(row: Row) -> str:
    """The row's text with every point and recipe written out."""
    parts = []
    for setting in row.settings:
        selection = "/".join(filter(None, (setting.recipe, setting.point)))
        if setting.recipe and not setting.point:
            selection = f"{setting.recipe}/"
        pairs = {**setting.parameters, "accounting": row.accounting}.items()
        parts.append(
            setting.plugin + (f"@{selection}" if selection else "") + "".join(f":{k}={_written(v)}" for k, v in pairs)
        )
    return "+".join(parts)


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _modules_of(point: EntryPoint) -> dict[str, ModuleType]:
    """The loaded modules of a plugin's own package; of what varbench ships, only the plugin's."""
    name = (
        point.load().__name__ if isinstance(point, GivenPoint) and isinstance(point.load(), ModuleType) else point.value
    )
    module = name.partition(":")[0]
    if isinstance(point, GivenPoint) and not isinstance(point.load(), ModuleType):
        return {}
    top = module.split(".")[0]
    prefix = module if top in ("varbench", "varbench_plugins", "varbench_baselines") else top
    own = re.compile(rf"{re.escape(prefix)}(\.|$)")
    return {name: found for name, found in list(sys.modules.items()) if own.match(name) and name != "__main__"}


def _again(point: EntryPoint) -> EntryPoint:
    if not isinstance(point, GivenPoint):
        return point
    plugin = point.load()
    if not isinstance(plugin, ModuleType) or plugin.__spec__ is None:
        return point
    return GivenPoint(point.name, importlib.import_module(plugin.__name__))


@functools.cache
def tolerance(dtype: str | None) -> float:
    """Largest difference of logits between two ways of computing the same, when keys and values are stored in `dtype`."""
    return {None: 1e-3, "float32": 1e-3, "float16": 0.1}.get(dtype, 1.0)
