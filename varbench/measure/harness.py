"""What measuring itself costs: a subject that does nothing, timed as every row is."""

from __future__ import annotations

import torch

from varbench.base import stats
from varbench.engine.loop import Observer
from varbench.engine.subjects import Answer, Ask
from varbench.measure.timed_call import timed
from varbench.plan import presets
from varbench.spec import ModelSpec

CALLS = 200


class Nothing:
    """Has its image already, and one step in which nothing happens."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.model: ModelSpec = presets.preset(presets.DEFAULT).spec
        side = self.model.image_side
        self._images = torch.zeros(1, 3, side, side, device=self.device)

    def prepare(self, ask: Ask) -> None:
        pass

    def make(self, ask: Ask, *, observer: Observer | None = None) -> Answer:
        if observer is not None:
            for moment in ("start", "logits", "end"):
                observer(moment, 0)
        return Answer(images=self._images, tokens=None, trace=None)


def null_cost(device: str = "cpu") -> stats.Interval:
    """Seconds that the harness adds to the columns of a call: the median time to images of a call that does nothing."""
    subject, ask = Nothing(device), Ask(row="", labels=(0,), seed=0)
    for _ in range(10):
        timed(subject, ask)
    samples = [timed(subject, ask)[2].decoded for _ in range(CALLS)]
    return stats.bootstrap_median([samples])
