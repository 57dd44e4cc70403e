"""A method's own numbers in a training: put beside the weights, and part of what the training is found by."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from varbench.base.hashing import digest
from varbench.engine.own_weights import own_numbers
from varbench.experts import WidthPolicy
from varbench.model.transformer import OwnNumbers, Transformer
from varbench.plan.owned import Owned
from varbench.rows.grammar import Row


def put_own(width: Owned[WidthPolicy], transformer: Transformer) -> None:
    """Beside the weights; those that the file held go on from there."""
    held = transformer.own.tensors() if transformer.own.plugin == width.plugin else None
    made = own_numbers(width, transformer, held=held)
    device = transformer.pos_1LC.device
    transformer.own = OwnNumbers(width.plugin, {name: one.to(device) for name, one in made.items()})


def own_content(row: Row, *, loss: bool) -> dict[str, Any]:
    """What decides them: their sizes, the plugin's parameters, and the code of its losses; nothing for a row that has neither
    numbers nor a `loss` of its own."""
    width = row.policies.width
    own = None if width is None else width.policy.own
    if own is None and not loss:
        return {}
    shapes = {name: list(shape) for name, shape in own.shapes.items()} if own is not None else {}
    parameters = {setting.plugin: dict(setting.parameters) for setting in row.settings}
    source = inspect.getsource(sys.modules[type(row.schedule).__module__])
    return {"own": {"shapes": shapes, "parameters": parameters, "source": digest([source])}}
