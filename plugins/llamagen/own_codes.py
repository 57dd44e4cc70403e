"""A small network over the preset's own tokenizer, trained here: one square of codes an image, from a codebook of its own.

The tokenizer codes an image scale by scale, each scale what the ones before left over, so the codes of its last scale are no
image. Of its encoder's map, k-means finds the codebook instead, and its decoder makes pixels of the entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from varbench.policies import LoadedTokenizer, TrainedGenerator
from varbench.spec import ModelSpec

from .generator import CodeByCode
from .sampling import Sampler
from .sizes import Size, decoder_macs

if TYPE_CHECKING:
    from torch import Tensor

    from .network import Network

LAYERS, HEADS, WIDTH = 6, 4, 128
ROUNDS = 20
"""Of k-means."""


class OwnCodes(CodeByCode, TrainedGenerator):
    def __init__(self, *, model: ModelSpec, sampler: Sampler, graph: bool) -> None:
        spec = model.tokenizer
        size = Size(
            layers=LAYERS,
            heads=HEADS,
            width=WIDTH,
            side=model.sides[-1],
            codes=spec.vocabulary,
            classes=model.classes,
            entry=spec.code_dim,
        )
        super().__init__(size=size, sampler=sampler, graph=graph)
        self._spec = spec
        self._tokenizer: LoadedTokenizer | None = None
        self._weights: Mapping[str, Tensor] | None = None

    @property
    def decoder_macs(self) -> int:
        spec = self._spec
        return decoder_macs(
            side=self.size.side,
            channels=tuple(spec.channels * multiple for multiple in spec.multipliers),
            blocks=spec.blocks,
            latent=spec.code_dim,
            entry=9 * spec.code_dim * spec.code_dim,
        )

    @property
    def training(self) -> Mapping[str, Any]:
        size = self.size
        return {
            "layers": size.layers,
            "heads": size.heads,
            "width": size.width,
            "codes": size.codes,
            "k-means": ROUNDS,
        }

    def take(self, *, tokenizer: LoadedTokenizer, weights: Mapping[str, Tensor] | None) -> None:
        self._tokenizer, self._weights = tokenizer, weights

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        import torch

        from .network import Network

        network = Network.empty(self.size, device=torch.device("cpu"), dtype=torch.float32)
        weights, self._weights = self._weights, None
        if weights is None:
            stream = torch.Generator().manual_seed(seed)
            network.initialise_(stream).codebook.normal_(generator=stream)
        else:
            network.load_state_dict(weights)
        self.ready(network.to(device, getattr(torch, dtype)).place_())

    def pixels_of(self, codes_BN: Tensor) -> Tensor:
        assert self.network is not None and self._tokenizer is not None
        square = (self.size.side, self.size.side)
        map_BDhw = self.network.codebook[codes_BN].float().transpose(1, 2).unflatten(2, square)
        return self._tokenizer.decode_map(map_BDhw)

    def network_for(self, tokenizer: LoadedTokenizer, images_B3hw: Tensor, *, seed: int) -> Network:
        import torch

        from .network import Network

        stream = torch.Generator().manual_seed(seed)
        network = Network.empty(self.size, device=torch.device("cpu"), dtype=torch.float32).initialise_(stream)
        # As its file holds it, so that images are coded by what they are decoded by.
        network.codebook.copy_(k_means(_places(tokenizer, images_B3hw), self.size.codes, stream).bfloat16())
        return network

    def examples(self, network: Network, tokenizer: LoadedTokenizer, images_B3hw: Tensor) -> Tensor:
        return nearest(_places(tokenizer, images_B3hw), network.codebook).view(len(images_B3hw), -1)

    def losses(self, network: Network, examples_Bn: Tensor, labels_B: Tensor) -> Tensor:
        import torch.nn.functional as F

        logits_BnV = network(labels_B, examples_Bn[:, :-1])
        each = F.cross_entropy(logits_BnV.flatten(0, 1), examples_Bn.flatten(), reduction="none")
        return each.view_as(examples_Bn).mean(dim=1)


def _places(tokenizer: LoadedTokenizer, images_B3hw: Tensor) -> Tensor:
    """The encoder's map, a row a place."""
    map_BDhw = tokenizer.latent(images_B3hw)
    return map_BDhw.permute(0, 2, 3, 1).reshape(-1, map_BDhw.shape[1])


def nearest(x_ND: Tensor, codebook_VD: Tensor) -> Tensor:
    import torch

    return torch.addmm(codebook_VD.square().sum(dim=1), x_ND, codebook_VD.T, alpha=-2).argmin(dim=1)


def k_means(x_ND: Tensor, count: int, stream: Any) -> Tensor:
    """From places drawn at random; an entry that is nearest to none stays where it is."""
    import torch

    chosen = torch.randint(len(x_ND), (count,), generator=stream).to(x_ND.device)
    codebook = x_ND[chosen].clone()
    for _ in range(ROUNDS):
        codes = nearest(x_ND, codebook)
        sums = torch.zeros_like(codebook).index_add_(0, codes, x_ND)
        counts = torch.bincount(codes, minlength=count)[:, None]
        codebook = torch.where(counts > 0, sums / counts.clamp_min(1), codebook)
    return codebook
