"""The section of a record that writes its plan down: steps, layer calls, and what the cost model says of them."""

# ruff: noqa: RUF009  (`entry` is `dataclasses.field` with a documentation)
from __future__ import annotations

from dataclasses import dataclass

from varbench.record.documented import entry


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
    samples: int = entry("scale sampled, from 1")
    backbone: str = entry("which network runs")
    branches: tuple[str, ...] = entry("guidance branches: `labelled`, and `unlabelled` where there are two")
    mask: str = entry("`full`, or `block_causal` where the step encodes several scales")
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
    layer_tokens: int | None = entry(
        "layers x tokens whose attention is computed, per image and branch", absent="not a layered method"
    )
    state_peak_bytes: int | None = entry("largest cache and policy state in any step", absent="not counted")
    state_end_bytes: int | None = entry("largest cache and policy state in the last step", absent="not counted")
    ways: dict[str, int] = entry("images by the way that they went, where it is decided by content", default={})


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
    steps: tuple[PlanStep, ...] = entry("the steps, in order")
    totals: Totals = entry("what is planned for all steps")
    accountings: dict[str, Totals] = entry("the same totals counted as `lossless` and as `upstream`", default={})
    transforms: tuple[PlanTransform, ...] = entry("what plugins replace, in the order it is done", default=())
    picks: bool | None = entry(
        "policies choose by content within the loop, or store what is cached in their own form: time hangs on more than the plan",
        absent="an older varbench did not say",
    )
    read_share: float | None = entry(
        "cache entries that a head reads in the last step, over all layers, as a share of what the full model reads then",
        absent="the first step is the last, or an older varbench did not say",
    )
    token_share: float | None = entry(
        "the same as a share of all tokens, as papers count that store the last scale",
        absent="an older varbench did not say",
    )
    least: Totals | None = entry(
        "what is planned where all images go the way of the least work: `totals` are then the most",
        absent="the work does not depend on content",
    )
    weights_bytes: int | None = entry("weights of all backbones the row runs on", absent="no cost model for this row")
    hardware: str | None = entry("device the prediction is for", absent="no roofline is known for this device")
    hardware_source: str | None = entry(
        "where that device's rates are from: its maker's data sheet, or a measurement with its day",
        absent="hardware not known, or an older varbench did not say",
    )
    bound: bool | None = entry(
        "the prediction is a bound, since nobody measured what the device reaches",
        absent="hardware not known, or an older varbench did not say",
    )
    predicted_seconds: float | None = entry("predicted transformer time", absent="hardware not known")
