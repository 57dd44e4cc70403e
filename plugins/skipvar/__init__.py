"""SkipVAR: two previews tell whether an image can do without its last scales, or without their guidance (arXiv 2506.08908).

Points: `sN` is trained to leave out what costs an image no more than down to N percent of likeness (SSIM) with the full model's.
Calibration trains the two logistic models that decide; without it every image goes on as in the full model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varbench import hookimpl
from varbench.errors import UserError
from varbench.policies import DecisionPolicy, Parameter, Provenance, Published, Setting, Settings
from varbench.spec import ModelSpec

from .deciding import AsLearned, decided_after, read_model, way_names

if TYPE_CHECKING:
    from varbench import Pipeline

POINTS = ("s88", "s86", "s84", "s70", "s50")
PUBLISHED = (
    Published(
        setting="@s88", model="infinity", figures={"speedup": 1.81, "ssim": 0.88}, grade="primary",
        source="arXiv 2506.08908, abstract", conditions="text to image with Infinity, mean over prompts; no figure for VAR",
    ),
    Published(
        setting="@s84", model="infinity", figures={"speedup": 2.62}, grade="primary",
        source="arXiv 2506.08908, abstract", conditions="prompts of GenEval with Infinity, by which point is not said",
    ),
)  # fmt: skip


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=POINTS,
        default_points=("s88", "s84", "s70"),
        point_pattern="s[1-9][0-9]",
        parameters={
            "first": Parameter(default=decided_after(model), help="it is decided after the first N scales"),
            "side": Parameter(
                default=max(4, model.sides[-1] // 8),
                help="places along each side of the maps that are decoded as previews",
            ),
            "circle": Parameter(
                default=0.4, help="frequencies within this share of the highest, in a circle, do not count as high"
            ),
            "ends": Parameter(
                default="",
                help="for each number of last scales to leave out, two weights and a bias; calibration finds them",
                calibrated=True,
            ),
            "labelled": Parameter(
                default="",
                help="the same for the number of last scales without guidance, of images that do not end before",
                calibrated=True,
            ),
            "together": Parameter(default=False, help="a whole batch goes one way, by the mean of its images"),
            "always": Parameter(
                default="",
                help=f"the way of all images, {', '.join(way_names(model, decided_after(model)))}; empty asks the models",
            ),
            "samples": Parameter(default=512, help="images that calibration learns from"),
        },
        neutral=("@s88:always=on", "@s88"),
        published=PUBLISHED,
        summary="two previews decide whether an image ends early, or goes on without guidance",
        provenance=Provenance(
            kind="port",
            note=(
                "what is measured of the previews (mean difference of Sobel magnitudes, share of high frequencies), the "
                "ways, the order of the two logistic models and likeness thresholds of .88, .86 and .84 (lower ones are "
                "ours) are those of the authors' code for Infinity, which decides after 10 of 13 scales by previews at an "
                "eighth of the side. Ours are: the scale, the last after which a quarter of all tokens or less is drawn, "
                "as there; previews of 4x4 places or more, shrunk by area; images of a batch decided one by one, where "
                "their code has one; the training, of which only the threshold and 3,000 samples are told: each image's "
                "label is the largest number of scales that can go with a likeness (SSIM, Gaussian window of 11) at the "
                "threshold or above, and ridge-penalised softmax regression on standardised features is fitted to it"
            ),
            url="https://github.com/fakerone-li/SkipVAR",
        ),
    )


@hookimpl
def varbench_decision_policy(setting: Setting, model: ModelSpec) -> DecisionPolicy:
    return policy_of(setting, model)


def policy_of(setting: Setting, model: ModelSpec) -> AsLearned:
    given = setting.parameters
    first, side, circle, always = int(given["first"]), int(given["side"]), float(given["circle"]), str(given["always"])
    if not 2 <= first < model.scales:
        raise UserError(f"first is {first}; two previews and a scale to leave out need 2 to {model.scales - 1}")
    if not 0 <= circle < 1:
        raise UserError(f"circle is {circle}; give a share of the highest frequency, 0 or more and less than 1")
    names = way_names(model, first)
    if always and always not in names:
        raise UserError(f"always is {always!r}; give {', '.join(names)}, or nothing to ask the models")
    return AsLearned(
        model,
        first=first,
        side=side,
        circle=circle,
        ends=read_model(str(given["ends"]), model.scales - first, what="ends"),
        labelled=read_model(str(given["labelled"]), model.scales - first, what="labelled"),
        together=bool(given["together"]),
        always=names.index(always) if always else None,
    )


@hookimpl
def varbench_calibrate(setting: Setting, pipe: Pipeline) -> dict[str, Any]:
    from .learning import learned

    assert setting.point is not None
    samples = int(setting.parameters["samples"])
    if samples < 2:
        raise UserError(f"samples is {samples}; give the number of images to learn from, 2 or more")
    return learned(policy_of(setting, pipe.model), pipe, likeness=int(setting.point[1:]) / 100, samples=samples)
