"""A method's own numbers in a training: put beside the weights, and part of what the training is found by."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from varbench.base.hashing import digest
from varbench.base.imported import imported
from varbench.engine.own_weights import own_numbers
from varbench.errors import UserError
from varbench.experts import WidthPolicy
from varbench.model.transformer import OwnNumbers, Transformer
from varbench.plan.owned import Owned
from varbench.rows.grammar import Row

ROOMS = "varbench.experts."
"""What losses of plugins are written with."""


def put_own(width: Owned[WidthPolicy], transformer: Transformer) -> None:
    """Beside the weights; those that the file held go on from there."""
    held = transformer.own.tensors() if transformer.own.plugin == width.plugin else None
    made = own_numbers(width, transformer, held=held)
    device = transformer.pos_1LC.device
    transformer.own = OwnNumbers(width.plugin, {name: one.to(device) for name, one in made.items()})


def own_content(row: Row, *, loss: bool) -> dict[str, Any]:
    """What decides them: their sizes, the plugin's parameters, and the code of its losses and of the numbers' first values; nothing
    for a row that has neither numbers nor a `loss` of its own."""
    width = row.policies.width
    own = None if width is None else width.policy.own
    if own is None and not loss:
        return {}
    shapes = {name: list(shape) for name, shape in own.shapes.items()} if own is not None else {}
    parameters = {setting.plugin: dict(setting.parameters) for setting in row.settings}
    first = None if own is None else own.initial
    texts = texts_behind(type(row.schedule).__module__, *([] if first is None else [first.__module__])).values()
    return {"own": {"shapes": shapes, "parameters": parameters, "source": digest(sorted(texts))}}


def texts_behind(*modules: str) -> dict[str, str]:
    """The text of modules and of all that they import, in functions too, of their own package; so a story that is told elsewhere
    in the package may change, and a helper may not."""
    own = {name.partition(".")[0] for name in modules} - {__name__.partition(".")[0]}
    found, names = {}, list(modules)
    for name in names:  # which grows
        spec = _found(name)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            if name in modules:
                raise UserError(
                    f"{name} is no file of Python, and trained weights are found by the text of their losses"
                )
            continue
        found[name] = Path(spec.origin).read_text()
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        further = (
            other
            for other in imported(found[name], package)
            if other.partition(".")[0] in own or other.startswith(ROOMS) or _beside(other, Path(spec.origin), package)
        )
        names += [other for other in dict.fromkeys(further) if other not in names]
    return found


def _beside(name: str, file: Path, package: str) -> bool:
    """Whether a module without a package has this one for a neighbour."""
    return not package and file.with_name(f"{name}.py").is_file()


def _found(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # no module but a thing in one
        return None
