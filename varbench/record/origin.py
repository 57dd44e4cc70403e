"""Sections of a record that say where its figures come from: row, model, files, machine, and what others printed."""

# ruff: noqa: RUF009  (`entry` is `dataclasses.field` with a documentation)
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from varbench.record.documented import entry


@dataclass(frozen=True, kw_only=True)
class PluginVersion:
    name: str = entry("name the plugin registers, e.g. `my_method`")
    distribution: str = entry("package that brings it, e.g. `varbench`")
    version: str = entry("version of that package")
    code_hash: str | None = entry("hash of the plugin's source", absent="source not found")


@dataclass(frozen=True, kw_only=True)
class RowIdentity:
    """What was run: one or more plugins, each with its own setting."""

    row: str = entry("the row's full string, which `--plugins` takes, e.g. `my_method@recipe/point`")
    plugins: tuple[PluginVersion, ...] = entry("the plugins joined by `+`, in the row's order")
    recipe: str | None = entry("how the weights were trained", absent="the row trains nothing")
    point: str | None = entry("where on the method's curve it runs", absent="the method has one point only")
    curve: str | None = entry(
        "which of the method's curves the point lies on",
        absent="the method has one curve, or says nothing of the point",
    )
    params: dict[str, Any] = entry("parameters given in the row, by `plugin.key`", default={})
    denominator: str | None = entry(
        "this row is the full model that others are divided by, under `lossless` or `upstream` accounting",
        absent="the row is not the full model",
    )
    study: str | None = entry(
        "panel this row was made for, outside the main table, by its name",
        absent="the row belongs to the main table",
    )
    also_in: str | None = entry(
        "panel that a row of the main table stands in too, by its name", absent="it was asked for in no panel as well"
    )

    @property
    def named_recipe(self) -> str | None:
        """The recipe that the row's name gives, which is not the method's own; it may be one that trains nothing."""
        named = re.match(r"[^@+:]*@([^/+:]+)/", self.row)
        return named[1] if named else None


@dataclass(frozen=True, kw_only=True)
class Model:
    preset: str = entry("name of the model preset, e.g. `tiny` or `var-d30`")
    spec: dict[str, Any] = entry("the geometry, as `ModelSpec` gives it", default={})
    parameters: dict[str, int] = entry("number of parameters of every backbone that stays loaded", default={})
    weights: str | None = entry("`files`, `shipped`, `trained` or `random`", absent="the row did not load a model")


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    role: str = entry("what the file is for: `var`, `vae`, `narrow`, `features`, …")
    name: str = entry("file name without its folder, or the cache key of trained weights")
    sha256: str = entry("hash of the file's bytes")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Two runs on one machine give one `machine`, which is made of stable facts only."""

    machine: str = entry("hash of the stable facts below that name the machine")
    system: str = entry("operating system and architecture")
    cpu: str = entry("processor model")
    cores: int = entry("cores this run may use")
    memory_bytes: int | None = entry("host memory", absent="the system does not say")
    device: str = entry("what the model ran on: `cpu`, or the GPU's name")
    gpu_uuid: str | None = entry("the GPU's UUID", absent="no GPU, or NVML gives none")
    device_memory_bytes: int | None = entry("the GPU's memory", absent="no GPU, or NVML gives none")
    driver: str | None = entry("GPU driver", absent="no GPU")
    clocks: dict[str, float] = entry("clocks in MHz during timing, by name", default={})
    power_limit_watts: float | None = entry("board power limit", absent="no GPU, or NVML gives none")
    versions: dict[str, str] = entry("versions of Python and of the libraries that matter", default={})
    variables: dict[str, str] = entry("environment variables that change speed, e.g. OMP_NUM_THREADS", default={})
    threads: int | None = entry("threads that torch computes with", absent="no process loaded the model")
    affinity: tuple[int, ...] | None = entry("processors the run may use, by number", absent="the system does not say")
    load: float | None = entry(
        "processes that ran or wanted to, mean of the minute before the run began", absent="the system does not say"
    )
    governor: str | None = entry("how the processors' clocks are governed", absent="the system does not show it")


@dataclass(frozen=True, kw_only=True)
class MethodSource:
    kind: str = entry("`official code`, `port`, `from paper`, `from secondary note` or `ours`")
    note: str | None = entry("what is our choice where the source is silent", absent="nothing to add")
    url: str | None = entry("paper or code", absent="none given")


@dataclass(frozen=True, kw_only=True)
class PublishedLine:
    """What others printed of the row's setting on its model, as its plugin says."""

    figures: dict[str, float] = entry("as printed, by name, e.g. `fid`, `speedup`, `kv_mb`")
    grade: str = entry("`primary` is the authors' own, `secondary` a note of others")
    source: str = entry("where it was printed")
    conditions: str = entry("hardware, batch and what else it holds under; empty where nothing is said", default="")
    settings: dict[str, float] = entry("options that its scores are known to hold under", default={})


@dataclass(frozen=True, kw_only=True)
class StudyWords:
    """The study that the row was made for, in its plugin's words."""

    title: str = entry("heading of the picture")
    caption: str = entry("what is changed from row to row; empty where nothing is said", default="")
    place: int = entry("of the row in the picture, from 0", default=0)
