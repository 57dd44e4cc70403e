"""Synthetic records for tests of statistics, comparison and reports. Every number in them is invented."""

from __future__ import annotations

import base64
import dataclasses
import io
import random
import zlib
from typing import Any

from varbench import record as r
from varbench.record.options import Options
from varbench.record.plan_summary import call_runs

LAYERS = 16
SIDES = (1, 2, 3, 4, 6, 8)


def make_record(
    row: str = "variant@d8",
    *,
    seconds: float = 0.5,
    full_seconds: float | None = 1.0,
    quality: float | None = 5.0,
    half_width: float = 0.2,
    noise: float = 0.01,
    rounds: int = 3,
    status: r.Status = r.Status.COMPLETE,
    verdict: r.Verdict = r.Verdict.VALID,
    reasons: tuple[str, ...] = (),
    denominator: str | None = None,
    accounting: str = "lossless",
    score_name: str = "FD-shapes",
    preset: str = "tiny",
    images: int = 2000,
    study: str | None = None,
    published: tuple[r.PublishedLine, ...] = (),
    training: bool = True,
    **changes: Any,
) -> r.Record:
    """A record that looks like one of a CPU run of the tiny preset, with invented numbers."""
    rng = random.Random(zlib.crc32(row.encode()))
    names = [part.split("@")[0].split(":")[0] for part in row.split("+")]
    setting = row.split("+")[0].partition("@")[2].split(":")[0]
    recipe, _, point = setting.rpartition("/")
    full = denominator is not None
    depth = LAYERS if full or not point.startswith("d") else int(point[1:])
    plan = make_plan(depth, accounting=accounting, seconds=seconds)
    complete = status is r.Status.COMPLETE
    record = r.Record(
        run="2026-11-21T12-00-00",
        row=r.RowIdentity(
            row=row,
            plugins=tuple(r.PluginVersion(name=name, distribution="varbench", version="0.1.0") for name in names),
            recipe=recipe or None,
            point=point or None,
            denominator=denominator,
            study=study,
        ),
        model=r.Model(
            preset=preset,
            spec={"depth": LAYERS, "sides": list(SIDES)},
            parameters={"var": 10_900_000},
            weights="shipped",
        ),
        protocol=Options(
            model=preset,
            device="cpu",
            batch=64,
            dtype="bfloat16",
            kernel="math",
            top_k=0,
            top_p=0.0,
            images=images,
            labels="balanced, 200 a class",
            accounting=accounting,
            rounds=rounds,
            count=3,
            budget=3.0,
        ),
        environment=r.Environment(
            machine="m-1f0c",
            system="Linux x86_64",
            cpu="Example CPU",
            cores=2,
            memory_bytes=16 << 30,
            device="cpu",
            versions={"python": "3.11.9", "torch": "2.13.0"},
        ),
        command=f"varbench run --plugins {row} --model {preset}",
        code_hash="c" * 64,
        inputs_hash="i" * 64,
        started="2026-11-21T12:00:00Z",
        finished="2026-11-21T12:01:00Z" if complete else None,
        status=status,
        reason=None if complete else "the child did not finish",
        validity=r.Validity(verdict=verdict if complete else r.Verdict.UNCHECKED, reasons=reasons),
        plan=plan,
        trace=plan.totals if complete else None,
        timing=make_timing(
            seconds,
            full_seconds=seconds if denominator == "lossless" else full_seconds,
            noise=noise,
            rounds=rounds,
            rng=rng,
        )
        if complete
        else None,
        memory=make_memory(plan) if complete else None,
        quality=r.Quality(
            scores=(
                make_score(score_name, quality, half_width, n=images),
                make_score(
                    "class accuracy",
                    None if quality is None else max(0.0, 1 - quality / 40),
                    0.01,
                    n=images,
                    better="higher",
                ),
            ),
            floors={
                "real": make_score(score_name, 0.05, 0.01, n=images),
                "reconstruction": make_score(score_name, 0.6, 0.02, n=images),
            },
        )
        if complete
        else None,
        distance=None if full or not complete else r.Distance(n=64, psnr=18.0, feature_distance=1.5, equal_tokens=0.3),
        training=make_training(names[0], recipe, quality or 5.0) if training and complete and not full else None,
        published=published,
        study=None if study is None else r.StudyWords(title=f"The {study} study", caption=f"What {study} changes."),
        provenance=r.MethodSource(kind="from paper", note="phase lengths are our choice"),
        samples=r.Samples(png=make_png(rng), columns=4, labels=(0, 1, 2, 3, 4, 5, 6, 7)) if complete else None,
        missing={} if complete else {"timing": "the child did not finish"},
    )
    return dataclasses.replace(record, **changes)


def full_records(**options: Any) -> list[r.Record]:
    """Both denominators."""
    seconds = options.pop("seconds", 1.0)
    return [
        make_record("full_var", denominator="lossless", seconds=seconds, **options),
        make_record(
            "full_var@upstream",
            denominator="upstream",
            accounting="upstream",
            seconds=seconds * 1.05,
            **options,
        ),
    ]


def make_score(name: str, value: float | None, half: float, *, n: int, better: str = "lower") -> r.Score:
    return r.Score(
        name=name,
        value=value,
        n=n,
        better=better,
        implementation="torch-fidelity 0.4.0",
        features="shapes-classifier",
        weights_sha256="a" * 64,
        low=None if value is None else value - half,
        high=None if value is None else value + half,
        reason="too few images" if value is None else None,
    )


