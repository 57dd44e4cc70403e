"""What one row of one run leaves behind: every key is documented here, where it is defined.

A key that may be null says, in `absent`, why it is null when nothing more exact is known; the exact reason goes into
`Record.missing` under the key's dotted path. Missing is never 0. All times are seconds, all sizes bytes.
New keys must be nullable or have a default, so that an older file reads as it is; a key that changes its meaning needs
a higher `SCHEMA_VERSION` and an entry in `upgrades.UPGRADES`.
"""

# ruff: noqa: RUF009  (`entry` is `dataclasses.field` with a documentation)
from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from varbench.record.options import Options

SCHEMA_VERSION = 3


def entry(doc: str, *, absent: str | None = None, default: Any = dataclasses.MISSING) -> Any:
    """A documented field. `absent` says why the key may be null, and makes null its default."""
    if absent is not None:
        default = None
    about = {"doc": doc, "absent": absent}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=about)
    return dataclasses.field(default=default, metadata=about)


class Status(StrEnum):
    """How a row ended. Only `complete` rows are skipped by `--resume`."""

    COMPLETE = "complete"
    CRASHED = "crashed"  # the child was ended by a signal
    TIMEOUT = "timeout"
    OUT_OF_MEMORY_HOST = "out_of_memory_host"
    OUT_OF_MEMORY_DEVICE = "out_of_memory_device"
    WRONG_OUTPUT = "wrong_output"  # too few images, NaN, a wrong shape
    UNSUPPORTED = "unsupported"  # this machine or preset cannot run the row; nothing is broken
    FAILED = "failed"  # an exception, or a step before this one failed
    INTERRUPTED = "interrupted"


