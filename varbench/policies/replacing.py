"""What takes the place of something of ours: modules, the whole loop, or a score; and what an offline pass may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


class LoadedModel(Protocol):
    """What a calibration may use of the pipeline that `varbench.load_pipeline` returns."""

    @property
    def model(self) -> ModelSpec: ...

    @property
    def device(self) -> Any: ...

    def generate(self, labels: Any, *, seed: int = 0) -> Any:
        """Images and tokens of the full model; `varbench.engine.calibration.observe` looks into its attention."""
        ...


Part = Literal["attention", "ffn", "conditioning", "ends"]
PARTS: tuple[Part, ...] = ("attention", "ffn", "conditioning", "ends")
"""Where a backbone's matrices are: projections of attention, FFN, vectors made of the class, embedding of codes and head."""


@dataclass(frozen=True, kw_only=True)
class PartChange:
    """What a transform makes of one part of a backbone, in all layers. What is left out stays as it was."""

    flops: float = 1.0
    """FLOPs of the products with its matrices, as a share of before; attention's products of queries and keys stay."""
    weights: float = 1.0
    """Numbers in its matrices, as a share of before."""
    weight_type: str | None = None
    """Type its matrices are stored in; None is the compute type."""
    bias_type: str | None = None
    """The same of its biases."""
    extra_bytes: float = 0.0
    """Bytes stored beside, such as scales and tables, in all layers together."""
    compute_type: str | None = None
    """Type its products are computed in, where that is not the compute type; whose rate they are then predicted at."""


@dataclass(frozen=True, kw_only=True)
class Transformed:
    """What `varbench_transform_model` gives: how modules are replaced, and what that does to work and weights."""

    apply: Callable[[Any], Any]
    """Takes a copy of the transformer (a torch module), which it may change, and returns the one to run. Where it puts
    another module in a linear layer's place, that one is called with activations in the compute type."""
    changes: Mapping[Part, PartChange] = field(default_factory=dict)
    """By part, what is changed; `varbench check` holds the bytes that are declared against those that are stored."""
    capturable: bool = False
    """As of a token policy: whether the modules only compute, on the device, from what they are given."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a generator computes for one batch, in the columns that a plan fills for the other rows; None is unknown."""

    flops: float | None = None
    """Of the network that generates: all steps and all guidance branches, without the decoder, as for the other rows."""
    decoder_flops: float = 0.0
    """Of making pixels from what was generated; 0 where that is pixels. `varbench check` counts both together: how they
    are parted is the plugin's word."""
    parameters: int | None = None
    """Numbers in that network, known once its weights are loaded."""
    steps: int | None = None
    layer_tokens: int | None = None
    """Layers times tokens, for one image and branch."""
    cache_peak_bytes: int | None = None
    cache_end_bytes: int | None = None


class Generator(Protocol):
    """A whole other way to make images, in place of the generation loop."""

    @property
    def trained(self) -> bool:
        """False where the weights are random: then speed and memory are measured, and quality is not."""
        return True

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        """Bring the weights to the device; random ones, drawn from the seed, where none were given."""
        ...

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        """Images (B, 3, S, S) in [0, 1]; `first_image` is the first one's number in the noise stream."""
        ...

    def work(self, batch: int) -> Work: ...


class LoadedTokenizer(Protocol):
    """The preset's tokenizer as a torch module on its device, for a generator that builds on it."""

    def latent(self, images_B3hw: Tensor) -> Tensor:
        """Images in [-1, 1] to the map that is quantised."""
        ...

    def decode_map(self, f_hat_BDhw: Tensor) -> Tensor:
        """Such a map, quantised somehow, to images in [0, 1]."""
        ...

    @property
    def codebook(self) -> Tensor:
        """The vectors of its codes, (V, D)."""
        ...

    def map_of(self, vectors_BLD: Tensor) -> Tensor:
        """The map that vectors of all scales' places add up to, those of codes or any others."""
        ...


class LoadedTeacher(Protocol):
    """The preset's full model on its device, for a generator that learns from it, or runs it at some of the scales."""

    @property
    def model(self) -> ModelSpec: ...

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Its tensors, under the official names."""
        ...

    def draw(
        self,
        labels_B: Tensor,
        choose: Callable[[Tensor, int], Tensor],
        *,
        cfg: float,
        until: int,
        given_Bn: Tensor | None = None,
    ) -> Tensor:
        """Codes (B, n) of the scales before `until`, scale by scale: `choose` makes them of logits (B, l, V) after guidance and
        the scale's number. Codes of the first scales may be given; these are encoded in one pass with the scale after them."""
        ...


class TrainedGenerator(Generator):
    """A generator on the preset's tokenizer, whose network is trained here: once, from images, and kept as recipes are.

    Where a run has random weights, so has the generator.
    """

    @property
    def trained(self) -> bool:
        """True where it brings trained weights by itself, so that none are trained here."""
        return False

    @property
    def training(self) -> Mapping[str, Any]:
        """All that decides the trained weights beside data, tokenizer and budget, as JSON: they are kept under it."""
        raise NotImplementedError

    def take(self, *, tokenizer: LoadedTokenizer, weights: Mapping[str, Tensor] | None) -> None:
        """What `load` shall use, told right before it: the trained network's tensors, or None to draw random ones."""
        raise NotImplementedError

    def network_for(self, tokenizer: LoadedTokenizer, seen: Tensor, *, seed: int) -> Any:
        """The network to train, a torch module with its first weights. It may look at some images for what is no weight."""
        raise NotImplementedError

    def examples(self, network: Any, tokenizer: LoadedTokenizer, images_B3hw: Tensor) -> Tensor:
        """What the network learns of each image, whole numbers (B, n)."""
        raise NotImplementedError

    def losses(self, network: Any, examples_Bn: Tensor, labels_B: Tensor) -> Tensor:
        """Of each image (B); a label that was dropped, for guidance, is the number of classes."""
        raise NotImplementedError


class TaughtGenerator(TrainedGenerator):
    """Its network learns from what the preset's full model makes, and sees no image. Examples are made once, and kept for every
    training that wants the same ones. `network_for` is shown all of them in the place of images, and no label is dropped."""

    def meet(self, teacher: LoadedTeacher, *, tokenizer: LoadedTokenizer) -> None:
        """The full model and its tokenizer, told before `made`, `network_for` and `load`. Who keeps it keeps its memory too."""
        raise NotImplementedError

    @property
    def making(self) -> Mapping[str, Any]:
        """All that decides the examples beside the full model, as JSON: they are kept under it."""
        raise NotImplementedError

    def made(self, labels_B: Tensor, numbers: range) -> Tensor:
        """The examples of these numbers, (B, n) whole numbers, each made of its number and its label alone."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One more column: the mean, over a row's images, of a number that each image has."""

    name: str
    better: Literal["lower", "higher"]
    compute: Callable[[Tensor, Tensor], Tensor]
    """Takes some images (N, 3, S, S) as uint8 and their labels (N), copies both; gives N numbers, one an image."""
