"""Training of the multi-scale VQ-VAE. Letters as in `varbench.model.tokenizer`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.base.whole_files import require_space
from varbench.data.image_set import ImageSet
from varbench.errors import UserError
from varbench.model.tokenizer import Quantizer, Tokenizer
from varbench.spec import ModelSpec
from varbench.train.image_cache import training_images
from varbench.train.optimiser import RunningMean, adamw, divergence, rate_at, take_step
from varbench.train.order import batch_rows, other_stream
from varbench.train.progress import Progress
from varbench.train.state_parts import Numbers
from varbench.train.states import Checkpoints, ctrl_c_waits, load_state

_COMMITMENT = 0.25
_EDGES = 0.5
_USAGE_DECAY = 0.99
_HELD_OUT = 2_000


@dataclass(frozen=True, kw_only=True)
class TokenizerBudget:
    """How a tokenizer is trained. The defaults are what the shipped one was trained with."""

    steps: int = 4_000
    batch: int = 32
    images: int = 60_000
    """Distinct ones of a data set without an end, else all that it has, of which as many are read as the steps see."""
    seed: int = 0
    peak_rate: float = 8e-4
    warm_up: int = 100
    weight_decay: float = 0.01
    mean_decay: float = 0.998
    reseed_every: int = 50
    """Steps between looks at which codes are hardly used; those begin anew at what the batch holds."""
    reseed_until: float = 0.6
    """Share of the steps after which no code is replaced any more."""

    @property
    def images_seen(self) -> int:
        return min(self.images, self.steps * self.batch)


def train_tokenizer(
    model: ModelSpec,
    *,
    data: ImageSet,
    budget: TokenizerBudget,
    checkpoints: Checkpoints,
    progress: Progress,
    device: str = "cpu",
) -> tuple[Tokenizer, dict[str, Any]]:
    """Train on the training range of `data`; the module with its mean weights, and the record of how it came to be."""
    _check(model, data, budget)
    images = training_images(data, count=budget.images_seen)
    torch.manual_seed(budget.seed)
    module = Tokenizer.for_model(model).to(device).train()
    optimizer = adamw(module, weight_decay=budget.weight_decay)
    mean = RunningMean(module, decay=budget.mean_decay)
    numbers = Numbers(module, optimizer, mean)
    weight_bytes = sum(parameter.nbytes for parameter in module.parameters())
    require_space(checkpoints.path.parent, needed=8 * weight_bytes, purpose="the tokenizer's checkpoint")
    identity = {"model": model.to_json(), "data": data.fingerprint, "budget": asdict(budget)}
    begin, seconds = 0, 0.0
    if state := load_state(checkpoints.path, identity=identity):
        begin, seconds = state["step"], state["seconds"]
        numbers.load(state)

    started = time.perf_counter()
    with ctrl_c_waits() as interrupted:
        for step in range(begin, budget.steps):
            rows = batch_rows(seed=budget.seed, step=step, batch=budget.batch, count=len(images))
            batch_B3hw = torch.from_numpy(images[rows]).to(device).float() / 127.5 - 1
            if step % budget.reseed_every == 0 and step <= budget.reseed_until * budget.steps:
                _reseed(module, mean, batch_B3hw, stream=other_stream(seed=budget.seed, step=step), first=step == 0)
            loss, figures = _losses(module, batch_B3hw)
            loss.backward()
            rate = rate_at(step, steps=budget.steps, peak=budget.peak_rate, warm_up=budget.warm_up)
            gradient = take_step(optimizer, module.parameters(), rate=rate)
            if diverged := divergence(
                step, steps=budget.steps, peak=budget.peak_rate, loss=figures["loss"], gradient=gradient
            ):
                checkpoints.path.unlink(missing_ok=True)
                raise UserError(f"tokenizer: {diverged}")
            mean.update(step)
            progress(step + 1, figures)
            if checkpoints.due() or interrupted() or step + 1 == budget.steps:
                checkpoints.save(
                    {
                        "identity": identity,
                        "step": step + 1,
                        "seconds": seconds + time.perf_counter() - started,
                        **numbers.state(),
                    }
                )
            if interrupted():
                raise KeyboardInterrupt
    seconds += time.perf_counter() - started

    mean.swap()
    module.eval().requires_grad_(False)
    record = {
        "kind": "tokenizer",
        "data": data.fingerprint,
        **asdict(budget),
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "torch": torch.__version__,
        **held_out_figures(module, data=data, device=device),
    }
    return module, record


def held_out_figures(module: Tokenizer, *, data: ImageSet, device: str = "cpu") -> dict[str, float]:
    """Reconstruction of validation images, and how much of the codebook it uses."""
    wanted = data.validation[:_HELD_OUT]
    square, count = 0.0, 0
    used = torch.zeros(module.quantize.embedding.num_embeddings, dtype=torch.bool)
    dtype = module.quant_conv.weight.dtype
    for start in range(0, len(wanted), 200):
        pixels = torch.from_numpy(data.images(wanted[start : start + 200])).to(device)
        with torch.no_grad():
            tokens_BL = module.encode(pixels.to(dtype) / 127.5 - 1)
            made = module.decode(tokens_BL).mul(255).round()
        square += float((made - pixels).square().sum())
        count += pixels.numel()
        used[tokens_BL.cpu().unique()] = True
    return {
        "held_out_images": len(wanted),
        "psnr": round(float(10 * np.log10(255**2 / (square / count))), 3),
        "codes_used": int(used.sum()),
    }


def _losses(module: Tokenizer, batch_B3hw: Tensor) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast(batch_B3hw.device.type, torch.bfloat16):
        f_BDhw = module.latent(batch_B3hw)
    f_hat_BDhw, codes = _quantised(module.quantize, f_BDhw.float())
    with torch.autocast(batch_B3hw.device.type, torch.bfloat16):
        made_B3hw = module.decoder(module.post_quant_conv(f_hat_BDhw))
    error = made_B3hw.float() - batch_B3hw
    pixels = error.square().mean() + error.abs().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    loss = pixels + _EDGES * edges + codes
    psnr = 10 * float(torch.log10(4 / error.detach().square().mean()))
    return loss, {"loss": float(loss.detach()), "codes": float(codes.detach()), "psnr": psnr}


def _quantised(quantizer: Quantizer, f_BDhw: Tensor) -> tuple[Tensor, Tensor]:
    """`f_hat` with the gradient passed straight to the latent, and the loss that brings codes and latent together."""
    still_BDhw = f_BDhw.detach()
    rest = still_BDhw
    f_hat = torch.zeros_like(still_BDhw)
    loss = f_BDhw.new_zeros(())
    for scale, side in enumerate(quantizer.sides):
        with torch.no_grad():
            codes_N = quantizer.nearest(quantizer.places(rest, scale))
            hits_V = torch.bincount(codes_N, minlength=quantizer.embedding.num_embeddings).float()
            quantizer.ema_vocab_hit_SV[scale].lerp_(hits_V, 1 - _USAGE_DECAY)
        added = quantizer.contribution(codes_N.view(-1, side * side), scale)
        f_hat = f_hat + added
        rest = rest - added.detach()
        loss = loss + F.mse_loss(f_hat, still_BDhw) + _COMMITMENT * F.mse_loss(f_BDhw, f_hat.detach())
    return f_BDhw + (f_hat - f_BDhw).detach(), loss / len(quantizer.sides)


@torch.no_grad()
def _reseed(
    module: Tokenizer, mean: RunningMean, batch_B3hw: Tensor, *, stream: np.random.RandomState, first: bool
) -> None:
    """Move codes that are hardly used to places that the batch asks for, as many from each scale."""
    quantizer = module.quantize
    weight_VD = quantizer.embedding.weight
    share_V = quantizer.ema_vocab_hit_SV.sum(0)
    share_V = share_V / share_V.sum().clamp_min(1e-9)
    dead = torch.nonzero(share_V < 0.03 / len(share_V)).flatten()
    if first:
        dead = torch.arange(len(share_V))
    if not len(dead):
        return
    with torch.autocast(batch_B3hw.device.type, torch.bfloat16):
        rest = module.latent(batch_B3hw).float()
    wanted = []
    for scale, side in enumerate(quantizer.sides):
        z_ND = quantizer.places(rest, scale)
        wanted.append(z_ND[torch.from_numpy(stream.randint(len(z_ND), size=len(dead)))])
        if not first:
            rest = rest - quantizer.contribution(quantizer.nearest(z_ND).view(-1, side * side), scale)
    scales = torch.from_numpy(stream.randint(len(wanted), size=len(dead)))
    new = torch.stack(wanted)[scales, torch.arange(len(dead))]
    weight_VD[dead] = new
    mean.mean_of(weight_VD)[dead] = new
    # A new code counts as averagely used until it has had time to show otherwise.
    quantizer.ema_vocab_hit_SV[:, dead] = float(quantizer.ema_vocab_hit_SV.mean())


def _check(model: ModelSpec, data: ImageSet, budget: TokenizerBudget) -> None:
    if data.side != model.image_side:
        raise UserError(
            f"{model.name} makes images of {model.image_side}x{model.image_side} and the data has "
            f"{data.side}x{data.side}. Take another preset, or read the data at side={model.image_side}."
        )
    if budget.steps < 2 * budget.warm_up:
        raise UserError(
            f"a tokenizer needs at least {2 * budget.warm_up} steps (warm-up is {budget.warm_up}), and "
            f"{budget.steps} were given. Give more --steps."
        )
