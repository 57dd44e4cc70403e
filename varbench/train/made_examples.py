"""What a preset's full model makes for a generator to learn from: made once, a part at a time, and kept for every training."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.base.display import Display, unseen
from varbench.base.hashing import file_hash, json_digest
from varbench.base.places import cache_folder
from varbench.base.turns import one_at_a_time
from varbench.base.whole_files import require_space, whole_file
from varbench.engine.full_model import FullModel
from varbench.model.checkpoints import load_transformer
from varbench.model.tokenizer import Tokenizer
from varbench.plan.owned import Owned
from varbench.policies import TaughtGenerator
from varbench.spec import ModelSpec
from varbench.train.progress import Progress

PART = 256
"""Examples a file: as many as an interruption can cost."""
HELD_OUT = PART << 20
"""Number of the first example that no training sees."""


def labels_of(numbers: range, *, classes: int) -> NDArray[np.int64]:
    """Every class in turn."""
    return np.arange(numbers.start, numbers.stop) % classes


class MadeExamples:
    """The examples of one generator on one full model, by their numbers; it meets the model here."""

    def __init__(
        self, owned: Owned[TaughtGenerator], *, model: ModelSpec, vae: Path, main: Path, tokenizer: Tokenizer
    ) -> None:
        self._owned, self._classes = owned, model.classes
        self._device = tokenizer.quant_conv.weight.device
        content = {
            "generator": owned.plugin,
            "making": owned.ask(lambda: dict(owned.policy.making)),
            "model": model.to_json(),
            "from": {"vae": file_hash(vae), "main": file_hash(main)},
        }
        self.key = json_digest(content)[:32]
        self._folder = cache_folder("examples") / self.key
        transformer = load_transformer(main, model.tokenizer).to(self._device)
        # In float32: what is learnt must not depend on what the machine is fast at.
        teacher = FullModel(transformer, tokenizer, dtype=torch.float32)
        owned.ask(lambda: owned.policy.meet(teacher, tokenizer=tokenizer))

    def load(
        self, numbers: range, *, progress: Progress = lambda step, figures: None, display: Display | None = None
    ) -> NDArray[np.int32]:
        """Those of `numbers`, which begin a part; what is not there yet is made, and all of the last part with it."""
        parts = []
        waiting = (display or unseen()).waiting("examples are being made by another process; waiting for them")
        for start in range(numbers.start, numbers.stop, PART):
            file = self._file(start)
            if not file.exists():
                lock = file.with_suffix(".lock")
                with one_at_a_time(lock, while_waiting=waiting):
                    if not file.exists():
                        self._make(file, range(start, start + PART))
                lock.unlink(missing_ok=True)
            with np.load(file) as part:
                parts.append(part["examples"])
            progress(min(start + PART, numbers.stop) - numbers.start, {})
        whole: NDArray[np.int32] = np.concatenate(parts)[: len(numbers)]
        return whole

    def seconds(self, numbers: range) -> float:
        """What making them took, whenever that was."""
        found = 0.0
        for start in range(numbers.start, numbers.stop, PART):
            with np.load(self._file(start)) as part:
                found += float(part["seconds"])
        return round(found, 1)

    def _file(self, start: int) -> Path:
        return self._folder / f"{start:09}.npz"

    def _make(self, file: Path, numbers: range) -> None:
        began = time.perf_counter()
        labels = torch.from_numpy(labels_of(numbers, classes=self._classes)).to(self._device)
        with torch.no_grad():
            made = self._owned.policy.made(labels, numbers).cpu().numpy().astype(np.int32)
        require_space(file.parent, needed=made.nbytes + 2**20, purpose="the cache of examples")
        with whole_file(file) as opened:
            np.savez(opened, examples=made, seconds=time.perf_counter() - began)
