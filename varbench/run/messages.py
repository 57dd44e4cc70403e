"""What a run's processes say to each other: typed, through the one encoder of records, a line of JSON each.

The parent holds no plugin. Its children resolve rows, train a recipe, make images, look at them, or hold plugins' metrics.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from varbench.base.hashing import json_digest
from varbench.measure.calls import Chunk, Reply, Request
from varbench.plan.steps import Accounting, Plan
from varbench.policies import Paper
from varbench.record import (
    CalibrationRun,
    Distance,
    Environment,
    MethodSource,
    PublishedLine,
    Quality,
    Samples,
    StudyWords,
    WeightFile,
    decode,
    encode,
)
from varbench.record.failure import Failure
from varbench.record.options import Options
from varbench.spec import ModelSpec
from varbench.train.training_log import TrainingLog

OWN_WEIGHTS = "own weights of "
"""How the set of weights of a row begins whose plugin brings them."""

GROUP = 256
"""Images that a scorer looks at together, or a few more: whole batches. What it keeps of them is kept by the group."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a child is started with. It does not say what the answers are for."""

    task: str
    """A module of `run/tasks`."""
    options: Options
    model: ModelSpec
    folder: str = field(default_factory=os.getcwd)
    """Where the user stands: what rows name to be read is looked for from there."""
    rows: tuple[str, ...] = ()
    files: dict[str, str] | None = None
    """Weight files by part, `vae`, `main`, …; None draws random weights."""
    look_only: bool = False
    """Nothing is trained, no row of a study made: only where weights would come from, and what rows there are, is said."""
    full_images: str | None = None
    """Under what name the full model's images are kept for runs like this one."""
    left_out: dict[str, Failure] = field(default_factory=dict)
    """Why a child that asked for rows was ended, by what it must not ask again: a plugin, or a row as it was written."""
    metrics_of: str | None = None
    """The plugin whose metrics are computed."""

    @property
    def digest(self) -> str:
        return json_digest(encode(self, "job"))


@dataclass(frozen=True, kw_only=True)
class Told:
    """The first thing that a child says, before any code of a plugin runs in it; a subject says it when it is `Ready`."""

    job: str
    """Digest of what it was told to do, as it read it."""


@dataclass(frozen=True, kw_only=True)
class Alive:
    """A sign of life, with how far it is of all that the child was started for; None where it does not say."""

    text: str = ""
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What was asked last failed, or all that the child was started for."""

    failure: Failure
    last: bool = False
    """The process cannot go on, and ends."""


@dataclass(frozen=True, kw_only=True)
class ResolvedPlugin:
    name: str
    distribution: str
    version: str
    files: tuple[str, ...] = ()
    """What it was imported from: its top-level package's folder, or its module with those beside it that it imports."""


@dataclass(frozen=True, kw_only=True)
class ResolvedRow:
    """A row as data: all that the parent knows of it."""

    name: str
    plugins: tuple[ResolvedPlugin, ...] = ()
    recipe: str | None = None
    trained_by: str = ""
    """The recipe with its plugin, as `varbench train` takes it."""
    point: str | None = None
    curve: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    study: str | None = None
    also_in: str | None = None
    """The study that a row of the main table was asked for in too."""
    published: tuple[PublishedLine, ...] = ()
    paper: Paper | None = None
    study_words: StudyWords | None = None
    accounting: Accounting = "lossless"
    plan: Plan | None = None
    other_plan: Plan | None = None
    """Under the other accounting, to be shown beside."""
    backbones: tuple[str, ...] = ()
    """Models beside the main one that it runs on."""
    calibrates: bool = False
    """Whether a plugin of it gives an offline pass."""
    uncalibrated: bool = False
    """Whether nothing that such a pass finds was given."""
    trained_generator: bool | None = None
    """Of a row that replaces the loop: whether it has weights that are worth a look; None for rows with a plan."""
    trains_generator: bool = False
    """Whether these weights are trained in the run."""
    taught_generator: bool = False
    """Whether it also reads the full model's."""
    stated_flops: float | None = None
    """Of its network, for a batch, as it says."""
    source: MethodSource | None = None
    read: dict[str, str] = field(default_factory=dict)
    """Paths that the row's parameters name, by the parameter, as in `dit.weights`."""
    weight_set: str = ""  # rows with one recipe and one set of parameters share it
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Resolved:
    rows: tuple[ResolvedRow, ...]
    files: dict[str, str] | None
    """Weight files by part, those of second models too; None for random weights."""
    metrics: tuple[str, ...]  # plugins that bring some
    problems: tuple[str, ...]
    """One line for each plugin that cannot be used, and for kernels that could be there and are not."""
    kernels: str = ""  # what computes on a CPU beside torch's operators, as a key
    only_named: tuple[str, ...] = ()
    """Rows of studies, as they are asked for, where they were not to be made."""


