"""What training a recipe takes, counted before it begins: memory of a process, and time by the roofline. No torch.

Counted is what `varbench.engine.trained_layer` keeps for its backward pass, and what the optimiser holds beside the weights.
Letters: n tokens of an image, C width, D code_dim, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from varbench import rows
from varbench.errors import UserError
from varbench.plan.compiler import compile_plan
from varbench.plan.hardware import Hardware, usable
from varbench.plan.owned import RowPolicies
from varbench.plan.sizes import matrices, parameters, tokenizer_parameters
from varbench.plan.state import ITEM
from varbench.plan.steps import Plan
from varbench.policies import MAIN, Stage, TrainStep
from varbench.rows.grammar import Row
from varbench.spec import ModelSpec
from varbench.train.order import uniforms

FLOAT32 = 4
STATE = {"weights": 1, "gradients": 1, "Adam's two moments": 2, "running mean": 1}
"""Numbers in float32 for each weight that is trained."""
MOVED = 70
"""Bytes a weight that is trained: AdamW 28, the mean 12, clipping 12, its gradient 8, its copy in the compute type 6, read by three
products 4."""
OPERATORS_OF_LAYER, OPERATORS_OF_STEP = 107, 50
"""That touch memory, forward and backward; counted on a CPU. On a GPU the host is ahead, or a small model's are captured."""
_MOST_STEPS = 2_000
"""Of a longer schedule so many steps, evenly, are asked what they train."""


@dataclass(frozen=True, kw_only=True)
class PassWork:
    """The teacher-forced pass of a plan, for one image."""

    flops: float
    activations: int
    """Bytes that are kept for the backward pass."""
    layers: int
    """That run."""


