"""What is checked: a row, loaded as a run loads it, with the answers that several promises look at, each made once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from operator import sub
from time import process_time
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from varbench.check import sent_ways, stand_ins
from varbench.check.allocations import Held, Watched
from varbench.check.bench import Bench
from varbench.check.chosen import ReadAgain
from varbench.check.counted_products import Products
from varbench.check.observed import Observed, modules
from varbench.engine.loop import Observer
from varbench.engine.pipeline import Output
from varbench.engine.subjects import Answer, Ask, EngineSubject, Subject, load_generator
from varbench.plan import cost
from varbench.plan.compiler import compile_plan
from varbench.plan.steps import Plan
from varbench.policies import Work
from varbench.rows.grammar import Row
from varbench.rows.parts import settings_of

LABELS = (3, 7, 1, 3)
SEED = 11
SAMPLING: dict[str, Any] = {"cfg": 1.5, "top_k": 100, "top_p": 0.95}

TENSORS_SLACK = 256
"""Bytes of tensors that nobody need account for: less than one layer's keys of one scale of one image."""
ANOTHER_SEED = "another seed"
PYTHON_SLACK = 32 * 1024
"""Bytes of Python objects that may come and go for other reasons."""


class UnderTest(ABC):
    """One row, whoever makes its images: the engine by a plan, or a generator by a loop of its own."""

    def __init__(self, bench: Bench, row: Row) -> None:
        self.bench, self.row = bench, row
        self.seconds: list[float] = []
        """Processor time of each generation of all images that no observer looked into."""

    @property
    @abstractmethod
    def subject(self) -> Subject: ...

    def make(
        self,
        labels: tuple[int, ...] = LABELS,
        *,
        seed: int = SEED,
        first: int = 0,
        observer: Observer | None = None,
    ) -> Answer:
        began = process_time()  # which a busy machine stretches far less than the clock's
        answer = self.subject.make(Ask(row=self.row.name, labels=labels, seed=seed, first=first), observer=observer)
        if observer is None and len(labels) == len(LABELS):
            self.seconds.append(process_time() - began)
        return answer

    @cached_property
    def first(self) -> Answer:
        return self.make()

    @cached_property
    def otherwise(self) -> dict[str, Answer]:
        """What should be other images, by what was asked otherwise."""
        labels = tuple((label + 1) % self.row.model.classes for label in LABELS)
        return {
            ANOTHER_SEED: self.make(seed=SEED + 5),
            "other labels": self.make(labels),
            "other images of the noise stream": self.make(first=1000),
        }

    @cached_property
    def anew(self) -> tuple[Answer, str | None]:
        """The same of plugins that are imported again, as a new process would have it; and the plan's digest."""
        with self.bench.afresh({setting.plugin for setting in self.row.settings}) as bench:
            fresh = type(self)(bench, replace(bench.again(self.row), name=f"{self.row.name} (imported again)"))
            return fresh.make(seed=SEED + 5), fresh.digest

    @property
    def digest(self) -> str | None:
        """Of its plan."""
        return None

    @cached_property
    def observed(self) -> Observed:
        """What changed in one generation of that which is not the row's."""
        _ = self.first
        if isinstance(self, PlannedRow):
            self.compile()
        found = Observed(
            pipe=self.pipe if isinstance(self, PlannedRow) else None, row=self.row, state=self.bench.before
        )
        found.compare("it ran for the first time")
        try:
            # The engine takes no gradients, so that it would seem to switch them off between its steps.
            with torch.inference_mode():
                found.begin()
                self.make(observer=found.observe)
                found.compare("generating")
                _ = self.anew
                found.compare("importing it again")
        finally:
            self.bench.before.restore()
        return found

    @cached_property
    def products(self) -> Products:
        """The products that one generation computes."""
        _ = self.first
        # Attention as plain products: its fused kernels are not among the operators whose FLOPs torch can tell.
        products = Products()
        with sdpa_kernel(SDPBackend.MATH), products:
            self.counted = self.make(seed=SEED + 3)
        return products

    @property
    @abstractmethod
    def held(self) -> Held:
        """What a generation holds, and leaves behind."""

    @property
    @abstractmethod
    def stated_flops(self) -> float | None:
        """FLOPs of a generation with its decoder, as the row says them; None where it does not."""

    @property
    def declared_types(self) -> Collection[str]:
        """Types that the row says it computes in, beside what is asked for."""
        return ()


def under_test(bench: Bench, row: Row) -> UnderTest:
    if row.policies.generator is not None:
        return GeneratorRow(bench, row)
    planned = PlannedRow(bench, row)
    if id(planned.pipe) not in bench.as_made:
        bench.as_made[id(planned.pipe)] = modules(planned.pipe)
    return planned