def make_timing(
    seconds: float, *, full_seconds: float | None = 1.0, noise: float, rounds: int, rng: random.Random
) -> r.Timing:
    """`full_seconds` are those of the neighbours, None for a row that has none."""
    columns = []
    for regime, batch, scale in (("throughput", 64, 1.0), ("latency", 1, 0.1)):
        for column, extra in (("transformer", 1.0), ("with_decoder", 1.2), ("end_to_end", 1.3)):
            base = seconds * scale * extra
            raw = tuple(tuple(base * (1 + rng.gauss(0, noise)) for _ in range(8)) for _ in range(rounds))
            beside = None
            if full_seconds is not None:
                full = full_seconds * scale * extra
                beside = tuple(tuple(full * (1 + rng.gauss(0, noise)) for _ in samples) for samples in raw)
            flat = sorted(value for samples in raw for value in samples)
            middle = flat[len(flat) // 2]
            columns.append(
                r.TimingColumn(
                    column=column,
                    regime=regime,
                    batch=batch,
                    clock="perf_counter",
                    rounds=raw,
                    beside=beside,
                    median=middle,
                    low=middle * (1 - noise),
                    high=middle * (1 + noise),
                    iqr=flat[len(flat) * 3 // 4] - flat[len(flat) // 4],
                )
            )
    share = [side * side for side in SIDES]
    per_scale = r.PerScale(batch=64, clock="perf_counter", seconds=tuple(seconds * part / sum(share) for part in share))
    return r.Timing(
        columns=tuple(columns),
        per_scale=per_scale,
        first_call_seconds=seconds * 2,
        largest_batch=r.LargestBatch(batch=512, how="plan", limit_bytes=8 << 30),
    )


def make_plan(depth: int, *, accounting: str, seconds: float) -> r.PlanSummary:
    bridge, width, batch = 4, 192, 128
    waste = 3 if accounting == "upstream" else 2
    steps, cached, held = [], 0, 0
    for index, side in enumerate(SIDES):
        tokens = side * side
        layers = range(LAYERS) if index < bridge else [i * (LAYERS - 1) // max(depth - 1, 1) for i in range(depth)]
        cached += tokens
        last = index == len(SIDES) - 1
        calls = [(layer, tokens, tokens, cached - tokens, tokens, 0 if last else cached) for layer in layers]
        held = len(calls) * (cached - (tokens if last else 0)) * 2 * width * batch * waste
        flops = 2.0 * batch * tokens * len(calls) * 12 * width * width
        steps.append(
            r.PlanStep(
                scales=(index + 1,),
                samples=index + 1,
                backbone="var",
                branches=("labelled", "unlabelled"),
                mask="full",
                calls=call_runs(calls),
                flops=flops,
                state_peak_bytes=held,
                state_after_bytes=0 if last else held,
                activation_bytes=batch * tokens * width * 20,
                moved_bytes=len(calls) * 24 * width * width + held,
                predicted_seconds=seconds * 0.8 * tokens / sum(s * s for s in SIDES),
            )
        )
    totals = r.Totals(
        flops=sum(step.flops or 0 for step in steps),
        steps=len(steps),
        layer_tokens=sum(len(run.layers) * run.attention_tokens for step in steps for run in step.calls),
        state_peak_bytes=max(step.state_peak_bytes or 0 for step in steps),
        state_end_bytes=held,
    )
    return r.PlanSummary(
        digest=f"{depth:02d}{accounting[:2]}" * 8,
        picks=False,
        batch=64,
        steps=tuple(steps),
        totals=totals,
        weights_bytes=21_800_000,
        accountings={accounting: totals},
        hardware="Example CPU",
        predicted_seconds=seconds * 0.8,
    )


def make_memory(plan: r.PlanSummary) -> r.Memory:
    held = tuple(step.state_peak_bytes or 0 for step in plan.steps)
    return r.Memory(
        batch=64,
        weights_bytes=21_800_000,
        state_peak_bytes=held,
        state_after_bytes=(*held[:-1], 0),
        activations_peak_bytes=40_000_000,
        rss_growth_bytes=120_000_000 + max(held),
    )


def make_training(name: str, recipe: str, reached: float) -> r.Training:
    steps = tuple(range(1, 201))
    evaluations = tuple(
        r.Evaluation(step=step, point=point, score=make_score("FD-shapes", base + 8 / (1 + step / 40), 0.3, n=2000))
        for step in (0, 50, 100, 200)
        for point, base in (("full", reached - 2), ("d8", reached))
    )
    return r.Training(
        key=f"{name}-{recipe or 'default'}",
        recipe=f"{name}@{recipe}" if recipe else name,
        steps=200,
        seconds=60.0,
        seed=0,
        command=f"varbench train {name}",
        evaluations=evaluations,
        losses=(r.LossCurve(point="full", steps=steps, losses=tuple(4 / (1 + s / 100) for s in steps)),),
    )


def make_png(rng: random.Random, *, size: int = 64) -> str:
    """A small PNG of coloured squares, base64."""
    from PIL import Image

    image = Image.new("RGB", (size * 2, size))
    cell = size // 2
    for x in range(4):
        for y in range(2):
            image.paste(
                tuple(rng.randrange(256) for _ in range(3)),
                (x * cell, y * cell, (x + 1) * cell, (y + 1) * cell),
            )
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
