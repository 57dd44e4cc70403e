"""The plugins that can be asked, the kit's models, and how plugins are imported again as a new process would."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from varbench import hookspecs, rows
from varbench.check.allocations import Held
from varbench.check.small_model import lively_pipeline
from varbench.engine.pipeline import Output, Pipeline
from varbench.measure.process_state import global_state
from varbench.rows.grammar import Row
from varbench.rows.manager import PluginManager
from varbench.spec import ModelSpec

SHIPPED = ("varbench", "varbench_plugins", "varbench_baselines")


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
        self.before = global_state()
        self._pipelines: dict[tuple[tuple[str, ModelSpec], ...], Pipeline] = {}
        self.as_made: dict[int, dict[str, str]] = {}
        """By pipeline: hashes of its modules as they were made. So are the next two: answers that rows have in common."""
        self.full: dict[int, Output] = {}
        self.neutral: dict[tuple[str, int], list[str]] = {}
        self.held_plainly: dict[tuple[int, ...], Held] = {}
        """By pipeline and shape of the plan."""

    def pipeline(self, row: Row) -> Pipeline:
        """Random weights for every model that the row runs on."""
        key = tuple(sorted(row.policies.backbones.items()))
        if key not in self._pipelines:
            self._pipelines[key] = lively_pipeline(self.model, dict(key))
        return self._pipelines[key]

    def expand(self, text: str) -> tuple[Row, ...]:
        return rows.expand(text, self.model, manager=self.manager, all_settings=True)

    def again(self, row: Row, **parameters: rows.Value) -> Row:
        """The row, with its policies asked for anew of this bench's plugins."""
        given = {setting.plugin: parameters for setting in row.settings}
        return rows.with_parameters(row, given, manager=self.manager)

    @contextmanager
    def afresh(self, plugins: Collection[str]) -> Iterator[Bench]:
        """A bench of its own, whose plugins of these names are imported again."""
        removed: dict[str, ModuleType] = {}
        for point in self.points:
            if point.name in plugins:
                removed.update(_modules_of(point))
        for name in removed:
            del sys.modules[name]
        try:
            importlib.invalidate_caches()
            yield Bench(self.model, tuple(map(_again, self.points)))
        finally:
            for name in [name for name in sys.modules if name in removed]:
                del sys.modules[name]
            sys.modules.update(removed)


def installed(model: ModelSpec) -> Bench:
    return Bench(model, tuple(entry_points(group=hookspecs.PROJECT)))


def given(model: ModelSpec, name: str, plugin: object) -> Bench:
    """The installed plugins and this one, which takes the place of one that is installed under its name."""
    others = tuple(point for point in entry_points(group=hookspecs.PROJECT) if point.name != name)
    return Bench(model, (*others, GivenPoint(name, plugin)))


def _modules_of(point: EntryPoint) -> dict[str, ModuleType]:
    """The loaded modules of a plugin's own package; of what varbench ships, only the plugin's."""
    module = point.value.partition(":")[0]
    if isinstance(point, GivenPoint):
        if not isinstance(point.load(), ModuleType):
            return {}
        module = point.load().__name__
    top = module.split(".")[0]
    own = re.compile(rf"{re.escape(module if top in SHIPPED else top)}(\.|$)")
    return {name: found for name, found in list(sys.modules.items()) if own.match(name) and name != "__main__"}


def _again(point: EntryPoint) -> EntryPoint:
    if not isinstance(point, GivenPoint):
        return point
    plugin = point.load()
    if not isinstance(plugin, ModuleType) or plugin.__spec__ is None:
        return point
    return GivenPoint(point.name, importlib.import_module(plugin.__name__))
