"""How a call's queries attend to keys and values: one place and one rule, the same for every method.

As torch does it, but for bfloat16 on processors that multiply it and have no tiles for that (AMX): there torch's kernel takes
half as long again as products that are written out for a few heads at a time, whose scores stay in the processor's cache. Scores and
softmax are float32 either way, and weights are rounded to bfloat16 before they meet the values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import wrap_torch_function

from varbench.model import c_kernels, fused

WRITTEN_OUT = "written out for a few heads at a time"
"""What the record calls the second way."""
PART = 3 << 20
"""Bytes of scores that are there at once."""
FEWEST = 20_000
"""Scores of a head, below which torch's kernel is as fast."""


_WANTED = c_kernels.processor_has("avx512_bf16") and not c_kernels.processor_has("amx_tile")


def is_in_c(q_RHLc: Tensor, k_RHnc: Tensor, v_RHnc: Tensor, *, masked: bool) -> bool:
    ours = fused.kernels(q_RHLc, q_RHLc.dtype)
    return ours is c_kernels and not masked and c_kernels.attends(q_RHLc, k_RHnc, v_RHnc)


def is_written_out(q_RHLc: Tensor, k_RHnc: Tensor) -> bool:
    fits = q_RHLc.device.type == "cpu" and q_RHLc.dtype == torch.bfloat16
    return _WANTED and fits and not fused.plain() and q_RHLc.shape[2] * k_RHnc.shape[2] >= FEWEST


def _tensors(
    q_RHLc: Tensor, k_RHnc: Tensor, v_RHnc: Tensor, *, attn_mask: Tensor | None = None, scale: float
) -> tuple[Tensor, ...]:
    return q_RHLc, k_RHnc, v_RHnc


@wrap_torch_function(_tensors)
def attention(
    q_RHLc: Tensor, k_RHnc: Tensor, v_RHnc: Tensor, *, attn_mask: Tensor | None = None, scale: float
) -> Tensor:
    """(R, H, L, c), under the words of torch's own. A mode of torch sees it as one function, whatever is done inside."""
    if is_in_c(q_RHLc, k_RHnc, v_RHnc, masked=attn_mask is not None):
        return c_kernels.attention(q_RHLc, k_RHnc, v_RHnc, scale=scale)
    if not is_written_out(q_RHLc, k_RHnc):
        return F.scaled_dot_product_attention(q_RHLc, k_RHnc, v_RHnc, attn_mask=attn_mask, scale=scale)
    unseen = None if attn_mask is None else ~attn_mask
    mixed_RHLc = torch.empty_like(q_RHLc, memory_format=torch.contiguous_format)
    heads = max(1, PART // (4 * q_RHLc.shape[2] * k_RHnc.shape[2]))
    for row, v_Hnc in enumerate(v_RHnc):
        for first in range(0, len(v_Hnc), heads):
            part = slice(first, first + heads)
            q_hLc, k_hnc = q_RHLc[row, part].float(), k_RHnc[row, part].float()
            scores_hLn = torch.bmm(q_hLc, k_hnc.transpose(1, 2))
            if scale != 1:
                scores_hLn *= scale
            if unseen is not None:
                scores_hLn.masked_fill_(unseen, -torch.inf)
            torch.softmax(scores_hLn, -1, out=scores_hLn)
            torch.bmm(scores_hLn.to(q_RHLc.dtype), v_Hnc[part], out=mixed_RHLc[row, part])
    return mixed_RHLc
