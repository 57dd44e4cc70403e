"""A subject is what is measured: it makes images for labels and a seed. Who measures it is not its business.

A row of the engine and a generator of another family are the same to whoever measures; what only one of them has (tokens,
a trace, steps) is None with the other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from varbench.engine.full_model import FullModel
from varbench.engine.loading import random_tokenizer, random_transformer
from varbench.engine.loop import Observer, Sampling
from varbench.engine.pipeline import DTYPES, Pipeline
from varbench.engine.storage import live_bytes, storage_bytes
from varbench.engine.transforms import stored
from varbench.model.checkpoints import build_tokenizer, load_tokenizer, load_transformer
from varbench.model.state_files import read_state
from varbench.plan.trace import Trace
from varbench.policies import Generator, TaughtGenerator, TrainedGenerator
from varbench.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One call: a row, and the images it shall make."""

    row: str
    labels: tuple[int, ...]
    seed: int
    first: int = 0
    """Number of the first image in the noise stream."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    images: Tensor
    """(B, 3, S, S) in [0, 1], on the device."""
    tokens: Tensor | None
    """(B, L) codes; None for a row that has none."""
    trace: Trace | None
    """What really ran; None for a row that replaces the loop."""


class Subject(Protocol):
    """A row's way to make images, loaded and ready."""

    @property
    def model(self) -> ModelSpec: ...

    @property
    def device(self) -> torch.device: ...

    def prepare(self, ask: Ask) -> None:
        """Set up what is set up once for such calls, so that none is timed with it."""

    def make(self, ask: Ask, *, observer: Observer | None = None) -> Answer: ...

    def weight_bytes(self, row: str) -> int:
        """All that stays loaded for the row, by storage, counted once."""
        ...

    def alone(self, row: str) -> AbstractContextManager[None]:
        """While it lasts, what other rows run on is not on the device."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineSubject:
    """Every row that has a plan, on weights that are loaded once."""

    pipe: Pipeline
    cfg: float
    top_k: int
    top_p: float

    @property
    def model(self) -> ModelSpec:
        return self.pipe.model

    @property
    def device(self) -> torch.device:
        return self.pipe.device

    def prepare(self, ask: Ask) -> None:
        if not self.pipe.is_ready(ask.row, len(ask.labels), self._sampling):
            self.make(ask)

    def is_captured(self, ask: Ask) -> bool:
        return self.pipe.is_captured(ask.row, len(ask.labels), self._sampling)

    @property
    def _sampling(self) -> Sampling:
        return Sampling(cfg=self.cfg, top_k=self.top_k, top_p=self.top_p)

    def make(self, ask: Ask, *, observer: Observer | None = None) -> Answer:
        made = self.pipe.generate(
            ask.labels,
            seed=ask.seed,
            cfg=self.cfg,
            top_k=self.top_k,
            top_p=self.top_p,
            method=ask.row,
            first_image=ask.first,
            observer=observer,
        )
        return Answer(images=made.images, tokens=made.tokens, trace=made.trace)

    def weight_bytes(self, row: str) -> int:
        modules: tuple[nn.Module, ...] = (self.pipe.tokenizer, *self.pipe.backbones_of(row).values())
        return storage_bytes(tensor for module in modules for tensor in stored(module))

    def alone(self, row: str) -> AbstractContextManager[None]:
        return self.pipe.alone(row)


@dataclass(frozen=True, kw_only=True)
class GeneratorSubject:
    """A row that replaces the loop; there are no steps to look into."""

    generator: Generator
    model: ModelSpec
    device: torch.device
    loaded_bytes: int
    """Of the tensors that loading it brought."""

    def prepare(self, ask: Ask) -> None:
        pass

    @torch.inference_mode()
    def make(self, ask: Ask, *, observer: Observer | None = None) -> Answer:
        images = self.generator.generate(ask.labels, seed=ask.seed, first_image=ask.first)
        return Answer(images=images, tokens=None, trace=None)

    def weight_bytes(self, row: str) -> int:
        return self.loaded_bytes

    def alone(self, row: str) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """A row that replaces the loop, and in the same process rows of the engine that its calls are timed beside."""

    own: GeneratorSubject
    row: str
    """What `own` is asked for by."""
    others: EngineSubject

    @property
    def model(self) -> ModelSpec:
        return self.own.model

    @property
    def device(self) -> torch.device:
        return self.own.device

    def prepare(self, ask: Ask) -> None:
        self._of(ask.row).prepare(ask)

    def make(self, ask: Ask, *, observer: Observer | None = None) -> Answer:
        return self._of(ask.row).make(ask, observer=observer)

    def weight_bytes(self, row: str) -> int:
        return self._of(row).weight_bytes(row)

    def alone(self, row: str) -> AbstractContextManager[None]:
        return self._of(row).alone(row)

    def _of(self, row: str) -> GeneratorSubject | EngineSubject:
        return self.own if row == self.row else self.others


def load_generator(
    generator: Generator,
    *,
    model: ModelSpec,
    device: torch.device,
    dtype: str,
    seed: int,
    vae: Path | None = None,
    main: Path | None = None,
    weights: Path | None = None,
) -> GeneratorSubject:
    """With the preset's tokenizer, its full model, and weights that were trained for it, where it is made for them; random
    ones without."""
    held = live_bytes(device)
    if isinstance(generator, TrainedGenerator):
        tokenizer = (
            random_tokenizer(model, seed) if vae is None else build_tokenizer(model, load_tokenizer(vae)[1], vae)
        )
        tokenizer.to(device).eval().cast_decoder_(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        state = None if weights is None else read_state(weights, part="generator")
        generator.take(tokenizer=tokenizer, weights=state)
        if isinstance(generator, TaughtGenerator):
            full = (
                random_transformer(model, seed, device=str(device))
                if main is None
                else load_transformer(main, model.tokenizer)
            )
            full.cast_(DTYPES[dtype]).to(device)
            generator.meet(FullModel(full, tokenizer, dtype=DTYPES[dtype]), tokenizer=tokenizer)
            del full
        del tokenizer, state
    generator.load(device=str(device), dtype=dtype, seed=seed)
    return GeneratorSubject(generator=generator, model=model, device=device, loaded_bytes=live_bytes(device) - held)
