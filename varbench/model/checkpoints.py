"""Reads checkpoint files and fits them to a model: official `.pth`, plain or nested by the official trainer, and
`.safetensors`. Pickles are only ever opened with weights-only loading."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from varbench.errors import CheckpointError
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.spec import SIDES_256, SIDES_512, ModelSpec, TokenizerSpec

State = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)

_KNOWN_SIDES = {sum(side * side for side in sides): sides for sides in (SIDES_256, SIDES_512)}
# Kept in official files, but derived here: the mask, and the bias of k that is always zero.
_DERIVED = re.compile(r"^(lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias)$")


def read_state(path: str | Path, *, part: str) -> State:
    """Tensors of a checkpoint by name. `part` is the official trainer's key where the file is nested."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a .pth or .safetensors checkpoint")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, since it holds more than tensors and opening it could run code; save its state dict "
            "alone (torch.save(model.state_dict(), ...)) or as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({_first_line(error)}); is it complete?") from error
    if isinstance(data, Mapping) and isinstance(data.get("trainer"), Mapping):
        if part not in data["trainer"]:
            raise CheckpointError(
                f"{path}: saved by a trainer, but without {part!r}; it has {', '.join(data['trainer'])}"
            )
        data = data["trainer"][part]
    if not isinstance(data, Mapping) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise CheckpointError(f"{path}: holds no state dict; expected tensors by name, or an official trainer's file")
    return {str(name).removeprefix("module."): tensor for name, tensor in data.items()}


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable .safetensors file ({_first_line(error)}); is it complete?"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:120] or type(error).__name__


def tokenizer_spec(state: State, path: str | Path) -> TokenizerSpec:
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


def model_spec(state: State, tokenizer: TokenizerSpec, path: str | Path, *, num_heads: int | None = None) -> ModelSpec:
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


def _sides(state: State, path: str | Path) -> tuple[int, ...]:
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


def _shape(state: State, name: str, path: str | Path) -> torch.Size:
    if name not in state:
        kinds = {"encoder.conv_in.weight": "a tokenizer (--vae)", "word_embed.weight": "a transformer (--weights)"}
        held = next((f"it holds {kind}" for marker, kind in kinds.items() if marker in state and marker != name), None)
        hint = f"{held}; are two files swapped?" if held else "is this the right file for this model?"
        raise CheckpointError(f"{path}: tensor {name!r} is missing; {hint}")
    return state[name].shape


def fill(module: Module, state: State, path: str | Path) -> Module:
    """Loads a module built on the meta device; what is missing, surplus or misshapen is named."""
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
        f"{len(names)} {what} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
        for what, names in (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
        if names
    ]
    if faults:
        raise CheckpointError(f"{path}: does not fit the model: {'; '.join(faults)}")
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    module.load_state_dict(floats, assign=True)
    return module.requires_grad_(False).eval()


def load_tokenizer(path: str | Path) -> tuple[TokenizerSpec, State]:
    state = read_state(path, part="vae_local")
    return tokenizer_spec(state, path), state


def build_tokenizer(spec: ModelSpec, state: State, path: str | Path) -> Tokenizer:
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
    return fill(module, state, path)
