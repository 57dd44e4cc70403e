"""Calibration: an offline pass over a loaded model that finds parameters of a plugin, kept as a hashed JSON file.

    found = calibrate(rows.resolve("my_method@half", pipe.model), pipe)
    pipe.generate(labels, method=found.row)

The row that comes back has what was found written into it, as in `my_method@half:layers=0.3.7`: a plan never
depends on anything that the row does not say. `varbench calibrate` does the same from the command line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varbench import rows
from varbench.base.hashing import json_digest
from varbench.errors import UserError
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import Owned, RowPolicies
from varbench.policies import DecisionPolicy, SoFar, Way
from varbench.rows.manager import PluginError, PluginInfo, PluginManager
from varbench.rows.manager import manager as default_manager
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from varbench.engine.generate import Generated
    from varbench.engine.pipeline import Pipeline

OnMap = Callable[[int, int, "Tensor", "Tensor"], None]
"""Called with layer, scale, the layer's keys of all scales so far (B, H, n, c) and the scale's queries (B, H, l, c)."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """All that a record says of a calibration, and the row to run."""

    asked: str
    """The row that was calibrated."""
    row: rows.Row
    """The row with the parameters that were found."""
    parameters: Mapping[str, rows.Value]
    """Those that were found, by `plugin.key`."""
    found: Mapping[str, Any]
    """By plugin, all that its hook returned."""
    digest: str
    """sha256 of what was found, with the row and the weights' hashes; the file is named by it."""
    path: Path
    seconds: float
    """What the pass cost."""


def calibrate(row: rows.Row, pipe: Pipeline, *, manager: PluginManager | None = None) -> Calibration:
    """Runs the calibration of each plugin of a row that has one, and keeps what they found as a file."""
    manager = manager or default_manager()
    found: dict[str, dict[str, Any]] = {}
    start = time.perf_counter()
    for setting in row.settings:
        result = manager.call(setting.plugin, "varbench_calibrate", setting=setting, pipe=pipe)
        if result is not None:
            found[setting.plugin] = _checked(result, manager.info(setting.plugin))
    seconds = time.perf_counter() - start
    if not found:
        raise UserError(f"{row.name} has nothing to calibrate: none of its plugins gives varbench_calibrate")
    content = {"row": row.name, "weights": pipe.weights, "found": found}
    digest = json_digest(content)
    given = {plugin: result.get("parameters", {}) for plugin, result in found.items()}
    try:
        filled = rows.with_parameters(row, given, manager=manager)
    except UserError as error:
        raise PluginError(
            f"calibration found what the row cannot be given: {error}", plugin=next(iter(found))
        ) from error
    return Calibration(
        asked=row.name,
        row=filled,
        parameters={f"{plugin}.{key}": value for plugin, some in given.items() for key, value in some.items()},
        found=found,
        digest=digest,
        path=_kept(content, digest, seconds),
        seconds=seconds,
    )


def _checked(result: Any, info: PluginInfo) -> dict[str, Any]:
    """What a hook found, if it is what can be kept: JSON, with parameters by name."""
    where = f"plugin {info.name!r} ({info.distribution}): varbench_calibrate"
    if not isinstance(result, dict) or not isinstance(result.get("parameters", {}), dict):
        raise PluginError(f"{where} gave {result!r}; give a dict, with parameters as a dict in it", plugin=info.name)
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PluginError(f"{where} found what is no JSON: {error}", plugin=info.name) from error
    return result


def _kept(content: dict[str, Any], digest: str, seconds: float) -> Path:
    from varbench.base.places import cache_folder
    from varbench.base.whole_files import whole_file

    path = cache_folder("calibrations") / f"{digest[:32]}.json"
    with whole_file(path) as file:
        file.write(json.dumps({**content, "digest": digest, "seconds": seconds}, indent=1).encode())
    return path


