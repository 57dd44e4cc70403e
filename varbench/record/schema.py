"""What one row of one run leaves behind: every key is documented here, where it is defined.

A key that may be null says, in `absent`, why it is null when nothing more exact is known; the exact reason goes into
`Record.missing` under the key's dotted path. Missing is never 0. All times are seconds, all sizes bytes.
New keys must be nullable or have a default, so that an older file reads as it is; a key that changes its meaning needs
a higher `SCHEMA_VERSION` and an entry in `upgrades.UPGRADES`.
"""

# ruff: noqa: RUF009  (`entry` is `dataclasses.field` with a documentation)
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from varbench.record.documented import entry
from varbench.record.options import Options
from varbench.record.origin import Environment, MethodSource, Model, PublishedLine, RowIdentity, StudyWords, WeightFile
from varbench.record.planned import PlanSummary, Totals

SCHEMA_VERSION = 5


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


@dataclass(frozen=True, kw_only=True)
class HeldUp:
    """What the system says of each sample's process during its call: what a pair that is taken again is told by."""

    regime: str = entry("`latency` or `throughput`")
    cpu_seconds: tuple[tuple[float, ...], ...] = entry("processor time of all threads, one list per round")
    waited_seconds: tuple[tuple[float, ...], ...] = entry("time that threads stood in the queue for a processor")
    stolen_seconds: tuple[tuple[float, ...], ...] = entry("time that the host took from the whole machine")
    switches: tuple[tuple[int, ...], ...] = entry("how often a thread was taken off its processor before it was done")
    beside_cpu_seconds: tuple[tuple[float, ...], ...] = entry(
        "as much of the full model's call beside the sample; none in older records, and where there is no such call",
        default=(),
    )
    beside_waited_seconds: tuple[tuple[float, ...], ...] = entry("of that call too", default=())
    beside_stolen_seconds: tuple[tuple[float, ...], ...] = entry("of that call too", default=())
    beside_switches: tuple[tuple[int, ...], ...] = entry("of that call too", default=())
    pairs: tuple[tuple[float, ...], ...] = entry(
        "the share of its time that the sample's call, or the full model's beside it, was kept from running: the larger one",
        default=(),
    )
    delayed: tuple[tuple[tuple[float, float], ...], ...] = entry(
        "the share of its time that the full model's call beside the sample may have lost, and that of the sample's, by waiting or "
        "by running clearly less than is usual; 0 of a call that waited for no more than 1 % and ran as usual",
        default=(),
    )


@dataclass(frozen=True, kw_only=True)
class PerScale:
    """Time of each plan step, from the calls that are timed in all rounds: together they are the median call's loop."""

    batch: int = entry("images a call")
    clock: str = entry("`cuda_events` or `perf_counter`")
    seconds: tuple[float, ...] = entry("seconds of each plan step: its median share of a call, of the median call")


@dataclass(frozen=True, kw_only=True)
class LargestBatch:
    batch: int = entry("largest batch that fits")
    how: str = entry("`bisection` (ran) or `plan` (computed from free memory, not run)")
    limit_bytes: int = entry("the memory it had to fit into")


@dataclass(frozen=True, kw_only=True)
class DrawnCalls:
    """Of one process and regime: what it was asked was not known before it ran, and can be asked again."""

    regime: str = entry("`latency` or `throughput`", default="throughput")
    secret: str = entry("what seeds and order were drawn from")
    seeds: tuple[int, ...] = entry("of the timed calls, in their order")
    answers: tuple[str, ...] = entry("hash of each one's tokens; of its images where there are none")
    first_image: int = entry("number of their first image in the noise stream")
    between_seconds: float | None = entry(
        "processor time that the process used between calls, when nothing was asked of it",
        absent="the system does not tell",
    )
    full_alone: tuple[tuple[float, float], ...] = entry(
        "seconds of the full model beside the row, and of its neighbouring call in a process without the row's plugins",
        default=(),
    )
    outside: tuple[float, ...] = entry(
        "seconds between question and answer, by the judge's clock, that lie outside of what the process states: of the calls "
        "that count, in the order of their samples",
        default=(),
    )
    outside_alone: tuple[float, ...] = entry("the same of the full model's calls without the row's plugins", default=())
    likeness: float | None = entry(
        "how likely chance makes timed images differ from scored ones as these do", absent="no images were looked at"
    )


