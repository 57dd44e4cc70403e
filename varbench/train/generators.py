"""Trained weights of a generator that builds on the preset's tokenizer: from the cache, else trained now as recipes are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from varbench.base.display import Display, unseen
from varbench.base.hashing import file_hash, json_digest
from varbench.base.places import cache_folder
from varbench.base.turns import one_at_a_time
from varbench.base.whole_files import whole_file, write_whole
from varbench.data.image_set import ImageSet
from varbench.model.checkpoints import build_tokenizer, load_tokenizer
from varbench.model.tokenizer import Tokenizer
from varbench.plan import presets
from varbench.plan.owned import Owned
from varbench.policies import TaughtGenerator, TrainedGenerator
from varbench.quality.images import Labels
from varbench.rows.grammar import Row
from varbench.train import evaluation
from varbench.train.budgets import GENERATOR, on_all_of
from varbench.train.export import export
from varbench.train.made_examples import HELD_OUT, MadeExamples, labels_of
from varbench.train.order import batch_rows, class_drops
from varbench.train.progress import EXAMPLES, TRAINING, Progress, Sizes, followed
from varbench.train.ranks import Share
from varbench.train.recipes import RecipeWeights, cached, shipped_weights
from varbench.train.shipped import Shipped
from varbench.train.states import Checkpoints
from varbench.train.trainer import DTYPES, Budget, HeldOut, optimise

PART = "generator"
"""What its weights are called among a row's files."""
LOOKED_AT = 1024
"""Training images that are shown to a generator before its network is made."""
_CHUNK = 64

Examples = NDArray[Any]
"""Whole numbers (N, n)."""


def trained_generator(row: Row) -> TrainedGenerator | None:
    """The row's generator, where it is one whose network is trained here."""
    owned = row.policies.generator
    policy = None if owned is None else owned.policy
    return policy if isinstance(policy, TrainedGenerator) and not policy.trained else None


def taught(row: Row) -> Owned[TaughtGenerator] | None:
    """The row's generator, where it learns from the full model."""
    owned = row.policies.generator
    if owned is None or not isinstance(owned.policy, TaughtGenerator):
        return None
    return Owned(plugin=owned.plugin, policy=owned.policy)


def generator_weights(
    row: Row,
    *,
    vae: Path,
    data: ImageSet,
    budget: Budget,
    main: Path | None = None,
    shipped: Shipped | None = None,
    device: str = "cpu",
    events: Path | None = None,
    display: Display | None = None,
) -> RecipeWeights:
    """The weights of the row's generator, trained if they neither ship nor are in the cache: from nothing, or from what `main`
    makes."""
    ready, note = _shipped(row, shipped, vae=vae, data=data, main=main)
    if ready is not None:
        return ready
    key = _key(row, vae=vae, data=data, budget=budget, main=main)
    folder = cache_folder("weights") / key
    path, record_path = folder / f"{PART}.safetensors", folder / presets.RECORD

    if found := cached(folder, {PART}, {}):
        return replace(found, note=note)
    display = display or unseen()
    waiting = display.waiting(f"{row.name} is being trained by another process; waiting for it")
    with one_at_a_time(folder / "lock", while_waiting=waiting):
        if found := cached(folder, {PART}, {}):
            return replace(found, note=note)
        _, state = load_tokenizer(vae)
        tokenizer = build_tokenizer(row.model, state, vae).to(device)
        budget = _of(row, budget, data)
        work: _Work
        if owned := taught(row):
            assert main is not None
            made = MadeExamples(owned, model=row.model, vae=vae, main=main, tokenizer=tokenizer)
            work = _FromModel(row, made, tokenizer, budget)
        else:
            work = _FromImages(row, data, tokenizer, budget, kept=folder / "examples.npy")
        examples, labels = work.learnt(display)
        with followed(display, TRAINING, row.name, steps=budget.steps, batch=budget.batch, events=events) as progress:
            stage = work.train(examples, labels, Checkpoints(folder / "train.state"), progress, key=key)
        record = {"row": row.name, "key": key, "data": data.fingerprint, "stages": {"train": stage}, **work.told}
        export(work.network, path, spec=row.model, record=record)
        # Written last: its presence says that the weights beside it are complete.
        write_whole(record_path, json.dumps(record, indent=1).encode())
        for left in ("examples.npy", "train.state"):
            (folder / left).unlink(missing_ok=True)
    return RecipeWeights(files={PART: path}, record=record, origin="here", note=note)


