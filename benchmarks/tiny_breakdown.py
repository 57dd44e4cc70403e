"""Where the time goes on `tiny`: tokenising, a training step, sampling, part by part.

    python benchmarks/tiny_breakdown.py > reports/tiny/breakdown.md

Parts take turns, so what drifts falls on all of them; medians of ten turns. A minute on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from varbench import load_pipeline
from varbench.data.shapes import Shapes
from varbench.engine.pipeline import Pipeline
from varbench.engine.teacher import TeacherPass
from varbench.engine.trained_layer import fused_attention
from varbench.measure.environment import cpu_name
from varbench.model.checkpoints import load_transformer
from varbench.model.tokenizer import Tokenizer
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.policies import MAIN
from varbench.quality import to_uint8
from varbench.rows.grammar import resolve
from varbench.spec import ModelSpec
from varbench.train.curriculum import attention_of
from varbench.train.optimiser import RunningMean, adamw, take_step

BATCH, TURNS = 32, 10
Part = Callable[[], object]


def main() -> None:
    spec, files, data = presets.preset("tiny").spec, presets.shipped_files("tiny"), Shapes(side=32)
    pipe = load_pipeline("tiny", vae=files["vae"], var=files["main"], dtype="bfloat16")
    images = data.images(data.training[:BATCH])
    scaled = torch.from_numpy(images).float() / 127.5 - 1
    tokens_BL, labels = pipe.encode(scaled), data.labels(data.training[:BATCH]).tolist()
    print(
        f"# Where the time goes on `tiny`\n\n{BATCH} images, {cpu_name()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}. Made by\n`python benchmarks/tiny_breakdown.py`; medians of ten turns.\n"
    )
    table(
        "Tokenising",
        {
            "render the images": lambda: data.images(data.training[:BATCH]),
            "encode (float32)": lambda: pipe.encode(scaled),
        },
    )
    table("A training step", training(pipe.tokenizer, files["main"], tokens_BL.clone(), torch.tensor(labels), spec))
    table("Sampling", sampling(pipe, labels, tokens_BL))


def training(
    tokenizer: Tokenizer, file: Path, tokens_BL: torch.Tensor, labels_B: torch.Tensor, spec: ModelSpec
) -> dict[str, Part]:
    model = load_transformer(file, spec.tokenizer).requires_grad_(True).train()
    optimizer, mean = adamw(model, weight_decay=0.05), RunningMean(model, decay=0.95)
    features_BLD = tokenizer.teacher_input(tokens_BL)

    def step(point: str, *, dtype: torch.dtype = torch.bfloat16, fused: bool = False, backward: bool = True) -> Part:
        forward = TeacherPass(compile_plan(spec, resolve(f"variant@{point}", spec).policies), MAIN)
        attend = fused_attention if fused else attention_of(torch.device("cpu"))

        def run() -> None:
            logits_BLV = forward.logits(model, features_BLD, labels_B, dtype=dtype, attend=attend)
            loss = F.cross_entropy(logits_BLV.transpose(1, 2), tokens_BL)
            if backward:
                loss.backward()

        return run

    def update() -> None:
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        take_step(optimizer, model.parameters(), rate=0.0)
        mean.update(0)

    return {
        "features of the tokens": lambda: tokenizer.teacher_input(tokens_BL),
        "forward, full": step("full", backward=False),
        "forward and backward, full": step("full"),
        "forward and backward, d8": step("d8"),
        "forward and backward, d2": step("d2"),
        "… full, in float32": step("full", dtype=torch.float32),
        "… full, with the fused attention kernel": step("full", fused=True),
        "optimiser and running mean": update,
    }


def sampling(pipe: Pipeline, labels: list[int], tokens_BL: torch.Tensor) -> dict[str, Part]:
    seeds = iter(range(1_000_000))

    def generate(row: str) -> Part:
        return lambda: pipe.generate(labels, seed=next(seeds), cfg=1.5, method=row)

    return {
        "generate, full": generate("full_var"),
        "generate, variant@d8": generate("variant@untrained/d8"),
        "generate, variant@d2": generate("variant@untrained/d2"),
        "of which the decoder": lambda: pipe.decode(tokens_BL),
        "bytes of the images": lambda: to_uint8(torch.rand(BATCH, 3, 32, 32)),
    }


def table(title: str, parts: dict[str, Part]) -> None:
    for run in parts.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(TURNS):
        for name, run in parts.items():
            began = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - began)
    print(f"## {title}\n\n| part | ms |\n|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {1000 * sorted(seconds)[TURNS // 2]:.1f} |")
    print()


if __name__ == "__main__":
    main()
