"""Looks at a recipe's weights while they train: the loss on held-out images, of the full model and of its subnets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from varbench.engine.teacher import TeacherPass
from varbench.engine.trained_layer import Attend
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.train.tokens import TokenSet

IMAGES = 64
"""From the validation images. All recipes are looked at on the same ones, so few are enough to compare them."""


@torch.no_grad()
def held_out_losses(
    transformer: Transformer,
    *,
    passes: Mapping[str, TeacherPass],
    tokenizer: Tokenizer,
    tokens: TokenSet,
    dtype: torch.dtype,
    attend: Attend,
    chunk: int = 32,
) -> list[dict[str, Any]]:
    """Cross-entropy over all tokens at each point, with its 95 % interval over images."""
    device = transformer.pos_1LC.device
    found = []
    for point, forward in passes.items():
        each: list[torch.Tensor] = []
        for start in range(0, len(tokens), chunk):
            rows = slice(start, start + chunk)
            tokens_BL = torch.from_numpy(tokens.tokens_NL[rows].astype(np.int64)).to(device)
            labels_B = torch.from_numpy(tokens.labels_N[rows]).to(device)
            features_BLD = tokenizer.teacher_input(tokens_BL)
            logits_BLV = forward.logits(transformer, features_BLD, labels_B, dtype=dtype, attend=attend)
            each.append(
                F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten(), reduction="none")
                .view(len(tokens_BL), -1)
                .mean(dim=1)
                .cpu()
            )
        losses = torch.cat(each)
        mean, half = float(losses.mean()), 1.96 * float(losses.std()) / len(losses) ** 0.5
        found.append({"point": point, "value": mean, "low": mean - half, "high": mean + half, "n": len(losses)})
    return found
