"""What a plugin may give: small policies, asked once per row and compiled into a plan.

Each is a protocol with neutral defaults: subclass it and override what your method changes. Scales and layers are
numbered from 0. Policies that choose by content (`pick`, `fill`) are also called by the engine, with torch tensors; how
many are chosen is fixed beforehand and stands in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from varbench.experts import FfnSeen, Own
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

SubLayerName = Literal["attention", "ffn"]
MAIN = "main"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One knob of a plugin, set in a row as `:name=value`. The value is read as the default's type."""

    default: bool | int | float | str
    help: str
    kind: Literal["value", "path"] = "value"
    """`path`: a string that names a file or folder to read, empty for none. Its content, not its name, then decides
    whether a record is still of the same inputs."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a method comes from, for the record."""

    kind: Literal["official code", "port", "from paper", "from secondary note", "ours"]
    note: str | None = None
    """What is the plugin's own choice where the source is silent."""
    url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """What others printed of one setting on one model. Reports show it beside what was measured, with grade and source."""

    setting: str
    """As written after the plugin's name: `@d8`, `@p01/full`; empty where the plugin has one setting."""
    model: str
    """The model preset that it was printed for."""
    figures: Mapping[str, float]
    """By name, as printed. `fid`, `is`, `speedup`, `latency_s`, `memory_mb`, `kv_mb` (size of the cache) and `kv_saving`
    (share of it that is saved) are shown in their units, and `varbench plan` holds the last two and `speedup` against the
    plan; any other name is shown as it is."""
    grade: Literal["primary", "secondary"]
    """`primary` is the authors' own table, abstract, code or README; `secondary` is anybody else's note of it."""
    source: str
    conditions: str = ""
    """Hardware, batch, number of steps and whatever else the figures hold under."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A table that others printed, as rows of the plugins that are installed: `varbench report --paper` puts ours beside it."""

    title: str
    rows: tuple[str, ...]
    """In the table's order, as on the command line, of any plugins. What was printed of each is its plugin's `published`; of
    plugins that are not installed, rows are left out."""
    model: str
    """The model preset, the batch, the compute type and the card, as `varbench plan` knows it, of the printed times."""
    batch: int
    dtype: str
    hardware: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question of its own, as rows outside the table: each setting's score is drawn side by side, by `run --study`."""

    title: str
    settings: tuple[str, ...]
    """As written after the plugin's name, in the order of the picture."""
    caption: str = ""
    """What is changed from setting to setting, and what to look for."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a plugin can be set to. A row without `@` stands for every default recipe at every default point."""

    points: tuple[str, ...] = ()
    """Named places on the method's curve, in the order of the table. Empty: the method has one."""
    default_points: tuple[str, ...] = ()
    """Those that `run` measures unless told otherwise; empty means all of `points`."""
    point_pattern: str | None = None
    """Regular expression of points that are accepted beside the named ones, as in `d[0-9]+`."""
    recipes: tuple[str, ...] = ()
    """Ways the weights were trained; the first is the default. Empty: the pretrained weights are used as they are."""
    default_recipes: tuple[str, ...] = ()
    """Those that `run` measures unless told otherwise; empty means the first."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    studies: Mapping[str, Study] = field(default_factory=dict)
    """By the name that `run --study` takes."""
    published: tuple[Published, ...] = ()
    """What others printed of the plugin's settings, on any model."""
    paper: Paper | None = None
    """The table of the method's own paper."""
    neutral: tuple[str, ...] = ()
    """Settings, as written after the plugin's name (`@full`, `:ratio=0`), that must give the full model's images bit for
    bit; `varbench check` holds the plugin to it."""
    small: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Parameters that make a generator's own network small enough for `varbench check`, which no model preset does."""
    summary: str = ""
    """One line for `varbench list`."""
    provenance: Provenance | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one plugin is set to in one row: how the weights were trained, where on its curve it runs, its knobs."""

    plugin: str
    recipe: str | None = None
    point: str | None = None
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)


class DepthPolicy(Protocol):
    """Which layers run at each scale."""

    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        """Layers for the step that samples this scale, in the order in which they run; a layer may come twice."""
        ...

    def retains(self, layer: int, scale: int) -> bool:
        """Whether what this layer stored at this scale is kept to the end although nothing reads it again."""
        return False


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """One pass of the generation loop: the scales it encodes, of which it samples the last."""

    scales: tuple[int, ...]
    backbone: str = MAIN


class StepPolicy(Protocol):
    """Which scales run, which are encoded together, on which backbone. A scale in no step is skipped."""

    @property
    def backbones(self) -> Mapping[str, ModelSpec]:
        """Every model beside `main` that the steps name. Weights are those of `--companion NAME=FILE`, else what the preset
        ships for a model of these sizes, and random where the main model's are."""
        return {}

    def steps(self) -> Sequence[StepSpec]: ...


