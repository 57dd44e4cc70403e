"""LlamaGen, a transformer that makes an image code by code, as a row beside VAR (arXiv 2406.06525). Our own code.

Points: `XXL384` is the size and the side in pixels at which it works. Without `weights` they are random: speed and memory are
true, images are noise. On presets below 256 px there is `nano`, which is trained here, over the preset's own tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import Generator, Parameter, Provenance, Published, Setting, Settings
from varbench.spec import ModelSpec

from .generator import Official
from .own_codes import LAYERS, WIDTH, OwnCodes
from .sampling import Sampler
from .sizes import CLASSES, STRIDE, Size

SIZES = {"B": (12, 12, 768), "L": (24, 16, 1024), "XL": (36, 20, 1280), "XXL": (48, 24, 1536), "3B": (24, 32, 3200)}
"""Layers, heads, width."""
GUIDANCE = {"B": 2.0, "L": 2.0, "XL": 1.75, "XXL": 1.75, "3B": 1.65}
"""Of the published figures at 384 px."""
NANO, NANO_GUIDANCE = "nano", 1.5
SIDES = (256, 384, 512)
POINT = re.compile(r"(B|L|XL|XXL|3B)(256|384|512)")


def _line(setting: str, model: ModelSpec, conditions: str, grade: str = "primary", **figures: float) -> Published:
    primary = grade == "primary"
    return Published(
        setting=setting,
        model=model.name,
        figures=figures,
        grade="primary" if primary else "secondary",
        source="the authors' README" if primary else "tables of later papers, which agree",
        conditions=conditions,
    )


def _published(model: ModelSpec) -> tuple[Published, ...]:
    """At 256 px: beside every preset of that side, since the network is its own."""
    if (model.image_side, model.classes) != (256, CLASSES):
        return ()
    fid = {
        "B256": 5.46, "L256": 3.80, "B384": 6.09, "L384": 3.07, "XL384": 2.62, "XXL384": 2.34, "3B384": 2.18,
    }  # fmt: skip
    scores = {"B384": 182.5, "L384": 256.1, "XL384": 244.1, "XXL384": 253.9, "3B384": 263.3}
    asked = "{cfg} cfg, no top-k or top-p, 50,000 random labels, bicubic to 256 px, bfloat16"
    told = {
        point: asked.format(cfg=GUIDANCE[point[:-3]]) if point.endswith("384") else "cfg is not printed beside it"
        for point in fid
    }
    timed = Published(
        setting="@XXL384",
        model=model.name,
        figures={"latency_s": 73.97, "memory_mb": 42_600, "precision": 0.80, "recall": 0.59},
        grade="primary",
        source="table of arXiv 2411.17787",
        conditions="576 steps; one NVIDIA L20, batch 64, decoder excluded. arXiv 2511.16546 prints 74.27 s and calls it 384 steps",
    )
    return (
        *(_line(f"@{point}", model, told[point], fid=value) for point, value in fid.items()),
        *(_line(f"@{point}", model, told[point], "secondary", **{"is": value}) for point, value in scores.items()),
        timed,
    )


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    parameters = {
        "cfg": Parameter(
            default=0.0, help="guidance; up to 1 runs no unlabelled branch, and 0 takes that of the point"
        ),
        "cfg_interval": Parameter(default=-1, help="last decode step, from 0, that is guided; -1 guides all"),
        "temperature": Parameter(default=1.0, help="logits are divided by it"),
        "top_k": Parameter(default=0, help="codes to draw from; 0 takes all"),
        "top_p": Parameter(default=1.0, help="share of probability to draw from; 1 takes all"),
        "graph": Parameter(
            default=False, help="replay a decode step as a CUDA graph; every step then reads the whole cache"
        ),
    }
    note = (
        "written anew; logits, filters and decoded pixels agree with the authors' code on small random weights. Ours: noise is "
        "an image's own at each position, and steps read no more of the cache than is filled unless graph=true. "
    )
    if model.image_side < 256:
        note += (
            f"nano is nobody's model: {LAYERS} layers of width {WIDTH}, trained without dropout by the trainer and data of the "
            "other rows; its codes are one square an image, from a codebook that k-means finds in the map of the preset's "
            "encoder, because the codes of the tokenizer's last scale hold only what earlier scales left over; its decoder "
            "was not trained for them"
        )
        points: dict[str, Any] = {"points": (NANO,)}
    else:
        note += "Random weights have an output layer that is not zero; the decoder stays in float32, as in the authors' script"
        names = tuple(f"{size}{side}" for side in (256, 384) for size in SIZES if side == 384 or size in ("B", "L"))
        points = {"points": names, "default_points": ("L384", "XXL384"), "point_pattern": POINT.pattern}
        parameters |= {
            "weights": Parameter(
                default="", kind="path", help="official c2i_*.pt of the point; none draws random ones"
            ),
            "tokenizer": Parameter(default="", kind="path", help="official vq_ds16_c2i.pt, which weights need"),
        }
    return Settings(
        **points,
        parameters=parameters,
        published=_published(model),
        summary="next-token prediction of an image's codes (LlamaGen)",
        provenance=Provenance(kind="port", note=note, url="https://arxiv.org/abs/2406.06525"),
    )


@hookimpl
def varbench_generator(setting: Setting, model: ModelSpec) -> Generator:
    given = setting.parameters
    assert setting.point is not None
    sampler = Sampler(
        cfg=float(given["cfg"]),
        cfg_interval=int(given["cfg_interval"]),
        temperature=float(given["temperature"]),
        top_k=int(given["top_k"]),
        top_p=float(given["top_p"]),
    )
    _check(sampler)
    if setting.point == NANO:
        return OwnCodes(
            model=model, sampler=replace(sampler, cfg=sampler.cfg or NANO_GUIDANCE), graph=bool(given["graph"])
        )
    return _official(setting.point, sampler, setting, model)


def _official(point: str, sampler: Sampler, setting: Setting, model: ModelSpec) -> Official:
    matched = POINT.fullmatch(point)
    assert matched is not None
    name, side = matched[1], int(matched[2])
    weights, tokenizer = (str(setting.parameters[key]) for key in ("weights", "tokenizer"))
    if weights and model.classes != CLASSES:
        raise UserError(f"{weights} knows ImageNet's {CLASSES} classes, and {model.name} has {model.classes} others")
    if bool(weights) != bool(tokenizer):
        raise UserError(
            "llamagen: give both weights= and tokenizer=, or neither; codes mean nothing to another tokenizer"
        )
    for path in filter(None, (weights, tokenizer)):
        if not Path(path).is_file():
            raise UserError(f"llamagen: there is no file {path}; give an official checkpoint")
    layers, heads, width = SIZES[name]
    return Official(
        size=Size(layers=layers, heads=heads, width=width, side=side // STRIDE),
        sampler=replace(sampler, cfg=sampler.cfg or GUIDANCE[name]),
        graph=bool(setting.parameters["graph"]),
        side=model.image_side,
        weights=weights,
        tokenizer=tokenizer,
    )


def _check(sampler: Sampler) -> None:
    if sampler.cfg < 0 or sampler.temperature <= 0 or sampler.top_k < 0 or not 0 < sampler.top_p <= 1:
        raise UserError(
            f"llamagen: cfg is {sampler.cfg:g}, temperature {sampler.temperature:g}, top_k {sampler.top_k}, top_p "
            f"{sampler.top_p:g}; give cfg and top_k of 0 or more, a temperature above 0, a top_p above 0 and up to 1"
        )
