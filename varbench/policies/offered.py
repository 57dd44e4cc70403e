"""What a plugin says of itself: its points, recipes and parameters, where they come from, and what was printed of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One knob of a plugin, set in a row as `:name=value`. The value is read as the default's type."""

    default: bool | int | float | str
    help: str
    kind: Literal["value", "path"] = "value"
    """`path`: a string that names a file or folder to read, empty for none. Its content, not its name, then decides
    whether a record is still of the same inputs."""
    calibrated: bool = False
    """Whether `varbench_calibrate` finds it. A row that has it at its default is not calibrated, and `varbench run` says so."""


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
    settings: Mapping[str, float] = field(default_factory=dict)
    """Options of `varbench run` that its scores are known to hold under, as in `{"cfg": 1.5, "images": 50_000}`. Where a
    figure was printed more than once, a row is compared with the lines that state the run's own settings."""


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
    curves: Mapping[str, str] = field(default_factory=dict)
    """Where its points lie on several curves: regular expressions of the points, by what the curve is called."""
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
