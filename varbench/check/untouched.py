"""Whether code in memory is still the code on disk: of varbench, and of the functions of torch that it calls.

The source of every module is compiled again and compared function by function with what is in memory, so it does not
matter whether something was replaced before or after the kit was loaded.
"""

from __future__ import annotations

import ast
import functools
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

SAMPLER = ("varbench.engine.sampler",)
EVALUATOR = (
    "varbench.quality", "varbench.measure", "varbench.record", "varbench.show", "varbench.base.stats", "varbench.show.compare",
    "varbench.show.published", "varbench.plan.hardware", "varbench.plan.cost",
)  # fmt: skip

BUILT_IN: dict[Any, tuple[str, ...]] = {
    torch: (
        "cat", "empty", "zeros", "full", "arange", "tensor", "as_tensor", "searchsorted", "minimum", "nextafter", "bmm",
        "matmul", "softmax", "sort", "topk", "cumsum", "equal", "addmm", "repeat_interleave", "where",
    ),
    F: ("scaled_dot_product_attention", "linear", "gelu", "pad", "conv2d"),
    torch.Tensor: (
        "softmax", "cumsum", "topk", "sort", "masked_fill", "gather", "scatter", "argmin", "float", "to", "clone", "mul",
        "view", "transpose", "expand", "__add__", "__mul__", "__matmul__", "__setitem__", "amin", "copy_", "square", "sum",
    ),
}  # fmt: skip
"""What the engine, sampler and evaluator call in torch that is written in C."""

CLASSES = (torch.nn.Module, torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d, torch.nn.GroupNorm)

LIBRARIES = ("numpy", "scipy", "torch_fidelity", "cleanfid")


def tampered(part: str) -> list[str]:
    """What of a part, `sampler`, `evaluator` or `engine` (all the rest), is no longer as its source says."""
    found = list(_torch()) if part == "engine" else []
    if part == "evaluator":
        found += [message for library in LIBRARIES for message in _foreign(library)]
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] != "varbench":
            continue
        if not isinstance(module, types.ModuleType) or module.__name__ != name:
            found += [f"the module {name} is {module!r}"] if _part(name) == part else []
            continue
        found += [message for concerned, message in _module(module) if concerned == part]
    return found


def read_sources() -> None:
    """Compiles the sources now, so that an edit while a check runs is not taken for tampering."""
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.split(".")[0] == "varbench" and str(path).endswith(".py"):
            _compiled(str(path), _rewriter(module))


def _part(module: str) -> str:
    if module in SAMPLER:
        return "sampler"
    return "evaluator" if module.startswith(EVALUATOR) else "engine"


_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)


def _torch() -> Iterator[str]:
    for owner, names in BUILT_IN.items():
        for name in names:
            thing = getattr(owner, name)
            if not isinstance(thing, _BUILTIN) and not _is_of_torch(thing):
                yield f"{owner.__name__}.{name} is not torch's own, but {thing!r}"
    for name, thing in vars(F).items():
        if isinstance(thing, types.FunctionType) and name not in BUILT_IN[F] and not _is_of_torch(thing):
            yield f"torch.nn.functional.{name} is not torch's own, but comes from {thing.__code__.co_filename}"
    for cls in CLASSES:
        for name, thing in vars(cls).items():
            if isinstance(thing, types.FunctionType) and not _is_of_torch(thing):
                yield f"torch.nn.{cls.__name__}.{name} is not torch's own, but comes from {thing.__code__.co_filename}"


def _foreign(library: str) -> Iterator[str]:
    """Functions in a library's modules, as far as they are loaded, that come from elsewhere."""
    for name, module in list(sys.modules.items()):
        if name != library and not name.startswith(f"{library}."):
            continue
        for key, thing in list(vars(module).items()) if isinstance(module, types.ModuleType) else ():
            if isinstance(thing, types.FunctionType) and not _is_installed(thing):
                yield f"{name}.{key} is not the library's own, but comes from {thing.__code__.co_filename}"


def _is_installed(thing: types.FunctionType) -> bool:
    """Whether it comes from the standard library or from the folder that holds torch."""
    return thing.__code__.co_filename.startswith(("<", _STANDARD, _SITE))


