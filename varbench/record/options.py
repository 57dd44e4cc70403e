"""Every option of a measurement, defined once: the command line, the TOML file, the child's job, the hash of what decides a
result, the record, the conditions on the page and the command that repeats a row are all read off this class.

A new option is a new field here. `option_forms` makes the forms; `varbench.run.defaults` finds what a preset or a machine
suggests and checks what spans several options.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import MISSING, dataclass
from typing import Any

from varbench.plan import presets, protocols

DTYPES = ("float32", "bfloat16", "float16")
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")
FEWEST_ROUNDS = 3
FEWEST_PROCESSES = 8
"""That a speedup should rest on, so that 5 % are seen beside a machine's own services: of a row whose plan no other row has, as
many rounds."""


def pairs_of_further_rounds(asked: int) -> int:
    """A row that shares its plan with no other lacks processes, not calls: rounds beyond those that were asked for take fewer."""
    return -(-2 * asked // 3)


@dataclass(frozen=True)
class ByPreset:
    """A default that depends on the model, and on whether a first look is enough."""

    large: Any
    tiny: Any
    quick: Any = None
    """In a quick run; None is as in a full one."""
    quick_tiny: Any = None

    def of(self, model: str, *, quick: bool) -> Any:
        full, short = (self.tiny, self.quick_tiny) if presets.runs_on_a_cpu(model) else (self.large, self.quick)
        return short if quick and short is not None else full

    def __str__(self) -> str:
        return f"{self.large}" if self.large == self.tiny else f"{self.large}, for tiny and fashion {self.tiny}"


@dataclass(frozen=True)
class ByMachine:
    """A default that is looked up when the run starts, in words."""

    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True, kw_only=True)
class Option:
    """How one option is written, checked and used."""

    doc: str
    name: str = ""
    holds: type = str
    many: bool = False
    """It may be given several times."""
    default: Any = None
    """A value, `ByPreset` or `ByMachine`."""
    absent: str | None = None
    """What it means that it is null, where it may be; null is its default then."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    form: tuple[str, str] | None = None
    """A regular expression that the text has to match, and the same in words."""
    least: float | None = None
    above: float | None = None
    """It has to be more than this."""
    most: float | None = None
    path: str | None = None
    """`file`, `folder` or `file or folder`, if it names one that has to be there; of NAME=FILE, the part behind the `=`."""
    word: str | None = None
    """A text that it may be instead of a path."""
    decides: bool = True
    """Another value is another result, so it enters the hash of the inputs; of a path, what it holds does."""
    compared: bool = True
    """Two rows are comparable only where it is equal."""
    found: bool = False
    """The run found it out; nobody can ask for it."""
    reads: str | None = None
    """How a value reads in the title of a block of rows; unless given, `name value`, or not at all if it was found out."""
    always: bool = False
    """It stands in the title although it has its default value."""
    sweeps: bool = False
    """`run` takes several values, by comma or as a list of a TOML file: each is a run of its own, all on one page."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def usual(self, model: str, *, quick: bool) -> Any:
        """The default for a model, unless it depends on the machine."""
        return self.default.of(model, quick=quick) if isinstance(self.default, ByPreset) else self.default


def option(doc: str, **about: Any) -> Any:
    """A field that a user can give, with the keywords of `Option`. Paths, and what cannot change the result, are not compared."""
    comparable = about.get("decides", True) and about.get("path") is None
    return _field(Option(**{"doc": doc, "compared": comparable, **about}))


def found(doc: str, **about: Any) -> Any:
    """A field that the run fills in; nobody gives it."""
    return _field(Option(**{"doc": doc, "found": True, "decides": False, "compared": False, **about}))


def _field(known: Option) -> Any:
    default = MISSING if isinstance(known.default, (ByPreset, ByMachine)) else known.default
    return dataclasses.field(default=default, metadata={"doc": known.doc, "absent": known.absent, "option": known})


def options_of(kind: type) -> dict[str, Option]:
    """The options of a class such as `Options` by name, in its order."""
    return _options_of(kind)


@functools.cache
def _options_of(kind: type) -> dict[str, Option]:
    hints = typing.get_type_hints(kind)
    return {field.name: _typed(field, hints[field.name]) for field in dataclasses.fields(kind)}


def asked(kind: type) -> dict[str, Option]:
    """The options that a user can give."""
    return {name: known for name, known in options_of(kind).items() if not known.found}


def _typed(field: dataclasses.Field[Any], hint: Any) -> Option:
    if typing.get_origin(hint) is types.UnionType:
        hint = next(item for item in typing.get_args(hint) if item is not type(None))
    many = typing.get_origin(hint) is tuple
    known: Option = field.metadata["option"]
    return dataclasses.replace(known, name=field.name, holds=typing.get_args(hint)[0] if many else hint, many=many)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is asked to do, with what it found out about it; in a record, the conditions of its figures."""

    plugins: str = option(
        "rows, by comma; a method without a point stands for its default ones",
        default="",
        metavar="ROWS",
        decides=False,
    )
    model: str = option(
        "model preset", default=ByMachine("that of the sizes of --weights and --vae, else tiny"), metavar="PRESET",
        compared=False,
    )  # fmt: skip
    protocol: str | None = option(
        "a published protocol: its settings, where no others are given, and its files by their published names",
        absent="none", metavar="NAME", choices=protocols.names(), decides=False,
    )  # fmt: skip
    checkpoints: str | None = option(
        "where the files of --protocol lie", absent="where torch's hub keeps what it downloads, which is looked into too",
        metavar="FOLDER", path="folder", decides=False,
    )  # fmt: skip
    other_files: bool = option(
        "take checkpoints of --protocol although their hashes are not the published ones (other Inception weights are never taken)",
        default=False, decides=False,
    )  # fmt: skip
    weights: str | None = option(
        "the transformer's checkpoint, or `random`, which has no quality", absent="what the preset ships",
        metavar="FILE", path="file", word="random",
    )  # fmt: skip
    vae: str | None = option("the tokenizer's checkpoint", absent="what the preset ships", metavar="FILE", path="file")
    companion: tuple[str, ...] = option(
        "a second model, for methods that run two, as in second=var_d16.pth", default=(), metavar="NAME=FILE",
        form=("[^=]+=.+", "NAME=FILE, as in second=var_d16.pth"), path="file",
    )  # fmt: skip
    reference: str | None = option(
        "what quality is measured against: a folder of images or an ADM .npz", absent="the preset's own images",
        metavar="PATH", path="file or folder",
    )  # fmt: skip
    inception: str | None = option(
        "the published Inception weights, without which nothing is called FID", absent="the preset's own network",
        metavar="FILE", path="file",
    )  # fmt: skip
    features: str | None = option(
        "feature network of `varbench train features`; the score is named after its data",
        absent="the preset's own network", metavar="FILE", path="file",
    )  # fmt: skip
    judge: str | None = option(
        "judge of `varbench train judge`, which has to know the classes of --data",
        absent="the preset's own, where it knows the classes", metavar="FILE", path="file",
    )  # fmt: skip
    data: str | None = option(
        "class folders, or the four idx files of a set like MNIST, that recipes are trained on and, without --reference, quality is "
        "measured against",
        absent="the preset's own data", metavar="FOLDER", path="folder",
    )  # fmt: skip
    device: str = option(
        "cpu, cuda or cuda:N", default=ByMachine("cpu, or for the large presets a GPU where there is one"), metavar="DEVICE",
        form=(r"cpu|cuda(:\d+)?", "cpu, cuda or cuda:N"), compared=False,  # the record's environment says which it was
    )  # fmt: skip
    dtype: str = option(
        "float32, bfloat16 or float16", default=ByMachine("what the device is fast at"), metavar="TYPE", choices=DTYPES,
        reads="{}", always=True, sweeps=True,
    )  # fmt: skip
    batch: int = option(
        "images a call in the throughput regime", default=ByPreset(64, tiny=32, quick_tiny=16), metavar="N", least=1,
        always=True, sweeps=True,
    )  # fmt: skip
    compile: str = option("torch.compile mode", default="off", metavar="MODE", choices=COMPILE_MODES, sweeps=True)
    graphs: bool = option(
        "on a GPU, launch steps as CUDA graphs where no code of the method needs the host", default=True
    )
    study: tuple[str, ...] = option(
        "rows that plugins offer for a panel of their own; see varbench list", default=(), metavar="NAME", decides=False
    )
    all_settings: bool = option("every recipe and point, not only the default ones", default=False, decides=False)
    calibrate: bool = option(
        "methods that have an offline pass are calibrated first, and measured with what it found", default=False,
        compared=False,
    )  # fmt: skip
    seed: int = option(
        "seed of the noise and of the recipes' training",
        default=0,
        metavar="N",
        least=0,
        most=2**32 - 1,
        compared=False,
    )
    cfg: float = option("guidance scale", default=1.5, metavar="X", reads="cfg {:g}", sweeps=True)
    top_k: int = option(
        "draw among the k likeliest codes; 0 is off", default=ByPreset(900, tiny=0), metavar="K", least=0
    )
    top_p: float = option(
        "draw within this probability; 0 is off", default=ByPreset(0.96, tiny=0.0), metavar="P", least=0,
        most=1, reads="top_p {:g}",
    )  # fmt: skip
    steps: int | None = option(
        "optimiser steps of a recipe; default: for tiny 2,000, as what ships was trained for, else 60",
        absent="a quick run: what ships, else 12 steps", metavar="N", least=1, reads="{:,} steps a recipe",
    )  # fmt: skip
    train: bool = option(
        "train recipes here, although trained weights ship; 60 steps unless --steps says more", default=False,
        compared=False,
    )  # fmt: skip
    images: int = option(
        "images scored a row; 0 leaves quality out", default=ByPreset(50_000, tiny=2_000, quick=2_000, quick_tiny=200),
        metavar="N", least=0, reads="{:,} images",
    )  # fmt: skip
    second_opinion: bool = option(
        "the distance by clean-fid too; for FID, inception-2015-12-05.pt must lie beside the --inception file",
        default=False, compared=False,
    )  # fmt: skip
    keep_images: str | None = option(
        "keep all scored images of every row in the run's folder: `npz`, as the ADM suite reads them, or `png`",
        absent="a few are kept, to look at", metavar="FORM", choices=("npz", "png"), decides=False,
    )  # fmt: skip
    rounds: int = option(
        "rounds of fresh processes; 0 leaves speed out", default=ByPreset(FEWEST_ROUNDS, tiny=FEWEST_ROUNDS, quick=1, quick_tiny=1),
        metavar="N", least=0, compared=False,
    )  # fmt: skip
    # Two CPU cores make no more images a second with larger batches, and ten minutes have to do for fourteen rows.
    count: int = option(
        "fewest pairs of calls that are timed, a row, regime and round", default=ByPreset(6, tiny=2, quick=3, quick_tiny=2),
        metavar="N", least=1, compared=False,
    )  # fmt: skip
    precision: float = option(
        "half-width of a speedup's interval, as a share, until which pairs are timed and beyond which it is warned of",
        default=0.03, metavar="SHARE", above=0, most=1, compared=False,
    )  # fmt: skip
    budget: float = option(
        "seconds of calls that may be spent on that, a row and round; with 0 no quiet moment is waited for",
        default=ByPreset(30.0, tiny=3.0, quick=3.0, quick_tiny=1.0), metavar="S", least=0, compared=False,
    )  # fmt: skip
    quick: bool = option(
        "a first look in a minute or two, never compared with full runs", default=False, reads="quick look"
    )
    timeout: float = option(
        "seconds without a sign of life after which a row is ended", default=600.0, metavar="S", above=0, decides=False
    )
    memory_limit: float | None = option(
        "host memory that a child may take", absent="no limit", metavar="GIB", above=0, decides=False
    )
    executor: str = option(
        "who measures: `local`, processes of this machine; `ray`, the devices of a Ray cluster, rows and images side by side",
        default="local", metavar="NAME", choices=("local", "ray"), decides=False,
    )  # fmt: skip
    address: str | None = option(
        "the Ray cluster: `auto`, or HOST:PORT of its head", absent="a Ray of this machine's own, started for the run",
        metavar="ADDRESS", form=(r"auto|(ray://)?[^:/]+:\d+", "auto or HOST:PORT"), decides=False,
    )  # fmt: skip
    kind: str | None = option(
        "the kind of device that --executor ray measures on, by a part of its name as in H100",
        absent="the one of which there are most", metavar="NAME", decides=False,
    )  # fmt: skip
    fresh: bool = option(
        "measure quality and memory again, though an earlier run here left its findings", default=False, decides=False
    )
    out: str | None = option("where records go", absent="varbench-runs/<time>", metavar="DIR", decides=False)

    kernel: str | None = found("torch's attention kernel, as seen in a call of this batch", absent="see `missing`")
    arithmetic: str | None = found(
        "types of products and convolutions (the decoder's are these), their library and layout, as seen in that call",
        absent="see `missing`",
    )
    labels: str = found("how labels were drawn, e.g. `balanced, 200 a class`", default="balanced", compared=True)
    seed_scheme: str = found("how noise is keyed", default="seed, image, scale, position", compared=True)
    accounting: str = found("`lossless` or `upstream`", default="lossless")
    row_order: tuple[str, ...] = found("rows of the run in the order of the first round", default=())
    shared_child: bool = found("rows with the same weights shared one child and took turns in it", default=False)

    @property
    def filters(self) -> bool:
        """Whether some codes may not be drawn, for which logits are sorted."""
        return bool(self.top_k or self.top_p)