def generator_ahead(
    row: Row,
    *,
    vae: Path,
    data: ImageSet,
    budget: Budget,
    main: Path | None = None,
    shipped: Shipped | None = None,
) -> RecipeWeights | None:
    """What `generator_weights` would find and not train; None where it would have to train."""
    ready, _ = _shipped(row, shipped, vae=vae, data=data, main=main)
    if ready is not None:
        return ready
    key = _key(row, vae=vae, data=data, budget=budget, main=main)
    return cached(cache_folder("weights") / key, {PART}, {})


def generator_parts(budget: Budget) -> Sizes:
    """What the live display counts of such a training."""
    return {EXAMPLES: [budget.images_seen], TRAINING: [budget.steps]}


def _shipped(
    row: Row, shipped: Shipped | None, *, vae: Path, data: ImageSet, main: Path | None
) -> tuple[RecipeWeights | None, str | None]:
    """Under its plugin's name, since points of it share a training."""

    def key(those: Shipped) -> str:
        return _key(row, vae=vae, data=data, budget=replace(GENERATOR, seed=those.budget.seed), main=main)

    return shipped_weights(shipped, row.plugins[0].name, key=key, pretrained={})


def _of(row: Row, budget: Budget, data: ImageSet) -> Budget:
    """What the full model made of a label says nothing of images without one, and it makes as many as are asked for."""
    return on_all_of(data, budget) if taught(row) is None else replace(budget, class_drop=0.0)


def _key(row: Row, *, vae: Path, data: ImageSet, budget: Budget, main: Path | None) -> str:
    owned, generator = row.policies.generator, trained_generator(row)
    assert owned is not None and generator is not None
    content = {
        "generator": owned.plugin,
        "training": owned.ask(lambda: dict(generator.training)),
        "budget": asdict(_of(row, budget, data)),
        "data": data.fingerprint,
        "model": row.model.to_json(),
        "vae": file_hash(vae),
    }
    if learns := taught(row):
        assert main is not None
        content |= {"making": learns.ask(lambda: dict(learns.policy.making)), "main": file_hash(main)}
    return json_digest(content)[:32]


class _Work:
    """One training. What is learnt, and what network by, is told by those that derive from it."""

    source: str
    network: nn.Module

    def __init__(self, row: Row, tokenizer: Tokenizer, budget: Budget) -> None:
        generator = trained_generator(row)
        assert generator is not None
        self.name, self.classes = row.plugins[0].name, row.model.classes
        """Of the plugin, since points of it share a training."""
        self.generator, self.tokenizer, self.budget = generator, tokenizer, budget
        self.device = tokenizer.quant_conv.weight.device

    def learnt(self, display: Display) -> tuple[Examples, Labels]:
        """Examples and labels to train on; from then on there is a network."""
        raise NotImplementedError

    def held_out(self) -> tuple[Examples, Labels]:
        raise NotImplementedError

    @property
    def told(self) -> dict[str, Any]:
        """What the record says beside."""
        return {}

    def made_network(self, seen: Tensor) -> nn.Module:
        with torch.no_grad():
            network: nn.Module = self.generator.network_for(self.tokenizer, seen, seed=self.budget.seed)
        return network.to(self.device)

    def train(
        self, examples: Examples, labels: Labels, checkpoints: Checkpoints, progress: Progress, *, key: str
    ) -> dict[str, Any]:
        budget = self.budget

        def loss(step: int, share: Share) -> tuple[str, Tensor]:
            rows = batch_rows(seed=budget.seed, step=step, batch=budget.batch, count=len(examples))
            drops = class_drops(seed=budget.seed, step=step, batch=budget.batch, probability=budget.class_drop)
            rows, drops = share.rows(rows), share.rows(drops)
            return "full", self._losses(examples[rows], np.where(drops, self.classes, labels[rows])).mean()

        looks = frozenset(round(budget.steps * look / budget.looks) for look in range(budget.looks + 1) if budget.looks)
        held_out = self.held_out() if looks else None
        return optimise(
            self.network,
            loss=loss,
            name=self.name,
            budget=budget,
            checkpoints=checkpoints,
            progress=progress,
            identity={"key": key},
            evaluation=HeldOut(steps=looks, figures=partial(self._held_out_loss, *held_out)) if held_out else None,
        )

    def _losses(self, examples: Examples, labels: Labels) -> Tensor:
        kind = DTYPES[self.budget.dtype]
        given = (torch.from_numpy(examples.astype(np.int64)).to(self.device), torch.from_numpy(labels).to(self.device))
        with torch.autocast(self.device.type, dtype=kind) if kind != torch.float32 else nullcontext():
            return self.generator.losses(self.network, *given)

    @torch.no_grad()
    def _held_out_loss(self, examples: Examples, labels: Labels, network: nn.Module) -> list[dict[str, Any]]:
        if not len(examples):
            return []
        losses = self._losses(examples, labels).float().cpu()
        mean, half = float(losses.mean()), 1.96 * float(losses.std()) / len(losses) ** 0.5
        return [{"point": "full", "value": mean, "low": mean - half, "high": mean + half, "n": len(losses)}]


