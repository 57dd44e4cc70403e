"""ActVAR: at the last scales only some tokens enter the FFN, each computes some of its experts, and the others' output is
estimated (arXiv 2511.12893).

Points: `mNrM` computes N percent of the experts, of M percent of the tokens; `mN` computes every token, `rM` every expert, and
`m100r100` is the full model. `tNrM` computes, of M percent of the tokens, the experts whose expected norm is at most N percent below
the token's largest; so their number hangs on content. Recipe `distilled` has both stages, `frozen` the first alone.
"""

from __future__ import annotations

import re

from varbench import hookimpl
from varbench.errors import UserError
from varbench.experts import WidthPolicy
from varbench.experts.routers import experts_of, router_width
from varbench.policies import Parameter, Provenance, Setting, Settings, TrainingSchedule
from varbench.spec import ModelSpec

LAST = 3
"""Scales that compute a part."""
POINTS = ("m75r90", "m75r75", "m50r50", "m25r25")
_PERCENT = "([1-9][0-9]?|100)"


@hookimpl
def varbench_settings(model: ModelSpec) -> Settings:
    return Settings(
        points=(*POINTS, "t70r75"),
        default_points=POINTS[:3],
        point_pattern=f"[mt]{_PERCENT}(r{_PERCENT})?|r{_PERCENT}",
        recipes=("distilled", "frozen"),
        parameters={
            "experts": Parameter(
                default=experts_of(model), help="experts of equal size that hidden units are split into"
            ),
            "router": Parameter(default=router_width(model), help="units of each layer's router"),
            "rank": Parameter(
                default=max(1, model.width // 16), help="rank of the map that estimates what is left out"
            ),
            "dense": Parameter(default=model.scales - LAST, help="the first N scales compute the whole FFN"),
        },
        neutral=("@m100r100", f"@m25r25:dense={model.scales}"),
        summary="some tokens compute some of the FFN's experts, the others' output is estimated",
        provenance=Provenance(
            kind="from paper",
            note=(
                "the abstract says experts, a router by content, a gate that keeps tokens of high potential to change, the "
                "others reconstructed, two stages of distillation, and up to 21.2 percent fewer FLOPs on ImageNet at 256 px; it "
                "does not say of which size, and no code is named. All else is ours: experts and routers as DMoE-VAR has them "
                "(arXiv 2510.08629), GELU kept, as many experts for every token, the gate on the FFN alone, a linear map that "
                "regresses the norm of the FFN's output, a share of each scale's tokens fixed per scale, a low-rank linear map "
                "as reconstruction, the last three scales, the first half of the steps on the frozen model's FFNs (mean square "
                "errors), the second on its logits (KL) at points drawn evenly; m75r75 saves about what is printed on d30. "
                "Counts are fixed; tN has those near the largest instead, as DMoE-VAR chooses, but by one threshold for all scales"
            ),
            url="https://arxiv.org/abs/2511.12893",
        ),
    )


def percents(point: str) -> tuple[int, int]:
    """Of experts, or below the largest of them, and of tokens."""
    shares: dict[str, str] = dict(re.findall(r"([mtr])([0-9]+)", point))
    return int(shares.get("m", shares.get("t", 100))), int(shares.get("r", 100))


@hookimpl
def varbench_width_policy(setting: Setting, model: ModelSpec) -> WidthPolicy | None:
    from .by_threshold import GatedByThreshold
    from .gated import GatedExperts

    assert setting.point is not None
    experts, router, rank, dense = (int(setting.parameters[name]) for name in ("experts", "router", "rank", "dense"))
    if not 0 <= dense <= model.scales:
        raise UserError(f"dense is {dense}; {model.name} has {model.scales} scales, so give 0 to {model.scales}")
    if min(router, rank) < 1:
        raise UserError(f"router is {router} and rank is {rank}; give 1 or more")
    of_experts, of_tokens = percents(setting.point)
    if (of_experts, of_tokens) == (100, 100) or dense == model.scales:
        return None
    partly = range(dense, model.scales)
    kept = [max(1, round(model.tokens[k] * of_tokens / 100)) if k in partly else None for k in range(model.scales)]
    sizes: dict[str, int] = {"experts": experts, "router": router, "rank": rank}
    if setting.point.startswith("t"):
        return GatedByThreshold(
            model, **sizes, thresholds=[of_experts / 100] * (model.scales - dense), dense=dense, kept=kept
        )
    chosen = [max(1, round(experts * of_experts / 100)) if k in partly else experts for k in range(model.scales)]
    return GatedExperts(model, **sizes, chosen=chosen, kept=kept)


@hookimpl
def varbench_training_schedule(setting: Setting, model: ModelSpec) -> TrainingSchedule:
    from .training import TwoStages

    return TwoStages(POINTS, frozen_only=setting.recipe == "frozen")