class PlannedRow(UnderTest):
    """A row that the engine runs by a plan."""

    def __init__(self, bench: Bench, row: Row) -> None:
        super().__init__(bench, row)
        self.pipe = bench.pipeline(row)
        self.pipe.compile(row)  # from here on, its name is known there
        self.plan = self.compile()

    @cached_property
    def subject(self) -> Subject:
        return EngineSubject(pipe=self.pipe, **SAMPLING)

    @property
    def digest(self) -> str | None:
        return self.plan.digest

    def compile(self, row: Row | None = None) -> Plan:
        """The plan, asked for anew."""
        row = row or self.row
        loaded = {name: model.spec for name, model in self.pipe.backbones.items()}
        return compile_plan(row.model, row.policies, accounting=row.accounting, loaded=loaded)

    def generate(self, row: Row | None = None, **options: Any) -> Output:
        """What only the engine gives: another row on the same weights, logits, given tokens."""
        given: dict[str, Any] = {"labels": LABELS, "seed": SEED, **SAMPLING, **options}
        return self.pipe.generate(given.pop("labels"), method=row or self.row, **given)

    @property
    def stated_flops(self) -> float:
        _ = self.products
        work = cost.work(self.plan, batch=len(LABELS), dtype="float32")
        if not self.plan.varies or self.counted.trace is None:
            return work.flops
        seen = cost.flops_of(self.counted.trace.steps, self.plan)
        return work.decoder_flops + sum(step.blocks + step.others for step in seen)

    @property
    def declared_types(self) -> Collection[str]:
        changes = [change for transform in self.plan.transforms for _, change in transform.changes]
        return {change.compute_type for change in changes if change.compute_type}

    @cached_property
    def with_logits(self) -> Output:
        return self.generate(return_logits=True)

    @property
    def full(self) -> Output:
        """The full model's, on the same weights."""
        known = self.bench.full
        if id(self.pipe) not in known:
            known[id(self.pipe)] = self.generate(stand_ins.full_model(self.row), return_logits=True)
        return known[id(self.pipe)]

    @cached_property
    def going_on(self) -> Row:
        """The row itself; of one that has several ways, whose images all go the first."""
        return sent_ways.going_on(self.row)

    @cached_property
    def plain(self) -> Row:
        return stand_ins.plain(self.row)

    @cached_property
    def read_again(self) -> tuple[ReadAgain, stand_ins.Notes]:
        """What its policies answered in one generation, and what of it took effect. One that their answers stop has been noted."""
        again, notes = ReadAgain(self.plan), stand_ins.Notes()
        try:
            with again:
                self.generate(again.row(stand_ins.watched(self.going_on, notes)), observer=again.observe)
            if self.plan.decision is not None:
                self.generate(sent_ways.noted(stand_ins.watched(self.row, notes), [], notes))
        except Exception:
            if not (notes.places or notes.inputs):
                raise
        return again, notes

    @cached_property
    def held(self) -> Held:
        """In a second generation: what a first one leaves behind for good, such as masks, is not this one's."""
        _ = self.first
        self._warm()
        return self._watched(self.row)

    @property
    def held_plainly(self) -> Held:
        """The same of its plan, executed with picks that cost nothing; of a plan of as many steps and calls, whose Python objects
        are as many."""
        if not stand_ins.asked_while_it_runs(self.row) and self.plan.decision is None:
            return self.held
        ways = [way for way, images in enumerate(self.held.taken) for _ in range(images)]
        plain = sent_ways.sent(self.plain, ways) if ways else self.plain
        known, shape = self.bench.held_plainly, (id(self.pipe), *ways, *(len(step.calls) for step in self.plan.steps))
        if shape not in known:
            self._warm()
            self.pipe.compile(plain)
            known[shape] = self._watched(plain)
        return known[shape]

    def _warm(self) -> None:
        """The first generation that is watched imports what following operations takes."""
        if not self.bench.warm:
            self._watched(self.plain)
            self.bench.warm = True

    def _watched(self, row: Row) -> Held:
        with Watched() as memory:
            taken = self.generate(row, observer=memory.observe, seed=SEED + 1).trace.taken
        memory.held.taken = taken
        return memory.held


class GeneratorRow(UnderTest):
    """A row that replaces the loop, with random weights, and small where its plugin says how."""

    def __init__(self, bench: Bench, row: Row) -> None:
        (setting,) = row.settings
        asked = {name.partition(".")[2] for name in row.parameters}
        settings = settings_of(setting.plugin, row.model, bench.manager)
        small = {name: value for name, value in settings.small.items() if name not in asked}
        super().__init__(bench, replace(bench.again(row, **small), name=row.name))

    @cached_property
    def subject(self) -> Subject:
        owned = self.row.policies.generator
        assert owned is not None
        return load_generator(owned.policy, model=self.bench.model, device=torch.device("cpu"), dtype="float32", seed=0)

    @property
    def stated(self) -> Work:
        assert self.row.policies.generator is not None
        return self.row.policies.generator.policy.work(len(LABELS))

    @property
    def stated_flops(self) -> float | None:
        work = self.stated
        return None if work.flops is None else work.flops + work.decoder_flops

    @cached_property
    def held(self) -> Held:
        """Watched over a few generations, as many as it takes to tell growth from chance."""
        # The first may fill tables that stay, such as positions, and each may put its own in the last one's place.
        self.make(seed=SEED + 30)
        with Watched() as memory:
            for repeat in range(3):
                self.make(seed=SEED + 31 + repeat)
                memory.observe("end", repeat)
                tensors, python = growth(memory.held)
                if repeat and tensors <= TENSORS_SLACK and python <= PYTHON_SLACK:
                    break
        return memory.held


def growth(held: Held) -> tuple[int, int]:
    """Bytes of tensors, and of Python and numpy objects, that every further generation added."""
    tensors, python = (min(map(sub, one[1:], one), default=0) for one in (held.storages, held.python))
    return tensors, python