def observe(pipe: Pipeline, labels: Sequence[int], *, seed: int, look: OnMap) -> None:
    """Generates with the full model, and calls `look` with what enters each attention, that of the last scale too."""
    from torch.overrides import TorchFunctionMode

    from varbench.model.attention import attention

    row = RowPolicies(name="calibration")
    plan = compile_plan(pipe.model, row)
    calls = ((call.layer, step.samples) for step in plan.steps for call in step.calls)

    class Looking(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is attention:
                look(*next(calls), args[1], args[0])
            return func(*args, **(kwargs or {}))

    with Looking():
        _generated(pipe, row, labels, seed=seed)


@dataclass(frozen=True)
class EachWay:
    images: tuple[Tensor, ...]
    """By way, those of the same labels and noise, had they all gone it."""
    seen: SoFar
    """What is decided by, the same on all ways."""


class _AllOneWay(DecisionPolicy):
    """A decision that falls the same for all images, and keeps what it was shown."""

    def __init__(self, own: DecisionPolicy, way: int) -> None:
        self._own, self._way, self.previews = own, way, own.previews

    def after(self) -> int:
        return self._own.after()

    def ways(self) -> Sequence[Way]:
        return self._own.ways()

    def decide(self, seen: SoFar) -> Sequence[int]:
        self.seen = seen
        return [self._way] * len(seen.map_BDhw)


def on_each_way(
    pipe: Pipeline, policy: DecisionPolicy, labels: Sequence[int], *, seed: int, first_image: int = 0
) -> EachWay:
    """Images of the full model on every way that a decision could send them, and what it would be decided by."""
    sent = [_AllOneWay(policy, way) for way in range(len(policy.ways()))]
    images = []
    for one in sent:
        row = RowPolicies(name="calibration", decision=Owned(plugin="calibration", policy=one))
        images.append(pipe._decode_map(_generated(pipe, row, labels, seed=seed, first_image=first_image).f_hat_BDhw))
    return EachWay(images=tuple(images), seen=sent[0].seen)


def _generated(
    pipe: Pipeline, row: RowPolicies, labels: Sequence[int], *, seed: int, first_image: int = 0
) -> Generated:
    import torch

    from varbench.engine.generate import generate
    from varbench.engine.loop import Sampling, refuse_undrawn
    from varbench.engine.sampler import streams

    plan = compile_plan(pipe.model, row)
    made = generate(
        plan,
        row,
        backbones=pipe.backbones,
        tokenizer=pipe.tokenizer,
        labels_B=torch.as_tensor(labels, device=pipe.device),
        streams_B1=streams(torch.arange(first_image, first_image + len(labels), device=pipe.device), seed=seed),
        sampling=Sampling(),
        dtype=pipe.dtype,
        decode=pipe._decode_map,
    )
    refuse_undrawn(made.tokens_BL, plan)
    return made


def read_layers(text: str, model: ModelSpec, *, what: str) -> tuple[int, ...]:
    """Layers that a parameter lists, as in `0.3.7`; commas would end the row."""
    try:
        layers = tuple(int(number) for number in text.split(".")) if text else ()
    except ValueError:
        raise UserError(f"{what} is {text!r}; list layers with dots between them, as in 0.3.7") from None
    for layer in layers:
        if not 0 <= layer < model.depth:
            raise UserError(f"{what} names layer {layer}; {model.name} has layers 0 to {model.depth - 1}")
    return layers


def written_layers(layers: Sequence[int]) -> str:
    return ".".join(map(str, layers))


def read_masks(text: str, *, count: int, bits: int, what: str) -> tuple[frozenset[int], ...]:
    """Sets of numbers below `bits` that a parameter gives, as in `f0.3`: a hexadecimal mask each, in which bit n stands for n."""
    try:
        masks = [int(mask, 16) for mask in text.split(".")]
    except ValueError:
        masks = []
    if len(masks) != count or not all(0 <= mask < 1 << bits for mask in masks):
        raise UserError(f"{what} is {text!r}; give {count} hexadecimal numbers of {bits} bits with dots between them")
    return tuple(frozenset(number for number in range(bits) if mask >> number & 1) for mask in masks)


def written_masks(sets: Iterable[Iterable[int]]) -> str:
    return ".".join(f"{sum(1 << number for number in numbers):x}" for numbers in sets)
