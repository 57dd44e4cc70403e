"""DiT, a diffusion transformer, as a row beside VAR (arXiv 2212.09748), through the diffusers library.

Points: `sN` denoises in N steps. Without `weights` they are random: speed and memory are true, images are noise.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.errors import CheckpointError, UserError
from varbench.policies import Generator, Parameter, Provenance, Published, Setting, Settings, Work
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

STRIDE, PATCH = 8, 2
"""Pixels of image per latent of the autoencoder; latents per token."""
LATENT, PREDICTED = 4, 8
"""Channels of a latent, and of what is predicted of it: noise and variance."""
TIME = 256
"""Width of the raw embedding of a time step."""
CLASSES = 1000


@dataclass(frozen=True)
class Size:
    depth: int
    width: int
    heads: int
    autoencoder: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of its levels, from pixels to latents."""


SIZES = {
    "nano": Size(2, 64, 2, (32, 32, 32, 32)),
    "S": Size(12, 384, 6), "B": Size(12, 768, 12), "L": Size(24, 1024, 16), "XL": Size(28, 1152, 16),
}  # fmt: skip
"""`nano` is nobody's model: it is there to try things out on."""
RESIDUALS = 2
"""Residual blocks in a level of the encoder; the decoder has one more."""


class DiT(Generator):
    def __init__(self, *, side: int, size: Size, steps: int, cfg: float, weights: str) -> None:
        self._side, self._size, self._steps, self._cfg, self._weights = side, size, steps, cfg, weights
        self._pipe: Any = None

    @property
    def trained(self) -> bool:
        return bool(self._weights)

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        import torch

        diffusers = _diffusers()
        kind = getattr(torch, dtype)
        if self._weights:
            pipe = diffusers.DiTPipeline.from_pretrained(self._weights, dtype=kind, local_files_only=True)
            self._check(pipe.transformer.config, pipe.vae.config)
            scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
            pipe = diffusers.DiTPipeline(transformer=pipe.transformer, vae=pipe.vae, scheduler=scheduler)
        else:
            pipe = self._random(diffusers, device, kind, seed)
        # Switched off, it would still start a thread that watches it.
        pipe.progress_bar = lambda steps: steps
        self._pipe = pipe.to(device)

    def _check(self, config: Any, autoencoder: Any) -> None:
        found = (config.num_layers, config.num_attention_heads * config.attention_head_dim, config.sample_size * STRIDE)
        wanted = (self._size.depth, self._size.width, self._side)
        if found != wanted:
            raise CheckpointError(
                f"{self._weights}: {found[0]} layers of width {found[1]} for {found[2]} px, but the row is for {wanted[0]} "
                f"of width {wanted[1]} and {wanted[2]} px; set size={'|'.join(SIZES)}, or take another model preset"
            )
        layers = (tuple(autoencoder.block_out_channels), autoencoder.layers_per_block)
        if layers != (self._size.autoencoder, RESIDUALS):
            raise CheckpointError(
                f"{self._weights}: the autoencoder has levels of {layers[0]} channels with {layers[1]} blocks each, but the row "
                f"is for {self._size.autoencoder} with {RESIDUALS}, and its work would be counted wrong"
            )

    def _random(self, diffusers: Any, device: str, kind: Any, seed: int) -> Any:
        """Untrained weights in the shapes of the published model, drawn where they will run."""
        import torch

        place = torch.device(device)
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), place:
            torch.manual_seed(seed)
            transformer = diffusers.DiTTransformer2DModel(
                num_attention_heads=self._size.heads,
                attention_head_dim=self._size.width // self._size.heads,
                in_channels=LATENT,
                out_channels=PREDICTED,
                num_layers=self._size.depth,
                sample_size=self._side // STRIDE,
                patch_size=PATCH,
                num_embeds_ada_norm=CLASSES,
            )
            vae = diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=self._size.autoencoder,
                layers_per_block=RESIDUALS,
                latent_channels=LATENT,
            )
        return diffusers.DiTPipeline(
            transformer=torch.nn.Module.to(transformer, kind).eval(),
            vae=torch.nn.Module.to(vae, kind).eval(),
            scheduler=diffusers.DDIMScheduler(clip_sample=False),
        )

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        if self._pipe is None:
            raise RuntimeError("generate() was called before load()")
        import torch

        noise = [torch.Generator().manual_seed(_stream(seed, first_image + place)) for place in range(len(labels))]
        made = self._pipe(
            list(labels), guidance_scale=self._cfg, generator=noise, num_inference_steps=self._steps, output_type="pt"
        )
        images: Tensor = made.images
        return images.float()

    def work(self, batch: int) -> Work:
        """The denoiser's, and apart from it the autoencoder's, which decodes once."""
        tokens, width, depth = (self._side // STRIDE // PATCH) ** 2, self._size.width, self._size.depth
        patch = PATCH * PATCH
        conditioning = TIME * width + width * width
        layer = conditioning + 6 * width * width + tokens * 12 * width * width + 2 * tokens * tokens * width
        ends = conditioning + 2 * width * width + tokens * patch * (LATENT + PREDICTED) * width
        rows = batch * (2 if self._cfg > 1 else 1)
        return Work(
            flops=2.0 * rows * self._steps * (depth * layer + ends),
            decoder_flops=2.0 * batch * _decoder(self._size.autoencoder, self._side // STRIDE),
            parameters=self._pipe and _parameters(self._pipe.transformer),
            steps=self._steps,
            layer_tokens=depth * tokens * self._steps,
            cache_peak_bytes=0,
            cache_end_bytes=0,
        )


def _parameters(transformer: Any) -> int:
    """The model has one embedder of time steps and classes; the library gives each of its blocks a copy."""
    copies = (block.norm1.emb for block in transformer.transformer_blocks[1:])
    whole: int = sum(parameter.numel() for parameter in transformer.parameters())
    twice: int = sum(parameter.numel() for copy in copies for parameter in copy.parameters())
    return whole - twice


def _decoder(channels: tuple[int, ...], side: int) -> int:
    """Multiplications and additions of turning one image's latents into pixels."""

    def residual(before: int, after: int, places: int) -> int:
        return places * (9 * before * after + 9 * after * after + (before * after if before != after else 0))

    deepest, places = channels[-1], side * side
    total = places * (LATENT * LATENT + 9 * LATENT * deepest) + 2 * residual(deepest, deepest, places)
    total += 4 * places * deepest * deepest + 2 * places * places * deepest
    before = deepest
    for level, width in reversed(list(enumerate(channels))):
        total += residual(before, width, places) + RESIDUALS * residual(width, width, places)
        if level:
            places *= 4
            total += places * 9 * width * width
        before = width
    return total + places * 9 * channels[0] * 3


def _stream(seed: int, image: int) -> int:
    """An image's noise is its own, whatever the batch."""
    return int.from_bytes(hashlib.sha256(f"{seed} {image}".encode()).digest()[:7])


def _diffusers() -> Any:
    if importlib.util.find_spec("diffusers") is None:
        raise UserError("dit needs the diffusers library: pip install 'varbench[dit]'")
    from varbench.quality.torchvision_shim import import_torchvision

    # diffusers imports torchvision for models that are not used here.
    import_torchvision()
    import diffusers

    return diffusers


def _published(model: ModelSpec) -> tuple[Published, ...]:
    """Of DiT-XL/2 at 256 px: beside every preset of that size, since the network is its own."""
    if (model.image_side, model.classes) != (256, CLASSES):
        return ()
    line = Published(
        setting="@s50",
        model=model.name,
        figures={"fid": 2.26, "is": 239, "precision": 0.80, "recall": 0.60, "latency_s": 19.20, "memory_mb": 11_369},
        grade="primary",
        source="table of arXiv 2411.17787",
        conditions="DiT-XL/2, 50 steps of DDIM, one NVIDIA L20, batch 64, decoder excluded",
    )
    return (line,)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=("s250", "s50", "s20"),
        default_points=("s50", "s20"),
        point_pattern=r"s[0-9]{1,4}",
        parameters={
            "size": Parameter(
                default="XL" if model.image_side >= 256 else "S", help=f"{', '.join(SIZES)}, each with patches of 2"
            ),
            "cfg": Parameter(default=1.5, help="guidance; 1 runs no unlabelled branch"),
            "weights": Parameter(
                default="", kind="path", help="folder of a DiTPipeline as diffusers saves it; none draws random ones"
            ),
        },
        published=_published(model),
        small={"size": "nano"},
        summary="a diffusion transformer (DiT), through diffusers",
        provenance=Provenance(
            kind="port",
            note="the diffusers library's model and deterministic DDIM, as in the published row of 50 steps; the DiT paper's own "
            "figures are of 250 DDPM steps. The library guides all four channels of a latent, the authors' sampler the first "
            "three, and its time steps begin below 999: the published FID cannot be met to the digit",
            url="https://arxiv.org/abs/2212.09748",
        ),
    )


@hookimpl
def varbench_generator(setting: Setting, model: ModelSpec) -> Generator:
    assert setting.point is not None
    steps, cfg = int(setting.point[1:]), float(setting.parameters["cfg"])
    size, weights = str(setting.parameters["size"]), str(setting.parameters["weights"])
    if not 1 <= steps <= 1000:
        raise UserError(f"{setting.point} is out of range: give s1 to s1000 denoising steps")
    if size not in SIZES:
        raise UserError(f"size is {size!r}; give one of {', '.join(SIZES)}")
    if cfg < 1:
        raise UserError(f"cfg is {cfg}; give 1 (no guidance) or more")
    if model.image_side % (STRIDE * PATCH) or model.classes > CLASSES:
        raise UserError(
            f"dit makes images of a multiple of {STRIDE * PATCH} px in {CLASSES} classes; {model.name} has {model.image_side} px "
            f"and {model.classes} classes"
        )
    if weights and model.classes != CLASSES:
        raise UserError(f"{weights} knows ImageNet's {CLASSES} classes, and {model.name} has {model.classes} others")
    if weights and not (Path(weights) / "model_index.json").is_file():
        raise UserError(
            f"{weights} is no folder with a model_index.json; give one that diffusers saved a DiTPipeline to"
        )
    return DiT(side=model.image_side, size=SIZES[size], steps=steps, cfg=cfg, weights=weights)