_OWN = str(Path(__file__).parents[1])
_SITE = str(Path(torch.__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)
_STANDARD = str(Path(functools.__file__).parent)


def _is_of_torch(thing: Any) -> bool:
    code = getattr(thing, "__code__", None)
    return isinstance(code, types.CodeType) and code.co_filename.startswith(_TORCH)


def _module(module: types.ModuleType) -> Iterator[tuple[str, str]]:
    """Parts that are concerned, and what is wrong. What was imported from the sampler is the sampler's concern."""
    path = str(getattr(module, "__file__", None))
    expected = module.__name__.replace(".", os.sep)
    if not path.startswith(_OWN) or not path.endswith((f"{expected}.py", os.path.join(expected, "__init__.py"))):
        yield _part(module.__name__), f"the module {module.__name__} comes from {path}"
        return
    tree, codes = _compiled(path, _rewriter(module))
    for node in tree.body:
        origin = (node.module or "") if isinstance(node, ast.ImportFrom) else module.__name__
        concerned = _part(origin) if _part(origin) == "sampler" else _part(module.__name__)
        for message in _statement(node, module, codes):
            yield concerned, message


@functools.cache
def _compiled(
    path: str, rewrite: Callable[[ast.Module, bytes], None] | None
) -> tuple[ast.Module, list[dict[str, types.CodeType]]]:
    """Syntax tree, and every function's code by its qualified name: as written, and as pytest rewrites asserts."""
    source = Path(path).read_bytes()
    trees = [ast.parse(source)]
    if rewrite:
        trees.append(ast.parse(source))
        rewrite(trees[1], source)
    codes = []
    for tree in trees:
        table: dict[str, types.CodeType] = {}
        _collect(compile(tree, path, "exec", dont_inherit=True), table)
        codes.append(table)
    return trees[0], codes


def _rewriter(module: types.ModuleType) -> Callable[[ast.Module, bytes], None] | None:
    """pytest rewrites the asserts of packages that bring it a plugin; what it makes of them is as good as the source."""
    loader = getattr(module, "__loader__", None)
    if type(loader).__module__ != "_pytest.assertion.rewrite":
        return None
    return _pytest_rewrite


def _pytest_rewrite(tree: ast.Module, source: bytes) -> None:
    from _pytest.assertion.rewrite import rewrite_asserts

    rewrite_asserts(tree, source)


def _collect(code: types.CodeType, table: dict[str, types.CodeType]) -> None:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            table.setdefault(constant.co_qualname, constant)
            _collect(constant, table)


def _statement(node: ast.stmt, module: types.ModuleType, codes: list[dict[str, types.CodeType]]) -> Iterator[str]:
    where = module.__name__
    if isinstance(node, ast.FunctionDef):
        yield from _function(getattr(module, node.name, None), f"{where}.{node.name}", node.name, module, codes)
    elif isinstance(node, ast.ClassDef):
        yield from _class(node, module, codes)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            expected = sys.modules.get(alias.name if alias.asname else alias.name.split(".")[0])
            bound = getattr(module, alias.asname or alias.name.split(".")[0], None)
            if bound is not expected:
                yield f"{where}: {alias.asname or alias.name} is {bound!r}, not the module {alias.name}"
    elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
        origin = sys.modules.get(node.module)
        for alias in node.names:
            name = alias.asname or alias.name
            expected = getattr(origin, alias.name, sys.modules.get(f"{node.module}.{alias.name}"))
            if getattr(module, name, None) is not expected:
                yield f"{where}: {name} is {getattr(module, name, None)!r}, not what {node.module} has under that name"
    elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        yield from _constant(node, module)


def _constant(node: ast.Assign | ast.AnnAssign, module: types.ModuleType) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    try:
        expected = ast.literal_eval(node.value) if node.value else None
    except (ValueError, TypeError, SyntaxError, MemoryError):
        return
    for target in targets:
        if (
            isinstance(target, ast.Name)
            and not _is_variable(target.id, module)
            and isinstance(expected, (bool, int, float, str, tuple))
        ):
            bound = getattr(module, target.id, None)
            if bound != expected:
                yield f"{module.__name__}.{target.id} is {bound!r}; its source says {expected!r}"


def _is_variable(name: str, module: types.ModuleType) -> bool:
    """Whether the module's own code sets it again."""
    return name in _variables(str(module.__file__))


@functools.cache
def _variables(path: str) -> frozenset[str]:
    tree = ast.parse(Path(path).read_bytes())
    return frozenset(name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names)


def _class(node: ast.ClassDef, module: types.ModuleType, codes: list[dict[str, types.CodeType]]) -> Iterator[str]:
    cls = getattr(module, node.name, None)
    where = f"{module.__name__}.{node.name}"
    if not isinstance(cls, type) or cls.__module__ != module.__name__:
        yield f"{where} is {cls!r}, not the class of its source"
        return
    own = {child.name for child in ast.walk(node) if isinstance(child, ast.FunctionDef)}
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and not _is_overload(child):
            thing = vars(cls).get(child.name)
            yield from _function(thing, f"{where}.{child.name}", f"{node.name}.{child.name}", module, codes)
    for name, thing in vars(cls).items():
        function = _plain(thing)
        foreign = isinstance(function, types.FunctionType) and not function.__code__.co_filename.startswith(
            ("<", _STANDARD, _TORCH)
        )
        if name not in own and foreign and _home(function) != module.__name__ and not _is_mixed_in(name, thing, cls):
            yield f"{where}.{name} was added; its source has none"


def _is_mixed_in(name: str, thing: Any, cls: type) -> bool:
    return any(vars(base).get(name) is thing for base in cls.__mro__[1:])


def _home(function: Any) -> str:
    return str(function.__globals__.get("__name__", ""))


def _is_overload(node: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


def _plain(thing: Any) -> Any:
    """The function within a method, property or decorator."""
    if isinstance(thing, (staticmethod, classmethod)):
        thing = thing.__func__
    if isinstance(thing, property):
        thing = thing.fget
    if isinstance(thing, functools.cached_property):
        thing = thing.func
    return thing


def _function(
    thing: Any, where: str, qualified: str, module: types.ModuleType, codes: list[dict[str, types.CodeType]]
) -> Iterator[str]:
    thing = _plain(thing)
    while hasattr(thing, "__wrapped__"):
        # A decorator of the standard library or of torch; any other is not ours, and hides what it wraps.
        code = getattr(thing, "__code__", None)
        if code is not None and not code.co_filename.startswith((_TORCH, _STANDARD)):
            break
        thing = thing.__wrapped__
    expected = [table[qualified] for table in codes if qualified in table]
    if not isinstance(thing, types.FunctionType) or not expected:
        if expected or thing is None:
            yield f"{where} is {thing!r}, not the function of its source"
        return
    if thing.__code__ not in expected or thing.__globals__ is not vars(module):
        yield f"{where} is not the function of its source, but one of {_origin(thing)}"


def _origin(function: types.FunctionType) -> str:
    return f"{_home(function) or '?'} ({function.__code__.co_filename}, line {function.__code__.co_firstlineno})"


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
