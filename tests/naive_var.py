"""Generation written out row by row and head by head, with lists for caches: what clever code is compared with.

Codes are given, so that it returns logits. Methods come in as plain functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.engine.pipeline import Pipeline

Entry = tuple[Tensor, Tensor, int]
"""Key, value and scale of one cached token."""

Chosen = Callable[[int, int, Tensor], "list[int] | None"]
"""(layer, scale, one row's tokens) -> those to compute, or all."""
Restored = Callable[[Tensor, int], Tensor]
"""(one row's remembered output, side) -> an output for every token of a map of that side."""
Noting = Callable[[int, int, str, Tensor, Tensor, "Tensor | None"], "Tensor | None"]
"""(layer, scale, name, one row's tokens, what the sub-layer adds, what was noted before) -> what is noted from then on."""
ByNotes = Callable[[int, int, str, "Tensor | None"], "list[int] | None"]
"""(layer, scale, name, what was noted) -> the tokens to compute, or all; the others are left as they are."""
Kept = Callable[[int, int, "list[Entry]", Tensor], "list[Entry]"]
"""(layer, scale, one head's entries, its queries) -> the entries that stay."""


def logits(
    pipe: Pipeline,
    tokens: Tensor,
    labels: Sequence[int],
    *,
    cfg: float,
    share: Callable[[int], float] | None = None,
    one_attention: Callable[[int], bool] = lambda scale: False,
    layers: Sequence[int] | None = None,
    layers_at: Callable[[int], Sequence[int]] | None = None,
    again: Callable[[int], Sequence[int]] = lambda scale: (),
    left_out: Callable[[int, int, str], bool] = lambda layer, scale, name: False,
    chosen: Chosen = lambda layer, scale, x: None,
    shared: bool = False,
    remembered_scale: int | None = None,
    restored: Restored | None = None,
    noting: Noting = lambda layer, scale, name, x, output, noted: None,
    by_notes: ByNotes | None = None,
    kept: Kept = lambda layer, scale, entries, queries: entries,
) -> Tensor:
    model, net, quantizer = pipe.model, pipe.backbones["main"], pipe.tokenizer.quantize
    rows = [*labels, *[model.classes] * len(labels)]
    side = model.sides[-1]
    f_hat = torch.zeros(len(labels), model.tokenizer.code_dim, side, side)
    cache: dict[tuple[int, int, int], list[Entry]] = {}
    memory: dict[tuple[int, int, str], Tensor] = {}
    notes: dict[tuple[int, int, str], Tensor | None] = {}
    inputs: dict[int, Tensor] = {}
    """By scale, the features of its tokens, as they were when it was sampled."""
    attended: dict[tuple[int, int, int], Tensor] = {}
    """By scale, layer and image, what the labelled branch's attention gave before it was gated."""
    found = []
    for scale in range(model.scales):
        start, end = model.starts[scale], model.starts[scale + 1]
        by_row = []
        inputs[scale] = quantizer.features(f_hat, scale) if scale else f_hat
        encoded = [*again(scale), scale]
        of = [one for one in encoded for _ in range(model.tokens[one])]
        for row, label in enumerate(rows):
            cond = net.condition(torch.tensor([label]))
            image, parts = row % len(labels), []
            for one in encoded:
                later = inputs[one][image : image + 1]
                parts.append(
                    net.later_tokens(later, model.starts[one], torch.float32) if one else net.first_tokens(cond)
                )
            x = torch.cat([part[0] for part in parts])
            run = range(model.depth) if layers is None else layers
            for layer in layers_at(scale) if layers_at is not None else run:
                block = net.blocks[layer]
                gamma1, gamma2, scale1, scale2, shift1, shift2 = (
                    t[0, 0] for t in block.modulation(cond, net.shared_modulation(cond, torch.float32), torch.float32)
                )
                for name in ("attention", "ffn"):
                    if left_out(layer, scale, name):
                        continue
                    if name == "attention" or not shared:
                        places = chosen(layer, scale, x)
                    if by_notes is not None:
                        places = by_notes(layer, scale, name, notes.get((row, layer, name)))
                    part = x if places is None else x[places]
                    hidden = F.layer_norm(part, (model.width,), eps=1e-6)
                    if name == "attention" and row >= len(labels) and one_attention(scale):
                        output = attended[scale, layer, row - len(labels)] * gamma1
                    elif name == "attention":
                        q, k, v = (t[0] for t in block.attn.qkv((hidden * scale1 + shift1)[None], torch.float32))
                        heads = []
                        for head in range(model.heads):
                            entries = cache.setdefault((row, layer, head), [])
                            entries[:] = [entry for entry in entries if entry[2] not in encoded]
                            entries += [(k[head, i], v[head, i], of[i - len(part)]) for i in range(len(part))]
                            keys, values = torch.stack([e[0] for e in entries]), torch.stack([e[1] for e in entries])
                            scores = q[head] @ keys.T * block.attn.softmax_scale
                            for i in range(len(part)):
                                for at, entry in enumerate(entries):
                                    if entry[2] > of[i - len(part)]:
                                        scores[i, at] = -math.inf
                            heads.append(scores.softmax(dim=-1) @ values)
                            cache[row, layer, head] = kept(layer, scale, entries, q[head])
                        given = F.linear(torch.cat(heads, dim=-1), block.attn.proj.weight, block.attn.proj.bias)
                        attended[scale, layer, row] = given
                        output = given * gamma1
                    else:
                        output = block.ffn(hidden * scale2 + shift2, torch.float32) * gamma2
                    if places is not None:
                        whole = torch.zeros_like(x)
                        if restored is not None:
                            whole = restored(memory[row, layer, name], math.isqrt(len(x)))
                        for place, computed in zip(places, output, strict=True):
                            whole[place] = computed
                        output = whole
                    if scale == remembered_scale:
                        memory[row, layer, name] = output
                    before = notes.get((row, layer, name))
                    notes[row, layer, name] = noting(layer, scale, name, x, output, before)
                    x = x + output
            by_row.append(
                net.logits(x[None, start - end :], net.head_nm.modulation(cond, torch.float32), torch.float32)[0]
            )
        t = cfg * (share(scale) if share is not None else scale / (model.scales - 1))
        halves = torch.stack(by_row).split(len(labels))
        found.append((1 + t) * halves[0] - t * halves[1])
        f_hat = f_hat + quantizer.contribution(tokens[:, start:end], scale)
    return torch.cat(found, dim=1)