class _FromImages(_Work):
    """What is learnt are images, as the network's own way to code them has them."""

    def __init__(self, row: Row, data: ImageSet, tokenizer: Tokenizer, budget: Budget, *, kept: Path) -> None:
        super().__init__(row, tokenizer, budget)
        self.data, self.kept, self.source = data, kept, data.name

    def learnt(self, display: Display) -> tuple[Examples, Labels]:
        with torch.no_grad():
            seen = torch.cat([images for images, _ in self._images(self.data.training[:LOOKED_AT])])
        self.network = self.made_network(seen)
        indices = self.data.training[: self.budget.images_seen]
        if not self.kept.exists():
            with followed(display, EXAMPLES, self.source, steps=len(indices)) as progress:
                examples = self._examples(indices, progress)
            with whole_file(self.kept) as file:
                np.save(file, examples)
        display.spare(EXAMPLES, len(indices))
        return np.load(self.kept), self.data.labels(indices)

    def held_out(self) -> tuple[Examples, Labels]:
        indices = self.data.validation[: evaluation.IMAGES]
        return self._examples(indices), self.data.labels(indices)

    @torch.no_grad()
    def _examples(self, indices: range, progress: Progress = lambda step, figures: None) -> Examples:
        found = []
        for images, done in self._images(indices):
            found.append(self.generator.examples(self.network, self.tokenizer, images).cpu().numpy())
            progress(done, {})
        return np.concatenate(found) if found else np.zeros((0, 0), np.int64)

    def _images(self, indices: range) -> Iterator[tuple[Tensor, int]]:
        """A part at a time, in [-1, 1], and how many there were until then."""
        for start in range(0, len(indices), _CHUNK):
            images = torch.from_numpy(self.data.images(indices[start : start + _CHUNK])).to(self.device)
            yield images.float() / 127.5 - 1, min(start + _CHUNK, len(indices))


class _FromModel(_Work):
    """What is learnt is what the full model made."""

    source = "the full model"

    def __init__(self, row: Row, made: MadeExamples, tokenizer: Tokenizer, budget: Budget) -> None:
        super().__init__(row, tokenizer, budget)
        self.made = made

    def learnt(self, display: Display) -> tuple[Examples, Labels]:
        numbers = range(self.budget.images_seen)
        with followed(display, EXAMPLES, self.source, steps=len(numbers)) as progress:
            examples = self.made.load(numbers, progress=progress, display=display)
        self.network = self.made_network(torch.from_numpy(examples).to(self.device))
        return examples, labels_of(numbers, classes=self.classes)

    def held_out(self) -> tuple[Examples, Labels]:
        numbers = range(HELD_OUT, HELD_OUT + evaluation.IMAGES)
        return self.made.load(numbers), labels_of(numbers, classes=self.classes)

    @property
    def told(self) -> dict[str, Any]:
        numbers = range(self.budget.images_seen)
        told = {"key": self.made.key, "count": len(numbers), "seconds": self.made.seconds(numbers)}
        return {"examples": told}
