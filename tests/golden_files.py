"""Golden files: what the official code returned, and the rule that made its weights."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer
from varbench.spec import ModelSpec, TokenizerSpec

FOLDER = Path(__file__).parent / "golden"


def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a golden file."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def rule(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that a full tensor name stands for."""
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype("float32")
    key = name.partition(".")[2]
    if key.endswith("scale_mul_1H11"):
        value = np.log(4) + 0.1 * n
    elif "norm" in key and key.endswith("weight"):
        value = 1 + 0.1 * n
    elif len(shape) <= 1 or key.endswith(("q_bias", "v_bias", ".bias")):
        value = 0.1 * n
    elif "embed" in key or "class_emb" in key or "pos_" in key:
        value = n if key == "quantize.embedding.weight" else 0.5 * n
    elif "ada_gss" in key:
        value = 0.3 * n
    else:
        value = n / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype="float32"))


def ruled_state(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {
        key: tensor.clone() if key.endswith("ema_vocab_hit_SV") else rule(f"{prefix}.{key}", tuple(tensor.shape))
        for key, tensor in module.state_dict().items()
    }


def tokenizer_spec(config: dict[str, Any]) -> TokenizerSpec:
    return TokenizerSpec(
        channels=config["ch"],
        code_dim=config["z_channels"],
        vocabulary=config["vocab_size"],
        phis=config["share_quant_resi"],
    )


def model_spec(config: dict[str, Any]) -> ModelSpec:
    return ModelSpec(
        name="golden",
        sides=tuple(config["patch_nums"]),
        depth=config["depth"],
        width=config["embed_dim"],
        heads=config["num_heads"],
        classes=config["num_classes"],
        shared_adaln=config["shared_aln"],
        l2_attention=config["attn_l2_norm"],
        mlp_ratio=config["mlp_ratio"],
        tokenizer=tokenizer_spec(config),
    )


def official_extras(spec: ModelSpec) -> dict[str, Tensor]:
    """Buffers that official transformer files hold beside the weights."""
    levels = torch.repeat_interleave(torch.arange(spec.scales), torch.tensor(spec.tokens))[None]
    mask = torch.where(levels[:, :, None] >= levels[:, None, :], 0.0, -torch.inf)[None]
    zeros = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(spec.width) for i in range(spec.depth)}
    return {"lvl_1L": levels, "attn_bias_for_masking": mask, **zeros}


def save_checkpoints(folder: Path, spec: ModelSpec, *, prefix: str = "var", name: str = "var") -> dict[str, Path]:
    """`vae.pth` and a transformer's file in official form, with weights by the rule."""
    vae, var = folder / "vae.pth", folder / f"{name}.pth"
    torch.save(ruled_state(Tokenizer.for_model(spec), "vae"), vae)
    torch.save({**ruled_state(Transformer(spec), prefix), **official_extras(spec)}, var)
    return {"vae": vae, "var": var}


def input_image(tensors: dict[str, Tensor], side: int) -> Tensor:
    """The stored image, or the rule of the second file."""
    if tensors.get("input_image") is not None and tensors["input_image"].shape[-1] == side:
        return tensors["input_image"]
    small = torch.from_numpy(np.random.RandomState(7).uniform(-1, 1, (2, 3, 8, 8)).astype("float32"))
    return F.interpolate(small, size=(side, side), mode="bicubic").clamp(-1, 1)
