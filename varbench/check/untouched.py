"""Whether functions are what they were, and come from where they should: those of varbench, and those of torch.

Two looks, and neither reads a source. `Originals` knows what every name of every loaded module was bound to when a check
began. What was replaced before that, as when a module is imported, is found by `strangers`: functions under varbench's or
torch's names whose code lies in a file of somebody else. One of varbench's own functions in the place of another is not
seen by it, and nothing hangs on that: what judges a run lives in processes that load no plugin.
"""

from __future__ import annotations

import functools
import operator
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

CLASSES = (torch.nn.Module, torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d, torch.nn.GroupNorm)

_OWN = str(Path(__file__).parents[1])
_SITE = str(Path(torch.__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)
_STANDARD = str(Path(functools.__file__).parent)
_MADE = "<"
"""How the file of code is named that was made while it ran, as dataclasses make theirs."""


def strangers() -> Iterator[str]:
    """Functions under a name of varbench or torch that come from somebody else's file."""
    for module in _modules():
        if _is_own(module.__name__):
            path = str(module.__file__)
            if not path.startswith(_OWN):
                yield f"the module {module.__name__} comes from {path}"
            for owner in (module, *(thing for thing in vars(module).values() if _is_own_class(thing))):
                yield from _strangers_of(owner, (_OWN, _SITE, _STANDARD, _MADE))
    for owner in (torch, F, torch.cuda, torch.Tensor, *CLASSES):
        yield from _strangers_of(owner, (_SITE, _STANDARD, _MADE))


def _strangers_of(owner: Any, expected: tuple[str, ...]) -> Iterator[str]:
    for name, thing in list(vars(owner).items()):
        function = _plain(thing)
        if isinstance(function, types.FunctionType) and not function.__code__.co_filename.startswith(expected):
            code = function.__code__
            yield f"{owner.__name__}.{name} comes from {code.co_filename}, line {code.co_firstlineno}"


def _plain(thing: Any) -> Any:
    """The function within a method, property or cache."""
    if isinstance(thing, (staticmethod, classmethod)):
        return thing.__func__
    if isinstance(thing, property):
        return thing.fget
    if isinstance(thing, functools.cached_property):
        return thing.func
    return thing if isinstance(thing, types.FunctionType) else getattr(thing, "__wrapped__", thing)


def _is_of_torch(thing: Any) -> bool:
    code = getattr(thing, "__code__", None)
    return isinstance(code, types.CodeType) and code.co_filename.startswith(_TORCH)


class Originals:
    """What the names of all loaded modules were bound to, for finding and putting back what was replaced.

    Of varbench and of the classes of torch that it uses, their members too.
    """

    def __init__(self) -> None:
        modules: list[Any] = _modules()
        own = [module for module in modules if _is_own(module.__name__)]
        classes = [thing for module in own for thing in vars(module).values() if _is_own_class(thing)]
        owners = [*modules, *classes, torch.Tensor, *CLASSES]
        self._bound = [(owner, dict(vars(owner))) for owner in {id(owner): owner for owner in owners}.values()]
        self._own = {id(owner) for owner in (*own, *classes)}
        self._codes = [
            (thing, thing.__code__)
            for owner, names in self._bound
            if id(owner) in self._own
            for thing in names.values()
            if isinstance(thing, types.FunctionType)
        ]

    def _differences(self) -> Iterator[tuple[Any, str, Any, Any]]:
        """Owner, name, what it was bound to and what it is bound to now."""
        for owner, names in self._bound:
            now = vars(owner)
            # There are a hundred thousand names, so the loop over those that are as they were is left to C.
            if not all(map(operator.is_, map(now.get, names, names.values()), names.values())):
                for name, thing in names.items():
                    if (new := now.get(name, thing)) is not thing:
                        yield owner, name, thing, new

    def changes(self) -> Iterator[str]:
        """Functions and classes that were replaced by others since."""
        for owner, name, thing, new in self._differences():
            # torch wraps some of its own when further parts of it are loaded.
            if callable(thing) and not (_is_of_torch(new) and _is_of_torch(thing)):
                yield f"{owner.__name__}.{name}"
        for function, code in self._codes:
            if function.__code__ is not code:
                yield f"{function.__module__}.{function.__qualname__}"

    def restore(self) -> None:
        replaced: dict[int, tuple[Any, Any]] = {}
        for owner, name, thing, new in list(self._differences()):
            if not name.startswith("__") and (id(owner) in self._own or callable(thing)):
                setattr(owner, name, thing)
                replaced[id(new)] = (new, thing)
        for owner, names in self._bound:
            if isinstance(owner, type):
                for name in [name for name in vars(owner) if name not in names]:
                    delattr(owner, name)
        for function, code in self._codes:
            if function.__code__ is not code:
                function.__code__ = code
        self._rebind(replaced)

    def _rebind(self, replaced: dict[int, tuple[Any, Any]]) -> None:
        """Modules that were loaded since took what stood in for something from where it stood."""
        known = {id(owner) for owner, _ in self._bound}
        for module in _modules():
            if _is_own(module.__name__) and id(module) not in known:
                for name, thing in list(vars(module).items()):
                    if id(thing) in replaced:
                        setattr(module, name, replaced[id(thing)][1])


def _modules() -> list[types.ModuleType]:
    return [module for module in list(sys.modules.values()) if type(module) is types.ModuleType]


def _is_own(name: object) -> bool:
    return str(name).split(".")[0] == "varbench"


def _is_own_class(thing: Any) -> bool:
    return isinstance(thing, type) and _is_own(thing.__module__)