class Verdict(StrEnum):
    VALID = "valid"
    INVALID = "invalid"
    UNCHECKED = "unchecked"  # the row did not get as far as the checks


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
    params: dict[str, Any] = entry("parameters given in the row, by `plugin.key`", default={})
    denominator: str | None = entry(
        "this row is the full model that others are divided by, under `lossless` or `upstream` accounting",
        absent="the row is not the full model",
    )
    study: str | None = entry(
        "panel this row was made for, outside the main table, by its name",
        absent="the row belongs to the main table",
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
class CallRun:
    """Consecutive layer calls of a step that share their counts (per image and branch), written once.

    Where head groups keep different counts, entries are the mean over heads.
    """

    layers: tuple[int, ...] = entry("layer of each call, in the order of execution")
    attention_tokens: int = entry("tokens whose attention is computed")
    ffn_tokens: int = entry("tokens whose FFN is computed")
    reads: int = entry("cache entries of earlier steps that attention reads")
    own: int = entry("entries this call puts into the cache")
    kept: int = entry("entries its cache holds when the step has ended")


@dataclass(frozen=True, kw_only=True)
class PlanStep:
    scales: tuple[int, ...] = entry("scales encoded, from 1")
    samples: int | None = entry("scale sampled, from 1", absent="the step samples nothing")
    backbone: str = entry("which network runs")
    branches: tuple[str, ...] = entry("guidance branches, e.g. `cond`, `uncond`")
    mask: str = entry("attention mask of the step")
    calls: tuple[CallRun, ...] = entry("the layer calls")
    flops: float | None = entry("work of the step, for the plan's batch", absent="no cost model for this row")
    moved_bytes: int | None = entry("bytes the roofline moves: weights, cache, activations", absent="no cost model")
    state_peak_bytes: int | None = entry("largest cache and policy state within the step", absent="no cost model")
    state_after_bytes: int | None = entry("cache and policy state that stays after the step", absent="no cost model")
    activation_bytes: int | None = entry("largest activations within the step", absent="no cost model")
    predicted_seconds: float | None = entry("roofline time on `PlanSummary.hardware`", absent="hardware not known")


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Work of one generation of a batch: as planned (`PlanSummary`) or as it happened (`Record.trace`)."""

    flops: float | None = entry("floating point operations of the transformer", absent="no cost model for this row")
    steps: int | None = entry("steps run", absent="not a scale-wise method")
    layer_tokens: int | None = entry("layers x tokens computed, per image and branch", absent="not a layered method")
    state_peak_bytes: int | None = entry("largest cache and policy state in any step", absent="not counted")
    state_end_bytes: int | None = entry("largest cache and policy state in the last step", absent="not counted")


@dataclass(frozen=True, kw_only=True)
class PlanTransform:
    """What a plugin that replaces modules makes of one part of a backbone, in all layers."""

    plugin: str = entry("the plugin as the row writes it, as in `int8@g64`")
    backbone: str = entry("the model whose modules are replaced")
    part: str = entry("`attention` (its projections), `ffn`, `conditioning` or `ends` (embedding of codes and head)")
    flops: float = entry("FLOPs of its products, as a share of before")
    weights: float = entry("numbers in its matrices, as a share of before")
    weight_type: str | None = entry("type its matrices are stored in", absent="the compute type")
    bias_type: str | None = entry("type its biases are stored in", absent="the compute type")
    extra_bytes: float = entry("bytes stored beside, such as scales")
    compute_type: str | None = entry("type its products are computed in", absent="the compute type")


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    digest: str = entry("digest of the whole plan")
    batch: int = entry("batch the bytes and FLOPs below are for")
    steps: tuple[PlanStep, ...] = entry("the steps; of a dynamic plan, those of its largest form")
    totals: Totals = entry("what is planned; of a dynamic plan, the most")
    minimum: Totals | None = entry("the least a dynamic plan may do", absent="the plan is static")
    accountings: dict[str, Totals] = entry("the same totals counted as `lossless` and as `upstream`", default={})
    transforms: tuple[PlanTransform, ...] = entry("what plugins replace, in the order it is done", default=())
    weights_bytes: int | None = entry("weights of all backbones the row runs on", absent="no cost model for this row")
    hardware: str | None = entry("device the prediction is for", absent="no roofline is known for this device")
    predicted_seconds: float | None = entry("predicted transformer time", absent="hardware not known")


@dataclass(frozen=True, kw_only=True)
class TimingColumn:
    column: str = entry(
        "`transformer` (the networks alone), `loop` (with sampler and quantiser), `with_decoder` or `end_to_end`"
    )
    regime: str = entry("`latency` (batch 1) or `throughput`")
    batch: int = entry("images a call")
    clock: str = entry("`cuda_events` or `perf_counter`")
    rounds: tuple[tuple[float, ...], ...] = entry("raw samples: seconds a call, one list per round")
    beside: tuple[tuple[float, ...], ...] | None = entry(
        "seconds of the full model's own plan on this row's weights, in the neighbouring call of each sample: what the "
        "row's speedup is against",
        absent="the row has no full model in its process; its speedup is against the full model's own row",
    )
    median: float = entry("median of all samples")
    low: float = entry("lower end of the median's 95 % bootstrap interval")
    high: float = entry("upper end of it")
    iqr: float = entry("interquartile range of all samples")
    wall_median: float | None = entry("the same by wall clock", absent="the clock is the wall clock")


@dataclass(frozen=True, kw_only=True)
class PerScale:
    """Time of each plan step, from the calls that are timed: the steps of a call add up to its loop."""

    batch: int = entry("images a call")
    clock: str = entry("`cuda_events` or `perf_counter`")
    seconds: tuple[float, ...] = entry("median seconds of each plan step")


@dataclass(frozen=True, kw_only=True)
class LargestBatch:
    batch: int = entry("largest batch that fits")
    how: str = entry("`bisection` (ran) or `plan` (computed from free memory, not run)")
    limit_bytes: int = entry("the memory it had to fit into")


@dataclass(frozen=True, kw_only=True)
class Timing:
    columns: tuple[TimingColumn, ...] = entry("one entry per column and regime measured", default=())
    per_scale: PerScale | None = entry("the per-scale pass", absent="not measured")
    largest_batch: LargestBatch | None = entry("largest batch", absent="not measured")
    compile_seconds: float | None = entry("time of torch.compile", absent="torch.compile is off")
    first_call_seconds: float | None = entry("first call after loading", absent="not measured")
    discarded: int | None = entry(
        "pairs of calls that were taken again since one of them was kept from running", absent="not counted"
    )
    held_up: float | None = entry(
        "share of their time that the calls which count were kept from running: the largest of the rounds' medians",
        absent="the system does not tell",
    )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Own pass, own child. A device figure is null on a CPU, a host figure on a GPU."""

    batch: int = entry("images a call, as in the plan")
    weights_bytes: int | None = entry("by storage, counted once", absent="not measured")
    state_peak_bytes: tuple[int, ...] | None = entry(
        "largest state across scales within each plan step, beside the plan's `state_peak_bytes`",
        absent="not measured",
    )
    state_after_bytes: tuple[int, ...] | None = entry("state that stays after each step", absent="not measured")
    activations_peak_bytes: int | None = entry("peak above weights and state", absent="not measured")
    torch_allocated_bytes: int | None = entry(
        "peak of torch's allocator, weights included: on a CPU by the profiler's memory events, to the byte",
        absent="not measured",
    )
    torch_reserved_bytes: int | None = entry("peak it had reserved", absent="a CPU has no torch allocator figure")
    nvml_process_bytes: int | None = entry("NVML, this process, peak", absent="NVML gives no figure here")
    nvml_board_bytes: int | None = entry("NVML, the whole board, peak", absent="NVML gives no figure here")
    rss_growth_bytes: int | None = entry(
        "peak growth of the resident memory in that call: a side figure, with what the C library keeps",
        absent="not measured on a GPU",
    )

    left_bytes: int | None = entry(
        "what the allocator holds once the call is over and its result gone", absent="not measured"
    )

    @property
    def peak_bytes(self) -> int | None:
        """The figure of the table."""
        return self.torch_allocated_bytes


@dataclass(frozen=True, kw_only=True)
class Energy:
    joules_per_image: float = entry("board energy over the window, by images made in it")
    window_seconds: float = entry("length of the window")
    source: str = entry("what was read, e.g. `NVML total energy, whole board`")


@dataclass(frozen=True, kw_only=True)
class Score:
    name: str = entry("what it is called: `FID` only with the published Inception weights, else e.g. `FD-shapes`")
    value: float | None = entry("the score", absent="not computed")
    low: float | None = entry("lower end of its 95 % interval", absent="no interval for this score")
    high: float | None = entry("upper end of it", absent="no interval for this score")
    n: int = entry("images scored; below 10,000 the page prints `FID-n`")
    better: str = entry("`lower` or `higher`")
    implementation: str = entry("library and version, e.g. `torch-fidelity 0.4.0`")
    features: str | None = entry("feature network", absent="needs no feature network")
    weights_sha256: str | None = entry("hash of the feature network's weights", absent="needs no feature network")
    reference: str | None = entry("what it was compared with, by content", absent="needs no reference")
    reason: str | None = entry("why the value is null", absent="the value is there")


@dataclass(frozen=True, kw_only=True)
class Quality:
    scores: tuple[Score, ...] = entry("the first is the headline of table and pictures")
    floors: dict[str, Score] = entry("`real` (real against real) and `reconstruction`, at equal size", default={})


@dataclass(frozen=True, kw_only=True)
class Distance:
    """To the full model's own images under the same noise; needs no reference set."""

    n: int = entry("images compared")
    psnr: float | None = entry("mean PSNR in dB", absent="the images are equal, or not computed")
    feature_distance: float | None = entry("mean distance of features", absent="no feature network")
    equal_tokens: float | None = entry("share of tokens that are equal", absent="the method has other tokens")


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    point: str = entry("what the optimiser step ran, e.g. `full` or `d8`")
    steps: tuple[int, ...] = entry("optimiser steps, from 1")
    losses: tuple[float, ...] = entry("training loss at each of them")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    step: int = entry("optimiser steps done; 0 is before training")
    point: str = entry("where the weights were evaluated, `full` or e.g. `d8`")
    score: Score = entry("the quality there")


@dataclass(frozen=True, kw_only=True)
class Training:
    key: str = entry("cache key of the weights: rows that share it share the training")
    recipe: str = entry("recipe with its plugin, e.g. `my_method@recipe`")
    steps: int = entry("optimiser steps done")
    seconds: float = entry("time they took")
    seed: int = entry("seed of data order and draws")
    command: str = entry("command line that trains the same weights")
    losses: tuple[LossCurve, ...] = entry("loss over steps, one curve per depth", default=())
    evaluations: tuple[Evaluation, ...] = entry("quality over steps", default=())


@dataclass(frozen=True, kw_only=True)
class CalibrationRun:
    asked: str = entry("the row as it was asked for; the record's row has what was found written into it")
    parameters: dict[str, Any] = entry("parameters that were found, by `plugin.key`")
    digest: str = entry(
        "hash of all that was found, with the row and the weights' hashes; the kept JSON is named by it"
    )
    seconds: float = entry("what the offline pass cost, once for these weights")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Stable facts only: two runs on one machine give one `machine`."""

    machine: str = entry("hash of the stable facts below that name the machine")
    system: str = entry("operating system and architecture")
    cpu: str = entry("processor model")
    cores: int = entry("cores this run may use")
    memory_bytes: int | None = entry("host memory", absent="the system does not say")
    device: str = entry("what the model ran on: `cpu`, or the GPU's name")
    gpu_uuid: str | None = entry("the GPU's UUID", absent="no GPU, or NVML gives none")
    driver: str | None = entry("GPU driver", absent="no GPU")
    clocks: dict[str, float] = entry("clocks in MHz during timing, by name", default={})
    power_limit_watts: float | None = entry("board power limit", absent="no GPU, or NVML gives none")
    versions: dict[str, str] = entry("versions of Python and of the libraries that matter", default={})
    variables: dict[str, str] = entry("environment variables that change speed, e.g. OMP_NUM_THREADS", default={})


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


@dataclass(frozen=True, kw_only=True)
class StudyWords:
    """The study that the row was made for, in its plugin's words."""

    title: str = entry("heading of the picture")
    caption: str = entry("what is changed from row to row; empty where nothing is said", default="")
    place: int = entry("of the row in the picture, from 0", default=0)


@dataclass(frozen=True, kw_only=True)
class Samples:
    png: str | None = entry(
        "PNG of the grid, base64; the same labels and noise in every row", absent="no grid was kept"
    )
    path: str | None = entry("or its path, relative to the record", absent="the grid is inside the record, or not kept")
    columns: int = entry("images side by side in the grid", default=0)
    labels: tuple[int, ...] = entry("class of each image, row by row", default=())
    tokens_sha256: str | None = entry("hash of the grid's tokens", absent="the method has no tokens")


@dataclass(frozen=True, kw_only=True)
class Notice:
    text: str = entry("what is doubtful, with the numbers")
    next_command: str | None = entry("the command to run next", absent="nothing to run")


@dataclass(frozen=True, kw_only=True)
class Validity:
    verdict: Verdict = entry("may the row be believed", default=Verdict.UNCHECKED)
    reasons: tuple[str, ...] = entry("why not, or what was checked", default=())


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of one run. A runner makes it with the first keys, and adds sections by `dataclasses.replace`."""

    schema: int = entry("version of this schema", default=SCHEMA_VERSION)
    run: str = entry("name of the run, as its folder has it")
    row: RowIdentity = entry("what was run")
    model: Model = entry("on which model")
    protocol: Options = entry("what was asked for, and what the run found out about it")
    environment: Environment = entry("where")
    command: str = entry("command line that repeats this row alone")
    code_hash: str = entry("hash of varbench's own source")
    inputs_hash: str = entry("hash of all that decides the result: `--resume` runs the row again when it differs")
    started: str = entry("UTC time, ISO 8601")
    finished: str | None = entry("UTC time, ISO 8601", absent="the row did not finish")
    status: Status = entry("how the row ended")
    reason: str | None = entry("one line: why it is not complete", absent="the row is complete")
    exit_code: int | None = entry("of the child; negative is a signal", absent="the child was not waited for")
    stderr_tail: str | None = entry("last lines the child wrote to stderr", absent="stderr was empty")
    traceback: str | None = entry("of the exception", absent="no exception was raised")
    validity: Validity = entry("verdict of the checks", default=Validity())
    plan: PlanSummary | None = entry("the plan", absent="the method replaces the loop, or the plan was refused")
    trace: Totals | None = entry("what really ran", absent="the row did not get as far as running")
    timing: Timing | None = entry("speed", absent="speed was not measured")
    memory: Memory | None = entry("memory", absent="memory was not measured")
    energy: Energy | None = entry("energy", absent="no energy counter on this device")
    quality: Quality | None = entry("quality", absent="quality was not measured")
    distance: Distance | None = entry("distance to the full model's images", absent="not measured")
    training: Training | None = entry("how the weights were trained", absent="the row trains nothing")
    calibration: CalibrationRun | None = entry(
        "the offline pass that found the row's parameters", absent="the row runs with the parameters that it was given"
    )
    provenance: MethodSource | None = entry("where the method comes from", absent="the plugin does not say")
    published: tuple[PublishedLine, ...] = entry("what others printed of the row's setting", default=())
    study: StudyWords | None = entry("words of its study", absent="the row belongs to the main table")
    samples: Samples | None = entry("a few images", absent="no images were kept")
    weights: tuple[WeightFile, ...] = entry("files the numbers rest on", default=())
    metrics: dict[str, Score] = entry("figures of plugins: means over images, by `plugin.metric`", default={})
    warnings: tuple[Notice, ...] = entry("what the reader should know", default=())
    missing: dict[str, str] = entry("why a key is null, by dotted path, e.g. `memory.nvml_process_bytes`", default={})

    def why(self, path: str) -> str:
        """Why the key at a dotted path is null: the reason given for it or for what holds it, else the schema's."""
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            if (given := self.missing.get(".".join(parts[:end]))) is not None:
                return given
        value: Any = self
        for part in parts:
            about = {field.name: field.metadata for field in dataclasses.fields(value)}[part]
            value = getattr(value, part)
            if value is None:
                return str(about["absent"])
        raise ValueError(f"{path} of row {self.row.row} is not null")
