"""The promises that a generator of another family can be held to: it brings its own loop, so there is no plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from operator import sub

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from varbench.check.allocations import Held, Watched
from varbench.check.held_memory import PYTHON_SLACK, TENSORS_SLACK
from varbench.check.sameness import wrong_images
from varbench.check.subject import LABELS, SEED, Bench, afresh
from varbench.check.tampering import global_changes
from varbench.check.work import FLOPS_AGREE, Products, faster_repeat
from varbench.policies import Generator
from varbench.rows.grammar import Row

SAME_PIXEL = 1 / 255
"""Pixels that differ by less are the same at another batch size."""


class GeneratorUnderTest:
    """One row of a generator plugin, loaded with random weights, and small where its plugin says how."""

    def __init__(self, bench: Bench, row: Row) -> None:
        (given,) = row.settings
        settings = bench.manager.call(given.plugin, "varbench_settings", model=row.model)
        asked = {name.partition(".")[2] for name in row.parameters}
        small = {name: value for name, value in (settings.small if settings else {}).items() if name not in asked}
        self.bench, self.row = bench, row
        self.setting = replace(given, parameters={**given.parameters, **small})

    @cached_property
    def generator(self) -> Generator:
        made: Generator = self.bench.manager.call(
            self.setting.plugin, "varbench_generator", setting=self.setting, model=self.bench.model
        )
        made.load(device="cpu", dtype="float32", seed=0)
        return made

    def images(self, labels: tuple[int, ...] = LABELS, *, seed: int = SEED, first_image: int = 0) -> Tensor:
        with torch.inference_mode():
            return self.generator.generate(labels, seed=seed, first_image=first_image)

    @cached_property
    def first(self) -> Tensor:
        return self.images()

    @cached_property
    def held(self) -> Held:
        """Watched over a few generations, as many as it takes to tell growth from chance."""
        # The first may fill tables that stay, such as positions, and each may put its own in the last one's place.
        self.images(seed=SEED + 30)
        memory = Watched()
        with memory:
            for repeat in range(3):
                self.images(seed=SEED + 31 + repeat)
                memory.observe("end", repeat)
                tensors, python = _growth(memory.held)
                if repeat and tensors <= TENSORS_SLACK and python <= PYTHON_SLACK:
                    break
        return memory.held


def _growth(held: Held) -> tuple[int, int]:
    """Bytes of tensors, and of Python and numpy objects, that every further generation added."""
    tensors, python = (min(map(sub, one[1:], one), default=0) for one in (held.storages, held.python))
    return tensors, python


def images_in_range(subject: GeneratorUnderTest) -> Iterator[str]:
    yield from wrong_images(subject.first, count=len(LABELS), side=subject.bench.model.image_side)


def deterministic(subject: GeneratorUnderTest) -> Iterator[str]:
    if not torch.equal(subject.images(), subject.first):
        yield f"a repeat's images differ by up to {float((subject.images() - subject.first).abs().max()):.3g}"


def seeds_and_labels_matter(subject: GeneratorUnderTest) -> Iterator[str]:
    others = {
        "another seed": subject.images(seed=SEED + 17),
        "other labels": subject.images(tuple((label + 1) % 10 for label in LABELS)),
        "other images of the noise stream": subject.images(first_image=1000),
    }
    for what, other in others.items():
        same = [number for number, (a, b) in enumerate(zip(other, subject.first, strict=True), 1) if torch.equal(a, b)]
        if same:
            yield f"{what} gave image {same[0]} of {len(LABELS)} unchanged"


def batch_invariance(subject: GeneratorUnderTest) -> Iterator[str]:
    alone = torch.cat([subject.images((label,), first_image=place) for place, label in enumerate(LABELS)])
    distance = (alone - subject.first).abs()
    share = float((distance < SAME_PIXEL).float().mean())
    if share < 0.999:
        yield f"made alone, images share {100 * share:.2f} % of their pixels with the same images made {len(LABELS)} at once"


def no_memoised_repeat(subject: GeneratorUnderTest) -> Iterator[str]:
    later = subject.images(seed=SEED + 5)
    with afresh(subject.bench, {subject.setting.plugin}) as bench:
        alone = GeneratorUnderTest(bench, subject.row).images(seed=SEED + 5)
    if not torch.equal(later, alone):
        yield f"images depend on what was made before: they differ by up to {float((later - alone).abs().max()):.3g}"


def repeat_as_slow_as_first(subject: GeneratorUnderTest) -> Iterator[str]:
    yield from faster_repeat(lambda seed: subject.images(seed=seed))


def measured_flops_equal_plan(subject: GeneratorUnderTest) -> Iterator[str]:
    work = subject.generator.work(len(LABELS))
    if work.flops is None:
        return
    stated = work.flops + work.decoder_flops
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        subject.images(seed=SEED + 3)
    measured = counter.get_total_flops()
    if abs(measured - stated) > FLOPS_AGREE * max(stated, 1.0):
        yield f"{measured / 1e6:.2f} MFLOPs were counted, and its work() says {stated / 1e6:.2f} with the decoder"


def products_in_type(subject: GeneratorUnderTest) -> Iterator[str]:
    with Products() as products:
        subject.images(seed=SEED + 4)
    yield from products.others(torch.float32)


def state_bytes_reachable(subject: GeneratorUnderTest) -> Iterator[str]:
    for what in sorted(set(subject.held.reached_out)):
        yield f"while images were made, it {what}: what is kept there outlives the process that is measured"
    if subject.held.sent:
        yield f"while images were made, it wrote {subject.held.sent} bytes to a file, a pipe or the like"


def released_memory_freed(subject: GeneratorUnderTest) -> Iterator[str]:
    tensors, python = _growth(subject.held)
    if tensors > TENSORS_SLACK:
        yield f"{tensors} bytes of tensors more are held after every further generation"
    if python > PYTHON_SLACK:
        yield f"{python} bytes of Python or numpy objects more are held after every further generation"


def no_global_state_change(subject: GeneratorUnderTest) -> Iterator[str]:
    def anew() -> None:
        with afresh(subject.bench, {subject.setting.plugin}) as bench:
            GeneratorUnderTest(bench, subject.row).images()

    yield from global_changes(subject.bench.before, lambda observe: subject.images(), anew)


OF_GENERATOR: tuple[Callable[[GeneratorUnderTest], Iterator[str]], ...] = (
    images_in_range,
    deterministic,
    seeds_and_labels_matter,
    no_memoised_repeat,
    batch_invariance,
    measured_flops_equal_plan,
    products_in_type,
    repeat_as_slow_as_first,
    state_bytes_reachable,
    released_memory_freed,
    no_global_state_change,
)
"""Each goes by the name, and makes the promise, of the same invariant of rows."""
