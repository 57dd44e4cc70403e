"""Distilled Decoding (arXiv 2412.17153): a student of VAR that makes all tokens from noise in one or two passes. Our own code.

Points: `s1` and `s2` are one and two passes of the student. `s2t1` is two, between which the teacher draws the last one of the
scales that the second begins from anew; `s1t5` has all five of these from the teacher. `independent` draws every token by itself.
"""

from __future__ import annotations

import re

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import Generator, Parameter, Provenance, Setting, Settings
from varbench.spec import ModelSpec

from .generator import Independent, Jumping, Point, Teaching, has_frequencies
from .story import published

INDEPENDENT = "independent"
PATTERN = re.compile(r"s([12])(?:t([0-9]+))?")
SECOND_JUMP = {20: 4, 24: 4}
"""Scales that are there before the second of two jumps, by the depth of the published models; else half of the scales."""
SPLITS = {"s2t2": 8, "s1t5": 9}
"""Scales that are read as codes, where the published command differs from the number above."""
OFFICIAL_SIDE = 256


def second_jump(model: ModelSpec) -> int:
    return min(SECOND_JUMP.get(model.depth, model.scales // 2), model.scales - 1)


def points(model: ModelSpec) -> tuple[str, ...]:
    at = second_jump(model)
    helped = [f"s2t{count}" for count in (1, 2) if count < at]
    return (*([INDEPENDENT] if has_frequencies(model) else []), "s1", "s2", *helped, f"s1t{at}")


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    at, official = second_jump(model), model.image_side == OFFICIAL_SIDE
    drawn = {"cfg": 2.0, "top_k": 900, "top_p": 0.95} if official else {"cfg": 1.5, "top_k": 900, "top_p": 0.96}
    note = (
        "written anew; the student's states and both heads agree with the authors' code on small random weights, as does what is "
        "read of them in one and two jumps. The flow's steps, 24 even in log t / (1 - t) and of second order, are ours: theirs are "
        "not released. Training is not released either; ours: examples of the full model by cfg, "
        "top_k and top_p, which below 256 px are those that runs have by default; "
        "noise as wide as the codes' own spread; half of a batch begins from noise alone, half from the scales of the second jump; "
        "cross-entropy of codes plus squared error of vectors, without a perceptual loss; the rate, steps and running mean of the "
        "other generators here. Only what is read is run: the first of two jumps runs the scales that it is to give, since no token "
        "sees its own level or later ones, and whole=true runs everything as the authors' code does. The teacher is given scales "
        "behind their mask, and without one in the authors' code"
    )
    parameters = {
        "split": Parameter(
            default=-1, help="scales that are read as codes, the others as vectors; -1 takes the point's"
        ),
        "whole": Parameter(
            default=False, help="run all tokens at every jump, and both heads on all, as the authors' code does"
        ),
        "cfg": Parameter(
            default=drawn["cfg"], help="guidance of the teacher, for examples and for scales that it draws"
        ),
        "top_k": Parameter(default=int(drawn["top_k"]), help="codes that the teacher draws from; 0 takes all"),
        "top_p": Parameter(
            default=drawn["top_p"], help="share of probability that the teacher draws from; 0 takes all"
        ),
        "weights": Parameter(
            default="",
            kind="path",
            help="official checkpoint of the student; none takes the trained one, or a random one",
        ),
    }
    return Settings(
        points=points(model),
        default_points=tuple(point for point in points(model) if point != "s2t2"),
        point_pattern=PATTERN.pattern,
        parameters=parameters,
        published=published(model, at=at),
        summary="all tokens from noise in one or two passes of a student (Distilled Decoding)",
        provenance=Provenance(kind="port", note=note, url="https://arxiv.org/abs/2412.17153"),
    )


@hookimpl
def varbench_generator(setting: Setting, model: ModelSpec) -> Generator:
    given = setting.parameters
    if model.shared_adaln:
        raise UserError(
            f"distilled: {model.name} makes its layers' vectors of the class in one place; give a model that does not"
        )
    assert setting.point is not None
    at, weights = second_jump(model), str(given["weights"])
    teaching = Teaching(cfg=float(given["cfg"]), top_k=int(given["top_k"]), top_p=float(given["top_p"]), at=at)
    if teaching.cfg < 0 or teaching.top_k < 0 or not 0 <= teaching.top_p <= 1:
        raise UserError(
            f"distilled: cfg is {teaching.cfg:g}, top_k {teaching.top_k}, top_p {teaching.top_p:g}; give cfg and top_k of 0 or "
            "more, and a top_p of 0 to 1"
        )
    kind: type[Jumping] = Jumping
    if setting.point == INDEPENDENT:
        if weights or not has_frequencies(model):
            raise UserError(
                f"distilled@{INDEPENDENT} is counted where a student is trained, on small models; leave weights= out"
            )
        kind = Independent
    point = _point(setting.point, model, split=int(given["split"]))
    return kind(model, point, teaching, weights=weights, everywhere=bool(given["whole"]))


def _point(name: str, model: ModelSpec, *, split: int) -> Point:
    at = second_jump(model)
    if split < 0:
        split = SPLITS.get(name, at) if model.image_side == OFFICIAL_SIDE else at
    if split > model.scales:
        raise UserError(
            f"distilled: split is {split}; {model.name} has {model.scales} scales, so give 0 to {model.scales}"
        )
    if name == INDEPENDENT:
        return Point(jumps=0, at=0, retaught=0, split=split)
    matched = PATTERN.fullmatch(name)
    assert matched is not None
    jumps, retaught = int(matched[1]), int(matched[2] or 0)
    most, least = (at - 1, 0) if jumps == 2 else (at, at if retaught else 0)
    if not least <= retaught <= most:
        raise UserError(
            f"{name}: the student's second jump on {model.name} begins from {at} scales, so give s1, s2, s2t1 to s2t{at - 1}, or "
            f"s1t{at}"
        )
    return Point(jumps=jumps, at=at, retaught=retaught, split=split)
