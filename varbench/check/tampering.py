"""Promises about what belongs to others: global state, weights, the engine, the sampler, the evaluator."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from varbench.check.bench import Bench
from varbench.check.sameness import tokens_are_drawn_from_logits
from varbench.check.subject import PlannedRow, UnderTest
from varbench.check.untouched import Originals, tampered
from varbench.measure.process_state import CLOCKS, Globals, global_state, stir

REPLACED = ", as it runs"
"""Beside the name of a backbone: as the row's transforms leave it."""


def no_global_state_change(subject: UnderTest) -> Iterator[str]:
    """Random states, default types, switches, clocks and the environment stay as they are at every step."""
    _ = subject.first
    if isinstance(subject, PlannedRow):
        subject.compile()
    # The real clocks are built in; one that was replaced before anybody looked is not.
    wrong = [clock for clock in CLOCKS if type(getattr(time, clock)) is not type(len)]
    yield from (f"time.{clock} is no clock of Python but {getattr(time, clock)!r}" for clock in wrong)
    started = subject.bench.before
    earlier = list(started.changes(global_state()))
    if earlier:
        yield from (f"after it ran for the first time: {change}" for change in earlier)
        return
    try:
        yield from _first_change(subject)
    finally:
        started.restore()


def _first_change(subject: UnderTest) -> Iterator[str]:
    stir()  # whoever always sets the same seed would otherwise change nothing any more
    moments: list[tuple[str, Globals]] = []

    def observe(moment: str, step: int) -> None:
        if moment == "end":
            moments.append((f"step {step + 1}", global_state()))

    # The engine takes no gradients, so that it would seem to switch them off between its steps.
    with torch.inference_mode():
        before = global_state()
        subject.make(observer=observe)
        moments.append(("generating", global_state()))
        with subject.afresh() as fresh:
            fresh.make()
        moments.append(("importing it again", global_state()))
    for moment, state in moments:
        found = list(before.changes(state))
        if found:
            yield from (f"after {moment}: {change}" for change in found)
            return


def weights_untouched(subject: PlannedRow) -> Iterator[str]:
    """Weights, modules and their hooks are as they were before."""
    before = _modules(subject)
    after = before

    def observe(moment: str, step: int) -> None:
        nonlocal after
        if moment == "end" and after == before:
            after = _modules(subject)

    subject.make(observer=observe)
    after = _modules(subject) if after == before else after
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        yield f"{len(changed)} of {len(before)} modules changed while images were made: {', '.join(changed[:3])}"
    fresh = _modules(PlannedRow(Bench(subject.bench.model, subject.bench.points), subject.row))
    # Replaced modules may be of a class that is made with them, so they are held against themselves alone.
    changed = sorted(name for name in fresh if REPLACED not in name and fresh[name] != after.get(name))
    if changed and after == before:
        yield f"{len(changed)} of {len(before)} modules are not as they were made: {', '.join(changed[:3])}"


def _modules(subject: PlannedRow) -> dict[str, str]:
    """A hash of every module's own tensors, plain attributes and hooks; of the pipeline, what hides its methods."""
    found = {}
    pipe = subject.pipe
    replaced = {f"{name}{REPLACED}": model for name, model in pipe.backbones_of(subject.row).items()}
    parts = dict[str, torch.nn.Module](tokenizer=pipe.tokenizer, **pipe.backbones, **replaced)
    for part, root in parts.items():
        for name, module in root.named_modules():
            own = [*module._parameters.items(), *module._buffers.items()]
            digest = hashlib.sha256(repr(_plain_attributes(module)).encode())
            for key, tensor in own:
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


def sampler_untouched(subjects: Sequence[UnderTest]) -> Iterator[str]:
    """The sampler is varbench's own, and the tokens are what it draws."""
    yield from tampered("sampler")
    for subject in subjects:
        if isinstance(subject, PlannedRow):
            yield from (f"{subject.row.name}: {message}" for message in tokens_are_drawn_from_logits(subject))


def engine_untouched(subjects: Sequence[UnderTest]) -> Iterator[str]:
    """The engine, the compiler, the models, this kit and the parts of torch that they use are as their sources say."""
    yield from tampered("engine")
    for subject in subjects:
        yield from _replaced_on_the_way(subject)


def _replaced_on_the_way(subject: UnderTest) -> Iterator[str]:
    """What is replaced within a generation, even if it is put back before its end."""
    originals = Originals()
    seen: dict[str, int] = {}

    def observe(moment: str, step: int) -> None:
        for name in originals.changes():
            seen.setdefault(name, step)

    subject.make(observer=observe)
    for name, step in seen.items():
        yield f"{subject.row.name}: {name} was replaced while step {step + 1} ran"


def evaluator_untouched(subjects: Sequence[UnderTest]) -> Iterator[str]:
    """Quality, measurement, statistics, cost model and records are as their sources say, and answer known questions."""
    import varbench.measure
    import varbench.quality
    import varbench.record
    import varbench.show.compare
    from varbench.quality.frechet import frechet_distance, gaussian

    yield from tampered("evaluator")
    features = np.random.RandomState(5).standard_normal((64, 4))
    moved = frechet_distance(gaussian(features), gaussian(2 * features + 1))
    spread = np.cov(features, rowvar=False).trace()
    expected = float(np.square(features.mean(axis=0) + 1).sum() + spread)
    if not np.isclose(moved, expected, rtol=1e-6):
        yield f"the Fréchet distance of two known sets is {moved:.6g}; it should be {expected:.6g}"
    bytes_ = varbench.quality.to_uint8(torch.tensor([[[[0.0, 0.499, 0.5, 1.0]]] * 3]))
    if bytes_[0, 0, 0].tolist() != [0, 127, 128, 255]:
        yield f"0, 0.499, 0.5 and 1 became the bytes {bytes_[0, 0, 0].tolist()}; they should be 0, 127, 128 and 255"
