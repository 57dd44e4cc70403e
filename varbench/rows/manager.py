"""Finds plugins by their entry points, imports them when they are asked for, and calls each alone.

A plugin that cannot be used is a `Problem` that names its distribution; the others go on. Nothing that ships has a door
of its own: `baselines/` and `plugins/` come through the same entry points as a stranger's package.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from varbench import hookspecs
from varbench.base import variables
from varbench.errors import UserError, did_you_mean

HOOK_PREFIX = "varbench_"
HOOKS = tuple(hook for hook in dir(hookspecs) if hook.startswith(HOOK_PREFIX))
NEAR = 0.85
"""How like a hook's name a function's must be to be taken for its misspelling."""

Given = TypeVar("Given")


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    name: str
    distribution: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a plugin is left out."""

    plugin: str
    distributions: tuple[str, ...]
    message: str
    traceback: str | None = None

    def __str__(self) -> str:
        return self.message


class PluginError(UserError):
    """A plugin cannot be used, or one of its hooks failed or gave what it may not: no mistake of who wrote the row."""

    def __init__(self, message: str, *, plugin: str) -> None:
        super().__init__(message)
        self.plugin = plugin


class _Pluggy(pluggy.PluginManager):
    """Takes every function called `varbench_…` for a hook, marked or not, so that a forgotten mark is not silence."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:
        options = super().parse_hookimpl_opts(plugin, name)
        if options is None and name.startswith(HOOK_PREFIX) and inspect.isroutine(getattr(plugin, name, None)):
            return {}
        return options


class PluginManager:
    """The plugins of this environment, or of the entry points that are given."""

    def __init__(self, points: Iterable[EntryPoint], *, disable: Collection[str] = ()) -> None:
        self._pluggy = _Pluggy(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._unusable: dict[str, Problem] = {}
        self._failed_calls: dict[tuple[str, str], Problem] = {}
        self.left_out_rows: dict[str, str] = {}
        """Rows, as they are asked for, that no plugin may be asked for, and why."""
        self._points: dict[str, EntryPoint] = {}
        found: dict[str, list[EntryPoint]] = {}
        for point in points:
            found.setdefault(point.name, []).append(point)
        self.disabled = tuple(
            name for name, same in sorted(found.items()) if any(_is_disabled(p, disable) for p in same)
        )
        for name, same in sorted(found.items()):
            enabled = [point for point in same if not _is_disabled(point, disable)]
            if len(enabled) > 1:
                self._unusable[name] = _same_name(name, enabled)
            elif enabled:
                self._points[name] = enabled[0]
        self._found = tuple(point for same in found.values() for point in same)

    def names(self) -> tuple[str, ...]:
        """Plugins that were found and not disabled; nothing is imported for it."""
        return tuple(self._points)

    def info(self, name: str) -> PluginInfo:
        if name in self._unusable and name not in self._points:
            return PluginInfo(name=name, distribution=" and ".join(self._unusable[name].distributions), version="?")
        distribution, version = _name_and_version(self._point(name).dist)
        return PluginInfo(name=name, distribution=distribution, version=version)

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Plugins that are problems from now on, whatever importing them would show, or rows, and why."""
        for name, why in reasons.items():
            if name not in self._points:
                self.left_out_rows[name] = why
                continue
            point = self._points[name]
            owner = _distribution(point)
            message = f"plugin {name!r} ({owner}, {point.value}) is left out: {why}"
            self._unusable[name] = Problem(plugin=name, distributions=(owner,), message=message)

    def load_all(self) -> tuple[str, ...]:
        """Import every plugin; the names of those that can be used. The others have become problems."""
        return tuple(name for name in self.names() if self._load(name) is None)

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the plugins that were looked at so far; after `load_all`, with any."""
        return (*self._unusable.values(), *self._failed_calls.values())

    def check_disabled(self, names: Iterable[str]) -> None:
        """Refuse a name to disable that no plugin has."""
        for name in names:
            if not any(_is_disabled(point, [name]) for point in self._found):
                raise UserError(f"cannot disable {name!r}: no such plugin.{did_you_mean(name, self._points)}")

    def plugin(self, name: str) -> Any:
        """The module or object with the hooks, or a `PluginError` that says why there is none."""
        self._point(name)
        problem = self._load(name)
        if problem is not None:
            raise PluginError(problem.message, plugin=name)
        return self._pluggy.get_plugin(name)

    def hooks(self, name: str) -> frozenset[str]:
        """The hooks that a plugin gives."""
        plugin = self.plugin(name)
        return frozenset(caller.name for caller in self._pluggy.get_hookcallers(plugin) or ())

    def call(self, name: str, hook: str, /, **arguments: Any) -> Any:
        """One hook of one plugin: its result, or None where it does not have the hook."""
        own = self.plugin(name)
        others = [plugin for plugin in self._pluggy.get_plugins() if plugin is not own]
        try:
            results = self._pluggy.subset_hook_caller(hook, remove_plugins=others)(**arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"plugin {name!r} ({_distribution(self._point(name))}): {hook} failed: {type(error).__name__}: {_one_line(error)}",
                plugin=name,
            ) from error
        return results[0] if results else None

    def each(self, hook: str, /, **arguments: Any) -> Iterator[tuple[PluginInfo, Any]]:
        """What every usable plugin gives for a hook, told its own name; a plugin whose hook fails becomes a problem."""
        return self.each_of(lambda name: self.call(name, hook, plugin=name, **arguments))

    def each_of(self, ask: Callable[[str], Given | None]) -> Iterator[tuple[PluginInfo, Given]]:
        """What `ask` gives for the name of every usable plugin; a plugin for which it fails becomes a problem."""
        for name in self.load_all():
            try:
                result = ask(name)
            except UserError as error:
                problem = Problem(
                    plugin=name,
                    distributions=(self.info(name).distribution,),
                    message=str(error),
                    traceback=traceback.format_exc(),
                )
                self._failed_calls[name, problem.message] = problem
                continue
            if result is not None:
                yield self.info(name), result

    def _point(self, name: str) -> EntryPoint:
        if name in self._points:
            return self._points[name]
        if name in self._unusable:
            raise PluginError(self._unusable[name].message, plugin=name)
        if name in self.disabled:
            raise UserError(f"plugin {name!r} is disabled, by --disable or {variables.DISABLE}")
        raise UserError(f"no plugin {name!r}.{did_you_mean(name, self._points)}")

    def _load(self, name: str) -> Problem | None:
        if name in self._unusable or self._pluggy.has_plugin(name):
            return self._unusable.get(name)
        point = self._points[name]
        where = f"plugin {name!r} ({_distribution(point)}, {point.value})"
        message, trace = None, None
        try:
            self._pluggy.register(point.load(), name=name)
            message = self._misspelt(name, where)
        except pluggy.PluginValidationError as error:
            message = f"{where}: {_one_line(error)}; see `varbench.hookspecs` for its parameters"
        except (Exception, SystemExit) as error:
            message = f"{where} cannot be imported: {type(error).__name__}: {_one_line(error)}"
            trace = traceback.format_exc()
        if message is None:
            return None
        if self._pluggy.has_plugin(name):
            self._pluggy.unregister(name=name)
        self._unusable[name] = Problem(
            plugin=name, distributions=(_distribution(point),), message=message, traceback=trace
        )
        return self._unusable[name]

    def _misspelt(self, name: str, where: str) -> str | None:
        """A function that looks like a hook and is none; or that there is no hook, which would be the full model."""
        plugin = self._pluggy.get_plugin(name)
        folders = getattr(plugin, "__path__", None)
        if folders is not None and getattr(plugin, "__file__", None) is None:
            return f"{where} is found as {next(iter(folders))}, a folder without code that hides what is installed; start elsewhere"
        functions = {own for own in dir(plugin) if not own.startswith("_") and own not in HOOKS}
        for own in sorted(functions):
            near = own.startswith(HOOK_PREFIX) or difflib.get_close_matches(own, HOOKS, n=1, cutoff=NEAR)
            if near and inspect.isroutine(getattr(plugin, own, None)):
                return f"{where} has {own}(), which is no hook.{did_you_mean(own, HOOKS)}"
        if not self._pluggy.get_hookcallers(plugin):
            return f"{where} has no hook; give it at least one function called {HOOK_PREFIX}..., as `varbench.hookspecs` says"
        return None


@functools.cache
def _manager(disable: tuple[str, ...]) -> PluginManager:
    return PluginManager(entry_points(group=hookspecs.PROJECT), disable=disable)


def manager(disable: Collection[str] = ()) -> PluginManager:
    """The plugins installed here, less those disabled by name here or in VARBENCH_DISABLE (`a,b` or `package:a`)."""
    variable = [name.strip() for name in os.environ.get(variables.DISABLE, "").split(",")]
    return _manager(tuple(sorted({*disable, *filter(None, variable)})))


def _is_disabled(point: EntryPoint, disable: Collection[str]) -> bool:
    return point.name in disable or f"{_distribution(point)}:{point.name}" in disable


def _distribution(point: EntryPoint) -> str:
    return _name_and_version(point.dist)[0]


@functools.cache
def _name_and_version(distribution: Distribution | None) -> tuple[str, str]:
    """A distribution parses its metadata at every look."""
    return (distribution.name, distribution.version) if distribution else ("no distribution", "?")


def _same_name(name: str, points: list[EntryPoint]) -> Problem:
    distributions = tuple(sorted(_distribution(point) for point in points))
    return Problem(
        plugin=name,
        distributions=distributions,
        message=f"plugin {name!r} is given by {' and by '.join(distributions)}; neither is used. "
        f"Uninstall one of them, or disable it: --disable {distributions[-1]}:{name}",
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
