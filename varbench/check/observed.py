"""One generation, looked at after each of its steps: what changes that is not the row's own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch

from varbench.check.untouched import Originals
from varbench.engine.pipeline import Pipeline
from varbench.measure.process_state import Globals, global_state, reseed
from varbench.rows.grammar import Row

REPLACED = ", as it runs"
"""Beside the name of a backbone: as the row's transforms leave it."""


@dataclass
class Observed:
    pipe: Pipeline | None
    """None of a generator, whose model is its own."""
    row: Row
    state: Globals
    """What global state is compared with."""
    changes: list[str] = field(default_factory=list)
    """Changes of global state, as they were when first there were any."""
    replaced: dict[str, int] = field(default_factory=dict)
    """Functions that were replaced, by the first step after which they were."""
    before: dict[str, str] = field(default_factory=dict)
    """Hashes of modules; and those after the first step that changed any, or after the last."""
    after: dict[str, str] = field(default_factory=dict)

    def begin(self) -> None:
        reseed()  # whoever always sets the same seed would otherwise change nothing any more
        self.state = global_state()
        self._originals = Originals()
        self.before = self.after = self._modules()

    def observe(self, moment: str, step: int) -> None:
        if moment != "end":
            return
        self.compare(f"step {step + 1}")
        for name in self._originals.changes():
            self.replaced.setdefault(name, step)
        if self.after == self.before:
            self.after = self._modules()

    def compare(self, moment: str) -> None:
        self.changes = self.changes or [f"after {moment}: {change}" for change in self.state.changes(global_state())]

    def _modules(self) -> dict[str, str]:
        return modules(self.pipe, self.row) if self.pipe else {}


def modules(pipe: Pipeline, row: Row | None = None) -> dict[str, str]:
    """A hash of every module's own tensors, plain attributes and hooks, also of those that a row's transforms made; of the
    pipeline, what hides its methods."""
    found = {}
    own = pipe.backbones_of(row) if row else {}
    replaced = {f"{name}{REPLACED}": model for name, model in own.items() if model is not pipe.backbones[name]}
    parts = dict[str, torch.nn.Module](tokenizer=pipe.tokenizer, **pipe.backbones, **replaced)
    for part, root in parts.items():
        for name, module in root.named_modules():
            tensors = [*module._parameters.items(), *module._buffers.items()]
            digest = hashlib.sha256(repr(_plain_attributes(module)).encode())
            for key, tensor in tensors:
                if tensor is not None:
                    digest.update(key.encode() + tensor.detach().flatten().view(torch.uint8).numpy().tobytes())
            found[f"{part}.{name}".rstrip(".")] = digest.hexdigest()
    found["pipeline"] = repr((id(type(pipe)), sorted(name for name in vars(pipe) if hasattr(type(pipe), name))))
    return found


def _plain_attributes(module: torch.nn.Module) -> list[object]:
    # Derived once from the sizes when it is first needed, and no secret: where each scale's tokens begin.
    derived = {"_scale_of_L"}
    hooks = {name: len(value) for name, value in vars(module).items() if name.endswith("hooks") and value}
    plain = {
        name: value if isinstance(value, (bool, int, float, str, tuple)) else type(value).__name__
        for name, value in vars(module).items()
        if not name.endswith("hooks")
        and name not in derived
        and not name.startswith(("_parameters", "_buffers", "_modules"))
    }
    return [type(module).__qualname__, id(type(module)), sorted(plain.items()), sorted(hooks.items())]