class GuidancePolicy(Protocol):
    """Which guidance branches run, and how far labelled logits are drawn away from the unlabelled ones."""

    def branches(self, scale: int) -> Literal["both", "labelled"]:
        """From the scale on at which the labelled branch is alone, the other's work and cache are saved."""
        ...

    def strength(self, scale: int) -> float | None:
        """Share of the run's guidance (`--cfg`) at a scale with both branches. None is the official ramp: 0 at the first
        scale, 1 at the last, evenly between. Where it is 0 to the end, the unlabelled branch does not run."""
        return None


@dataclass(frozen=True, kw_only=True)
class StoredForm:
    """How keys and values lie in the cache where a type does not say it all, as eight bits with scales; what runs now is
    attended to as it is. `varbench check` holds the bytes that are declared against those that are stored."""

    encode: Callable[[Tensor], tuple[Tensor, ...]]
    """Takes keys, or values, (B, H, n, c); gives what is stored of them, each (B, H, n, ·)."""
    decode: Callable[[tuple[Tensor, ...]], Tensor]
    """Takes some entries of what `encode` gave; gives (B, H, n, c), in any type."""
    bits: int
    """Of each number."""
    extra_bytes: int = 0
    """Beside, for each token's key in each head, and as many for its value: scales."""


class CacheStrategy(Protocol):
    """What keys and values are kept. Several may join in a row: what all of them keep is kept."""

    @property
    def dtype(self) -> str | None:
        """Type that keys and values are stored in; None leaves the compute type. It or `form` has one owner in a row."""
        return None

    @property
    def form(self) -> StoredForm | None:
        """What they are stored as, in place of a type."""
        return None

    def head_groups(self, layer: int) -> Sequence[Sequence[int]] | None:
        """Heads that keep different entries, as a partition of all heads; None for one group. One owner in a row."""
        return None

    def keeps(self, layer: int, written: int, reader: int, group: int) -> bool:
        """Whether entries written at scale `written` are still there when scale `reader` runs. Once gone, gone."""
        return True

    def budget(self, layer: int, scale: int, group: int) -> int | None:
        """Most entries a head holds after this scale, chosen by `pick`; None picks nothing. One owner in a row."""
        return None

    def observes(self, layer: int, scale: int, group: int, count: int) -> Sequence[int] | None:
        """Places among the `count` queries of those whose attention `pick` is to be told; the engine computes it again."""
        return None

    def accumulates(self, layer: int, group: int) -> bool:
        """Whether attention is added up over scales, in a float32 that is kept beside each entry: state."""
        return False

    def merges(self, layer: int, scale: int, group: int) -> bool:
        """Whether each entry that goes is averaged into the one with the nearest key, by cosine, of those that stay."""
        return False

    def pick(
        self,
        keys_BHnc: Tensor,
        queries_BHLc: Tensor,
        count: int,
        *,
        attention_BHn: Tensor | None,
        layer: int,
        scale: int,
        group: int,
    ) -> Tensor:
        """Places (B, H, count), ascending, of the entries to keep. Called after the attention of `scale`. `attention_BHn` is
        what each entry was paid by the queries that the strategy observes, all together."""
        needed = f"{type(self).__name__} gives a budget, so it must give pick() too"
        raise NotImplementedError(needed)


class TokenPolicy(Protocol):
    """Which tokens a sub-layer computes, and how the others are filled in."""

    def tokens(self, layer: int, scale: int, sublayer: SubLayerName) -> int | None:
        """How many of the scale's tokens are computed; None computes all without asking `pick`."""
        return None

    def remembers(self, layer: int, scale: int, sublayer: SubLayerName) -> bool:
        """Whether the sub-layer's output at this scale is kept, in the compute type, for `fill` at later ones: state."""
        return False

    def pick(self, x_BLC: Tensor, count: int, *, layer: int, scale: int, sublayer: SubLayerName) -> Tensor:
        """Places (B, count) of the tokens to compute, given the residual stream before the sub-layer's norm."""
        ...

    def fill(
        self, computed_BnC: Tensor, places_Bn: Tensor, remembered_BlC: Tensor | None, *, length: int, scale: int
    ) -> Tensor:
        """The sub-layer's output for all `length` tokens, from the computed ones and the remembered map."""
        ...


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


