"""Promises about what a generator learns from: what the full model makes for it is the same whenever it is made."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from varbench.check.sameness import EQUAL
from varbench.check.subject import LABELS, GeneratorRow, UnderTest
from varbench.engine.full_model import FullModel
from varbench.policies import MAIN, TaughtGenerator

FIRST = 10
"""Number of the first example that is made."""


def examples_are_their_numbers_own(subject: UnderTest) -> Iterator[str]:
    """Examples that the full model makes for a generator are whole numbers, and the same in any batch: kept ones are of use."""
    owned = subject.bench.again(subject.row).policies.generator
    if not isinstance(subject, GeneratorRow) or owned is None or not isinstance(owned.policy, TaughtGenerator):
        return
    pipe, generator = subject.bench.pipeline(subject.row), owned.policy
    teacher = FullModel(pipe.backbones[MAIN], pipe.tokenizer, dtype=torch.float32)
    generator.meet(teacher, tokenizer=pipe.tokenizer)

    def made(begin: int, end: int) -> Tensor:
        with torch.no_grad():
            return generator.made(torch.tensor(LABELS[begin:end]), range(FIRST + begin, FIRST + end))

    whole = made(0, len(LABELS))
    if whole.ndim != 2 or len(whole) != len(LABELS) or whole.is_floating_point():
        yield f"{len(LABELS)} examples are {tuple(whole.shape)} of {whole.dtype}; give ({len(LABELS)}, n) whole numbers"
        return
    same = float((torch.cat((made(0, 1), made(1, len(LABELS)))) == whole).float().mean())
    if same < EQUAL:
        yield f"made in other batches, {100 * same:.1f} % of the examples' numbers are the same; {100 * EQUAL:.1f} % must be"
