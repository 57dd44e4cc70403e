"""The generators: the official network over VQ-16, and a small one over the codes of the preset's own tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from varbench.errors import CheckpointError
from varbench.policies import Generator, Work

from . import sizes
from .sampling import Sampler
from .sizes import Size

if TYPE_CHECKING:
    from torch import Tensor

    from .network import Cache, Network
    from .pixels import Pixels

NESTS = ("model", "module", "state_dict")
"""Keys under which the official trainers keep the weights; files of sharded trainings hold them bare."""


class CodeByCode(Generator):
    """One network pass for each code of an image, each reading the cache of those before."""

    network: Network | None = None

    def __init__(self, *, size: Size, sampler: Sampler, graph: bool) -> None:
        self.size, self.sampler, self.graph = size, sampler, graph
        self._item = 4
        self._captured: Step | None = None

    @abstractmethod
    def pixels_of(self, codes_BN: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1]."""

    @property
    @abstractmethod
    def decoder_macs(self) -> int:
        """Multiplications and additions of `pixels_of` for one image."""

    def ready(self, network: Network) -> None:
        self.network = network.requires_grad_(False).eval()
        self._item = network.output.weight.element_size()

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        return self.pixels_of(self.codes_of(labels, seed=seed, first_image=first_image))

    def codes_of(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        """(B, N), row by row of the square. Labelled rows come first, then as many unlabelled ones."""
        import torch

        from .sampling import noise_of

        if self.network is None:
            raise RuntimeError("images were asked for before load()")
        network, sampler, device = self.network, self.sampler, self.network.output.weight.device
        images = range(first_image, first_image + len(labels))
        noise_BN = noise_of(images, seed=seed, positions=self.size.steps).to(device)
        classes = torch.as_tensor(labels, device=device)
        if sampler.branches == 2:
            classes = torch.cat([classes, torch.full_like(classes, self.size.classes)])
        step = self._step_of(len(classes))
        logits, codes = network.first(classes, step.caches), []
        for place in range(self.size.steps):
            code_B = sampler.draw(sampler.guided(logits, decode_step=place - 1), noise_BN[:, place])
            codes.append(code_B)
            if place + 1 < self.size.steps:
                logits = step(code_B.repeat(sampler.branches), place + 1)
        return torch.stack(codes, dim=1)

    def _step_of(self, rows: int) -> Step:
        assert self.network is not None
        if not self.graph:
            return Step(self.network, rows)
        from .captured import CapturedStep

        if self._captured is None or self._captured.rows != rows:
            self._captured = CapturedStep(self.network, rows)
        return self._captured

    def work(self, batch: int) -> Work:
        """Parameters are counted once and of the network alone, as are its FLOPs; those of the decoder stand apart."""
        rows, size = batch * self.sampler.branches, self.size
        cache = size.cache_bytes(rows=rows, item=self._item)
        return Work(
            flops=2.0 * rows * size.macs(whole=self.graph),
            decoder_flops=2.0 * batch * self.decoder_macs,
            parameters=size.parameters,
            steps=size.steps,
            layer_tokens=size.layers * size.steps,
            cache_peak_bytes=cache,
            cache_end_bytes=cache,
        )


class Step:
    """Decode steps one after another, each reading as much of the cache as is filled."""

    def __init__(self, network: Network, rows: int) -> None:
        self.network, self.rows = network, rows
        self.caches: list[Cache] = network.caches(rows)

    def __call__(self, codes_B: Tensor, position: int) -> Tensor:
        import torch

        from .network import Reading

        where = torch.full((1,), position, device=codes_B.device)
        return self.network.step(codes_B, self.caches, Reading(where, position + 1, None))


class Official(CodeByCode):
    """The published sizes, with VQ-16, resized to the side that the row is compared at."""

    def __init__(
        self, *, size: Size, sampler: Sampler, graph: bool, side: int, weights: str = "", tokenizer: str = ""
    ) -> None:
        super().__init__(size=size, sampler=sampler, graph=graph)
        self.side, self.weights, self.tokenizer = side, weights, tokenizer
        self._pixels: Pixels | None = None

    @property
    def trained(self) -> bool:
        return bool(self.weights)

    @property
    def decoder_macs(self) -> int:
        entry = sizes.CODE_DIM * sizes.LATENT
        return sizes.decoder_macs(
            side=self.size.side, channels=sizes.CHANNELS, blocks=sizes.RESIDUALS, latent=sizes.LATENT, entry=entry
        )

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        import torch

        from .network import Network
        from .pixels import Pixels

        place, kind = torch.device(device), getattr(torch, dtype)
        stream = torch.Generator(place).manual_seed(seed)
        # Drawn where they will run: billions of numbers take long on a CPU.
        network = Network.empty(self.size, device=place, dtype=kind)
        with torch.device("meta"):
            pixels = Pixels()
        pixels = pixels.to_empty(device=place)
        if self.weights:
            _fill(network, self.weights, ignored=("freqs_cis",))
            _fill(pixels, self.tokenizer, ignored=("encoder.", "quant_conv.", "quantize.codebook_used"))
        else:
            network.initialise_(stream)
            _initialise_pixels(pixels, stream)
        self.ready(network)
        # The decoder stays in float32, as in the official script.
        self._pixels = pixels.requires_grad_(False).eval()

    def pixels_of(self, codes_BN: Tensor) -> Tensor:
        assert self._pixels is not None
        images: Tensor = self._pixels(codes_BN, side=self.side)
        return images


def _initialise_pixels(pixels: Pixels, stream: Any) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in pixels.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=stream)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def _fill(module: Any, path: str, *, ignored: tuple[str, ...]) -> None:
    """Fills a module from an official file, tensor by tensor. Every tensor of it must be there, in its shape."""
    import torch

    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a torch checkpoint: {error}") from error
    nest = next((key for key in NESTS if isinstance(state, dict) and isinstance(state.get(key), dict)), None)
    state = state[nest] if nest else state
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tensor for name, tensor in state.items() if not name.startswith(ignored)}
    shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in found.items()}
    if wrong := sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name)):
        first = wrong[0]
        raise CheckpointError(
            f"{path} does not fit the row: {len(wrong)} tensors differ, as {first}, which is {shapes.get(first, 'missing')} "
            f"there and {wanted.get(first, 'unknown')} here; name the point whose size the file has"
        )
    module.load_state_dict(found)