class TrainedGenerator(Generator):
    """A generator on the preset's tokenizer, whose network is trained here: once, from images, and kept as recipes are.

    Where a run has random weights, so has the generator, and `trained` is not asked.
    """

    @property
    def training(self) -> Mapping[str, Any]:
        """All that decides the trained weights beside data, tokenizer and budget, as JSON: they are kept under it."""
        raise NotImplementedError

    def take(self, *, tokenizer: LoadedTokenizer, weights: Mapping[str, Tensor] | None) -> None:
        """What `load` shall use, told right before it: the trained network's tensors, or None to draw random ones."""
        raise NotImplementedError

    def network_for(self, tokenizer: LoadedTokenizer, images_B3hw: Tensor, *, seed: int) -> Any:
        """The network to train, a torch module with its first weights. It may look at some images for what is no weight."""
        raise NotImplementedError

    def examples(self, network: Any, tokenizer: LoadedTokenizer, images_B3hw: Tensor) -> Tensor:
        """What the network learns of each image, whole numbers (B, n)."""
        raise NotImplementedError

    def losses(self, network: Any, examples_Bn: Tensor, labels_B: Tensor) -> Tensor:
        """Of each image (B); a label that was dropped, for guidance, is the number of classes."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One more column: the mean, over a row's images, of a number that each image has."""

    name: str
    better: Literal["lower", "higher"]
    compute: Callable[[Tensor, Tensor], Tensor]
    """Takes some images (N, 3, S, S) as uint8 and their labels (N), copies both; gives N numbers, one an image."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of a recipe. Most recipes have one; a dual model has one for each backbone."""

    name: str
    backbone: str = MAIN
    share: float = 1.0
    """Share of the recipe's optimiser steps."""
    teacher: str | None = None
    """Backbone, as pretrained, that gives the soft targets of a `kl` loss."""
    trains: Literal["model", "own", "both"] = "model"
    """What is not frozen: the backbone's weights, or the numbers that the plugin keeps beside them."""


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """What one optimiser step trains."""

    point: str | None = None
    """A point of the plugin, whose plan runs; None runs the full model."""
    loss: Literal["ce", "kl", "own"] = "ce"
    """Cross-entropy, distance from the teacher, or the mean over layers of the schedule's `own_loss`."""
    scale_weights: tuple[float, ...] | None = None
    """Weight of each scale's tokens; a scale of weight 0 at the end is not run. None weighs all tokens alike."""


class TrainingSchedule(Protocol):
    """What is trained, for how long, on which plans."""

    def stages(self) -> Sequence[Stage]:
        return (Stage(name="train"),)

    def check(self, total: int) -> None:
        """Refuse, by a `UserError`, a number of steps that is too small for the schedule's phases."""
        return

    def at(self, stage: Stage, step: int, total: int, uniform: Callable[[int], float]) -> TrainStep:
        """Step `step` of the stage's `total`; `uniform(k)` is the step's k-th random number in [0, 1)."""
        ...

    def own_loss(self, seen: FfnSeen, *, own: Own) -> Tensor:
        """What a step of loss `own` minimises, of one layer's FFN as the frozen full model runs it on the step's images."""
        needed = f"{type(self).__name__} names the loss 'own', so it must give own_loss() too"
        raise NotImplementedError(needed)


class FullDepth(DepthPolicy):
    """Every layer at every scale."""

    def __init__(self, model: ModelSpec, backbones: Mapping[str, ModelSpec] | None = None) -> None:
        self._depths = {MAIN: model.depth, **{name: spec.depth for name, spec in (backbones or {}).items()}}

    def layers(self, scale: int, backbone: str) -> Sequence[int]:
        return range(self._depths[backbone])


class EveryScale(StepPolicy):
    """One step a scale, on the main model."""

    def __init__(self, model: ModelSpec) -> None:
        self._scales = model.scales

    def steps(self) -> Sequence[StepSpec]:
        return tuple(StepSpec(scales=(scale,)) for scale in range(self._scales))


class BothBranches(GuidancePolicy):
    """Labelled and unlabelled at every scale."""

    def branches(self, scale: int) -> Literal["both", "labelled"]:
        return "both"
