"""Everything that depends on weights and labels alone, computed once a generation; the unlabelled row once for the batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from varbench.model.fused import by_kernels
from varbench.model.transformer import Layer, Transformer


@dataclass
class Conditioning:
    """Letters: R rows (labelled half first, then unlabelled), L tokens, C width."""

    first_RLC: Tensor | None
    """The first scale's tokens, until they were taken."""
    blocks: dict[int, tuple[Tensor, ...]]
    """By layer, six vectors a row, each in the type of what it changes (a type more in an operation costs a copy): gammas in
    the compute type, the others float32. Our kernels read any type and any layout: there all are in the compute type."""
    head: tuple[Tensor, Tensor]
    biases: dict[int, Tensor]
    """By layer, of queries, keys and values, the same for all rows."""

    @property
    def rows(self) -> int:
        return self.head[0].shape[0]

    def take_first(self) -> Tensor | None:
        first, self.first_RLC = self.first_RLC, None
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
            biases=self.biases,
        )


def first_again(backbone: Transformer, labels_B: Tensor, *, rows: int) -> Tensor:
    """The first scale's tokens once they were taken."""
    unlabelled = labels_B.new_full((rows - len(labels_B),), backbone.spec.classes)
    return backbone.first_tokens(backbone.condition(torch.cat((labels_B, unlabelled))))


def condition(
    backbone: Transformer, labels_B: Tensor, *, unlabelled: bool, layers: Collection[int], dtype: torch.dtype
) -> Conditioning:
    batch = labels_B.shape[0]
    labels = torch.cat((labels_B, labels_B.new_full((1,), backbone.spec.classes))) if unlabelled else labels_B

    cond = backbone.condition(labels)
    shared = backbone.shared_modulation(cond, dtype)
    rows = torch.arange(2 * batch if unlabelled else batch, device=labels.device).clamp_(max=len(labels) - 1)
    few = by_kernels(labels_B)  # operators: each costs a small batch more than what it computes

    def spread(tensor: Tensor) -> Tensor:
        if few:
            return tensor.index_select(0, rows)
        # Copied also where there is nothing to repeat: these are parts of larger tensors, which would live on.
        if not unlabelled:
            return tensor.clone()
        return torch.cat((tensor[:batch], tensor[batch:].expand(batch, *tensor.shape[1:])))

    def vectors(block: Layer) -> tuple[Tensor, ...]:
        if few:
            six = block.six(cond, shared, dtype)
            six[:, :, 2:4].add_(1)
            return spread(six).unbind(2)
        gamma1, gamma2, *others = block.modulation(cond, shared, dtype)
        return spread(gamma1), spread(gamma2), *(spread(tensor.float()) for tensor in others)

    head_scale, head_shift = backbone.head_nm.modulation(cond, dtype)
    return Conditioning(
        first_RLC=spread(backbone.first_tokens(cond)),
        blocks={layer: vectors(backbone.block(layer)) for layer in layers},
        head=(spread(head_scale), spread(head_shift)),
        biases={layer: backbone.block(layer).attn.bias().to(dtype) for layer in layers},
    )
