"""Fits the tensors of a checkpoint to a model: sizes are read off their shapes, and every misfit is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from varbench.errors import CheckpointError
from varbench.model.state_files import Tensors, listed, not_finite, read_state
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import OwnNumbers, Transformer
from varbench.spec import SIDES_256, SIDES_512, ModelSpec, TokenizerSpec

Module = TypeVar("Module", bound=nn.Module)

_KNOWN_SIDES = {sum(side * side for side in sides): sides for sides in (SIDES_256, SIDES_512)}
# Kept in official files, but derived here: the mask, and the bias of k that is always zero.
_OWN = re.compile(r"^own\.([^/]+)/(\w+)$")
"""Numbers that a method keeps beside the weights."""
_DERIVED = re.compile(r"^(lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias)$")


def tokenizer_spec(state: Tensors, path: str | Path) -> TokenizerSpec:
    """Sizes of the tokenizer, read off the shapes."""
    channels = _shape(state, "encoder.conv_in.weight", path)[0]
    levels = 1 + max((int(m[1]) for m in map(re.compile(r"^encoder\.down\.(\d+)\.").match, state) if m), default=0)
    blocks = 1 + max(
        (int(m[1]) for m in map(re.compile(r"^encoder\.down\.0\.block\.(\d+)\.").match, state) if m), default=0
    )
    widths = [_shape(state, f"encoder.down.{level}.block.0.conv1.weight", path)[0] for level in range(levels)]
    vocabulary, code_dim = _shape(state, "quantize.embedding.weight", path)
    phis = sum(1 for name in state if re.match(r"^quantize\.quant_resi\.qresi_ls\.\d+\.weight$", name))
    if not phis:
        raise CheckpointError(f"{path}: no quantize.quant_resi.qresi_ls.*; only partially shared phi is supported")
    return TokenizerSpec(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=blocks,
        code_dim=code_dim,
        vocabulary=vocabulary,
        phis=phis,
    )


def model_spec(
    state: Tensors, tokenizer: TokenizerSpec, path: str | Path, *, num_heads: int | None = None
) -> ModelSpec:
    """Sizes of the transformer: shapes, and the scales from `lvl_1L` or a known length."""
    width = _shape(state, "word_embed.weight", path)[0]
    depth = 1 + max((int(m[1]) for m in map(re.compile(r"^blocks\.(\d+)\.").match, state) if m), default=-1)
    if not depth:
        raise CheckpointError(f"{path}: no blocks.*; is this a VAR transformer's state dict?")
    scale_mul = state.get("blocks.0.attn.scale_mul_1H11")
    if scale_mul is not None:
        heads = scale_mul.shape[1]
        if num_heads not in (None, heads):
            raise CheckpointError(f"{path}: has {heads} heads, but num_heads={num_heads} was given; leave it out")
    else:
        heads = num_heads or max(width // 64, 1)
    if width % heads:
        raise CheckpointError(f"{path}: width {width} cannot be split into {heads} heads; give num_heads=")
    return ModelSpec(
        name=Path(path).stem,
        sides=_sides(state, path),
        depth=depth,
        width=width,
        heads=heads,
        classes=_shape(state, "class_emb.weight", path)[0] - 1,
        shared_adaln="shared_ada_lin.1.weight" in state,
        l2_attention=scale_mul is not None,
        mlp_ratio=_shape(state, "blocks.0.ffn.fc1.weight", path)[0] / width,
        tokenizer=tokenizer,
    )


def _sides(state: Tensors, path: str | Path) -> tuple[int, ...]:
    length = _shape(state, "pos_1LC", path)[1]
    levels = state.get("lvl_1L")
    if levels is None:
        if length not in _KNOWN_SIDES:
            raise CheckpointError(
                f"{path}: no lvl_1L, and {length} tokens fit no known list of scales ({_KNOWN_SIDES})"
            )
        return _KNOWN_SIDES[length]
    counts = torch.bincount(levels.flatten().long()).tolist()
    sides = tuple(round(count**0.5) for count in counts)
    if [side * side for side in sides] != counts or sum(counts) != length:
        raise CheckpointError(f"{path}: lvl_1L gives scales of {counts} tokens for {length} places; not square maps")
    return sides


def _shape(state: Tensors, name: str, path: str | Path) -> torch.Size:
    if name not in state:
        kinds = {"encoder.conv_in.weight": "a tokenizer (--vae)", "word_embed.weight": "a transformer (--weights)"}
        held = next((f"it holds {kind}" for marker, kind in kinds.items() if marker in state and marker != name), None)
        hint = f"{held}; are two files swapped?" if held else "is this the right file for this model?"
        raise CheckpointError(f"{path}: tensor {name!r} is missing; {hint}")
    return state[name].shape


def fill(module: Module, state: Tensors, path: str | Path) -> Module:
    """Loads a module built on the meta device; what is missing, surplus, misshapen or not finite is named."""
    expected = module.state_dict()
    state = {name: tensor for name, tensor in state.items() if not _DERIVED.match(name)}
    missing = [name for name in expected if name not in state]
    surplus = [name for name in state if name not in expected]
    misshapen = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    faults = [
        f"{len(names)} {what} ({listed(names)})"
        for what, names in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if names
    ]
    if faults:
        raise CheckpointError(f"{path}: does not fit the model: {'; '.join(faults)}")
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if broken := not_finite(floats.items()):
        raise CheckpointError(
            f"{path}: {len(broken)} of {len(floats)} tensors hold NaN or infinite values ({listed(broken)}), so nothing "
            "can be generated from them; take a checkpoint from before its training diverged"
        )
    module.load_state_dict(floats, assign=True)
    return module.requires_grad_(False).eval()


def load_tokenizer(path: str | Path) -> tuple[TokenizerSpec, Tensors]:
    state = read_state(path, part="vae_local")
    return tokenizer_spec(state, path), state


def build_tokenizer(spec: ModelSpec, state: Tensors, path: str | Path) -> Tokenizer:
    """The tokenizer for a model's scales. Usage counts of other scales than these are of no use and left out."""
    with torch.device("meta"):
        module = Tokenizer.for_model(spec)
    expected = module.quantize.ema_vocab_hit_SV.shape
    hits: Any = state.get("quantize.ema_vocab_hit_SV")
    if hits is None or hits.shape != expected:
        state = {**state, "quantize.ema_vocab_hit_SV": torch.zeros(expected)}
    return fill(module, state, path)


def load_transformer(path: str | Path, tokenizer: TokenizerSpec, *, num_heads: int | None = None) -> Transformer:
    state = read_state(path, part="var_wo_ddp")
    spec = model_spec(state, tokenizer, path, num_heads=num_heads)
    with torch.device("meta"):
        module = Transformer(spec)
        own = {match[2]: (match[1], tensor) for name, tensor in state.items() if (match := _OWN.match(name))}
        for plugin in {plugin for plugin, _ in own.values()}:
            empty = {name: torch.empty_like(tensor, device="meta") for name, (_, tensor) in own.items()}
            module.own = OwnNumbers(plugin.replace(":", "."), empty)
    return fill(module, state, path)
