"""DMoE-VAR: at the last scales each token computes the FFN's experts of the largest expected norm (arXiv 2510.08629).

Points: `mN` computes N percent of the experts at the last scales; the scales before compute the whole FFN. `m100` is the full
model. Recipe `routers` trains the routers with the model frozen; `untrained` has random ones, for comparison.
"""

from __future__ import annotations

from typing import Literal

from varbench import hookimpl
from varbench.errors import UserError
from varbench.experts import WidthPolicy
from varbench.experts.routers import RoutedExperts, experts_of, router_width
from varbench.policies import Parameter, Provenance, Published, Setting, Settings, TrainingSchedule
from varbench.spec import ModelSpec

LAST = 3
"""Scales that compute a part, as in the published result."""

_Printed = tuple[Literal["primary", "secondary"], str, dict[str, float]]
_CONDITIONS = "ReLU in GELU's place, thresholds per scale, 10,000 images, own kernel"
_ABSTRACT: _Printed = ("primary", "arXiv 2510.08629, abstract", {"saved_flops": 0.2, "speedup": 1.11})
_NOTE: _Printed = (
    "secondary",
    "notes of others on arXiv 2510.08629, whose abstract says: matched",
    {"fid_change": 0.01},
)


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=("m75", "m50", "m25"),
        point_pattern=r"m[1-9][0-9]?|m100",
        recipes=("routers", "untrained"),
        parameters={
            "experts": Parameter(
                default=experts_of(model), help="experts of equal size that hidden units are split into"
            ),
            "router": Parameter(default=router_width(model), help="units of each layer's router"),
            "dense": Parameter(default=model.scales - LAST, help="the first N scales compute the whole FFN"),
        },
        neutral=("@m100", f"@m25:dense={model.scales}"),
        published=tuple(
            Published(
                setting="@routers/m60",
                model=preset,
                figures=figures,
                grade=grade,
                source=source,
                conditions=_CONDITIONS,
            )
            for preset in ("var-d16", "var-d20")
            for grade, source, figures in (_ABSTRACT, _NOTE)
        ),
        summary="each token computes the FFN's experts of the largest expected norm",
        provenance=Provenance(
            kind="port",
            note=(
                "experts, routers, their loss and where the FFN stays whole agree with the authors' code, run beside it on equal "
                "weights: the same experts for every token, outputs within 3e-7; mN is a choice that it has too, while what they "
                "publish is by threshold (tN), whose number no plan can say beforehand (m60 saves about their share of FLOPs). "
                "Ours are: GELU and the model's own weights kept, where they first fine-tune all weights "
                "to ReLU; clusters by k-means with a stable matching from one start, where they solve a flow from ten "
                "(squares up to 2 percent larger); on models narrower than d16 more and smaller experts and narrower routers; "
                "rate, schedule and decay of AdamW"
            ),
            url="https://github.com/JortVincenti/DMoE-VAR",
        ),
    )


@hookimpl
def varbench_width_policy(setting: Setting, model: ModelSpec) -> WidthPolicy | None:
    assert setting.point is not None
    experts, router, dense = (int(setting.parameters[name]) for name in ("experts", "router", "dense"))
    if not 0 <= dense <= model.scales:
        raise UserError(f"dense is {dense}; {model.name} has {model.scales} scales, so give 0 to {model.scales}")
    if router < 1:
        raise UserError(f"router is {router}; give its units, 1 or more")
    percent = int(setting.point[1:])
    if percent == 100 or dense == model.scales:
        return None
    chosen = max(1, round(experts * percent / 100))
    return RoutedExperts(
        model,
        experts=experts,
        router=router,
        chosen=[experts if scale < dense else chosen for scale in range(model.scales)],
    )


@hookimpl
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule | None:
    from .training import RouterSchedule

    return RouterSchedule() if setting.recipe == "routers" else None