@dataclass(frozen=True, kw_only=True)
class StageWork:
    name: str
    steps: int
    flops: float
    """Of an image, forward and backward, as the mean over the stage's steps."""
    fixed: int
    """Bytes whatever the batch is: weights, gradients, moments, mean; copies in the compute type; teacher and tokenizer."""
    activations: int
    """Bytes of an image in the step that keeps most."""
    moved: int
    """Bytes of a step for the weights, whatever the batch is."""
    operators: float
    """Of a step, as the mean over the stage's steps."""

    def needed(self, images: int) -> int:
        return self.fixed + images * self.activations

    def largest(self, limit: int) -> int:
        """Images that a process can take at once; 0 where not even one."""
        return max(0, (limit - self.fixed) // self.activations)

    def seconds(self, batch: int, *, gpus: int, hardware: Hardware, dtype: str) -> float:
        """Of a step, by its products, its weights and, on a CPU, its operators."""
        products, weights = (
            self.flops * batch / gpus / hardware.rate(dtype),
            self.moved / (hardware.bandwidth_gbs * 1e9),
        )
        operators = self.operators * hardware.operator_us * 1e-6 if hardware.device == "cpu" else 0.0
        return (products + weights) / hardware.reached(dtype) + operators


def pass_work(
    plan: Plan, backbone: str, *, scales: int, dtype: str, explicit: bool, recompute: bool = False
) -> PassWork:
    """Of the steps of a backbone that sample one of the first so many scales. On a CPU attention's shares are `explicit`, and
    kept."""
    spec, item = plan.backbone(backbone), round(ITEM[dtype])
    width, tokenizer = spec.width, spec.tokenizer
    by_layer: dict[tuple[int, int], tuple[int, int]] = {}
    """Tokens that attend, and those that the FFN computes."""
    encoded = sampled = 0
    for step in plan.steps:
        if step.backbone != backbone or step.samples >= scales:
            continue
        tokens = sum(spec.tokens[scale] for scale in step.scales)
        encoded += tokens
        sampled += spec.tokens[step.samples]
        for call in step.calls:
            key = (call.layer, call.slot)
            attend, feed = by_layer.get(key, (0, 0))
            by_layer[key] = (attend + tokens * bool(call.attention.tokens), feed + tokens * bool(call.ffn.tokens))
    flops, kept, largest = 0.0, 0, 0
    for attend, feed in by_layer.values():
        products = 2 * (attend * 4 * width**2 + feed * 2 * width * spec.hidden)
        flops += products + 4 * attend**2 * width + (0 if spec.shared_adaln else 12 * width**2)
        layer = _kept_by_layer(spec, attend, feed, item, explicit=explicit)
        kept += FLOAT32 * (attend if attend == feed else attend + feed) * width if recompute else layer
        largest = max(largest, layer)
    flops += 4 * width**2 + 12 * width**2 * spec.shared_adaln
    flops += 2 * encoded * tokenizer.code_dim * width + 2 * sampled * width * tokenizer.vocabulary
    # The head's own norm, its logits, and their logarithm of the softmax.
    kept += sampled * (width * (2 * FLOAT32 + item) + tokenizer.vocabulary * 2 * FLOAT32)
    return PassWork(flops=flops, activations=kept + (largest if recompute else 0), layers=len(by_layer))


def _kept_by_layer(spec: ModelSpec, attend: int, feed: int, item: int, *, explicit: bool) -> int:
    """Residual stream and its normed form twice, heads of unit length; in the compute type what products take, q, k and v,
    the gates' branches, and gelu's slope. On a CPU our kernels make what is normed, and heads from what they were made of, again."""
    width = spec.width
    shares = spec.heads * attend if explicit else width
    stream, heads = (1, 0) if explicit else (2, 2 * spec.l2_attention)
    made_of = 3 if explicit and spec.l2_attention else 0
    of_attention = FLOAT32 * (stream + heads) * width + item * ((1 + made_of + 3 + 1 + 1) * width + shares)
    of_ffn = FLOAT32 * stream * width + item * ((1 + 1) * width + 2 * spec.hidden)
    return attend * of_attention + feed * of_ffn


def stages_of(
    row: Row, *, steps: int, dtype: str, device: str, seed: int = 0, recompute: bool = False
) -> Iterator[StageWork]:
    """Every stage of a row's recipe."""
    schedule = row.schedule
    if schedule is None:
        raise UserError(f"{row.name} trains nothing: its recipe uses the pretrained weights as they are")
    schedule.check(steps)
    spec_of = {MAIN: row.model, **row.policies.backbones}
    for stage in schedule.stages():
        own = max(1, round(steps * stage.share))
        asked = sorted({round(place * (own - 1) / (_MOST_STEPS - 1)) for place in range(_MOST_STEPS)})
        answers = [schedule.at(stage, step, own, uniforms(seed=seed, step=step)) for step in asked]
        yield _stage(
            row, stage, answers, spec_of, steps=own, dtype=dtype, explicit=device == "cpu", recompute=recompute
        )  # fmt: skip


def full_model_stage(spec: ModelSpec, *, steps: int, dtype: str, device: str, recompute: bool = False) -> StageWork:
    """Of a training of the full model alone."""
    return _stage(
        rows.resolve(rows.FULL, spec), Stage(name="train"), [TrainStep()], {MAIN: spec}, steps=steps, dtype=dtype,
        explicit=device == "cpu", recompute=recompute,
    )  # fmt: skip


def _stage(
    row: Row,
    stage: Stage,
    answers: Sequence[TrainStep],
    spec_of: Mapping[str, ModelSpec],
    *,
    steps: int,
    dtype: str,
    explicit: bool,
    recompute: bool,
) -> StageWork:
    spec = spec_of[stage.backbone]
    known: dict[tuple[str | None, int], PassWork] = {}
    flops, most, layers = 0.0, 0, 0
    for answer in answers:
        weights = answer.scale_weights or (1.0,) * spec.scales
        scales = max(scale for scale, weight in enumerate(weights) if weight > 0) + 1
        key = (answer.point, scales)
        if key not in known:
            plan, backbone = _plan_of(row, stage, spec, answer.point)
            known[key] = pass_work(
                plan, backbone, scales=scales, dtype=dtype, explicit=explicit, recompute=recompute
            )  # fmt: skip
        flops += known[key].flops * (4 if recompute else 3)
        most = max(most, known[key].activations)
        layers += known[key].layers
    total = sum(parameters(spec).values())
    fixed = FLOAT32 * total * sum(STATE.values())
    if ITEM[dtype] != FLOAT32:
        fixed += round(ITEM[dtype]) * sum(numbers for numbers, _ in matrices(spec).values())
    fixed += FLOAT32 * tokenizer_parameters(row.model.tokenizer, row.model.scales)
    if stage.teacher is not None:
        other = spec_of[stage.teacher]
        fixed += FLOAT32 * sum(parameters(other).values())
        full = compile_plan(other, RowPolicies(name=rows.FULL))
        most += max(_taught(other, answer, dtype) for answer in answers)
        flops += pass_work(full, MAIN, scales=other.scales, dtype=dtype, explicit=explicit).flops * len(answers)
    return StageWork(
        name=stage.name, steps=steps, flops=flops / len(answers), fixed=fixed, activations=most, moved=MOVED * total,
        operators=OPERATORS_OF_LAYER * layers / len(answers) + OPERATORS_OF_STEP,
    )  # fmt: skip


def _taught(teacher: ModelSpec, answer: TrainStep, dtype: str) -> int:
    """Bytes of an image that a loss of the plugin's own is shown of its teacher: at each place what enters and what leaves."""
    if answer.loss != "own":
        return 0
    layers = sum(place != "head" for place in answer.sees) * teacher.depth
    by_token = layers * teacher.width * (FLOAT32 + round(ITEM[dtype]))
    by_token += FLOAT32 * (teacher.width + teacher.tokenizer.vocabulary) * ("head" in answer.sees)
    return teacher.length * by_token


def _plan_of(row: Row, stage: Stage, spec: ModelSpec, point: str | None) -> tuple[Plan, str]:
    if point is None:
        return compile_plan(spec, RowPolicies(name=rows.FULL)), MAIN
    return compile_plan(row.model, rows.at_point(row, point).policies), stage.backbone


def as_text(
    found: Mapping[str, Sequence[StageWork]],
    *,
    devices: Sequence[Hardware],
    batch: int,
    gpus: int,
    parts: int,
    dtype: str,
) -> str:
    """For a terminal: of every stage what it holds, what fits, and how long it takes."""
    from tabulate import tabulate

    pieces, lines = batch // (gpus * parts), []
    for recipe, stages in found.items():
        for stage in stages:
            name = recipe if len(stages) == 1 else f"{recipe} {stage.name}"
            line = [name, f"{stage.fixed / 2**30:.3g}", f"{stage.activations / 2**20:,.3g}"]
            line.append(f"{stage.needed(pieces) / 2**30:.3g}")
            for device in devices:
                limit = usable(round(device.memory_gb * 2**30), device=device.device)
                seconds = stage.seconds(batch, gpus=gpus, hardware=device, dtype=dtype)
                line += [f"{stage.largest(limit):,}", f"{seconds:.3g}", f"{seconds * stage.steps / 3600:.3g}"]
            lines.append(line)
    headers = ["recipe", "states\nGiB", "an image\nMiB", f"GiB at\n{pieces} images"]
    for device in devices:
        headers += [f"most images\non {device.name}", "s a step", "h in all"]
    bounds = [device.name for device in devices if device.bounds(dtype)]
    told = f" (a bound on {', '.join(bounds)})" if bounds else ""
    title = (
        f"training, batch {batch} over {gpus} process{'es' * (gpus > 1)} in {parts} part{'s' * (parts > 1)}, {dtype}; "
        f"memory of each process, time by products, weights and operators{told}"
    )
    return f"{title}\n{tabulate(lines, headers, disable_numparse=True, stralign='right', colalign=('left',))}"


def in_a_line(
    stages: Sequence[StageWork], *, batch: int, gpus: int, parts: int, dtype: str, device: Hardware | None
) -> str:
    """For who is about to train: memory of a process, and time where the device is known."""
    memory = max(stage.needed(batch // (gpus * parts)) for stage in stages) / 2**30
    steps = sum(stage.steps for stage in stages)
    text = f"{steps:,} step{'s' * (steps > 1)} of {batch:,} images; {memory:.3g} GiB a process"
    if device is None or dtype not in device.tflops:
        return text
    seconds = sum(stage.steps * stage.seconds(batch, gpus=gpus, hardware=device, dtype=dtype) for stage in stages)
    told = f"{seconds / 3600:,.1f} h" if seconds > 3600 else f"{seconds:,.0f} s"
    return f"{text}, {'at least' if device.bounds(dtype) else 'about'} {told} by the rates of {device.name}"
