"""Everything that depends on the labels alone, computed once a generation; the unlabelled row once for the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from varbench.model.transformer import Transformer


@dataclass
class Conditioning:
    """Letters: R rows (labelled half first, then unlabelled), L tokens, C width."""

    first_RLC: Tensor | None
    """The first scale's tokens, until they were taken."""
    blocks: dict[int, tuple[Tensor, ...]]
    """By layer, six vectors a row, each in the type of what it changes (a type more in an operation costs a copy): gammas in
    the compute type, the others float32."""
    head: tuple[Tensor, Tensor]

    @property
    def rows(self) -> int:
        return self.head[0].shape[0]

    def take_first(self) -> Tensor:
        first, self.first_RLC = self.first_RLC, None
        assert first is not None
        return first

    def narrowed(self, rows: int) -> Conditioning:
        """Of the first rows alone; copied, since a view would keep the others alive."""
        return self.of(lambda tensor: tensor[:rows].clone())

    def of(self, rows_of: Callable[[Tensor], Tensor]) -> Conditioning:
        """Of some of the rows, after the first scale."""
        return Conditioning(
            first_RLC=None,
            blocks={layer: tuple(rows_of(t) for t in six) for layer, six in self.blocks.items()},
            head=(rows_of(self.head[0]), rows_of(self.head[1])),
        )


def condition(
    backbone: Transformer, labels_B: Tensor, *, unlabelled: bool, layers: Iterable[int], dtype: torch.dtype
) -> Conditioning:
    batch = labels_B.shape[0]
    labels = torch.cat((labels_B, labels_B.new_tensor([backbone.spec.classes]))) if unlabelled else labels_B

    def spread(tensor: Tensor) -> Tensor:
        # Copied also where there is nothing to repeat: these are parts of larger tensors, which would live on.
        if not unlabelled:
            return tensor.clone()
        return torch.cat((tensor[:batch], tensor[batch:].expand(batch, *tensor.shape[1:])))

    def by_type(gamma1: Tensor, gamma2: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        return spread(gamma1), spread(gamma2), *(spread(tensor.float()) for tensor in others)

    cond = backbone.condition(labels)
    shared = backbone.shared_modulation(cond, dtype)
    head_scale, head_shift = backbone.head_nm.modulation(cond, dtype)
    return Conditioning(
        first_RLC=spread(backbone.first_tokens(cond)),
        blocks={layer: by_type(*backbone.block(layer).modulation(cond, shared, dtype)) for layer in layers},
        head=(spread(head_scale), spread(head_shift)),
    )