@dataclass(frozen=True, kw_only=True)
class ChildCode:
    """What a child runs, as it lies where the child takes it from when it begins."""

    measuring: str
    """Hash of the code that measures."""
    plugin_files: dict[str, tuple[str, ...]]
    plugin_hashes: dict[str, str | None]
    """Of each plugin's files."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """By the row that was asked for, the row with what was found written into it, and what is to be told of the pass."""

    rows: dict[str, str]
    runs: dict[str, CalibrationRun]
    codes: dict[str, ChildCode] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trained:
    log: TrainingLog | None
    """None where nothing was trained."""
    files: dict[str, str]
    hashes: dict[str, str]
    note: str | None = None
    """Why weights that ship were not used, where they should have been."""
    code: ChildCode | None = None
    """What trained them, or found them trained; None where no child did."""


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """Of each row that trains, where its weights lie ready: `shipped` or `cache`; None where they would have to be trained."""

    origins: dict[str, str | None]
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of the weights that lie ready, by part, as `Trained` has them."""


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """The files that were given can be used."""

    device_memory: int | None
    """Bytes that are free on the GPU; None on a CPU, or where rows run elsewhere."""


@dataclass(frozen=True, kw_only=True)
class FoundSizes:
    """Of the model in two checkpoints."""

    model: ModelSpec


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A subject's process is ready: who it is, and what it runs."""

    job: str
    """Digest of what it was told to do, as it read it: settings, rows and weight files."""
    environment: Environment
    weights: dict[str, str]
    parameters: dict[str, int]
    plans: dict[str, str]
    """Digest of each row's plan, as compiled here."""
    code: ChildCode
    disturbed: tuple[int, ...] | None
    """Other processes on the GPU; None where that cannot be seen."""


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Tells a scorer that the images of this row come next."""

    row: str
    full: bool
    """It is the full model, whose images the other rows' are compared with."""
    keep: str | None = None
    """Where all of them are kept: an `.npz`, or a folder of PNG files."""
    groups: str | None = None
    """Folder for what is kept of them until the row is scored, so that a run that is killed goes on; None keeps nothing."""
    first: int = 0
    """Which image of the row comes first: not 0 where others are made elsewhere."""
    upto: int = 0
    """How many images of the row were asked for before, and need not be made again if what was kept of them is whole."""
    before: int = 0
    """When the run began, in nanoseconds: what is newer, in `groups` or the cache, was not kept by an earlier one."""
    threads: int | None = None
    """That look at images while others are made beside; None is all there are."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    known: int
    """The first images that need not be made."""


@dataclass(frozen=True, kw_only=True)
class Take:
    chunk: Chunk
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Images were taken."""

    images_sha256: str
    """Of their pixels, by who looks at them."""
    known: int
    """Images of the row of which everything that scores need is kept."""


@dataclass(frozen=True, kw_only=True)
class Liken:
    """Two files of images of the same labels: some that were scored, and some that were timed."""

    scored: str
    timed: str


@dataclass(frozen=True, kw_only=True)
class Likened:
    images_sha256: str
    """Of the scored ones, as they lie there."""
    chance: float | None
    """How likely a difference like that of the two is by chance; None where no network looks at images."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    expected: int


@dataclass(frozen=True, kw_only=True)
class ClassOrder:
    """Whether a row's classes are those of its labels."""

    right: float
    """Share of images that are judged to be of the class that they were asked for."""
    reordered: float
    """The same if the classes stood in the order that fits best."""
    asked: int
    shown: int
    """What most images of class `asked` show in that order: an example."""


@dataclass(frozen=True, kw_only=True)
class Oddities:
    """What images show that no honest method does."""

    repeated: int
    """Images that are another one's pixels."""
    copied: float | None
    """Share of images that are nearer to a reference image than reference images are to each other; None without any."""
    undecoded: float | None
    """Share of pixels that are not what the tokens decode to; None for a row without tokens."""
    darker: float | None = None
    """Levels of 255 by which pixels lie below what the tokens decode to, on average; None for a row without tokens."""
    order: ClassOrder | None = None
    """Whether classes are those that were asked for; None where no judge looks, or there are too few images."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSeen:
    """What scores are against."""

    source: str
    statistics: bool
    """It brings mu and sigma of Inception's features, which the distance is then taken from."""
    spatial: bool = False
    """And those of its spatial features, as all files of the ADM suite do."""
    images: int | None
    """None where it has none."""
    rebuilt: float | None = None
    """How much its images change through the tokenizer, as a multiple of how much they change a second time; None where not tried."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    quality: Quality | None
    distance: Distance | None
    samples: Samples
    weights: tuple[WeightFile, ...]
    oddities: Oddities
    reference: ReferenceSeen | None = None
    """None where nothing is scored."""
    contents: dict[str, str] = field(default_factory=dict)
    """Hashes of what was read to score with, by the option that it is of."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One value an image, by `plugin.metric`."""

    values: dict[str, tuple[float, ...]]
    better: dict[str, str]
    failures: dict[str, Failure] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Done:
    """The child has finished, or has taken what it was sent."""


Message = (
    Told
    | Alive
    | Failed
    | Resolved
    | Calibrated
    | Trained
    | Ahead
    | Inspected
    | FoundSizes
    | Ready
    | Request
    | Reply
    | Begin
    | Begun
    | Take
    | Taken
    | Liken
    | Likened
    | Finish
    | Scored
    | Measured
    | Done
)
_KINDS: dict[str, type] = {kind.__name__: kind for kind in Message.__args__}


def to_line(message: Message) -> bytes:
    return json.dumps([kind := type(message).__name__, encode(message, kind)], allow_nan=False).encode() + b"\n"


def from_line(line: bytes) -> Any:
    kind, content = json.loads(line)
    return decode(_KINDS[kind], content, kind)
