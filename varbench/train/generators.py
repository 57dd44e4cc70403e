"""Trained weights of a generator that builds on the preset's tokenizer: from the cache, else trained now as recipes are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from varbench.base.hashing import file_hash, json_digest
from varbench.base.places import cache_folder
from varbench.base.turns import one_at_a_time
from varbench.base.whole_files import whole_file
from varbench.data.image_set import ImageSet
from varbench.model.checkpoints import build_tokenizer, load_tokenizer
from varbench.model.tokenizer import Tokenizer
from varbench.plan import presets
from varbench.policies import TrainedGenerator
from varbench.rows.grammar import Row
from varbench.train import evaluation
from varbench.train.export import export
from varbench.train.order import batch_rows, class_drops
from varbench.train.progress import Progress, said_now_and_then, shown
from varbench.train.ranks import Share
from varbench.train.recipes import RecipeWeights, cached
from varbench.train.states import Checkpoints
from varbench.train.trainer import DTYPES, Budget, HeldOut, optimise

PART = "generator"
"""What its weights are called among a row's files."""
LOOKED_AT = 1024
"""Training images that are shown to a generator before its network is made."""
_CHUNK = 64


def trained_generator(row: Row) -> TrainedGenerator | None:
    """The row's generator, where it is one whose network is trained here."""
    owned = row.policies.generator
    return owned.policy if owned is not None and isinstance(owned.policy, TrainedGenerator) else None


def generator_weights(
    row: Row, *, vae: Path, data: ImageSet, budget: Budget, device: str = "cpu", events: Path | None = None
) -> RecipeWeights:
    """The weights of the row's generator, trained from nothing if they are not in the cache."""
    generator = trained_generator(row)
    assert generator is not None
    key = _key(row, vae=vae, data=data, budget=budget)
    folder = cache_folder("weights") / key
    path, record_path = folder / f"{PART}.safetensors", folder / presets.RECORD

    if found := cached(folder, {PART}, {}):
        return found
    waiting = said_now_and_then(f"{row.name} is being trained by another process; waiting for it")
    with one_at_a_time(folder / "lock", while_waiting=waiting):
        if found := cached(folder, {PART}, {}):
            return found
        _, state = load_tokenizer(vae)
        tokenizer = build_tokenizer(row.model, state, vae).to(device)
        work = _Work(row.name, generator, tokenizer, data, budget, device)
        examples_path, state_path = folder / "examples.npy", folder / "train.state"
        if not examples_path.exists():
            with shown(f"examples of {data.name}", steps=budget.images_seen) as progress:
                examples = work.examples(data.training[: budget.images_seen], progress)
            with whole_file(examples_path) as file:
                np.save(file, examples)
        with shown(row.name, steps=budget.steps, batch=budget.batch, events=events) as progress:
            stage = work.train(np.load(examples_path), Checkpoints(state_path), progress, key=key)
        record = {"row": row.name, "key": key, "data": data.fingerprint, "stages": {"train": stage}}
        export(work.network, path, spec=row.model, record=record)
        # Written last: its presence says that the weights beside it are complete.
        with whole_file(record_path) as file:
            file.write(json.dumps(record, indent=1).encode())
        for left in (examples_path, state_path):
            left.unlink(missing_ok=True)
    return RecipeWeights(files={PART: path}, record=record, origin="here")


def generator_ahead(row: Row, *, vae: Path, data: ImageSet, budget: Budget) -> RecipeWeights | None:
    """What `generator_weights` would find and not train; None where it would have to train."""
    return cached(cache_folder("weights") / _key(row, vae=vae, data=data, budget=budget), {PART}, {})


def _key(row: Row, *, vae: Path, data: ImageSet, budget: Budget) -> str:
    owned, generator = row.policies.generator, trained_generator(row)
    assert owned is not None and generator is not None
    content = {
        "generator": owned.plugin,
        "training": owned.ask(lambda: dict(generator.training)),
        "budget": asdict(budget),
        "data": data.fingerprint,
        "model": row.model.to_json(),
        "vae": file_hash(vae),
    }
    return json_digest(content)[:32]


class _Work:
    """One training, its network made and its examples at hand."""

    def __init__(
        self, name: str, generator: TrainedGenerator, tokenizer: Tokenizer, data: ImageSet, budget: Budget, device: str
    ) -> None:
        self.name, self.generator, self.tokenizer, self.data, self.budget = name, generator, tokenizer, data, budget
        self.device = torch.device(device)
        with torch.no_grad():
            looked_at = torch.cat([images for images, _ in self._images(data.training[:LOOKED_AT])])
            self.network: nn.Module = generator.network_for(tokenizer, looked_at, seed=budget.seed).to(self.device)

    def _images(self, indices: range) -> Iterator[tuple[Tensor, int]]:
        """A part at a time, in [-1, 1], and how many there were until then."""
        for start in range(0, len(indices), _CHUNK):
            images = torch.from_numpy(self.data.images(indices[start : start + _CHUNK])).to(self.device)
            yield images.float() / 127.5 - 1, min(start + _CHUNK, len(indices))

    @torch.no_grad()
    def examples(self, indices: range, progress: Progress = lambda done, figures: None) -> NDArray[np.int64]:
        found = []
        for images, done in self._images(indices):
            found.append(self.generator.examples(self.network, self.tokenizer, images).cpu().numpy())
            progress(done, {})
        return np.concatenate(found)

    def train(
        self, examples: NDArray[np.int64], checkpoints: Checkpoints, progress: Progress, *, key: str
    ) -> dict[str, Any]:
        budget, classes = self.budget, len(self.data.classes)
        labels = self.data.labels(self.data.training[: budget.images_seen])

        def loss(step: int, share: Share) -> tuple[str, Tensor]:
            rows = batch_rows(seed=budget.seed, step=step, batch=budget.batch, count=len(examples))
            drops = class_drops(seed=budget.seed, step=step, batch=budget.batch, probability=budget.class_drop)
            rows, drops = share.rows(rows), share.rows(drops)
            return "full", self._losses(examples[rows], np.where(drops, classes, labels[rows])).mean()

        held_out = self.data.validation[: evaluation.IMAGES]
        looks = frozenset(round(budget.steps * look / budget.looks) for look in range(budget.looks + 1) if budget.looks)
        return optimise(
            self.network,
            loss=loss,
            name=self.name,
            budget=budget,
            checkpoints=checkpoints,
            progress=progress,
            identity={"key": key},
            evaluation=HeldOut(steps=looks, figures=partial(self._held_out, held_out)) if len(held_out) else None,
        )

    def _losses(self, examples: NDArray[np.int64], labels: NDArray[np.int64]) -> Tensor:
        kind = DTYPES[self.budget.dtype]
        given = (torch.from_numpy(examples).to(self.device), torch.from_numpy(labels).to(self.device))
        with torch.autocast(self.device.type, dtype=kind) if kind != torch.float32 else nullcontext():
            return self.generator.losses(self.network, *given)

    @torch.no_grad()
    def _held_out(self, indices: range, network: nn.Module) -> list[dict[str, Any]]:
        losses = self._losses(self.examples(indices), self.data.labels(indices)).float().cpu()
        mean, half = float(losses.mean()), 1.96 * float(losses.std()) / len(losses) ** 0.5
        return [{"point": "full", "value": mean, "low": mean - half, "high": mean + half, "n": len(losses)}]