@dataclass(frozen=True, kw_only=True)
class Timing:
    columns: tuple[TimingColumn, ...] = entry("one entry per column and regime measured", default=())
    per_scale: PerScale | None = entry("the per-scale pass", absent="not measured")
    largest_batch: LargestBatch | None = entry("largest batch", absent="not measured")
    compile_seconds: float | None = entry("time of torch.compile", absent="torch.compile is off")
    first_call_seconds: float | None = entry("first call after loading", absent="not measured")
    discarded: int | None = entry(
        "calls and pairs of calls that were made again since one was kept from running", absent="not counted"
    )
    held_up: float | None = entry(
        "share of their time that the calls which count were kept from running: the largest of the rounds' medians",
        absent="the system does not tell",
    )
    calls: tuple[HeldUp, ...] = entry(
        "how the calls that count ran, by regime, in the order of their samples; none where the system does not tell",
        default=(),
    )
    drawn: tuple[DrawnCalls, ...] = entry(
        "how the timed calls of each round were drawn, and what came of them", default=()
    )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of calls of their own, in the process that made the row's images. A device figure is null on a CPU, a host figure on a GPU."""

    batch: int = entry("images a call, as in the plan")
    weights_bytes: int | None = entry("by storage, counted once", absent="not measured")
    state_peak_bytes: tuple[int, ...] | None = entry(
        "largest state across scales within each plan step, beside the plan's `state_peak_bytes`; of a row that replaces the "
        "loop one number, what is held for longer than a step",
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
    joules_per_image: float = entry("energy of the board, or of all processors, over the window, by images made in it")
    window_seconds: float = entry("length of the window")
    source: str = entry("what was read, e.g. `NVML total energy, whole board`")


@dataclass(frozen=True, kw_only=True)
class Score:
    name: str = entry("what it is called: `FID` only with the published Inception weights, else e.g. `FD-shapes`")
    value: float | None = entry("the score", absent="not computed")
    low: float | None = entry("lower end of its 95 % interval", absent="no interval for this score")
    high: float | None = entry("upper end of it", absent="no interval for this score")
    n: int = entry("images scored; below 50,000, of which published figures are, the page prints `FID-n`")
    better: str = entry("`lower` or `higher`")
    implementation: str = entry("library and version, e.g. `torch-fidelity 0.4.0`")
    features: str | None = entry("feature network", absent="needs no feature network")
    weights_sha256: str | None = entry("hash of the feature network's weights", absent="needs no feature network")
    reference: str | None = entry("what it was compared with, by content", absent="needs no reference")
    reason: str | None = entry("why the value is null", absent="the value is there")
    bias: float | None = entry(
        "how much the value is too high on average since it is of `n` images and not of very many; it is not taken off",
        absent="the score has no such bias",
    )
    swings: tuple[float, ...] | None = entry(
        "half of the difference between two halves of the images, for splits that are the same in every row of the same "
        "labels: where these agree in two rows, the rows' difference is known better than either score",
        absent="not made for this score",
    )


@dataclass(frozen=True, kw_only=True)
class Quality:
    scores: tuple[Score, ...] = entry("the first is the headline of table and pictures")
    floors: dict[str, Score] = entry("`real` (real against real) and `reconstruction`, at equal size", default={})
    against: str | None = entry(
        "the reference, and which part of it feeds which score", absent="the record is of before this was noted"
    )


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


HELD_OUT_LOSS = "held-out loss"
"""Name of the score that looks at weights while they train."""


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
    seconds: float = entry("time they took, and the making of examples where a model makes them")
    seed: int = entry("seed of data order and draws")
    command: str = entry("command line that trains the same weights")
    origin: str | None = entry(
        "`shipped` with the package, trained `here` in this run, or taken from the `cache` of earlier trainings",
        absent="the record is of before weights shipped",
    )
    device: str | None = entry("what it was trained on", absent="the record is of before this was noted")
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
class Samples:
    png: str | None = entry(
        "PNG of the grid, base64; the same labels and noise in every row", absent="no grid was kept"
    )
    path: str | None = entry("or its path, relative to the record", absent="the grid is inside the record, or not kept")
    columns: int = entry("images side by side in the grid", default=0)
    labels: tuple[int, ...] = entry("class of each image, row by row", default=())
    classes: tuple[str, ...] = entry("names of these classes; empty where nobody knows them", default=())
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
    study: StudyWords | None = entry("words of its study", absent="the row belongs to the main table alone")
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
